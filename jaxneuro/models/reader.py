# SPDX-License-Identifier: Apache-2.0
"""Leaves out of a checkpoint's tensors and back: every device reads its own slices, once."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from ..errors import UserError, shown
from ..io.safetensors import Tensors
from .convert import from_leaves
from .layout import Weights, flatten, nest
from .match import Row, Source, listed
from .quantised import INPUTS, read_quantised


def read_weights(
    folder: Path,
    tensors: Tensors,
    sources: Mapping[str, Source],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: Any,
    placed: Mapping[str, NamedSharding],
    allow_nonfinite: bool,
    eight: np.dtype | None = None,
) -> Weights:
    """The nested weights of `shapes`, each leaf from its source.

    Args:
      folder: for messages.
      dtype: of the leaves; None: as stored.
      placed: {leaf: where it goes}; one that is not in it goes to the default device.
      eight: matrices of `quantised.INPUTS` are rounded to this dtype.
    Raises:
      UserError: NaN or infinity, in all tensors that hold them, unless they are allowed; numbers that `dtype` cannot
        hold.
    """
    reader = _Reader(tensors, dtype, None if allow_nonfinite else [], eight)
    leaves = {leaf: reader.leaf(leaf, shape, sources[leaf], placed.get(leaf)) for leaf, shape in shapes.items()}
    if reader.overflowed:
        raise UserError(f"{folder}: {overflow(reader.overflowed, np.dtype(dtype))}")
    if reader.nonfinite:
        raise UserError(
            f"{folder}: NaN or infinity in {listed(sorted(set(reader.nonfinite)))}. "
            "Download it again, or pass allow_nonfinite=True to look at it as it is."
        )
    return nest(leaves)


class _Reader:
    """Copies slices of leaves out of the file, in the dtype asked for; notes tensors that are not finite."""

    def __init__(self, tensors: Tensors, dtype: Any, nonfinite: list[str] | None, eight: np.dtype | None = None):
        self.tensors, self.dtype, self.nonfinite, self.eight = tensors, dtype, nonfinite, eight
        self.overflowed: dict[str, float] = {}

    def leaf(self, leaf: str, shape: tuple[int, ...], source: Source, sharding: NamedSharding | None) -> Any:
        if self.eight is not None and leaf in INPUTS:
            views = functools.partial(source.views, self.tensors)
            out, bad = read_quantised(shape, INPUTS[leaf], self.eight, views, source.row.stacked, sharding)
            self.nonfinite = [*(self.nonfinite or []), *(source.names[i] for i in bad)]
            return out
        if sharding is None:
            return jax.device_put(self.slice(source, (slice(None),) * len(shape)))
        return jax.make_array_from_callback(shape, sharding, lambda index: self.slice(source, index or ()))

    def slice(self, source: Source, index: tuple[slice, ...]) -> np.ndarray:
        """One device's part; the layer axis is never split, that of experts may be."""
        stacked = source.row.stacked
        picks = np.arange(len(source.names)).reshape(stacked)[index[: len(stacked)]]
        views = [view[index[len(stacked) :]] for view in source.views(self.tensors)]
        out = np.empty((*np.shape(picks), *views[0].shape), self.dtype or views[0].dtype)
        for at, i in np.ndenumerate(picks):
            with np.errstate(over="ignore"):  # said below, with the tensor's name
                out[at] = views[i]
            if self.nonfinite is not None and not np.isfinite(out[at]).all():
                self._note(source.names[i], views[i])
        return out

    def _note(self, name: str, stored: np.ndarray) -> None:
        """Whether the file holds what is not finite, or the cast made it so."""
        if np.isfinite(stored).all():
            largest = float(np.abs(stored.astype(np.float64)).max())
            self.overflowed[name] = max(largest, self.overflowed.get(name, 0.0))
        elif self.nonfinite is not None:
            self.nonfinite.append(name)


def overflow(found: Mapping[str, float], dtype: np.dtype) -> str:
    """What to do about numbers that a dtype cannot hold; {name: the largest}.

    Example:
      >>> overflow({"w": 1e5}, np.dtype(np.float16))
      "the largest number of w is 100000, float16 ends at 65504: load it with dtype='bfloat16' or 'float32'."
    """
    name = max(found, key=lambda n: found[n])
    more = f" ({len(found) - 1} more tensors are beyond it too)" if len(found) > 1 else ""
    wider = {"float16": "dtype='bfloat16' or 'float32'", "bfloat16": "dtype='float32'"}.get(str(dtype), "dtype=None")
    end = float(jnp.finfo(dtype).max)
    return (
        f"the largest number of {shown(name)} is {found[name]:g}, {dtype} ends at {end:g}{more}: load it with {wider}."
    )


def tensors_of(weights: Weights, rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """{name in the family's table: tensor}: the inverse of reading."""
    leaves, out = {leaf: np.asarray(a) for leaf, a in flatten(weights).items()}, {}
    for row in rows:
        for at, name in zip(np.ndindex(row.stacked), row.names(), strict=True):
            parts = tuple(leaves[leaf][at] for leaf in row.leaves)
            out[name] = from_leaves(parts, row.pattern, row.leaf_axes, row.sizes)
    return out
