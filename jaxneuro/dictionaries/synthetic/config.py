# SPDX-License-Identifier: Apache-2.0
"""What a synthetic model of activations is made from: one frozen table, and the tables it implies."""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float, Int

from ...errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Settings of `synthetic`. The defaults are SynthSAEBench-16k, second version (children scaled by their parent).

    Features are ordered from frequent to rare. The first ones form trees, breadth first: all roots, then the children
    of the first root, of the second ..., so that siblings lie side by side; the rest are free.

    Raises:
      UserError: trees of more nodes than features, and values out of range.
    Source: arXiv:2602.14687, section on SynthSAEBench-16k.
    Example:
      >>> SyntheticConfig().nodes, REDUCED.nodes
      (10880, 340)
    """

    n_features: int = 16_384
    d: int = 768
    p_max: float = 0.4
    """Firing probability of the first feature ..."""
    p_min: float = 5e-4
    """... and of the last; between them a Zipf law."""
    exponent: float = 0.5
    """Of the Zipf law."""
    n_roots: int = 128
    """Trees. 0: no hierarchy."""
    branching: int = 4
    """Children of a node, of which at most one fires."""
    depth: int = 3
    """Levels below the roots."""
    rank: int = 25
    """Rank of what firings share."""
    correlation_scale: float = 0.1
    """Standard deviation of the entries of the correlation factor. 0: features fire independently."""
    size_first: float = 5.0
    """Mean size of the first feature when it fires, linear to ..."""
    size_last: float = 4.0
    """... the last."""
    spread_mean: float = 0.5
    """Each feature's standard deviation of size is |N(spread_mean, spread_std^2)|, drawn once."""
    spread_std: float = 0.5
    bias_norm: float = 0.5
    orthogonal_steps: int = 100
    """Adam steps that push feature directions apart."""
    orthogonal_rate: float = 3e-4

    def __post_init__(self) -> None:
        least = {"n_features": 1, "d": 1, "n_roots": 0, "branching": 2, "depth": 0, "rank": 1, "orthogonal_steps": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"SyntheticConfig: {name} = {getattr(self, name)} is below {low}.")
        for name in ("exponent", "size_first", "size_last"):
            if getattr(self, name) <= 0:
                raise UserError(f"SyntheticConfig: {name} = {getattr(self, name)} is not above 0.")
        for name in ("correlation_scale", "spread_mean", "spread_std", "bias_norm", "orthogonal_rate"):
            if getattr(self, name) < 0:
                raise UserError(f"SyntheticConfig: {name} = {getattr(self, name)} is below 0.")
        if not 0 < self.p_min <= self.p_max <= 1:
            raise UserError(f"SyntheticConfig: 0 < p_min <= p_max <= 1 does not hold for {self.p_min}, {self.p_max}.")
        if self.nodes > self.n_features:
            raise UserError(
                f"SyntheticConfig: {self.n_roots} trees, branching {self.branching}, depth {self.depth}, have "
                f"{self.nodes} nodes, but there are {self.n_features} features. Take fewer roots or more features."
            )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each level's features, roots first."""
        sizes = [self.n_roots * self.branching**level for level in range(self.depth + 1)]
        return tuple(itertools.pairwise(itertools.accumulate(sizes, initial=0)))

    @property
    def nodes(self) -> int:
        """Features that belong to a tree."""
        return self.levels[-1][1]


REDUCED = SyntheticConfig(n_features=512, d=64, n_roots=4)
"""The same generator, 32 times smaller (about 5 of 512 features active in 64 dimensions): seconds on a CPU."""


def parents(config: SyntheticConfig) -> Int[np.ndarray, " n_features"]:
    """Each feature's parent, -1 where there is none. Features of one parent exclude each other.

    Example:
      >>> parents(SyntheticConfig(n_features=8, d=4, n_roots=2, branching=2, depth=1)).tolist()
      [-1, -1, 0, 0, 1, 1, -1, -1]
    """
    out = np.full(config.n_features, -1, np.int32)
    for (above, start), (_, stop) in itertools.pairwise(config.levels):
        out[start:stop] = np.repeat(np.arange(above, start, dtype=np.int32), config.branching)
    return out


def firing_probabilities(config: SyntheticConfig) -> Float[np.ndarray, " n_features"]:
    """Zipf's law, stretched to [p_min, p_max]: what each feature should fire at.

        r_i = i^-exponent, i = 1 .. n;   p_i = p_min + (p_max - p_min) (r_i - r_n) / (r_1 - r_n)

    Example:
      >>> firing_probabilities(SyntheticConfig(n_features=4, d=4, n_roots=0, p_max=0.5, p_min=0.1)).round(3).tolist()
      [0.5, 0.266, 0.162, 0.1]
    """
    r = np.arange(1, config.n_features + 1, dtype=np.float64) ** -config.exponent
    share = (r - r[-1]) / (r[0] - r[-1]) if config.n_features > 1 else np.ones(1)
    return config.p_min + (config.p_max - config.p_min) * share


def drawn_probabilities(config: SyntheticConfig) -> Float[np.ndarray, " n_features"]:
    """What each feature is drawn at, before its parent and its siblings are heard.

        q_c = min(1, p_c / p_parent * (1 + sum_siblings p / p_parent)),   q = p without a parent

    A first-order correction: deep in a tree, and where children are more frequent together than their parent, features
    fire more rarely than p, so that about 34 instead of sum p = 60 of the 16k fire together.
    """
    p, parent = firing_probabilities(config), parents(config)
    child = parent >= 0
    together = np.bincount(parent[child], p[child], minlength=config.n_features)
    above, rivals = p[parent], together[parent] - p
    return np.where(child, np.minimum(1, p / above * (1 + rivals / above)), p)
