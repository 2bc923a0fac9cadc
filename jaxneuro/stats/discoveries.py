# SPDX-License-Identifier: Apache-2.0
"""Which of many correlated units stand out from permuted labels: a bound for all of them at once."""

import math
from typing import NamedTuple

import numpy as np

from ..errors import UserError


class Envelope(NamedTuple):
    """What `envelope` returns."""

    bound: np.ndarray
    """float [r, K], falling with r: with confidence 1 - level, the i-th largest statistic of units without an effect is
    below bound[i - 1], for every i and group together. inf if nothing can be said."""
    outside: np.ndarray
    """bool [1 + S]: labellings that reach the bound somewhere, at most a share `level` of them."""


def envelope(largest: np.ndarray, *, level: float = 0.05) -> Envelope:
    """How large the largest, the second largest ... statistic gets where labels mean nothing.

    T_(r)[s, k] is the r-th largest statistic of group k under labelling s. Over labellings,

        bound_rk = median T_(r)[., k] + lambda spread_rk,     spread: from the median to the 1 - level quantile

    with the smallest lambda that at most a share `level` of all labellings, the truth among them, reaches anywhere.
    The truth is one of 1 + S labellings that are equally likely if labels mean nothing, so this confidence is exact,
    however units, groups and ranks depend on each other. With effects in some units it holds for the others.

    Args:
      largest: float [r, 1 + S, K]: each labelling's largest statistics in descending order (`keep_largest`), labelling
        0 the truth. `ranks_needed` says how many are enough.
      level: how often the bound may fail.
    Returns:
      Envelope.
    Raises:
      UserError: as `check_rates`; NaN among the statistics.
    Source: simultaneous bounds by permutation: Meinshausen 2006 (Scand. J. Statist. 33, 227); Hemerik, Solari, Goeman
      2019 (Biometrika 106, 635). The family of bounds is ours.
    """
    n = largest.shape[1]
    check_rates(n - 1, 0.5, level)
    _check_ordered("statistic", largest)
    middle = np.median(largest, 1, keepdims=True)
    spread = np.quantile(largest, 1 - level, axis=1, keepdims=True, method="higher") - middle
    spread = np.maximum(spread, 1e-6 * np.maximum(spread.max(), 1e-30))  # where nearly all labellings are equal
    height = ((largest - middle) / spread).max((0, 2))
    order = np.sort(height)[::-1]
    good = [x for x in order[: math.floor(level * n + 1e-9)] if np.sum(height >= x) <= level * n + 1e-9]
    if not good:  # more labellings than the level allows are the same, as with few documents
        return Envelope(np.full((len(largest), largest.shape[2]), np.inf), np.zeros(n, bool))
    bound = (middle + good[-1] * spread)[:, 0]
    return Envelope(np.minimum.accumulate(bound, 0), height >= good[-1])


def discoveries(statistic: np.ndarray, bound: np.ndarray, *, rate: float = 0.05) -> np.ndarray:
    """Units so large that at most a share `rate` of them can be without an effect.

        V(t) = #{r: bound_r > t}                    no fewer than the units without an effect at t or above
        the R largest are discoveries,  R the largest number with V(T_(R)) <= rate R

    Args:
      statistic: float [m, K], of m units under one labelling.
      bound: [r, K], from `envelope` with r = ranks_needed(m, rate). Where all r bounds are above t nothing is known.
    Returns:
      bool [m, K]. With the envelope's confidence at most a share `rate` of each group's is false; where no unit has an
      effect that means: there are none.
    Raises:
      UserError: NaN among the statistics or bounds: it has no place in an order, and where it is sorted to decides how
        many others are found (`scipy.stats.false_discovery_control` refuses it, too). Leave such units out.
    Example:
      >>> rng = np.random.default_rng(0)
      >>> t = rng.normal(size=(50, 100, 1))                          # 50 units, 100 labellings, 1 group
      >>> t[:20, 0] += 9                                             # under the true labels 20 units stand out
      >>> found = envelope(keep_largest(None, t, ranks_needed(50, 0.05)))
      >>> discoveries(t[:, 0], found.bound)[:, 0].nonzero()[0].tolist() == list(range(20))
      True
    """
    _check_ordered("statistic", statistic)
    _check_ordered("bound", bound)
    found = np.zeros(statistic.shape, bool)
    for k, t in enumerate(statistic.T):
        rising = bound[::-1, k]
        order = np.argsort(t)[::-1]
        false = len(bound) - np.searchsorted(rising, t[order], side="right")
        good = np.flatnonzero((false <= rate * np.arange(1, len(t) + 1)) & (false < len(bound)))
        found[order[: good[-1] + 1] if good.size else [], k] = True
    return found


def ranks_needed(m: int, rate: float, most: int = 2000) -> int:
    """How many bounds decide about m units: one more than the largest share of m that may be false.

    Example:
      >>> ranks_needed(50, 0.05), ranks_needed(3072, 0.05), ranks_needed(10**6, 0.05)
      (3, 154, 2000)
    """
    return min(m, most, math.floor(rate * m) + 1)


def keep_largest(kept: np.ndarray | None, more: np.ndarray, n: int) -> np.ndarray:
    """The n largest along axis 0 of both, in descending order: statistics of many units, a chunk at a time.

    Raises:
      UserError: NaN among them.
    Example:
      >>> keep_largest(np.array([5.0, 1.0]), np.array([2.0, 7.0]), 3).tolist()
      [7.0, 5.0, 2.0]
    """
    _check_ordered("statistic", more)
    every = more if kept is None else np.concatenate([kept, more])
    if len(every) > n:
        every = np.partition(every, len(every) - n, axis=0)[len(every) - n :]
    return np.sort(every, axis=0)[::-1]


def _check_ordered(what: str, values: np.ndarray) -> None:
    if bad := int(np.isnan(values).sum()):
        count = f"{bad} of {np.size(values)} values of the {what} are NaN"
        raise UserError(f"{count}, which has no place in an order. Leave those units out.")


def check_rates(n_shuffles: int, rate: float, level: float) -> None:
    """Refuse what nothing can be found with, before the labellings are computed.

    Raises:
      UserError: rates outside (0, 1), or fewer labellings than 1 / level.
    """
    if not (0 < rate < 1 and 0 < level < 1):
        raise UserError(f"rate={rate}, level={level}: both must be above 0 and below 1.")
    if n_shuffles + 1 < (least := math.ceil(1 / level - 1e-9)):
        raise UserError(
            f"n_shuffles={n_shuffles}: with so few permuted labellings nothing can be found at a level of {level}; at "
            f"least {least - 1} are needed, 500 are usual."
        )
