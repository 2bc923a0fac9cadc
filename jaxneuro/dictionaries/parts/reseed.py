# SPDX-License-Identifier: Apache-2.0
"""Dead latents begin again at tokens that are badly explained."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key


def drawn_tokens(
    key: Key[Array, ""], dead: Bool[Array, "n_latents"], error: Float[Array, "n"]
) -> tuple[Bool[Array, "n_latents"], Int[Array, "n_latents"]]:
    """(which latents begin again, at which token): one token each, drawn without replacement, P proportional to error.

    Drawn, not the largest: those are the same few massive tokens every time. A token of error 0 is never drawn; with
    fewer tokens than dead latents the first ones are served.

    Example:
      >>> again, token = drawn_tokens(jax.random.key(0), jnp.array([True, False, True]), jnp.array([0.0, 3.0]))
      >>> again.tolist(), int(token[0])
      ([True, False, False], 1)
    """
    most = min(dead.shape[0], error.shape[0])
    score, order = lax.top_k(jnp.log(error) + jax.random.gumbel(key, error.shape, jnp.float32), most)
    rank = jnp.cumsum(dead, dtype=jnp.int32) - 1
    at = jnp.clip(rank, 0, most - 1)
    return dead & (rank < most) & (score[at] > -jnp.inf), order[at]


def step_key(seed: Array, step: Int[Array, ""]) -> Key[Array, ""]:
    """The key of one step, from a state that holds plain numbers only."""
    return jax.random.fold_in(jax.random.key(seed), step)
