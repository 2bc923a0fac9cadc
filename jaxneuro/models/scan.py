# SPDX-License-Identifier: Apache-2.0
"""Layers of a stack inside a scan over their numbers."""

from typing import Any

import jax


def layer_of[T](blocks: T, layer: jax.Array | int) -> T:
    """The weights of one layer, of leaves with a leading layer axis; `layer` may be traced.

    For a scan over a part of the stack: the leaves are indexed where they lie, and no slice of them is copied.

    Example:
      >>> import jax.numpy as jnp
      >>> layer_of({"w": jnp.arange(6).reshape(3, 2)}, 1)["w"].tolist()
      [2, 3]
    """

    def one(a: Any) -> Any:
        return jax.lax.dynamic_index_in_dim(a, layer, keepdims=False)

    return jax.tree.map(one, blocks)
