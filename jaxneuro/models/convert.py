# SPDX-License-Identifier: Apache-2.0
"""Tensor <-> leaf by axis names: a source axis may join several of ours, "(heads head) embed" is [heads*head, embed].

Reading is reshape + transpose, so it gives views and copies nothing; writing is the same backwards.
"""

import math
import re

import numpy as np

_AXIS = re.compile(r"\(([^)]*)\)|(\S+)")


def parse_axes(pattern: str) -> list[list[str]]:
    """The groups of a pattern.

    Example:
      >>> parse_axes("embed (part heads head)")
      [['embed'], ['part', 'heads', 'head']]
    """
    return [(joined or single).split() for joined, single in _AXIS.findall(pattern)]


def tensor_shape(pattern: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape that a tensor of this pattern has."""
    return tuple(math.prod(sizes[a] for a in group) for group in parse_axes(pattern))


def _order(pattern: str, leaf_axes: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """(axes of the split tensor, which of them comes where in the leaf, the part axis first)."""
    flat = [a for group in parse_axes(pattern) for a in group]
    # A fused tensor holds all heads in one axis, so there the key/value heads are as many as the query heads.
    wanted = ["heads" if a == "kv_heads" and "kv_heads" not in flat else a for a in leaf_axes]
    return flat, [flat.index(a) for a in (["part"] if "part" in flat else []) + wanted]


def to_leaves(
    tensor: np.ndarray, pattern: str, leaf_axes: tuple[str, ...], sizes: dict[str, int]
) -> tuple[np.ndarray, ...]:
    """Views of a tensor as the leaves it holds: one, or one per `part`.

    Example:
      >>> w = np.arange(8).reshape(4, 2)                      # torch Linear [heads * head, embed]
      >>> to_leaves(w, "(heads head) embed", ("embed", "heads", "head"), dict(heads=2, head=2, embed=2))[0].shape
      (2, 2, 2)
    """
    flat, order = _order(pattern, leaf_axes)
    split = tensor.reshape([sizes[a] for a in flat]).transpose(order)
    return tuple(split) if "part" in flat else (split,)


def from_leaves(
    leaves: tuple[np.ndarray, ...], pattern: str, leaf_axes: tuple[str, ...], sizes: dict[str, int]
) -> np.ndarray:
    """The tensor of its leaves: the inverse of `to_leaves`."""
    flat, order = _order(pattern, leaf_axes)
    split = np.stack(leaves) if "part" in flat else leaves[0]
    return split.transpose(np.argsort(order)).reshape(tensor_shape(pattern, sizes))
