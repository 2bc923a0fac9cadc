# SPDX-License-Identifier: Apache-2.0
"""A model seen through some of its sites: the program that computes them and nothing above them."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..axes import by_position
from ..errors import UserError
from ..protocols import Batch, Method
from ..taps import capture
from ..taps.definitions import LAST_SITES
from ..taps.names import parse
from ..taps.ranges import check_index
from .patterns import no_pattern
from .together import apart

_NO_POSITION = ("attn.scores", "attn.pattern")
_POOLED = ("pooled", "pooler.", "projected")
_ENCODER = "encoder."
_STACK = re.compile(r"((?:encoder\.|stage\d+\.)?)blocks\.")
_ANSWERS = ("context", "context_mask")
"""What rows for a decoder say of the texts that its encoder reads."""
LABELS = ("group", "window")
"""What a batch of windows says of each window, and each of its tokens inherits."""

type Sites = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""One site; several, side by side; or {"x": inputs, "y": targets} of these."""


def stop_at(*sites: str) -> int | None:
    """How many layers of the stack the sites need; None: all of it and what follows.

    Raises:
      UserError: a site stands for a gradient, or for pairs of positions; a pattern; sites of two stacks.
    Example:
      >>> stop_at("blocks.3.mlp.post"), stop_at("embed", "blocks.1,2.mlp.post"), stop_at("embed"), stop_at("logits")
      (4, 3, 0, None)
    """
    no_pattern(sites)
    if len({of_encoder(site) for site in sites}) > 1:
        raise UserError(
            f"{', '.join(sites)}: an encoder and its decoder are run apart, each over its own text. Ask for the sites "
            "of one, then for those of the other."
        )
    needs = [_needs(site) for site in sites]
    return None if None in needs else max(n for n in needs if n is not None)


def _needs(site: str) -> int | None:
    name, layers, _ = parse(site)
    if "@" in name:
        raise UserError(f"{site!r} is a gradient; one forward pass has none. Ask for {site.partition('@')[0]!r}.")
    if name.endswith(_NO_POSITION):
        raise UserError(f"{site!r} has a value per pair of positions, not per token. Ask for 'attn.z' instead.")
    name = name.removeprefix(_ENCODER)
    if name.startswith("blocks."):
        return None if layers is None else max(layers) + 1
    return None if name in LAST_SITES or name.startswith(_POOLED) else 0


def of_encoder(site: str) -> bool:
    """Whether the site is in the encoder of a model that has a decoder too."""
    return site.startswith(_ENCODER)


def by_text(site: str) -> bool:
    """Whether the site has one value per text or picture, not one per token.

    Example:
      >>> by_text("projected"), by_text("blocks.3.resid_post")
      (True, False)
    """
    return site.startswith(_POOLED)


def reached(model: Any, sites: Sequence[str]) -> Callable[..., Any]:
    """The pure function of a model that has these sites in it: what its encoder computes, its pooling, or the model.

    Args:
      model: has `apply`, and `encode` and `pooled` as a `jaxneuro.models.Transformer` does where such sites are meant.
    Raises:
      UserError: a site of a layer that the model does not have.
    """
    _check_layers(getattr(model, "cfg", None), sites)
    name = "encode" if any(map(of_encoder, sites)) else "pooled" if any(map(by_text, sites)) else "apply"
    return getattr(model, name, model.apply)


def _check_layers(cfg: Any, sites: Sequence[str]) -> None:
    """A model is run up to the highest layer that is asked for: said of the site, before it is run."""
    stacks: dict[str | None, Any] = {"": cfg, _ENCODER: getattr(cfg, "encoder", None)}
    for site in sites:
        name, layers, _ = parse(site)
        n = getattr(stacks.get(stack_of(name)), "n_layers", None)
        if n is not None and layers is not None:
            check_index(np.array(layers), site, "layer", tuple(range(n)), "capture")


def passes(sites: Sequence[str]) -> list[tuple[str, ...]]:
    """The sites, apart by what they have rows of: tokens, an encoder's tokens, texts.

    Example:
      >>> passes(["embed", "pooled", "encoder.embed", "blocks.0.mlp_out"])
      [('embed', 'blocks.0.mlp_out'), ('pooled',), ('encoder.embed',)]
    """
    found: dict[tuple[bool, bool], list[str]] = {}
    for site in sites:
        found.setdefault((of_encoder(site), by_text(site)), []).append(site)
    return [tuple(alike) for alike in found.values()]


def check_answers(model: Any, sites: Sequence[str], there: bool) -> None:
    """Sites of a decoder that answers an encoder are read from answers.

    There is no default: a decoder that reads its start token alone has one row per text, of a state that no answer
    has; one that reads the encoder's text says something that the model was never trained to say.

    Args:
      there: the rows have answers, `jaxneuro.data.Paired`.
    Raises:
      UserError: such a site, and no answers.
    """
    if getattr(getattr(model, "cfg", None), "encoder", None) and not (there or all(map(of_encoder, sites))):
        raise UserError(
            f"{', '.join(sites[:3])}: the decoder reads answers to what the encoder reads. Give both texts "
            f"(jaxneuro.data.Paired; jaxneuro capture --answers), or ask for the encoder's sites, 'encoder.{sites[0]}'."
        )


def several(site: str) -> bool:
    """It stands for layers, and its values have an axis of them."""
    name, _, single = parse(site)
    return stack_of(name) is not None and not single


def stack_of(name: str) -> str | None:
    """What is before "blocks." in a site's name: of a stack of layers "", "encoder." or "stage2."; None: of no stack.

    Example:
      >>> stack_of("blocks.mlp.post"), stack_of("stage2.blocks.conv1"), stack_of("embed")
      ('', 'stage2.', None)
    """
    found = _STACK.match(name)
    return found[1] if found else None


@functools.lru_cache(maxsize=64)
def reader(apply: Callable[..., Any], site: str) -> Callable[..., Float[Array, "batch pos d"]]:
    """(weights, tokens, mask) -> the site's values, [batch, pos, d]: axes after `pos` (heads) are joined.

    The model is run up to the site's layer only, by the `stop_at` argument of `apply`. The same function object
    comes back for the same arguments, so that jit compiles it once.

    Args:
      apply: the model's pure function, `model.apply` (`model.encode`, `model.pooled`: see `reached`).
      site: one site of one layer, "blocks.3.mlp.post".
    Raises:
      UserError: see `stop_at`; the site stands for several layers; when called: the model has no such site.
    """
    read = readers(apply, (site,))
    return lambda weights, tokens, mask=None: read(weights, tokens, mask)[site]


def readers(apply: Callable[..., Any], sites: tuple[str, ...]) -> Callable[..., dict[str, Array]]:
    """(weights, tokens, mask) -> {site: [batch, pos, d]} of several sites, each of one layer; see `reader`."""
    no_pattern(sites)
    for site in filter(several, sites):
        one = parse(site).name.replace("blocks.", "blocks.3.", 1)
        raise UserError(f"{site!r} stands for several layers. Name one, {one!r}.")
    return _values(apply, sites)


def _values(apply: Callable[..., Any], sites: tuple[str, ...]) -> Callable[..., dict[str, Array]]:
    """(weights, tokens, mask) -> {site: [batch, pos, d], or [batch, pos, layer, d] where it says several layers}.

    Of a site with one value per text pos is 1. What rows for a decoder say beside tokens and mask is passed on.
    """
    run = functools.partial(apply, stop_at=stop_at(*sites))

    def read(weights: Any, tokens: Array, mask: Array | None = None, **answered: Array) -> dict[str, Array]:
        if answered and any(map(of_encoder, sites)):
            raise UserError(f"{', '.join(sites)}: these rows are a decoder's. Give those of the encoder's own text.")
        _, found = capture(run, sites)(weights, tokens, mask, **answered)
        positions = tokens.shape if mask is None else mask.shape
        return {site: _by_token(site, value, positions) for site, value in found.items()}

    return read


def _by_token(site: str, value: Array, positions: tuple[int, ...]) -> Array:
    if by_text(site):
        return value.reshape(value.shape[0], 1, -1)
    layers = 1 if several(site) else 0
    try:
        rows = by_position(value, positions, layers=layers)
    except UserError:
        raise UserError(f"{site!r} has shape {value.shape}, not one row for each of the {positions} tokens.") from None
    return jnp.moveaxis(rows, 0, 2) if layers else rows


def at_site(apply: Callable[..., Any], site: Sites, method: Method) -> Method:
    """A method over activations as a method over token batches: both in one compiled program, nothing stored.

    The site says what `x` is (and `y`, with {"x": ..., "y": ...}: transcoders):
      "blocks.3.resid_post": its values, [n, d]; heads are joined.
      "blocks.2,5.resid_post", "blocks.*.mlp_out": these layers, in this order, [n, L, d].
      ["blocks.2.resid_post", "blocks.5.resid_post"]: side by side, [n, d_1 + d_2]; any sites.
      "encoder.blocks.3.resid_post" with `model.encode`: of the encoder of a model that has a decoder too.
      "pooled", "projected" with `model.pooled`: one row per text or picture.
    The model runs once, up to the highest layer that is needed.

    Args:
      apply: the model's pure function; its weights come with the batches, `run(..., constants={"weights": w})`.
      site: see above.
      method: takes {"x": [n, d], "mask": bool [n], "group": int32 [n], "window": int32 [n]}: all tokens of the batch,
        those to count being marked; group and window where the batches have them.
    Returns:
      A method over batches as `jaxneuro.data.batches` makes them.
    Raises:
      UserError: see `stop_at`; sites that cannot stand side by side; a model without such a site.
    Example:
      >>> mean = at_site(model.apply, "blocks.3.resid_post", moments())            # doctest: +SKIP
      >>> run(mean, batches(rows, batch_size=32), constants={"weights": model.weights}, key=key)  # doctest: +SKIP
      >>> at_site(model.apply, {"x": "blocks.3.ln2.normalized", "y": "blocks.3.mlp_out"}, method)  # doctest: +SKIP
    """
    rows = _rows(apply, {"": site})
    return _fed(lambda batch: rows(batch)[""], method)


def at_sites(apply: Callable[..., Any], methods: Mapping[str, tuple[Sites, Method]]) -> Method:
    """Methods at sites of their own, all in one pass of the model.

    Each of them is what it would be alone at its site, with the same key over the same stream.

    Args:
      apply: as in `at_site`.
      methods: {name: (site, method)}, sites as in `at_site`.
    Returns:
      A Method; state, info and what `finish` returns are dicts with these names.
    Raises:
      UserError: as in `at_site`; no method.
    Example:
      >>> layers = {str(i): (f"blocks.{i}.resid_post", shuffled(topk(4096, 32), 2**20)) for i in (3, 6)}
      ...                                                                          # doctest: +SKIP
      >>> run(at_sites(model.apply, layers), stream, constants={"weights": model.weights}, key=key)["6"]
      ...                                                                          # doctest: +SKIP
    """
    each = apart({name: method for name, (_, method) in methods.items()})
    return _fed(_rows(apply, {name: site for name, (site, _) in methods.items()}), each)


def _fed(rows: Callable[[Batch], Any], method: Method) -> Method:
    """The method over rows(batch)."""
    return Method(
        init=lambda key, batch: method.init(key, jax.jit(rows)(batch)),
        step=lambda state, batch: method.step(state, rows(batch)),
        finish=method.finish,
    )


def _rows(apply: Callable[..., Any], parts: Mapping[str, Sites]) -> Callable[[Batch], dict[str, dict[str, Array]]]:
    """token batch -> {part: {"x": [n, ...], "y": if asked for, "mask": [n], labels}}, from one pass of the model."""
    wanted = {part: _named(sites) for part, sites in parts.items()}
    read = _values(
        apply, tuple(dict.fromkeys(s for named in wanted.values() for sites in named.values() for s in sites))
    )

    def rows(batch: Batch) -> dict[str, dict[str, Array]]:
        values = read(batch["weights"], batch["tokens"], batch["mask"], **answered(batch))
        labels = {name: batch[name][:, None] for name in LABELS if name in batch}

        def flat(counted: Array) -> dict[str, Array]:
            every = {"mask": counted, **labels}
            return {name: jnp.broadcast_to(a, counted.shape).reshape(-1) for name, a in every.items()}

        of_tokens, of_texts = flat(batch["counted"]), flat(batch["counted"].any(1, keepdims=True))
        return {
            part: (of_texts if by_text(named["x"][0]) else of_tokens)
            | {name: _side_by_side(sites, values) for name, sites in named.items()}
            for part, named in wanted.items()
        }

    return rows


def answered(batch: Batch) -> dict[str, Array]:
    """What a batch for a decoder says of the texts that its encoder reads."""
    return {name: batch[name] for name in _ANSWERS if name in batch}


def _named(sites: Sites) -> dict[str, tuple[str, ...]]:
    named = dict(sites) if isinstance(sites, Mapping) else {"x": sites}
    listed = {name: (s,) if isinstance(s, str) else tuple(s) for name, s in named.items()}
    if not all(listed.values()) or not {"x"} <= listed.keys() <= {"x", "y"}:
        raise UserError(
            f"a method learns from a site, a list of sites, or {{'x': ..., 'y': ...}} of these; not {sites!r}."
        )
    check_alike([site for sites in listed.values() for site in sites])
    return listed


def check_alike(sites: Sequence[str]) -> None:
    """Rows of all sites are those of the others.

    Raises:
      UserError: some have one per token, some one per text.
    """
    if len({by_text(site) for site in sites}) > 1:
        raise UserError(
            f"{', '.join(sites)}: pooled sites have one row per text or picture, others one per token. Ask for the "
            "sites of one kind, then for those of the other."
        )


def _side_by_side(sites: tuple[str, ...], values: Mapping[str, Array]) -> Float[Array, "n *layers d"]:
    flat = [values[s].reshape(-1, *values[s].shape[2:]) for s in sites]
    if len({a.shape[:-1] for a in flat}) > 1:
        shown = ", ".join(f"{s!r}: {list(a.shape)}" for s, a in zip(sites, flat, strict=True))
        raise UserError(f"sites of one list stand side by side and have equal numbers of layers; these are {shown}.")
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, -1)
