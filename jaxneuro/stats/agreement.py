# SPDX-License-Identifier: Apache-2.0
"""Do two partitions of the same things agree, beyond what partitions of these sizes do by chance?"""

import numpy as np
from jaxtyping import Int
from scipy.special import gammaln

from ..errors import UserError


def contingency(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> Int[np.ndarray, "parts_a parts_b"]:
    """How many things are in each part of the one and of the other.

    Raises:
      UserError: labels of different numbers of things, or of none.
    Example:
      >>> contingency(np.array([0, 0, 1]), np.array([5, 5, 7])).tolist()
      [[2, 0], [0, 1]]
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise UserError(f"partitions of shapes {a.shape} and {b.shape}: both must label the same things, at least one.")
    (_, i), (_, j) = (np.unique(labels, return_inverse=True) for labels in (a, b))
    table = np.zeros((i.max() + 1, j.max() + 1), np.int64)
    np.add.at(table, (i, j), 1)
    return table


def adjusted_mutual_information(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    """Mutual information of two partitions, less what chance gives, over the most it could be.

        AMI = (MI - E[MI]) / ((H(a) + H(b)) / 2 - E[MI])

    E is over all pairs of partitions with parts of these sizes (hypergeometric). 1: the same partition, 0: as by
    chance; below 0: less. Unlike normalised mutual information it does not grow with the number of parts. Two
    partitions of one part each, or of parts of one thing each, are the same: 1.

    Source: Vinh, Epps and Bailey 2010 (JMLR 11), arithmetic mean.
    Example:
      >>> round(adjusted_mutual_information(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])), 6)
      1.0
    """
    table = contingency(a, b)
    rows, columns, n = table.sum(1), table.sum(0), int(table.sum())
    if table.shape in ((1, 1), (n, n)):
        return 1.0
    share = table[table > 0] / n
    apart = np.outer(rows, columns)[table > 0] / n**2
    mutual = float(np.sum(share * np.log(share / apart)))
    expected = _expected(rows, columns, n)
    entropies = [-float(np.sum(s / n * np.log(s / n))) for s in (rows, columns)]
    room = sum(entropies) / 2 - expected
    return (mutual - expected) / room if abs(room) > 1e-15 else 0.0


def _expected(rows: np.ndarray, columns: np.ndarray, n: int) -> float:
    """Mean mutual information, in nats, of random partitions with these sizes."""
    total = 0.0
    for x in rows:
        for y in columns:
            both = np.arange(max(1, x + y - n), min(x, y) + 1, dtype=np.float64)
            ways = gammaln(x + 1) + gammaln(y + 1) + gammaln(n - x + 1) + gammaln(n - y + 1) - gammaln(n + 1)
            parts = gammaln(both + 1) + gammaln(x - both + 1) + gammaln(y - both + 1) + gammaln(n - x - y + both + 1)
            total += float(np.sum(both / n * np.log(n * both / (x * y)) * np.exp(ways - parts)))
    return total
