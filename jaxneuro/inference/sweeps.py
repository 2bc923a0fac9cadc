# SPDX-License-Identifier: Apache-2.0
"""Many interventions on the same prompts as one program; what lies before the first edited site is computed once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ..models import Config, Transformer, Weights, encode, forward, init_cache
from ..models.cache import Carried
from ..taps import intervene, sweep
from ..taps.ranges import traced
from ..taps.transforms import check_points
from .checks import (
    Rows,
    check_ids,
    check_model,
    check_outside,
    check_positions,
    check_prompt,
    check_scores,
    check_source,
    dtype_of,
    edits_of,
    first_layer,
    last_real,
    longest,
    of_encoder,
)
from .decode import Rules, advance, begin, read_prompt
from .generate import Generated
from .sampling import as_tree, greedy, row_keys

type Source = tuple[Array | None, Array | None]
"""Context and its mask, as `forward` takes them."""


class Swept(NamedTuple):
    """What `steer_sweep` returns: one row per point."""

    generated: Generated
    """Its arrays have a leading axis of points."""
    measured: Any
    """What `measure` said of the logits that follow the prompts; None without it."""


def steer_sweep(
    model: Transformer,
    tokens: Int[Array | np.ndarray, "batch pos"],
    edits: Callable[[Any], Any],
    points: Any,
    *,
    mask: Bool[Array | np.ndarray, "batch pos"] | None = None,
    context: Int[Array, "batch key"] | Float[Array, "batch key d_model"] | None = None,
    context_mask: Bool[Array, "batch key"] | None = None,
    max_new: int = 1,
    measure: Callable[[Array], Any] | None = None,
    sampler: Any = greedy,
    key: Key[Array, ""] | None = None,
    stop: Sequence[int] = (),
    fill: int = 0,
    chunk: int = 8,
) -> Swept:
    """Generate from the same prompts under the edits of every point: doses, directions, neurons.

    One compiled program, `chunk` points at a time. The layers below the first edited one and the positions of the
    prompts before the first edited one run once for all points: layers are known from the sites ("blocks.8.resid_post",
    or `layer=`), positions from `pos=`. Every point draws with the same keys, so points differ by their edits alone.
    An encoder runs once; with edits in it, which change all that the decoder reads, its layers below the first of them.

    Args:
      model, tokens, mask, context, context_mask, max_new, sampler, key, stop, fill: as in `generate`.
      edits: a point -> edits, one structure for all points.
      points: a pytree of arrays with a leading axis.
      measure: logits [batch, vocab] after the prompts -> pytree; a function defined once, a new one compiles anew.
      chunk: points that run together; each has a cache of its own.
    Returns:
      Swept.
    Raises:
      UserError: as `generate`.
    Example:
      >>> from jaxneuro.models import Config, Transformer, init
      >>> from jaxneuro.taps import add
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> model = Transformer(cfg, init(cfg, jax.random.key(0)))
      >>> steered = lambda dose: [add("blocks.1.resid_post", dose * jnp.ones(8), pos=2)]
      >>> steer_sweep(model, jnp.array([[1, 2, 3]]), steered, jnp.arange(4.0), max_new=2).generated.tokens.shape
      (4, 1, 2)
    """
    cfg = model.cfg
    check_outside("steer_sweep", tokens)
    check_model(cfg)
    ids, real = check_prompt(cfg, tokens, mask, max_new)
    source = check_source(cfg, context, context_mask, len(ids))
    rows = Rows.of(real)
    check_points("steer_sweep", points, chunk, "chunk")
    made = jax.vmap(edits)(points)
    check_positions(made, rows, max_new, longest(*source))
    shortest, even = last_real(real)
    rules = Rules(
        as_tree(sampler),
        row_keys(key, len(ids)),
        jnp.asarray(check_ids(cfg, stop, "stop")),
        jnp.int32(check_ids(cfg, [fill], "fill")[0]),
    )
    real = None if real.all() else jnp.asarray(real)
    args = model.weights, jnp.asarray(ids), real, made, rules, source
    begins = _begins(made, cfg, source[0], rows)
    static = {"cfg": cfg, "new": max_new, "even": even, "shortest": shortest, "measure": measure, "chunk": chunk}
    return _swept(*args, **static, **begins)


def _begins(edits: Any, cfg: Config, context: Array | None, rows: Rows) -> dict[str, Any]:
    """What runs again for every point: of the encoder, of the decoder's layers, of the prompt's positions.

    Returns:
      encoder: its layer as `first_layer` has it; None: nothing of it. layer, pos: of the decoder.
    """
    inner = [edit for edit in edits_of(edits) if of_encoder(edit)]
    if inner and cfg.encoder is not None and context is not None and context.ndim == 2:
        return {"encoder": first_layer(inner, cfg.encoder.n_layers), "layer": -1, "pos": 0}
    outer = [edit for edit in edits_of(edits) if not of_encoder(edit)]
    pos = min(_first(outer, rows), int(rows.end.min()) - 1)
    return {"encoder": None, "layer": first_layer(outer, cfg.n_layers), "pos": pos}


def _first(edits: Any, rows: Rows) -> int:
    """The first column that any edit may change; one behind the prompts if they begin there."""
    starts = [e.at.get("pos", e.at.get("query")) for e in edits_of(edits)]
    return min((0 if at is None else rows.first_column(at) for at in starts), default=int(rows.end.max()))


_STATIC: Final = ("cfg", "new", "even", "shortest", "encoder", "layer", "pos", "measure", "chunk")


def _swept(*args: Any, **static: Any) -> Swept:
    traced(_program, *args, **static)  # points that name what is not there raise before anything runs
    found = _program(*args, **static)
    check_scores(static["cfg"], args[0], found.generated.log_probs)
    return found


@functools.partial(jax.jit, static_argnames=_STATIC)
def _program(
    weights: Weights, tokens: Array, mask: Array | None, edits: Any, rules: Rules, source: Source = (None, None), *,
    cfg: Config, new: int, even: bool, shortest: int, layer: int, pos: int, measure: Callable[[Array], Any] | None,
    chunk: int, encoder: int | None = None,
) -> Swept:  # fmt: skip
    batch, length = tokens.shape
    cache = init_cache(cfg, batch, length + new - 1, dtype_of(weights), shortest=shortest)
    once = source if encoder is None else (None, None)
    resid, cache = prefix(weights, tokens, mask, cache, cfg=cfg, layer=layer, pos=pos, source=once)
    listen = None if encoder is None else listener(weights, *source, cfg=cfg, layer=encoder)
    rest = None if resid is None else resid[:, pos:]
    behind = None if mask is None else mask[:, pos:]

    def prompt(weights: Weights, tokens: Array) -> tuple[Array, Carried]:
        part: dict[str, Any] = {"start_at": max(layer, 0), "resid": rest}
        part |= {} if listen is None else {"context": listen(weights), "context_mask": source[1]}
        return read_prompt(weights, tokens, behind, cache, cfg=cfg, even=even, **part)

    def one(edits: Any) -> Swept:
        later = [edit for edit in edits_of(edits) if not of_encoder(edit)]
        logits, after = intervene(prompt, edits)(weights, tokens[:, pos:])
        state = begin(logits, after, rules, new=new)
        state = jax.lax.fori_loop(1, new, lambda _, s: advance(weights, s, later, rules, cfg=cfg), state)
        generated = Generated(state.tokens, state.lengths, state.finished, state.log_probs)
        return Swept(generated, None if measure is None else measure(logits))

    return sweep(one, edits, batch_size=chunk)


def listener(
    weights: Weights, text: Array | None, real: Array | None, *, cfg: Config, layer: int
) -> Callable[[Weights], Array]:
    """weights -> what the encoder makes of a text; what does not depend on edits of `layer` and above is there."""
    assert text is not None
    resid = None if layer < 0 else encode(weights, text, cfg=cfg, mask=real, stop_at=layer)
    return lambda weights: encode(weights, text, cfg=cfg, mask=real, start_at=max(layer, 0), resid=resid)


def prefix(
    weights: Weights,
    tokens: Array,
    mask: Array | None,
    cache: Carried,
    *,
    cfg: Config,
    layer: int,
    pos: int,
    source: Source = (None, None),
) -> tuple[Array | None, Carried]:
    """What does not depend on edits of `layer` and above from `pos` on.

    Args:
      source: for the cache to remember.
    Returns:
      (the residual stream that enters the layer, None where that is the embedding's; a cache that holds the layers
      below for all tokens, the others for those before `pos`, where it stands).
    """
    resid, bottom = None, max(layer, 0)
    if layer >= 0 or source[0] is not None:
        seen: dict[str, Any] = dict(zip(("context", "context_mask"), source, strict=True))
        x, cache = forward(weights, tokens, cfg=cfg, mask=mask, cache=cache, stop_at=bottom, **seen)
        resid, cache = (x if layer >= 0 else None), cache.rewound()
    if pos > 0:
        before = (tokens[:, :pos], None if mask is None else mask[:, :pos], None if resid is None else resid[:, :pos])
        part: dict[str, Any] = {"start_at": bottom, "stop_at": cfg.n_layers, "resid": before[2]}
        _, cache = forward(weights, before[0], cfg=cfg, mask=before[1], cache=cache, **part)
    return resid, cache._replace(at=pos)
