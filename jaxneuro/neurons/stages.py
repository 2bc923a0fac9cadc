# SPDX-License-Identifier: Apache-2.0
"""Borders of the four stages in the layer profile of group neurons."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..errors import UserError


class Stages(NamedTuple):
    """Stages are layers [0, b1), [b1, b2), [b2, b3), [b3, L)."""

    borders: tuple[int, int, int]
    error: float
    """Squared error within the stages."""
    error_undivided: float
    """Squared error of one stage over all layers: borders mean little unless `error` is far below it."""


def four_stages(group_neurons: np.ndarray, agnostic: np.ndarray) -> Stages:
    """Cut the layers into understanding, shared semantic space, output-space transformation and vocabulary output.

    With s = specific + related and g = agnostic neurons per layer, each divided by its largest value, the three borders
    minimise the squared error of (s, g) around each stage's mean; the last stage has one or two layers. Exhaustive (two
    choices of b3, all b1 < b2), with sums from prefix sums.

    Args:
      group_neurons: [L], specific plus related neurons per layer.
      agnostic: [L].
    Returns:
      Stages. Four stages always come out: read `error` beside `error_undivided`.
    Raises:
      UserError: fewer than four layers.
    Source: the stages are those of arXiv 2505.21505, which reads the borders off a plot; this rule is ours.
    Example:
      >>> four_stages(np.array([9, 9, 1, 1, 1, 7, 7, 0]), np.array([1, 1, 5, 5, 5, 0, 0, 9])).borders
      (2, 5, 7)
    """
    n = len(group_neurons)
    if n < 4:
        raise UserError(f"four_stages: {n} layers cannot be cut into four stages; at least 4 are needed.")
    y = np.stack([np.asarray(a, np.float64) / max(np.max(a), 1) for a in (group_neurons, agnostic)], 1)
    zero = np.zeros((1, y.shape[1]))
    s1, s2 = (np.concatenate([zero, np.cumsum(v, 0)]) for v in (y, y * y))

    def error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        inside = s2[b] - s2[a] - (s1[b] - s1[a]) ** 2 / np.maximum(b - a, 1)[..., None]
        return inside.sum(-1)

    b1, b2, b3 = np.meshgrid(np.arange(1, n), np.arange(1, n), np.arange(max(n - 2, 3), n), indexing="ij")
    ends = [np.zeros_like(b1), b1, b2, b3, np.full_like(b1, n)]
    total = sum(error(a, b) for a, b in pairwise(ends))
    total = np.where((b1 < b2) & (b2 < b3), total, np.inf)
    best = np.unravel_index(np.argmin(total), total.shape)
    whole = error(np.array(0), np.array(n))
    return Stages((int(b1[best]), int(b2[best]), int(b3[best])), float(max(total[best], 0)), float(whole))
