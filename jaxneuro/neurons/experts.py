# SPDX-License-Identifier: Apache-2.0
"""Expert neurons: each group's best detectors by average precision, as far as permuted labels do not explain them."""

import functools
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..stats import (
    Envelope,
    check_rates,
    discoveries,
    envelope,
    keep_largest,
    labels_of_blocks,
    permuted_labels,
    ranks_needed,
    smallest_p,
)
from .expertise import Expertise, above_chance, expertise, units_first

CHUNK = 4096
"""Neurons whose statistics are on the host at once: [CHUNK, 1 + S, K] float32."""


class Experts(NamedTuple):
    """What `expert_neurons` returns, as numpy arrays."""

    found: Expertise
    """Under the true labels."""
    member: np.ndarray
    """bool [L, F, K]: the group's expert neurons."""
    significant: np.ndarray
    """int64 [K, L]: neurons, chosen or not, that detect the group better than permuted labels explain."""
    null_significant: np.ndarray
    """int64 [S, K, L]: the same with each permuted labelling taken for the truth. All 0 in most of them: the number
    under permuted labels is a rare large one, so give its mean together with the share of labellings that have any."""
    passed: np.ndarray
    """bool [L, F, K]: the neurons that `significant` counts."""
    blocks: np.ndarray
    """int64 [K]: blocks (documents) per group."""
    smallest_p: np.ndarray
    """float64 [K]: no group can do better (`jaxneuro.stats.smallest_p`); above the level it has no experts."""


def expert_neurons(
    responses: np.ndarray,
    label: np.ndarray,
    n_groups: int,
    *,
    block: np.ndarray | None = None,
    share: float = 0.02,
    n_shuffles: int = 500,
    seed: int = 0,
    false_discovery_rate: float = 0.05,
    level: float = 0.05,
) -> Experts:
    """For every group the neurons with the highest average precision, at most a share of all, that pass the null.

    Labels are permuted S times between blocks (`jaxneuro.stats.permuted_labels`). A neuron passes for a group if its
    AP is so far above chance that, with confidence 1 - `level` over all groups together, at most a share
    `false_discovery_rate` of the group's passing neurons is false (`jaxneuro.stats.envelope`, which allows for neurons
    that vary together). Expert neurons are the passing ones among the round(share L F) highest APs; equal APs are
    ordered by layer, then neuron.

    Args:
      responses: numbers [n, L, F], one pooled response per window (`GroupStatistics.responses`).
      label: int [n], the windows' groups.
      n_groups: K.
      block: int [n], the windows' documents (`Windows.block`). None: every window is a block of its own, which is wrong
        for windows of one document: whatever tells documents apart then passes for knowledge of the group.
      n_shuffles: S, at least 1 / level - 1; the time is that of n S K additions per neuron.
    Returns:
      Experts.
    Raises:
      UserError: as `expertise`, `permuted_labels` and `envelope`; a share outside (0, 1].
    Source: top neurons by AP: arXiv 2502.17355 (3,000 of 7B's); the null is ours.
    Example:
      >>> rng = np.random.default_rng(0)
      >>> label = np.arange(40) % 2
      >>> r = rng.normal(size=(40, 1, 50))
      >>> r[label == 1, 0, :8] += 9
      >>> expert_neurons(r, label, 2, share=0.2, n_shuffles=50).member[0, :, 1].nonzero()[0].tolist()
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if not 0 < share <= 1:
        raise UserError(f"expert_neurons: share={share}; it must be above 0 and at most 1.")
    check_rates(n_shuffles, false_discovery_rate, level)
    found, flat = expertise(responses, label, n_groups), units_first(responses)
    labels = permuted_labels(label, n_shuffles, seed, block=block)
    needed = ranks_needed(len(flat), false_discovery_rate)
    largest = functools.reduce(lambda kept, t: keep_largest(kept, t, needed), _chunks(flat, labels, n_groups), None)
    passed, counts = _passing(
        flat, labels, envelope(np.asarray(largest), level=level), false_discovery_rate, found.ap.shape
    )
    blocks = np.bincount(labels_of_blocks(label, block)[1], minlength=n_groups)
    best = passed & _highest(found.ap, round(share * found.ap[..., 0].size))
    return Experts(found, best, counts[0], counts[1:], passed, blocks, smallest_p(blocks))


def _chunks(flat: np.ndarray, labels: np.ndarray, n_groups: int):
    """Statistics [at most CHUNK, 1 + S, K], neurons in order."""
    for start in range(0, len(flat), CHUNK):
        yield above_chance(flat[start : start + CHUNK], labels, n_groups)


def _passing(
    flat: np.ndarray, labels: np.ndarray, bounds: Envelope, rate: float, plane: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """bool [L, F, K] of the true labels, and int64 [1 + S, K, L] of all: the few labellings that reach the bounds are
    looked at again, the others find nothing."""
    layers, _, n_groups = plane
    again = np.flatnonzero(bounds.outside | (np.arange(len(bounds.outside)) == 0))
    statistic = np.concatenate(list(_chunks(flat, labels[:, again], n_groups)))
    good = np.stack([discoveries(statistic[:, i], bounds.bound, rate=rate) for i in range(len(again))])
    good = good.reshape(len(again), layers, -1, n_groups)
    counts = np.zeros((labels.shape[1], n_groups, layers), np.int64)
    counts[again] = good.sum(2).swapaxes(1, 2)
    return good[0], counts


def _highest(ap: np.ndarray, n: int) -> np.ndarray:
    """bool [L, F, K]: per group the n neurons with the highest AP."""
    flat = ap.reshape(-1, ap.shape[-1])
    top = np.argsort(-flat, axis=0, kind="stable")[:n]
    member = np.zeros(flat.shape, bool)
    np.put_along_axis(member, top, True, axis=0)
    return member.reshape(ap.shape)
