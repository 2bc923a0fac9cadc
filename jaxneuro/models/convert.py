# SPDX-License-Identifier: Apache-2.0
"""Tensor <-> leaf by axis names: a source axis may join several of ours, "(heads head) embed" is [heads*head, embed].

A tensor that holds several leaves has them one after the other along the axis called `part`, or, where their sizes
differ, along an axis that names all of theirs: "(heads|kv_heads|kv_heads head) embed" is q, k and v of Phi-3.

Axes of length 1 that a leaf has not are called "1".

Reading is reshape + transpose, so it gives views and copies nothing; writing is the same backwards.
"""

import math
import re
from typing import NamedTuple

import numpy as np

_AXIS = re.compile(r"\(([^)]*)\)|(\S+)")


def parse_axes(pattern: str) -> list[list[str]]:
    """The groups of a pattern.

    Example:
      >>> parse_axes("embed (part heads head)")
      [['embed'], ['part', 'heads', 'head']]
    """
    return [(joined or single).split() for joined, single in _AXIS.findall(pattern)]


def _length(axis: str, sizes: dict[str, int]) -> int:
    return 1 if axis == "1" else sum(sizes[a] for a in axis.split("|"))


def tensor_shape(pattern: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape that a tensor of this pattern has.

    Example:
      >>> tensor_shape("(heads|kv_heads|kv_heads head) embed", dict(heads=4, kv_heads=2, head=8, embed=32))
      (64, 32)
    """
    return tuple(math.prod(_length(a, sizes) for a in group) for group in parse_axes(pattern))


class _Plan(NamedTuple):
    """How the split tensor becomes leaves."""

    axes: list[str]
    order: list[int]
    """Which of its axes comes where in a leaf, the part axis first."""
    sections: int | None
    """The axis along which leaves of different sizes follow each other."""


def _plan(pattern: str, leaf_axes: tuple[str, ...]) -> _Plan:
    axes = [a for group in parse_axes(pattern) for a in group if a != "1"]
    sections = next((i for i, a in enumerate(axes) if "|" in a), None)
    flat = [a.split("|")[0] for a in axes]
    # A fused tensor holds all heads in one axis, so there the key/value heads are as many as the query heads.
    wanted = ["heads" if a == "kv_heads" and "kv_heads" not in flat else a for a in leaf_axes]
    order = [flat.index(a) for a in (["part"] if "part" in flat else []) + wanted]
    return _Plan(axes, order, sections)


def to_leaves(
    tensor: np.ndarray, pattern: str, leaf_axes: tuple[str, ...], sizes: dict[str, int]
) -> tuple[np.ndarray, ...]:
    """Views of a tensor as the leaves it holds: one, one per `part`, or one per section.

    Args:
      leaf_axes: of the first leaf; the others have theirs in the same order.
    Example:
      >>> w = np.arange(8).reshape(4, 2)                      # torch Linear [heads * head, embed]
      >>> to_leaves(w, "(heads head) embed", ("embed", "heads", "head"), dict(heads=2, head=2, embed=2))[0].shape
      (2, 2, 2)
    """
    axes, order, sections = _plan(pattern, leaf_axes)
    split = tensor.reshape([_length(a, sizes) for a in axes])
    if sections is not None:
        ends = np.cumsum([sizes[a] for a in axes[sections].split("|")])[:-1]
        return tuple(part.transpose(order) for part in np.split(split, ends, axis=sections))
    split = split.transpose(order)
    return tuple(split) if "part" in axes else (split,)


def from_leaves(
    leaves: tuple[np.ndarray, ...], pattern: str, leaf_axes: tuple[str, ...], sizes: dict[str, int]
) -> np.ndarray:
    """The tensor of its leaves: the inverse of `to_leaves`."""
    axes, order, sections = _plan(pattern, leaf_axes)
    back = np.argsort(order)
    if sections is not None:
        split = np.concatenate([leaf.transpose(back) for leaf in leaves], axis=sections)
    else:
        split = (np.stack(leaves) if "part" in axes else leaves[0]).transpose(back)
    return split.reshape(tensor_shape(pattern, sizes))
