# SPDX-License-Identifier: Apache-2.0
"""Go on with a batch of token prompts, under any edits."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ..errors import UserError
from ..models import Config, Transformer, Weights, init_cache
from ..taps import intervene
from .checks import (
    Rows,
    check_ids,
    check_model,
    check_outside,
    check_positions,
    check_prompt,
    check_source,
    dtype_of,
    edits_of,
    last_real,
    longest,
    of_encoder,
)
from .decode import Rules, State, begin, read_prompt, until
from .sampling import as_tree, greedy, row_keys


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
        the vocabulary, prompts and max_new beyond the context; edits of sites, layers or positions that do not exist; a
        rope that cannot be kept in a cache at these lengths (`init_cache`).
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
    where: dict[str, Any] = {"cfg": cfg, "new": max_new, "even": even, "shortest": shortest}
    real = None if real.all() else jnp.asarray(real)
    first = (model.weights, jnp.asarray(ids), real, source, (edits, prompt_edits), rules)
    check_edits(first, later, where)
    state = start(*first, **where)
    done = 1
    while True:
        if on_token is not None:
            chosen = on_token(done, np.asarray(state.tokens[:, :done]), np.asarray(state.finished))
            if chosen is not None:
                state = state._replace(finished=jnp.asarray(chosen, bool))
        if done >= max_new or bool(jnp.all(state.finished)):
            return Generated(state.tokens, state.lengths, state.finished, state.log_probs)
        limit = max_new if on_token is None else min(done + every, max_new)
        state = go_on(model.weights, state, later, rules, jnp.int32(limit), cfg=cfg)
        done = int(state.step)


@functools.partial(jax.jit, static_argnames=("cfg", "new", "even", "shortest"))
def start(
    weights: Weights, tokens: Array, mask: Array | None, source: tuple[Array | None, Array | None], edits: Any,
    rules: Rules, *, cfg: Config, new: int, even: bool, shortest: int,
) -> State:  # fmt: skip
    """The pass over the prompt, and the first token."""
    batch, length = tokens.shape
    cache = init_cache(cfg, batch, length + new - 1, dtype_of(weights), shortest=shortest)

    def prompt(weights: Weights, tokens: Array, mask: Array | None, *source: Array | None) -> tuple[Array, Any]:
        read = dict(zip(("context", "context_mask"), source, strict=True))
        return read_prompt(weights, tokens, mask, cache, cfg=cfg, even=even, **read)

    logits, cache = intervene(prompt, edits)(weights, tokens, mask, *source)
    return begin(logits, cache, rules, new=new)


@functools.partial(jax.jit, static_argnames="cfg", donate_argnames="state")
def go_on(weights: Weights, state: State, edits: Any, rules: Rules, limit: Array, *, cfg: Config) -> State:
    """The loop."""
    return until(weights, state, edits, rules, limit, cfg=cfg)


def check_edits(first: tuple[Any, ...], edits: Any, where: dict[str, Any]) -> None:
    """Make both programs without running them: an edit that cannot be made in either raises now."""
    weights, *_, rules = first
    state = jax.eval_shape(functools.partial(start, **where), *first)
    jax.eval_shape(functools.partial(go_on, cfg=where["cfg"]), weights, state, edits, rules, jnp.int32(0))
