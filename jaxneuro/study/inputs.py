# SPDX-License-Identifier: Apache-2.0
"""What a study works on: the model, its tokenizer, the windows of every group, and how damage is measured."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from ..activations import fingerprint
from ..activations.text import model_and_tokenizer
from ..console import say
from ..data import (
    Subset,
    Tokenizer,
    Windows,
    batches,
    counted_per_row,
    draw_windows,
    in_turns,
    read_groups,
    require_groups,
    windows,
)
from ..dictionaries import Placement
from ..errors import UserError, shown
from ..models import Transformer
from ..taps import capture
from ..taps.names import parse
from .config import StudyConfig
from .given import check_width, conventions, open_given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything the steps share; none of it changes during a run."""

    config: StudyConfig
    model: Transformer
    tokenizer: Tokenizer
    windows: Windows
    used: Subset
    """The windows drawn for this study, of which the two below are parts."""
    studied: Subset
    """Windows for statistics, examples and training."""
    measured: Subset
    """Windows of other documents, on which effects and reconstructions are measured."""
    left_out: tuple[str, ...]
    """Groups that were too small, if these are left out."""
    given: Any
    """The dictionary to judge in place of a trained one; None: train one."""
    place: Placement | None
    """What its files say of its training."""
    site: str
    """Where a neuron is read, all layers: blocks.mlp.gate, say."""
    dosed_site: str
    """Where single neurons are held at a value: what an MLP's neurons hand on, else `site` itself."""
    dictionary_site: str
    """Where the dictionary is trained, one layer."""
    output: Callable[..., Any]
    """Pure function (weights, tokens, mask) whose result damage is measured on."""
    measure: str
    """Row of neurons.MEASURES."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order of every axis K."""
        return self.windows.group_names

    @functools.cached_property
    def texts(self) -> dict[str, dict[str, int | bool]]:
        """What was read of every group: see `results.json`."""
        parts = {"used": self.used, "studied": self.studied, "measured": self.measured}
        found: dict[str, dict[str, int | bool]] = {}
        for k, name in enumerate(self.groups):
            mine = found[name] = {"tokens_of_all": int(self.windows.tokens_per_group[k])}
            for part, rows in parts.items():
                mine[f"tokens_{part}"] = int(rows.tokens_per_group[k])
                mine[f"windows_{part}"] = int(np.sum(rows.group == k))
                mine[f"documents_{part}"] = len(np.unique(rows.block[rows.group == k]))
            both = np.intersect1d(self.studied.block[self.studied.group == k], self.measured.block)
            mine["split_by_document"] = not len(both)
        return found

    @property
    def conventions(self) -> str:
        """How texts are cut and begin, beside the texts that the given dictionary was trained on."""
        begin = "".join(self.tokenizer.token_strings(self.tokenizer.prefix)) or None
        return conventions(self.place, self.windows.length, begin)

    def said(self) -> list[str]:
        """What a user should know of the text before the study begins, one line each."""
        lines = [] if self.given is None else [f"the dictionary: {self.conventions}"]
        for name, t in self.texts.items():
            drawn = "" if t["tokens_used"] == t["tokens_of_all"] else f" of {t['tokens_of_all']:,}, drawn at random"
            lines.append(
                f"{shown(name)}: {t['tokens_used']:,} tokens{drawn}; {t['documents_used']} documents, "
                f"{t['documents_studied']} of them studied, {t['documents_measured']} measured"
            )
            if not t["split_by_document"]:
                lines.append(
                    f"{shown(name)}: one document, so what is studied and what is measured are windows of the same one"
                )
        lines += [
            f"{shown(name)}: left out, fewer than {self.config.text.min_windows} windows" for name in self.left_out
        ]
        return lines

    def measured_batches(self, per_group: int | None = None) -> list[dict[str, np.ndarray]]:
        """The measured windows, or the first `per_group` of each group, in batches of one shape."""
        rows, group = self.measured, self.measured.group
        if per_group is not None:
            first = [np.flatnonzero(group == k)[:per_group] for k in range(len(self.groups))]
            rows = Subset(self.windows, rows.indices[np.concatenate(first)])
        return list(batches(rows, batch_size=min(self.config.effect.batch, len(rows))))

    def named(self, tokens: np.ndarray, scores: np.ndarray) -> list[list[Any]]:
        """[[token string, score], ...] of one row of token ids."""
        strings = self.tokenizer.token_strings(np.asarray(tokens).tolist())
        return [[t, float(s)] for t, s in zip(strings, scores, strict=True)]

    def fingerprint(self) -> dict[str, str]:
        """What text and which model this is, by content."""
        found = {"text": self.windows.fingerprint, "model": fingerprint(self.model.weights)}
        return found if self.given is None else found | {"dictionary": fingerprint(self.given)}


def load_inputs(config: StudyConfig, *, neurons: bool = True) -> Inputs:
    """Load the model and the text, and refuse what cannot be studied.

    Args:
      neurons: False: only a dictionary is looked at; one group is enough, and the model may have no MLP.
    Raises:
      UserError: what is wrong with the model, the tokenizer, the text or the site, and what to do.
    """
    model, tokenizer = model_and_tokenizer(config.model, dtype=jnp.dtype(config.dtype), bos=config.text.bos or "auto")
    given = open_given(config.dictionary)
    dictionary_site = given.site if given else config.dictionary.site
    dictionary_site = dictionary_site or f"blocks.{model.cfg.n_layers // 2}.resid_post"
    site = neuron_site(config.select.site, model.cfg) if neurons else dictionary_site
    shapes = _shapes(model, (site, dictionary_site))
    if neurons:
        _check_neurons(site, shapes[site])
    if given:
        check_width(given, dictionary_site, shapes[dictionary_site])
    else:
        _check_trained(dictionary_site, shapes[dictionary_site], config)
    rows, left_out = _windows(config, model, tokenizer, at_least=2 if neurons else 1)
    rows.check_vocabulary(model.cfg.d_vocab)
    used = draw_windows(rows, config.text.max_tokens_per_group, config.seed)
    studied, measured = _split(used, config)
    causal = model.cfg.causal and model.cfg.has_head
    return Inputs(
        config=config,
        model=model,
        tokenizer=tokenizer,
        windows=rows,
        used=used,
        studied=studied,
        measured=measured,
        left_out=left_out,
        given=given and given.dictionary,
        place=given and given.place,
        site=site,
        dosed_site="blocks.mlp.post" if is_mlp_neuron(site) else site,
        dictionary_site=dictionary_site,
        output=model.apply if causal else functools.partial(model.apply, stop_at=model.cfg.n_layers),
        measure="loss" if causal else "embedding_shift",
    )


def _length(config: StudyConfig, cfg: Any) -> int:
    if cfg.learned_positions and config.text.window > cfg.n_ctx:
        raise UserError(f"text.window is {config.text.window}, but {config.model} has only {cfg.n_ctx} positions.")
    return config.text.window


def neuron_site(asked: str | None, cfg: Any) -> str:
    """Where a study of this model reads neurons: what was asked for, else the gate of a gated MLP."""
    site = asked or ("mlp.gate" if cfg.gated else "mlp.post")
    site = site if site.startswith("blocks.") else f"blocks.{site}"
    return site if parse(site).layers else parse(site).name


def is_mlp_neuron(site: str) -> bool:
    """Whether coordinate j of the site is neuron j of the MLP, with its direction in W_down and its tokens."""
    return site in MLP_NEURONS


MLP_NEURONS: Final = tuple(f"blocks.mlp.{name}" for name in ("pre", "gate", "pre_linear", "post"))
"""Values of one neuron on its way; coordinates of every other site are no neurons of an MLP, whatever their number."""


def _windows(
    config: StudyConfig, model: Transformer, tokenizer: Tokenizer, at_least: int
) -> tuple[Windows, tuple[str, ...]]:
    """All windows of all groups that have enough of them, and the names of the others.

    Raises:
      UserError: as `read_groups` and `windows`; a group with too few windows, unless such are left out.
    """
    text, length = config.text, _length(config, model.cfg)
    groups, packing = read_groups(config.groups, **text.arguments()), text.packing
    if note := groups.skipped_note():
        say(note)
    if packing == "auto":
        packing = "apart" if model.cfg.causal else "documents"
    require_groups(groups, at_least)
    try:
        rows = windows(groups, tokenizer, length=length, packing=packing)
    except UserError as e:
        hint = " Here that is --text.packing apart, or a smaller --text.window." if packing == "windows" else ""
        raise UserError(f"{e}{hint}") from None
    sizes = dict(zip(rows.group_names, np.bincount(rows.group, minlength=len(groups)).tolist(), strict=True))
    small = tuple(name for name, n in sizes.items() if n < text.min_windows)
    if not small:
        return rows, ()
    if not text.leave_out_small:
        shown = ", ".join(f"{name!r} has {sizes[name]} ({rows.tokens_per_group[k]} tokens)"
                          for k, name in enumerate(sizes) if name in small)  # fmt: skip
        raise UserError(
            f"at least {text.min_windows} windows of {length} tokens are needed per group, to study and to measure on; "
            f"group {shown}. Add text, choose a smaller --text.window, or leave them out: --text.leave-out-small."
        )
    kept = {name: groups[name] for name in sizes if name not in small}
    require_groups(kept, at_least)
    return windows(kept, tokenizer, length=length, packing=packing), small


LEAST_DOCUMENTS = 3
"""Measured, where a group has the text for it: fewer say more of themselves than of their group."""


def _split(rows: Subset, config: StudyConfig) -> tuple[Subset, Subset]:
    """Every group's documents into studied and measured ones; of the measured as many windows as are wanted.

    Documents are taken at random until they hold `effect.tokens_per_group` tokens and are `LEAST_DOCUMENTS`, at most
    the share `text.measured` of the group's tokens, but at least one. A group of one document is split by windows.
    """
    tokens, studied, measured = counted_per_row(rows), [], []
    for k in range(len(rows.group_names)):
        mine, rng = np.flatnonzero(rows.group == k), np.random.default_rng([config.seed, k])
        block = rows.block[mine] if len(np.unique(rows.block[mine])) > 1 else np.arange(len(mine))
        kept = _kept_blocks(block, tokens[mine], config, rng)
        whole = Subset(rows.base, rows.indices[mine[np.isin(block, kept)]])
        turns = in_turns(whole, config.seed)
        wanted = np.searchsorted(np.cumsum(counted_per_row(turns)), config.effect.tokens_per_group) + 1
        studied.append(rows.indices[mine[~np.isin(block, kept)]])
        measured.append(np.sort(turns.indices[:wanted]))
    return Subset(rows.base, np.concatenate(studied)), Subset(rows.base, np.concatenate(measured))


def _kept_blocks(block: np.ndarray, tokens: np.ndarray, config: StudyConfig, rng: np.random.Generator) -> np.ndarray:
    """The blocks of one group that are measured: not all."""
    names, number = np.unique(block, return_inverse=True)
    size = np.bincount(number, tokens)
    most, kept, have = config.text.measured * size.sum(), [], 0.0
    for b in rng.permutation(len(names)):
        if have >= config.effect.tokens_per_group and len(kept) >= LEAST_DOCUMENTS:
            break
        if have + size[b] <= most and len(kept) < len(names) - 1:
            kept.append(b)
            have += size[b]
    return names[kept or [int(np.argmin(size))]]


POS: Final = 11
"""Tokens of the text that shapes are found out with: no number of heads."""


def _shapes(model: Transformer, wanted: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the sites: that one does not exist is found out now, not after minutes."""
    tokens, mask = jnp.zeros((1, POS), jnp.int32), jnp.ones((1, POS), bool)
    found = jax.eval_shape(capture(model.apply, list(dict.fromkeys(wanted))), model.weights, tokens, mask)[1]
    return {site: value.shape for site, value in found.items()}


def _check_neurons(site: str, shape: tuple[int, ...]) -> None:
    if len(shape) < 4 or parse(site).layers is not None:
        raise UserError(
            f"select.site = {site!r} is not all layers, or has no neurons; a study reads all layers of a site."
        )
    if shape[2] != POS or POS in shape[3:]:
        raise UserError(
            f"select.site = {site!r} has the shape {shape} for a text of {POS} tokens; a study needs values per token, "
            "[layer, batch, pos, ...], such as attn.z."
        )


def _check_trained(site: str, shape: tuple[int, ...], config: StudyConfig) -> None:
    if len(shape) != 3:
        raise UserError(
            f"dictionary.site = {site!r} has the shape {shape}; a dictionary needs one "
            "layer's [batch, pos, width], such as blocks.3.resid_post."
        )
    n_latents = config.dictionary.expansion * shape[-1]
    if config.dictionary.k > n_latents:
        raise UserError(
            f"dictionary.k = {config.dictionary.k} is more than the {n_latents} latents (dictionary.expansion = "
            f"{config.dictionary.expansion} times the width {shape[-1]}). Choose a smaller k."
        )
