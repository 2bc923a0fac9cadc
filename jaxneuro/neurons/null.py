# SPDX-License-Identifier: Apache-2.0
"""Selectivity beside the same computation under permuted labels, and what survives the comparison."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import stats
from ..errors import UserError
from .selectivity import AGNOSTIC, RELATED, SPECIFIC, finer, lape
from .table import GroupStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Neurons per class; a related neuron counts in each of its groups. Leading axis S for permuted labels."""

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
    """LAPE and the finer classes of every neuron, side by side with S permuted labellings. Numpy throughout."""

    entropy: np.ndarray
    """float32 [L, F], nats; +inf where LAPE's filter removed the neuron. At most ln K."""
    lape_member: np.ndarray
    """bool [L, F, K]"""
    score: np.ndarray
    label: np.ndarray
    """int8 [L, F]: 0 none, 1 specific, 2 related, 3 agnostic."""
    member: np.ndarray
    """bool [L, F, K]: groups of specific and related neurons."""
    n_active: np.ndarray
    significant: np.ndarray
    """bool [L, F]: entropy lower than permuted labels explain, at the false discovery rate asked for."""
    weight: float
    tau: float
    counts: ClassCounts
    null: ClassCounts


def permuted_rates(table: GroupStatistics, n_shuffles: int, seed: int) -> Iterator[np.ndarray]:
    """Firing rates under the true labels and under permutations of whole blocks, one labelling after another.

    Args:
      table: from `group_statistics(n_blocks=...)`.
      n_shuffles, seed: as `jaxneuro.stats.permuted_labels`.
    Yields:
      float32 [L, F, K], 1 + n_shuffles of them, the first equal to `table.rate`.
    Raises:
      UserError: the table has no counts per block.
    """
    if not len(table.block_tokens):
        raise UserError(
            "permuted_rates: no counts per block. Give group_statistics n_blocks, and batches with `block`."
        )
    used = table.block_group >= 0
    fired, tokens = table.block_fired[used].astype(np.float32), table.block_tokens[used]
    labels = stats.permuted_labels(table.block_group[used], n_shuffles, seed)
    flat = fired.reshape(len(fired), -1)
    for column in labels.T:
        member = (column == np.arange(table.n_groups)[:, None]).astype(np.float32)
        total = np.maximum(member @ tokens, 1).astype(np.float32)
        yield np.ascontiguousarray((member @ flat / total[:, None]).reshape(-1, *fired.shape[1:]).transpose(1, 2, 0))


@partial(jax.jit, static_argnames=("score", "top_rate", "filter_rate", "bar"))
def _both(rate: Any, *, score: str, top_rate: float, filter_rate: float, bar: float) -> Any:
    options = {"top_rate": top_rate, "filter_rate": filter_rate, "bar": bar}
    return lape(rate, **options), finer(rate, score=score, **options)  # type: ignore[arg-type]


def selectivity(
    rates: Iterable[np.ndarray],
    *,
    top_rate: float = 0.01,
    filter_rate: float = 0.95,
    bar: float = 0.95,
    score: str = "code",
    false_discovery_rate: float = 0.05,
    level: float = 0.05,
) -> Selectivity:
    """`lape` and `finer` on true and permuted labels with the same options.

    LAPE selects a fixed share of neurons whatever the data, so its counts alone prove nothing. Two comparisons come
    with them: `null`, the same counts under each permuted labelling; and `significant`, the neurons whose entropy is
    lower than permuted labels explain (`discoveries`). The null's own significant counts are made by treating each
    permutation as the truth.

    Args:
      rates: 1 + S arrays [L, F, K], the true labels first: `permuted_rates`, or one array [1 + S, L, F, K]
        (`GroupStatistics.rates`).
      false_discovery_rate, level: as `jaxneuro.stats.envelope` and `discoveries`. With S < 1 / level - 1 nothing is
        significant.
    Returns:
      Selectivity.
    Raises:
      UserError: fewer than two groups.
    """
    options = {"score": score, "top_rate": top_rate, "filter_rate": filter_rate, "bar": bar}
    truth, kept = None, []
    for rate in rates:
        both = jax.tree.map(np.asarray, _both(jnp.asarray(rate, jnp.float32), **options))
        truth = truth or both
        kept.append((both[0].entropy, np.flatnonzero(both[0].member), _counts(*both)))  # few: a share top_rate
    if truth is None:
        raise UserError("selectivity: no rates. The first array must be those under the true labels.")
    first, fine = truth
    found = significant_entropies(
        np.stack([e for e, _, _ in kept]), first.member.shape[-1], rate=false_discovery_rate, level=level
    )
    counts = [
        c | {"significant": _significant(m, f, first.member.shape)} for (_, m, c), f in zip(kept, found, strict=True)
    ]
    stacked = {k: np.stack([c[k] for c in counts]) for k in counts[0]}
    return Selectivity(
        entropy=first.entropy,
        lape_member=first.member,
        score=fine.score,
        label=fine.label,
        member=fine.member,
        n_active=fine.n_active,
        significant=found[0],
        weight=float(fine.weight),
        tau=float(fine.tau),
        counts=ClassCounts(**{k: v[0] for k, v in stacked.items()}),
        null=ClassCounts(**{k: v[1:] for k, v in stacked.items()}),
    )


def _significant(members: np.ndarray, found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[K, L]: members, given as flat indices, whose neuron was found."""
    layer, neuron, group = np.unravel_index(members, shape)
    total = np.zeros((shape[2], shape[0]), np.int64)
    np.add.at(total, (group, layer), found[layer, neuron])
    return total


def significant_entropies(entropy: np.ndarray, n_groups: int, *, rate: float, level: float = 0.05) -> np.ndarray:
    """Entropies so far below ln K that permuted labels do not explain them, under every labelling taken for the truth.

    Args:
      entropy: [1 + S, L, F], the true labels first; +inf for neurons that do not take part.
      n_groups: K; the statistic is ln K - H, and 0 for neurons that do not take part.
    Returns:
      bool [1 + S, L, F]; nothing if S < 1 / level - 1.
    """
    return _low(np.maximum(math.log(n_groups) - np.asarray(entropy, np.float64), 0), rate, level)


def discoveries(entropy: np.ndarray, null: np.ndarray, rate: float, *, level: float = 0.05) -> np.ndarray:
    """Neurons with an entropy so low that, with confidence 1 - level, at most a share `rate` of them is false.

    Args:
      entropy: [L, F]; +inf for neurons that do not take part.
      null: [S, L, F], the same under permuted labels.
    Returns:
      bool [L, F]; nothing if S < 1 / level - 1.
    Source: `jaxneuro.stats.envelope` and `jaxneuro.stats.discoveries`, of the entropy's distance below the largest.
    """
    every = np.concatenate([np.asarray(entropy, np.float64)[None], np.asarray(null, np.float64)])
    top = every[np.isfinite(every)].max(initial=0)
    return _low(np.maximum(top - every, 0), rate, level)[0]


def _low(statistic: np.ndarray, rate: float, level: float) -> np.ndarray:
    """Discoveries [1 + S, L, F] of a statistic of the same shape; labellings inside the envelope have none."""
    t = statistic.reshape(len(statistic), -1).T
    found = np.zeros(t.T.shape, bool)
    if len(statistic) >= 1 / level - 1e-9:
        bounds = stats.envelope(stats.keep_largest(None, t[:, :, None], stats.ranks_needed(len(t), rate)), level=level)
        for s in np.flatnonzero(bounds.outside):
            found[s] = stats.discoveries(t[:, s, None], bounds.bound, rate=rate)[:, 0]
    return found.reshape(statistic.shape)


def _counts(first: Any, fine: Any) -> dict[str, np.ndarray]:
    def per_group(mask: np.ndarray) -> np.ndarray:
        return mask.sum(1).T  # [L, F, K] -> [K, L]

    label = fine.label[..., None]
    return {
        "specific": per_group(fine.member & (label == SPECIFIC)),
        "related": per_group(fine.member & (label == RELATED)),
        "agnostic": (fine.label == AGNOSTIC).sum(1),
        "lape": per_group(first.member),
    }
