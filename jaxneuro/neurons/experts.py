# SPDX-License-Identifier: Apache-2.0
"""Expert neurons: each group's best detectors by average precision, as far as shuffled labels do not explain them."""

from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .expertise import Expertise, expertise
from .null import discoveries


class Experts(NamedTuple):
    """What `expert_neurons` returns, as numpy arrays."""

    found: Expertise
    """Under the true labels."""
    member: np.ndarray
    """bool [L, F, K]: the group's expert neurons."""
    significant: np.ndarray
    """int64 [K, L]: neurons, chosen or not, that detect the group better than shuffled labels explain."""
    null_significant: np.ndarray
    """int64 [S, K, L]: the same with each shuffled labelling taken for the truth and the others for its null."""


def expert_neurons(
    responses: np.ndarray,
    label: np.ndarray,
    n_groups: int,
    *,
    share: float = 0.02,
    n_shuffles: int = 5,
    seed: int = 0,
    false_discovery_rate: float = 0.05,
) -> Experts:
    """For every group the neurons with the highest average precision, at most a share of all, that pass the null.

    The windows' labels are shuffled S times, which keeps the sizes of the groups. A neuron is significant for a group
    if its AP is so high that at most a share `false_discovery_rate` of such neurons is expected under shuffled labels
    (`discoveries`, per group). Expert neurons are the significant ones among the round(share L F) highest APs; equal
    APs are ordered by layer, then neuron.

    Args:
      responses: float [n, L, F], one pooled response per window (`GroupStatistics.responses`).
      label: int [n], the windows' groups.
      n_groups: K.
    Returns:
      Experts.
    Raises:
      UserError: as `expertise`; fewer than two shuffles; a share outside (0, 1].
    Source: top neurons by AP: arXiv 2502.17355 (3,000 of 7B's); the null is ours.
    Example:
      >>> rng = np.random.default_rng(0)
      >>> label = np.arange(40) % 2
      >>> r = rng.normal(size=(40, 1, 50))
      >>> r[label == 1, 0, :8] += 9
      >>> expert_neurons(r, label, 2, share=0.2).member[0, :, 1].nonzero()[0].tolist()
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if n_shuffles < 2:
        raise UserError(f"expert_neurons: n_shuffles={n_shuffles}; at least 2 are needed for a null.")
    if not 0 < share <= 1:
        raise UserError(f"expert_neurons: share={share}; it must be above 0 and at most 1.")
    found, rng = expertise(responses, label, n_groups), np.random.default_rng(seed)
    shuffled = [expertise(responses, rng.permutation(label), n_groups).ap for _ in range(n_shuffles)]
    ap = np.stack([found.ap, *shuffled])

    def passes(i: int, k: int) -> np.ndarray:
        null = ap[1:] if i == 0 else np.delete(ap[1:], i - 1, 0)
        return discoveries(-ap[i, ..., k], -null[..., k], false_discovery_rate)

    good = np.stack([np.stack([passes(i, k) for k in range(n_groups)], -1) for i in range(len(ap))])
    counts = np.moveaxis(good.sum(2), -1, 1)  # [1 + S, L, K] -> [1 + S, K, L]
    return Experts(found, good[0] & _highest(found.ap, round(share * found.ap[..., 0].size)), counts[0], counts[1:])


def _highest(ap: np.ndarray, n: int) -> np.ndarray:
    """bool [L, F, K]: per group the n neurons with the highest AP."""
    flat = ap.reshape(-1, ap.shape[-1])
    top = np.argsort(-flat, axis=0, kind="stable")[:n]
    member = np.zeros(flat.shape, bool)
    np.put_along_axis(member, top, True, axis=0)
    return member.reshape(ap.shape)
