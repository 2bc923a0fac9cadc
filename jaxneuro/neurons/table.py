# SPDX-License-Identifier: Apache-2.0
"""The finished table of group statistics: numpy arrays, saved as one .npz."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from ..errors import UserError, shown
from ..io import save_npz
from ..taps.ranges import check_index


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupStatistics:
    """What `group_statistics` returns. L layers, F neurons, K groups, S shuffles; a neuron is one coordinate of `site`.

    Firing means value > `threshold`; tokens are counted tokens (real, not special). Arrays for examples, histogram and
    responses have length 0 along their last or first axis if they were not asked for.
    """

    site: str
    threshold: float
    tokens: np.ndarray
    """int64 [1 + S, K]; row 0 for the true labels."""
    fired: np.ndarray
    """int64 [1 + S, L, F, K]"""
    windows: np.ndarray
    """int64 [K]: windows with at least one counted token."""
    mean: np.ndarray
    """float32 [L, F, K], true labels, as all that follows."""
    m2: np.ndarray
    """float32 [L, F, K]: sum of squared deviations from the mean."""
    high: np.ndarray
    low: np.ndarray
    """float32 [L, F, K]: largest and smallest value."""
    edges: np.ndarray
    """float32 [bins + 1], equally wide in asinh; the outer bins are open."""
    histogram: np.ndarray
    """int32 [L, F, K, bins]; sampled at every n-th position; stays at 2^31 - 1 once there."""
    example_value: np.ndarray
    """float32 [L, F, K, n], largest first, -inf where a group has fewer windows."""
    example_window: np.ndarray
    example_position: np.ndarray
    """int32 [L, F, K, n]; window -1 where there is none."""
    responses: np.ndarray
    """float32 [R, L, F]: mean over the counted tokens of a window, for the first windows of every group."""
    response_group: np.ndarray
    response_window: np.ndarray
    """int32 [R]"""
    block_fired: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 0), np.int32))
    """int32 [D, L, F]: firing counts per block, a document or several of one group; D = 0 if not asked for."""
    block_tokens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [D]"""
    block_group: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    """int32 [D]: -1 for blocks without a counted token."""

    @property
    def rates(self) -> np.ndarray:
        """Firing probability p = fired / tokens, float32 [1 + S, L, F, K]; 0 for a shuffled group without tokens."""
        tokens = np.maximum(self.tokens, 1)[:, None, None, :]
        return (self.fired / tokens).astype(np.float32)

    @property
    def rate(self) -> np.ndarray:
        """Firing probability under the true labels, float32 [L, F, K]."""
        return self.rates[0]

    @property
    def variance(self) -> np.ndarray:
        """Population variance of the values, float32 [L, F, K]."""
        return (self.m2 / self.tokens[0]).astype(np.float32)

    @property
    def n_groups(self) -> int:
        """K."""
        return self.tokens.shape[1]

    def examples(self, layer: int, neuron: int, n: int, group: int | None = None) -> list[dict]:
        """The `n` windows with the largest value: dicts of value, window, position, group; at most one per window.

        Larger value first, then the smaller window number. With `group`, only that group's.

        Raises:
          UserError: a layer, neuron or group that is not there.
        """
        asked = {"layer": layer, "neuron": neuron, "group": 0 if group is None else group}
        for (axis, index), size in zip(asked.items(), self.example_value.shape, strict=False):
            check_index(np.asarray(index), self.site, axis, size, "examples")
        groups = range(self.n_groups) if group is None else [group]
        rows = [
            {
                "value": float(self.example_value[layer, neuron, k, i]),
                "window": int(self.example_window[layer, neuron, k, i]),
                "position": int(self.example_position[layer, neuron, k, i]),
                "group": k,
            }
            for k in groups
            for i in range(self.example_value.shape[-1])
            if self.example_window[layer, neuron, k, i] >= 0
        ]
        return sorted(rows, key=lambda r: (-r["value"], r["window"]))[:n]

    def save(self, path: str | os.PathLike) -> None:
        """Write one compressed .npz, atomically."""
        save_npz(path, **{f.name: np.asarray(getattr(self, f.name)) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "GroupStatistics":
        """Read what `save` wrote.

        Raises:
          UserError: no such file, not an .npz of group statistics, or fields are missing.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        needed = [f.name for f in dataclasses.fields(cls) if f.default_factory is dataclasses.MISSING]
        try:
            with np.load(Path(path), allow_pickle=False) as z:
                have = {n: z[n] for n in names if n in z.files}
        except (OSError, ValueError, EOFError) as e:
            raise UserError(f"{path} cannot be read as group statistics: {shown(str(e), 300)}.") from e
        if missing := [n for n in needed if n not in have]:
            raise UserError(f"{path} is no table of group statistics: {', '.join(missing)} missing. Compute it again.")
        have["site"], have["threshold"] = str(have["site"]), float(have["threshold"])
        return cls(**have)
