# SPDX-License-Identifier: Apache-2.0
"""Go on with a batch of token prompts, under any edits."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ..errors import UserError
from ..models import Config, Transformer, Weights, init_cache
from ..taps import intervene
from ..taps.ranges import traced
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
    last_real,
    longest,
    of_encoder,
)
from .decode import Rules, State, begin, read_prompt, until
from .sampling import as_tree, greedy, row_keys

KEPT: Final = 32
"""Pairs of compiled programs: shapes of prompts and structures of edits. A pair of the bundled model takes about 230 of
the 65,530 memory maps that Linux gives a process."""


class Generated(NamedTuple):
    """What `generate` returns. A finished row is cut where its stop token was drawn."""

    tokens: Int[Array, "batch max_new"]
    """The new tokens; the fill behind a row's end."""
    lengths: Int[Array, "batch"]
    """How many are the row's own, its stop token included."""
    finished: Bool[Array, "batch"]
    """It ended with a stop token, not because max_new was reached."""
    log_probs: Float[Array, "batch max_new"]
    """Natural logarithm of the probability that the edited model gave to each, whatever the sampler; 0 behind the
    end."""


def generate(
    model: Transformer,
    tokens: Int[Array | np.ndarray, "batch pos"],
    *,
    mask: Bool[Array | np.ndarray, "batch pos"] | None = None,
    context: Int[Array, "batch key"] | Float[Array, "batch key d_model"] | None = None,
    context_mask: Bool[Array, "batch key"] | None = None,
    max_new: int,
    sampler: Any = greedy,
    key: Key[Array, ""] | None = None,
    edits: Any = (),
    prompt_edits: Any = (),
    stop: Sequence[int] = (),
    fill: int = 0,
    on_token: Callable[[int, np.ndarray, np.ndarray], np.ndarray | None] | None = None,
    every: int = 1,
) -> Generated:
    """Go on with every prompt: one pass over the prompts, then one compiled loop with a cache.

    Two programs per shape of the arguments (and structure of the edits): values of edits, keys, temperatures and stop
    tokens change without compiling again. The loop ends when every row has.

    Args:
      model: a decoder.
      tokens: the prompts.
      mask: True at real tokens, padding on either side; None: no padding. Positions count from each row's first real
        token, and a row goes on at the position behind its last: each gets what it would get alone.
      context, context_mask: of a model with an encoder: what the encoder reads, once (`forward`). Prompts are then how
        its answers begin, for T5 [[0]] * batch. Edits of sites of the encoder act there.
      max_new: tokens per row, at most.
      sampler: `greedy`, a `Sampler`, or a function (logits [batch, vocab], keys [batch]) -> tokens [batch].
      key: of the draws. One row's draws do not depend on the other rows. None: `jax.random.key(0)`.
      edits: any edits (`jaxneuro.taps`); they act on the prompt and on every new token. Positions are absolute:
        pos=7 acts when position 7 of a row is run, wherever that is; negative ones count from each row's own end in
        every pass, so -1 is the last token of its prompt and then the newest. A value with a batch axis edits every row
        in its own way: `add(site, vectors[:, None, :])`.
      prompt_edits: edits of the pass over the prompt alone, whose values may have its position axis (`patch`).
      stop: ids that end a row.
      fill: id behind a row's end.
      on_token: called after every `every` steps as on_token(step, tokens [batch, new so far], finished [batch]); what
        it returns, if not None, is taken for `finished`. The device waits meanwhile.
      every: steps of the loop between two calls.
    Returns:
      Generated, on the device.
    Raises:
      UserError: before any compute: not a decoder; a context that is missing or misshapen; empty prompts, ids outside
        the vocabulary, prompts and max_new beyond the context; edits of sites, layers,
        positions, neurons ... that do not exist; a rope that cannot be kept in a cache at these lengths (`init_cache`).
    Example:
      >>> from jaxneuro.models import Config, Transformer, init
      >>> from jaxneuro.taps import add
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> model = Transformer(cfg, init(cfg, jax.random.key(0)))
      >>> steered = [add("blocks.1.resid_post", jnp.ones((2, 1, 8)))]  # a vector for each of two rows
      >>> generate(model, jnp.array([[1, 2, 3], [4, 5, 6]]), max_new=4, edits=steered).tokens.shape
      (2, 4)
    """
    cfg = model.cfg
    check_outside("generate", tokens, mask, context)
    check_model(cfg)
    ids, real = check_prompt(cfg, tokens, mask, max_new)
    source = check_source(cfg, context, context_mask, len(ids))
    check_positions((edits, prompt_edits), Rows.of(real), max_new, longest(*source))
    later = [edit for edit in edits_of(edits) if not of_encoder(edit)]
    if every < 1:
        raise UserError(f"every={every}; it is a number of steps, at least 1.")
    rules = Rules(
        as_tree(sampler),
        row_keys(key, len(ids)),
        jnp.asarray(check_ids(cfg, stop, "stop")),
        jnp.int32(check_ids(cfg, [fill], "fill")[0]),
    )
    shortest, even = last_real(real)
    jax.eval_shape(lambda: init_cache(cfg, 1, ids.shape[1] + max_new - 1, shortest=shortest))  # its check of the rope
    real = None if real.all() else jnp.asarray(real)
    first = (model.weights, jnp.asarray(ids), real, source, (edits, prompt_edits), rules)
    shapes = tuple(None if a is None else a.shape for a in (ids, real, *source))
    start, go_on = _programs(cfg, max_new, even, shapes, jax.tree.structure((edits, prompt_edits, rules)))
    check_edits(first, later, start, go_on)
    state = start(*first)
    done = 1
    while True:
        if on_token is not None:
            chosen = on_token(done, np.asarray(state.tokens[:, :done]), np.asarray(state.finished))
            if chosen is not None:
                state = state._replace(finished=jnp.asarray(chosen, bool))
        if done >= max_new or bool(jnp.all(state.finished)):
            check_scores(cfg, model.weights, state.log_probs)
            return Generated(state.tokens, state.lengths, state.finished, state.log_probs)
        limit = max_new if on_token is None else min(done + every, max_new)
        state = go_on(model.weights, state, later, rules, jnp.int32(limit))
        done = int(state.step)


@functools.lru_cache(maxsize=KEPT)
def _programs(cfg: Config, new: int, even: bool, shapes: Any, structure: Any) -> tuple[Callable[..., State], ...]:
    """The two compiled functions for prompts of these shapes and edits of this structure. Each pair is jits of its own,
    so that a process that generates from prompts of every length lets go of the programs of old ones."""
    first = functools.partial(_start, cfg=cfg, new=new, even=even)
    return jax.jit(first), jax.jit(functools.partial(until, cfg=cfg), donate_argnums=1)


def _start(
    weights: Weights, tokens: Array, mask: Array | None, source: tuple[Array | None, Array | None], edits: Any,
    rules: Rules, *, cfg: Config, new: int, even: bool,
) -> State:  # fmt: skip
    """The pass over the prompt, and the first token."""
    batch, length = tokens.shape
    slots = length + new - 1
    cache = init_cache(cfg, batch, slots, dtype_of(weights), shortest=slots)

    def prompt(weights: Weights, tokens: Array, mask: Array | None, *source: Array | None) -> tuple[Array, Any]:
        read = dict(zip(("context", "context_mask"), source, strict=True))
        return read_prompt(weights, tokens, mask, cache, cfg=cfg, even=even, **read)

    logits, cache = intervene(prompt, edits)(weights, tokens, mask, *source)
    return begin(logits, cache, rules, new=new)


def check_edits(first: tuple[Any, ...], edits: Any, start: Any, go_on: Any) -> None:
    """Make both programs without running them: an edit that cannot be made in either raises now."""
    weights, *_, rules = first
    state = traced(start, *first)
    traced(go_on, weights, state, edits, rules, jnp.int32(0))
