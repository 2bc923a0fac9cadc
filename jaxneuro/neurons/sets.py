# SPDX-License-Identifier: Apache-2.0
"""Random sets of neurons that match given sets in size, layer by layer."""

import numpy as np

from ..errors import UserError


def matched_random_sets(chosen: np.ndarray, n_random: int, seed: int) -> np.ndarray:
    """For every set, `n_random` random sets with the same number of neurons in every layer.

    Layer position alone explains much of the damage that silencing does, so a random set is drawn within each layer,
    without replacement, from the neurons outside the set it is compared with. In a layer where the set holds more than
    half of the neurons that is impossible, and all neurons of that layer are drawn from.

    Args:
      chosen: bool [G, L, F].
      n_random: R, at least 2 (a spread is wanted).
      seed: same seed, same sets.
    Returns:
      bool [G, R, L, F].
    Raises:
      UserError: fewer than two random sets.
    Example:
      >>> sets = matched_random_sets(np.array([[[True, False, False, False]]]), 2, seed=0)
      >>> sets.sum(-1).tolist(), bool(sets[..., 0].any())
      ([[[1], [1]]], False)
    """
    if n_random < 2:
        raise UserError(f"matched_random_sets: n_random={n_random}; at least 2 are needed for a spread, 10 are usual.")
    rng = np.random.default_rng(seed)
    chosen = np.asarray(chosen, bool)
    out = np.zeros((len(chosen), n_random, *chosen.shape[1:]), bool)
    for g, layer in np.argwhere(chosen.any(-1)):
        inside = chosen[g, layer]
        size = int(inside.sum())
        pool = np.flatnonzero(~inside) if 2 * size <= inside.size else np.arange(inside.size)
        for r in range(n_random):
            out[g, r, layer, rng.choice(pool, size, replace=False)] = True
    return out
