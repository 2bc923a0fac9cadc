# SPDX-License-Identifier: Apache-2.0
"""Matrices in eight bits, for inference: numbers of one byte and a float32 scale per output channel of each.

    w[i, o] ~ q[i, o] * scale[o],   scale[o] = max_i |w[i, o]| / (127 of int8, 448 of float8_e4m3fn)

The scale is applied to what the matrix gave, so the matrix is never written out in more than the dtype of the values
that meet it, one layer (or expert) at a time. Quantised are the matrices of `INPUTS`: attention, MLP, experts, what
leads into a mixer and out of it, and an unembedding of its own. Embeddings (and an unembedding tied to them), norms,
biases, routers, a mixer's small maps and all else stay as they are stored, and their dtype is the dtype of the
computation.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..axes import aligned
from ..errors import UserError, quoted

FORMATS: Final[dict[np.dtype, float]] = {np.dtype(jnp.int8): 127.0, np.dtype(jnp.float8_e4m3fn): 448.0}
"""dtype -> the largest number that is used."""
_OF_BLOCKS: Final[dict[str, tuple[int, ...]]] = {
    **{f"{kind}.w{name}": (1, 2) if name == "o" else (1,) for kind in ("attn", "cross_attn") for name in "qkvo"},
    **{f"{kind}.{name}": (1,) for kind in ("mlp", "dense") for name in ("gate", "up", "down")},
    **dict.fromkeys(("moe.gate", "moe.up", "moe.down"), (2,)),
    **dict.fromkeys(("mixer.wx", "mixer.wz", "mixer.wo"), (1,)),
}
INPUTS: Final[dict[str, tuple[int, ...]]] = {
    **{f"{stack}blocks.{leaf}": summed for stack in ("", "encoder.") for leaf, summed in _OF_BLOCKS.items()},
    **dict.fromkeys(("shared.enc", "shared.enc_v"), (1,)),
    "shared.dec": (0, 1),
    "head.w": (0,),
}
"""Leaf -> which of its axes are summed over. Those before count matrices (of layers, experts, heads), those behind are
output channels."""


@jax.custom_jvp
def constant(a: Array) -> Array:
    """The same array; asking for a gradient with respect to it is an error."""
    return a


@partial(constant.defjvp, symbolic_zeros=True)
def _refuse(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    if type(tangents[0]) is not SymbolicZero:
        raise UserError(
            "quantised weights have no gradient. Differentiate with respect to activations or other weights, "
            "or load the model without dtype='int8' or 'float8_e4m3fn'."
        )
    return primals[0], tangents[0]


@partial(jax.tree_util.register_dataclass, data_fields=["q", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A matrix, or one per layer, in eight bits; a pytree node where `Weights` has an array otherwise.

    Example:
      >>> w = quantise_matrix(jnp.array([[2.0, 127.0], [-254.0, 1.0]]), inputs=1, dtype="int8")
      >>> w.q.tolist(), w.scale.tolist(), w.astype(jnp.float32).tolist()
      ([[1, 127], [-127, 1]], [[2.0, 1.0]], [[2.0, 127.0], [-254.0, 1.0]])
    """

    q: Any
    """[*in, *out], int8 or float8_e4m3fn."""
    scale: Any
    """[*1, *out], float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.q.shape

    @property
    def ndim(self) -> int:
        return self.q.ndim

    def astype(self, dtype: Any) -> Array:
        """The matrix itself, of which there is then a whole copy: for code that is not a `matmul`."""
        return (constant(self.q).astype(jnp.float32) * constant(self.scale)).astype(dtype)


def matmul(x: Float[Array, "*batch d_in"], w: Any, inputs: int = 1) -> Float[Array, "*batch_out"]:
    """x times a matrix [*in, *out], quantised or not, as one plain product over the joined axes, in x's dtype.

    Args:
      inputs: how many axes of w are summed over; together they are d_in.
    Example:
      >>> matmul(jnp.ones((5, 6)), jnp.ones((2, 3, 4)), inputs=2).shape
      (5, 4)
    """
    out = (*x.shape[:-1], *w.shape[inputs:])
    if not isinstance(w, Quantised):
        return (x @ w.astype(x.dtype).reshape(x.shape[-1], -1)).reshape(out)
    q = constant(w.q).reshape(x.shape[-1], -1).astype(x.dtype)
    y = jnp.matmul(x, q, preferred_element_type=jnp.float32)
    y = y * aligned(constant(w.scale).reshape(-1), y)
    return y.astype(x.dtype).reshape(out)


def eight_bits(dtype: Any) -> np.dtype | None:
    """The row of `FORMATS` that a dtype asks for; None if it asks for a float of 16 bits or more, or for nothing.

    Raises:
      UserError: a dtype in which there are no weights.
    """
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found in FORMATS:
        return found
    wide = found == np.dtype(np.float64) and not jax.config.values["jax_enable_x64"]  # it would become float32
    if found is None or wide or not jnp.issubdtype(found, jnp.floating) or found.itemsize == 1:
        known = ", ".join(["float16", "bfloat16", "float32", *map(str, FORMATS)])
        raise UserError(f"there are no weights of dtype {quoted(dtype)}. Known: {known}; None is as stored.")
    return None


def quantise(weights: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The weights with the matrices of `INPUTS` in eight bits, as `load(..., dtype=dtype)` reads them.

    Raises:
      UserError: a dtype that is not a row of `FORMATS`.
    Example:
      >>> from jaxneuro.models import Config, init
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> quantise(init(cfg, jax.random.key(0)), "int8")["blocks"]["mlp"]["up"].q.dtype
      dtype('int8')
    """

    from .layout import flatten, nest  # which knows the mixers, whose matrices are multiplied here

    def one(leaf: str, a: Any) -> Any:
        summed = INPUTS.get(leaf)
        return a if summed is None else quantise_matrix(a, len(summed), dtype, stacked=summed[0])

    return nest({leaf: one(leaf, a) for leaf, a in flatten(weights).items()})


def quantise_matrix(w: Float[Array, "..."], inputs: int, dtype: Any, *, stacked: int = 0) -> Quantised:
    """Round a matrix [*in, *out] to the nearest of its column's numbers; `stacked` axes before it count matrices.

    Raises:
      UserError: a dtype that is not a row of `FORMATS`.
    """
    kind = eight_bits(dtype)
    if kind is None:
        raise UserError(f"cannot quantise to {dtype!r}. Known: {', '.join(map(str, FORMATS))}.")
    axes = tuple(range(stacked, stacked + inputs))
    scale = _scales(_peaks(w, axes, jnp), kind, jnp)
    return Quantised(_rounded(w, scale, kind, jnp), scale)


def _peaks(w: Any, axes: tuple[int, ...], xp: Any) -> Any:
    return xp.max(xp.abs(w), axis=axes, keepdims=True).astype(np.float32)


def _scales(peak: Any, dtype: np.dtype, xp: Any) -> Any:
    # Zeros stay zeros. Times the reciprocal, as XLA divides by a constant, so that here and there agree to the bit.
    return xp.where(peak > np.float32(1e-30), peak * np.float32(1 / FORMATS[dtype]), np.float32(1))


def _rounded(w: Any, scale: Any, dtype: np.dtype, xp: Any) -> Any:
    grid = w.astype(np.float32) / scale
    return (xp.rint(grid) if dtype == np.int8 else grid).astype(dtype)


def read_quantised(
    shape: tuple[int, ...],
    summed: tuple[int, ...],
    dtype: np.dtype,
    views: Callable[[], list[np.ndarray]],
    stacked: tuple[int, ...],
    sharding: NamedSharding | None,
) -> tuple[Quantised, list[int]]:
    """Quantise views of a file one after the other; every device holds its own slice.

    A scale is that of the whole column, so the numbers are the same on every mesh. Where the mesh splits the axes that
    are summed over, a host reads the whole columns of its slice to find their largest entry, and keeps none of it.

    Args:
      shape: of the leaf.
      summed: its row of `INPUTS`.
      views: gives the leaf's part of every tensor.
      stacked: lengths of the leading axes that count tensors.
    Returns:
      The leaf, and which tensors hold NaN or infinity.
    """
    bad: set[int] = set()
    axes = tuple(axis - len(stacked) for axis in summed)

    def read(index: tuple[slice, ...]) -> Quantised:
        inner = index[len(stacked) :]
        columns = tuple(slice(None) if i in axes else part for i, part in enumerate(inner))
        picks = np.arange(math.prod(stacked)).reshape(stacked)[index[: len(stacked)]]
        parts, every = [], views()
        for i in picks.reshape(-1).tolist():
            view = every[i]
            peak = _peaks(view[columns], axes, np)
            if not np.isfinite(peak).all():
                bad.add(i)
                peak, view = np.zeros_like(peak), np.zeros_like(view)  # an error soon
            scale = _scales(peak, dtype, np)
            parts.append((_rounded(view[inner], scale, dtype, np), scale))
        q, scale = (np.stack(a).reshape(*picks.shape, *a[0].shape) for a in zip(*parts, strict=True))
        return Quantised(q, scale)

    if sharding is None:
        return jax.tree.map(jnp.asarray, read((slice(None),) * len(shape))), sorted(bad)
    return _placed(shape, sharding, summed, read), sorted(bad)


def _placed(shape: tuple[int, ...], sharding: NamedSharding, summed: tuple[int, ...], read: Callable) -> Quantised:
    devices: dict[tuple[slice, ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        devices.setdefault(index, []).append(device)
    shards: list[Quantised] = []
    for index, theirs in devices.items():
        piece = read(index)
        shards += [jax.device_put(piece, device) for device in theirs]
    spec = [
        None if i in summed else axis for i, axis in enumerate((*sharding.spec, *[None] * len(shape))[: len(shape)])
    ]
    few = tuple(1 if i in summed else n for i, n in enumerate(shape))
    of_scale = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    join = jax.make_array_from_single_device_arrays
    return Quantised(join(shape, sharding, [s.q for s in shards]), join(few, of_scale, [s.scale for s in shards]))
