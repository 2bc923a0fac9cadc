# SPDX-License-Identifier: Apache-2.0
"""The two programs of generation, as pure functions: a pass over the prompt, and a loop over new tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ..models import Config, Weights, forward
from ..models.cache import Carried
from ..taps import intervene


class State(NamedTuple):
    """Generation between two tokens. Carried, donated."""

    cache: Carried
    token: Int[Array, "batch"]
    """The newest one, which the model has not seen yet."""
    step: Int[Array, ""]
    """How many tokens were generated."""
    tokens: Int[Array, "batch new"]
    log_probs: Float[Array, "batch new"]
    lengths: Int[Array, "batch"]
    finished: Bool[Array, "batch"]


class Rules(NamedTuple):
    """What decides on the next token, beside the logits: all of it may change without compiling again."""

    sampler: Any
    """(logits, keys) -> tokens, a pytree."""
    keys: Key[Array, "batch"]
    stop: Int[Array, "stops"]
    """Tokens that end a row."""
    fill: Int[Array, ""]
    """What stands behind the end of a row."""


def read_prompt(
    weights: Weights,
    tokens: Int[Array, "batch pos"],
    mask: Bool[Array, "batch pos"] | None,
    cache: Carried,
    *,
    cfg: Config,
    even: bool = True,
    start_at: int = 0,
    resid: Float[Array, "batch pos d_model"] | None = None,
    context: Array | None = None,
    context_mask: Bool[Array, "batch key"] | None = None,
) -> tuple[Float[Array, "batch vocab"], Carried]:
    """Logits that follow each row's last real token, and the cache. The head runs at that one position only.

    even: every row's last position is a real token (no padding on the right), so that all rows go on at the same one.
    """
    part: dict[str, Any] = {"start_at": start_at, "resid": resid, "context": context, "context_mask": context_mask}
    x, after = forward(weights, tokens, cfg=cfg, mask=mask, cache=cache, stop_at=cfg.n_layers, **part)
    if even:
        after = after._replace(at=cache.at + x.shape[1])
        last = x[:, -1:]
    else:
        row = jnp.maximum(after.at - 1 - cache.at, 0)
        last = jnp.take_along_axis(x, row[:, None, None], axis=1)
    behind = after._replace(at=after.at - 1)
    logits, _ = forward(weights, tokens[:, :1], cfg=cfg, cache=behind, start_at=cfg.n_layers, resid=last)
    return logits[:, 0], after


def next_token(weights: Weights, token: Int[Array, "batch"], cache: Carried, *, cfg: Config) -> tuple[Array, Carried]:
    """Logits [batch, vocab] that follow one more token per row, and the cache."""
    logits, cache = forward(weights, token[:, None], cfg=cfg, cache=cache)
    return logits[:, 0], cache


def begin(logits: Float[Array, "batch vocab"], cache: Carried, rules: Rules, *, new: int) -> State:
    """The state after the first token was chosen; room for `new` of them."""
    batch = logits.shape[0]
    state = State(
        cache=cache._replace(at=jnp.asarray(cache.at, jnp.int32)),
        token=jnp.zeros(batch, jnp.int32),
        step=jnp.int32(0),
        tokens=jnp.full((batch, new), rules.fill, jnp.int32),
        log_probs=jnp.zeros((batch, new), jnp.float32),
        lengths=jnp.zeros(batch, jnp.int32),
        finished=jnp.zeros(batch, bool),
    )
    return choose(state, logits, rules)


def choose(state: State, logits: Float[Array, "batch vocab"], rules: Rules) -> State:
    """The state with one more token per row, drawn from the logits; rows that have ended get the fill."""
    logits = logits.astype(jnp.float32)
    keys = jax.vmap(jax.random.fold_in, (0, None))(rules.keys, state.step)
    drawn = rules.sampler(logits, keys).astype(jnp.int32)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[:, None], axis=1)[:, 0]
    token = jnp.where(state.finished, rules.fill, drawn)
    return state._replace(
        token=token,
        step=state.step + 1,
        tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (jnp.int32(0), state.step)),
        log_probs=jax.lax.dynamic_update_slice(
            state.log_probs, jnp.where(state.finished, 0, log_prob)[:, None], (jnp.int32(0), state.step)
        ),
        lengths=state.lengths + jnp.where(state.finished, 0, 1).astype(jnp.int32),
        finished=state.finished | jnp.any(drawn[:, None] == rules.stop[None], axis=1),
    )


def advance(weights: Weights, state: State, edits: Any, rules: Rules, *, cfg: Config) -> State:
    """One token more in every row."""

    def step(weights: Weights, token: Array, cache: Carried) -> tuple[Array, Carried]:
        return next_token(weights, token, cache, cfg=cfg)

    logits, cache = intervene(step, edits)(weights, state.token, state.cache)
    return choose(state._replace(cache=cache), logits, rules)


def until(weights: Weights, state: State, edits: Any, rules: Rules, limit: Array, *, cfg: Config) -> State:
    """Tokens until `limit` of them are there or every row has ended."""
    return jax.lax.while_loop(
        lambda s: (s.step < limit) & ~jnp.all(s.finished),
        lambda s: advance(weights, s, edits, rules, cfg=cfg),
        state,
    )
