# SPDX-License-Identifier: Apache-2.0
"""Floats as integers of the same order, so that NaN and signed zeros have a place.

    -NaN < -inf < ... < -0 < +0 < ... < +inf < +NaN

This is the order of `jax.lax.top_k`. A float maximum would not do: it spreads NaN of either sign, or drops it.
"""

import jax.numpy as jnp
from jax import Array, lax

LOWEST = -(2**31)
"""Key below every float's (that of the lowest NaN)."""


def to_key(x: Array) -> Array:
    """int32 image of floats of up to 32 bits (smaller ones are widened, which is exact).

    Example:
      >>> to_key(jnp.array([-1.0, -0.0, 0.0, 1.0])).tolist()
      [-1065353217, -1, 0, 1065353216]
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return bits ^ (lax.shift_right_arithmetic(bits, jnp.int32(31)) & jnp.int32(0x7FFFFFFF))


def from_key(key: Array) -> Array:
    """The float32 of a key.

    Example:
      >>> from_key(to_key(jnp.array([-2.5]))).tolist()
      [-2.5]
    """
    return lax.bitcast_convert_type(
        key ^ (lax.shift_right_arithmetic(key, jnp.int32(31)) & jnp.int32(0x7FFFFFFF)), jnp.float32
    )
