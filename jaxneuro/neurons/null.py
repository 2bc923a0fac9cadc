# SPDX-License-Identifier: Apache-2.0
"""Selectivity beside the same computation under shuffled labels, and what survives the comparison."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .selectivity import AGNOSTIC, RELATED, SPECIFIC, finer, lape


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Neurons per class; a related neuron counts in each of its groups. Leading axis S for shuffled labels."""

    specific: np.ndarray
    """int [K, L]"""
    related: np.ndarray
    """int [K, L]"""
    agnostic: np.ndarray
    """int [L]"""
    lape: np.ndarray
    """int [K, L]: neurons that LAPE gives to each group."""
    significant: np.ndarray
    """int [K, L]: of those, the ones that pass the null (`discoveries`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selectivity:
    """LAPE and the finer classes of every neuron, side by side with S shuffled labellings. Numpy throughout."""

    entropy: np.ndarray
    """float32 [L, F], nats; +inf where LAPE's filter removed the neuron."""
    lape_member: np.ndarray
    """bool [L, F, K]"""
    score: np.ndarray
    label: np.ndarray
    """int8 [L, F]: 0 none, 1 specific, 2 related, 3 agnostic."""
    member: np.ndarray
    """bool [L, F, K]: groups of specific and related neurons."""
    n_active: np.ndarray
    significant: np.ndarray
    """bool [L, F]: entropy lower than shuffled labels explain, at the false discovery rate asked for."""
    weight: float
    tau: float
    counts: ClassCounts
    null: ClassCounts


def selectivity(
    rates: np.ndarray,
    *,
    top_rate: float = 0.01,
    filter_rate: float = 0.95,
    bar: float = 0.95,
    score: str = "code",
    false_discovery_rate: float = 0.05,
) -> Selectivity:
    """`lape` and `finer` on true and shuffled labels with the same options.

    LAPE selects a fixed share of neurons whatever the data, so its counts alone prove nothing. Two comparisons come
    with them: `null`, the same counts under each shuffled labelling; and `significant`, the neurons whose entropy is
    lower than shuffled labels explain (`discoveries`). The null's own significant counts are made by treating each
    shuffle as the truth and the others as its null.

    Args:
      rates: float [1 + S, L, F, K] (`GroupStatistics.rates`); row 0 the true labels.
    Returns:
      Selectivity.
    Raises:
      UserError: fewer than two groups.
    """
    rates = np.asarray(rates, np.float32)
    options = {"top_rate": top_rate, "filter_rate": filter_rate, "bar": bar}

    def both(rate):
        return lape(rate, **options), finer(rate, score=score, **options)  # type: ignore[arg-type]

    # one compiled program, one labelling at a time: memory is that of one
    first, fine = jax.tree.map(np.asarray, jax.lax.map(both, jnp.asarray(rates)))
    entropy = first.entropy
    found = np.stack(
        [discoveries(entropy[i], np.delete(entropy[1:], i - 1, 0) if i else entropy[1:], false_discovery_rate)
         for i in range(len(rates))]
    )  # fmt: skip
    counts = [_counts(*jax.tree.map(lambda a, i=i: a[i], (first, fine, found))) for i in range(len(rates))]
    stacked = {k: np.stack([c[k] for c in counts]) for k in counts[0]}
    return Selectivity(
        entropy=entropy[0],
        lape_member=first.member[0],
        score=fine.score[0],
        label=fine.label[0],
        member=fine.member[0],
        n_active=fine.n_active[0],
        significant=found[0],
        weight=float(fine.weight[0]),
        tau=float(fine.tau[0]),
        counts=ClassCounts(**{k: v[0] for k, v in stacked.items()}),
        null=ClassCounts(**{k: v[1:] for k, v in stacked.items()}),
    )


def discoveries(entropy: np.ndarray, null: np.ndarray, rate: float) -> np.ndarray:
    """Neurons with an entropy so low that at most a share `rate` of them is expected under shuffled labels.

        FDR(t) = ((1 + #{null entropies <= t}) / S) / #{entropies <= t}

    The largest t with FDR(t) <= rate is the cut. The 1 keeps an empty null from proving anything by itself: with S
    shuffles at least 1 / (S rate) neurons have to stand below every shuffled entropy.

    Args:
      entropy: [L, F]; +inf for neurons that do not take part.
      null: [S, L, F], the same under shuffled labels.
    Returns:
      bool [L, F]; nothing if S = 0.
    Source: permutation estimate of the false discovery rate (Storey and Tibshirani 2003), proportion of true nulls 1.
    """
    if len(null) == 0:
        return np.zeros(entropy.shape, bool)
    values = np.sort(entropy[np.isfinite(entropy)])
    below = np.searchsorted(np.sort(null[np.isfinite(null)]), values, side="right")
    count = np.searchsorted(values, values, side="right")
    good = np.flatnonzero((1 + below) / len(null) <= rate * count)
    return entropy <= values[good[-1]] if good.size else np.zeros(entropy.shape, bool)


def _counts(first: Any, fine: Any, found: np.ndarray) -> dict[str, np.ndarray]:
    def per_group(mask: np.ndarray) -> np.ndarray:
        return mask.sum(1).T  # [L, F, K] -> [K, L]

    label = fine.label[..., None]
    return {
        "specific": per_group(fine.member & (label == SPECIFIC)),
        "related": per_group(fine.member & (label == RELATED)),
        "agnostic": (fine.label == AGNOSTIC).sum(1),
        "lape": per_group(first.member),
        "significant": per_group(first.member & found[..., None]),
    }
