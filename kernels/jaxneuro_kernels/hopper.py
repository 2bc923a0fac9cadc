# SPDX-License-Identifier: Apache-2.0
"""What the Mosaic GPU kernels share: layouts of rows, and sizes the hardware sets."""

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import mosaic_gpu as plgpu

LANES: Final = 128
"""Threads of a warpgroup: rows are spread over them."""
SHARED_BYTES: Final = 225 * 1024
"""Shared memory one kernel may take on an H100 (227 KB, less what Mosaic keeps)."""


def strided(n: int) -> Any:
    """n numbers spread over a warpgroup, n a multiple of 128."""
    return plgpu.Layout.WG_STRIDED((n,), vec_size=min(4, n // LANES))


def folded(d: int) -> tuple[int, int]:
    """A row of d as the two-dimensional block that a bulk copy takes (no side above 256).

    Example:
      >>> folded(768), folded(896)
      ((3, 256), (7, 128))
    """
    side = 256 if d % 256 == 0 else LANES
    return d // side, side


def fold(a: Array) -> Array:
    """[rows, d] as [rows, *folded(d)]."""
    return a.reshape(a.shape[0], *folded(a.shape[1]))


def whole(n: int, value: int) -> Array:
    """int32 constant in the layout of `strided(n)`."""
    return plgpu.layout_cast(jnp.full((n,), value, jnp.int32), strided(n))


def swizzled(columns: int, n_bytes: int) -> tuple[Any, Any]:
    """Layout in shared memory that the matrix units and the bulk copies share: tiles of 8 rows of n_bytes."""
    transforms: Any = plgpu  # their base class looks abstract to type checkers
    return transforms.TilingTransform((8, columns)), transforms.SwizzleTransform(n_bytes)


def result(shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
    """Shape and type of a kernel's output."""
    return jax.ShapeDtypeStruct(shape, dtype)


def refuses_arrays(*arrays: Array) -> str | None:
    """Why operands of these types and sizes cannot be taken, or None."""
    for a in arrays:
        if a.dtype not in (jnp.float32, jnp.bfloat16):
            return f"an operand is {a.dtype}; it takes float32 and bfloat16"
        if a.size >= 2**31:
            return f"an operand {list(a.shape)} has 2^31 elements or more, which its offsets cannot reach"
    return None


def refuses_width(most: int, **widths: int) -> str | None:
    """Why rows of these widths cannot be spread over a warpgroup whose registers hold `most` numbers, or None."""
    for name, d in widths.items():
        if d % LANES:
            return f"{name} = {d} is no multiple of {LANES}"
    if sum(widths.values()) > most:
        sizes = " + ".join(f"{name} = {d}" for name, d in widths.items())
        return f"{sizes} is more than the {most} that fit the registers"
    return None


def multiprocessors() -> int:
    """Of the device that is traced for; 132, as an H100 has, if it does not say."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    count = None if device is None else device.num_cores
    return count or getattr(jax.devices()[0], "core_count", None) or 132
