# SPDX-License-Identifier: Apache-2.0
"""What a study reads: text or pictures. A source opens the model and says what else differs; the steps are the same."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..activations import pictures as seen
from ..activations.text import model_and_tokenizer
from ..console import say
from ..data import PictureRows, Subset, Tokenizer, Windows, draw_windows, read_groups, require_groups, windows
from ..data.pictures import PICTURE_LAYOUTS
from ..errors import UserError, shown
from ..models import Transformer
from ..models.inputs import check_length
from ..models.pooling import has_pooled
from ..taps import capture
from ..taps.names import parse
from .config import StudyConfig
from .left_out import without, without_long

POS: Final = 11
"""Tokens of the text that shapes are found out with: no number of heads."""

type Read = Windows | PictureRows


class Opened(NamedTuple):
    """A model, and how what it reads is read, drawn and measured."""

    model: Any
    tokenizer: Tokenizer | None
    neurons: Callable[[str | None], str]
    """The site that was asked for, in full, or the usual one."""
    dictionary_site: str | None
    """The usual one; None: no dictionary is trained of such a model."""
    example: tuple[Any, Any]
    """Inputs and mask, or their shapes."""
    check: Callable[[str, tuple[int, ...]], None]
    """(site, shape) -> nothing, or an error: a study cannot count neurons there."""
    read: Callable[[str, int], tuple[Read, tuple[str, ...]]]
    """(site, least number of groups) -> all rows, names of groups that are left out."""
    draw: Callable[[Any], Subset]
    measured: tuple[float, Callable[[Any], int]]
    """Of every group: the share that is measured at most, and how many counted positions of the rows are enough."""
    output: Callable[..., Any]
    measure: str


# --- text ----------------------------------------------------------------------------------------


def _text(config: StudyConfig) -> Opened:
    model, tokenizer = model_and_tokenizer(
        config.model, dtype=jnp.dtype(config.dtype), bos=config.text.bos or "auto", tower=config.tower
    )
    causal = model.cfg.causal and model.cfg.has_head
    return Opened(
        model=model,
        tokenizer=tokenizer,
        neurons=functools.partial(neuron_site, cfg=model.cfg),
        dictionary_site=f"blocks.{model.cfg.n_layers // 2}.resid_post",
        example=(jnp.zeros((1, POS), jnp.int32), jnp.ones((1, POS), bool)),
        check=check_neurons,
        read=functools.partial(_windows, config, model, tokenizer),
        draw=functools.partial(_drawn, config, model),
        measured=(config.text.measured, lambda rows: config.effect.tokens_per_group),
        output=model.apply if causal else functools.partial(model.apply, stop_at=model.cfg.n_layers),
        measure="loss" if causal else "embedding_shift",
    )


def _drawn(config: StudyConfig, model: Transformer, rows: Any) -> Subset:
    used = draw_windows(rows, config.text.max_tokens_per_group, config.seed)
    return without_long(used, model, config.text, config.batch, config.seed)


def neuron_site(asked: str | None, cfg: Any) -> str:
    """Where a study of this model reads neurons: what was asked for, else the gate of a gated MLP."""
    site = asked or ("mlp.gate" if cfg.gated else "mlp.post")
    site = site if site.startswith("blocks.") else f"blocks.{site}"
    return site if parse(site).layers else parse(site).name


def check_neurons(site: str, shape: tuple[int, ...], n: int = POS) -> None:
    """A site of all layers with values per token, of n of them.

    Raises:
      UserError: another site.
    """
    if len(shape) < 4 or parse(site).layers is not None:
        raise UserError(
            f"select.site = {site!r} is not all layers, or has no neurons; a study reads all layers of a site."
        )
    if shape[2] != n or n in shape[3:]:
        raise UserError(
            f"select.site = {site!r} has the shape {shape} for a text of {n} tokens; a study needs values per token, "
            "[layer, batch, pos, ...], such as attn.z."
        )


def _windows(
    config: StudyConfig, model: Transformer, tokenizer: Tokenizer, site: str, at_least: int
) -> tuple[Windows, tuple[str, ...]]:
    """All windows of all groups that have enough of them, and the names of the others.

    Raises:
      UserError: as `read_groups` and `windows`; a group with too few windows, unless such are left out.
    """
    text, length = config.text, config.text.window
    asked = f"windows of {length} positions are asked for"
    check_length(model.cfg, length, asked, "Choose a smaller --window.")
    groups, packing = read_groups(config.groups, **text.arguments()), text.packing
    if note := groups.skipped_note():
        say(note)
    if packing == "auto":
        packing = "apart" if model.cfg.causal else "documents"
    require_groups(groups, at_least)
    try:
        rows = windows(groups, tokenizer, length=length, packing=packing)
    except UserError as e:
        hint = " Here that is --packing apart, or a smaller --window." if packing == "windows" else ""
        raise UserError(f"{e}{hint}") from None
    sizes = dict(zip(rows.group_names, np.bincount(rows.group, minlength=len(groups)).tolist(), strict=True))
    small = tuple(name for name, n in sizes.items() if n < text.min_windows)
    if small and not text.leave_out_small:
        listed = ", ".join(f"{name!r} has {sizes[name]} ({rows.tokens_per_group[k]} tokens)"
                           for k, name in enumerate(sizes) if name in small)  # fmt: skip
        raise UserError(
            f"at least {text.min_windows} windows of {length} tokens are needed per group, to study and to measure on; "
            f"group {listed}. Add text, choose a smaller --window, or leave them out with leave_out_small=True."
        )
    if small:
        kept = {name: groups[name] for name in sizes if name not in small}
        require_groups(kept, at_least)
        rows = windows(kept, tokenizer, length=length, packing=packing)
    rows.check_vocabulary(model.cfg.d_vocab)
    return without(rows, model, text), small


# --- pictures ------------------------------------------------------------------------------------


def _pictures(config: StudyConfig) -> Opened:
    model, processor = seen.model_and_processor(config.model, dtype=jnp.dtype(config.dtype), tower=config.tower)
    convolutional = isinstance(model, seen.Convolutional)
    output, measure = _judged(model)
    fields = config.picture

    def read(site: str, at_least: int) -> tuple[PictureRows, tuple[str, ...]]:
        groups = seen.picture_groups(config.pictures or "", fields, config.seed)
        if len(groups) < at_least:
            raise UserError(
                f"{len(groups)} group in {shown(groups.source)} ({', '.join(groups)}); at least {at_least} are needed "
                f"to compare. {PICTURE_LAYOUTS}"
            )
        if small := [name for name, files in groups.items() if len(files) < 2]:
            raise UserError(
                "at least 2 pictures are needed per group, to study and to measure on; group "
                f"{', '.join(map(shown, small))} has 1. Add pictures to it, or take it away."
            )
        return seen.picture_rows(model, processor, groups, site), ()

    cfg = model.cfg
    return Opened(
        model=model,
        tokenizer=None,
        neurons=functools.partial(_stage_site if convolutional else neuron_site, cfg=cfg),
        # Not the last layer: what a class token does not read any more changes no prediction.
        dictionary_site=None if convolutional else f"blocks.{(cfg.n_layers - 1) // 2}.resid_post",
        example=_example(model, processor),
        check=functools.partial(_check_map if convolutional else check_neurons, n=_positions(model)),
        read=read,
        draw=lambda rows: Subset(rows, np.arange(len(rows))),
        measured=(config.text.measured, lambda rows: fields.measured_per_group * int(rows.counted_each[0])),
        output=output,
        measure=measure,
    )


def _positions(model: seen.PictureModel) -> int:
    image = getattr(model.cfg, "image", None)
    return 0 if image is None else image.positions + image.registers


def _example(model: seen.PictureModel, processor: Any) -> tuple[Any, Any]:
    """Shapes of one picture and its mask: 320 x 240 pixels before the processor."""
    channels = seen.channels_of(model)
    shape = processor(np.zeros((240, 320, channels), np.uint8))[0].shape
    mask = jax.ShapeDtypeStruct((1, _positions(model)), "bool")
    return jax.ShapeDtypeStruct((1, *shape), "float32"), mask


def _judged(model: seen.PictureModel) -> tuple[Callable[..., Any], str]:
    """What damage is measured on, by what the model ends in: classes, a pooled vector, a map or patches."""
    if isinstance(model, seen.Convolutional):
        return model.apply, "own_loss" if model.cfg.n_classes else "picture_shift"
    if model.cfg.has_head:
        return model.apply, "own_loss"
    return (model.pooled, "picture_shift") if has_pooled(model.cfg) else (model.apply, "embedding_shift")


def _stage_site(asked: str | None, cfg: Any) -> str:
    """A convolutional network's last stage, after its blocks; "2.conv1" and "stage2.conv1" are of the third."""
    if asked is None:
        return f"stage{len(cfg.depths) - 1}.blocks.post"
    return asked if parse(asked).layers else parse(asked).name


def _check_map(site: str, shape: tuple[int, ...], n: int) -> None:
    if len(shape) != 5 or parse(site).layers is not None:
        raise UserError(
            f"select.site = {site!r} has the shape {shape}; a study of a convolutional network reads all blocks of a "
            "stage, [block, batch, row, column, channel], such as stage2.blocks.post."
        )


SOURCES: Final[Mapping[str, Callable[[StudyConfig], Opened]]] = {"text": _text, "pictures": _pictures}


def shapes_of(opened: Opened, wanted: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the sites: that one does not exist is found out now, not after minutes."""
    inputs, mask = opened.example
    run = capture(opened.model.apply, list(dict.fromkeys(wanted)))
    return {site: value.shape for site, value in jax.eval_shape(run, opened.model.weights, inputs, mask)[1].items()}
