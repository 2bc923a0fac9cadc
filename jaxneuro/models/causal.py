# SPDX-License-Identifier: Apache-2.0
"""What is not finite is felt from its own position on: nobody looks at later ones, but 0 times NaN is NaN."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def from_there_on(
    mixed: Callable[[Array], Array],
    values: Float[Array, "batch key *mid d"],
    start: int | Int[Array, ""] | Int[Array, "batch"] = 0,
) -> Float[Array, "batch query *rest"]:
    """mixed(values), a causal mixture of values over their positions; NaN at every query from the first value on that
    is not finite, and not before. Values are set to 0 there, so finite ones give what they gave, to the bit.

    Args:
      mixed: values -> [batch, query, *mid, ...], linear in each vector of d.
      start: which value is the first query's own.
    Example:
      >>> x = jnp.array([[[1.0], [2.0], [jnp.nan]]])
      >>> from_there_on(lambda x: jnp.tril(jnp.ones((3, 3))) @ x, x)[0, :, 0].tolist()
      [1.0, 3.0, nan]
    """
    finite = jnp.isfinite(values)
    seen = finite.all(-1)
    numbers = jnp.arange(values.shape[1], dtype=jnp.int32).reshape(-1, *[1] * (seen.ndim - 2))
    first = jnp.min(jnp.where(seen, jnp.int32(values.shape[1]), numbers), axis=1)[:, None]
    out = mixed(jnp.where(finite, values, jnp.zeros_like(values)))
    own = jnp.asarray(start, jnp.int32).reshape(-1, 1) + jnp.arange(out.shape[1], dtype=jnp.int32)[None]
    reached = own.reshape(*own.shape, *[1] * (first.ndim - 2)) >= first
    return jnp.where(
        reached.reshape(*reached.shape, *[1] * (out.ndim - reached.ndim)), jnp.full_like(out, jnp.nan), out
    )
