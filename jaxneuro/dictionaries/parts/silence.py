# SPDX-License-Identifier: Apache-2.0
"""Dead latents: tokens since each fired. Tokens, so that the definition does not depend on the batch size."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LONGEST = 2**30
"""Counters stop here; far beyond every threshold in use, and a batch more cannot overflow int32."""


def fired(vals: Float[Array, "n k"], idx: Int[Array, "n k"], n_latents: int) -> Bool[Array, "n_latents"]:
    """Whether each latent has a positive value anywhere. Selected with value 0 is not fired.

    Example:
      >>> fired(jnp.array([[2.0, 0.0]]), jnp.array([[1, 2]]), 3).tolist()
      [False, True, False]
    """
    return jnp.zeros(n_latents, bool).at[idx].max(vals > 0, mode="drop")


def silent_tokens(
    silent: Int[Array, "n_latents *layers"], now: Bool[Array, "n_latents *layers"], n_tokens: Int[Array, ""]
) -> Int[Array, "n_latents *layers"]:
    """Tokens since each latent fired, after n_tokens more."""
    return jnp.where(now, jnp.int32(0), jnp.minimum(silent, jnp.int32(LONGEST)) + n_tokens)
