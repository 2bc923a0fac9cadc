# SPDX-License-Identifier: Apache-2.0
"""What a model of text is given: checked where its values are known, and harmless where they are not."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def embedded(
    table: Float[Array, "id d_model"], ids: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None = None
) -> Float[Array, "batch pos d_model"]:
    """Rows of a table: NaN for an id that it does not have, below 0 or beyond; at padding row 0 for such an id.

    Example:
      >>> embedded(jnp.eye(2), jnp.array([[1, -1, 2]]), jnp.array([[True, True, False]]))[0].tolist()
      [[0.0, 1.0], [nan, nan], [1.0, 0.0]]
    """
    n = table.shape[0]
    known = (ids >= 0) & (ids < n)
    other = n if mask is None else jnp.where(mask, n, 0).astype(ids.dtype)
    return jnp.take(table, jnp.where(known, ids, other), axis=0, mode="fill")
