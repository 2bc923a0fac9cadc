# SPDX-License-Identifier: Apache-2.0
"""True and shuffled group labels of windows: what every count is made for, and the null it is compared with."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import UserError


def label_table(group: np.ndarray, n_shuffles: int, seed: int) -> np.ndarray:
    """The true label of every window and `n_shuffles` random permutations of all labels.

    A permutation keeps the number of windows of each group and breaks every tie between a window and its group.
    Windows, not tokens, are exchanged, because the tokens of one window are not independent of each other.

    Args:
      group: int [n_windows], true group of each window.
      n_shuffles: number of permutations, 0 or more.
      seed: same seed, same table.
    Returns:
      int32 [n_windows, 1 + n_shuffles]; column 0 is `group`.
    Example:
      >>> label_table(np.array([0, 0, 1]), 2, seed=0).shape
      (3, 3)
    """
    group = np.asarray(group, np.int32)
    if group.ndim != 1:
        raise UserError(f"label_table: group has shape {group.shape}; one label per window is needed, [n_windows].")
    rng = np.random.default_rng(seed)
    columns = [group, *(rng.permutation(group) for _ in range(n_shuffles))]
    return np.stack(columns, axis=1)


class LabelledStream:
    """Adds `labels` int32 [B, 1 + S] to the batches of a stream, by window number; filler rows (window -1) get -1.

    Positions are those of the stream underneath (`get_state`, `set_state`), so a run over it resumes exactly.

    Args:
      stream: iterable of dict batches with `window` int [B].
      table: from `label_table`.
    Example:
      >>> rows = [{"window": np.array([2, -1])}]
      >>> next(iter(LabelledStream(rows, label_table(np.array([0, 0, 1]), 0, seed=0))))["labels"].tolist()
      [[1], [-1]]
    """

    def __init__(self, stream: Any, table: np.ndarray):
        self._stream, self._table = iter(stream), table

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self

    def __next__(self) -> Mapping[str, Any]:
        batch = next(self._stream)
        window = np.asarray(batch["window"])
        labels = np.where(window[:, None] >= 0, self._table[np.maximum(window, 0)], np.int32(-1))
        return {**batch, "labels": labels.astype(np.int32)}

    def get_state(self) -> Any:
        """Position of the stream underneath."""
        return self._stream.get_state()  # type: ignore[attr-defined]

    def set_state(self, state: Any) -> None:
        """Go to a position of the stream underneath."""
        self._stream.set_state(state)  # type: ignore[attr-defined]
