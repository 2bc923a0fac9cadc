# SPDX-License-Identifier: Apache-2.0
"""Group labels and documents beside every batch: what counts are made for."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class LabelledStream:
    """Adds `labels` int32 [B, 1 + S] to the batches of a stream, by window number; filler rows (window -1) get -1.

    With `block` it adds `block` int32 [B] likewise: `group_statistics(n_blocks=...)` then counts firing per block, from
    which any number of permuted labellings is made afterwards (`permuted_rates`).

    Positions are those of the stream underneath (`get_state`, `set_state`), so a run over it resumes exactly.

    Args:
      stream: iterable of dict batches with `window` int [B].
      table: int32 [n_windows, 1 + S], true labels first (`jaxneuro.data.shuffled_labels`).
      block: int [n_windows], numbers 0 .. n_blocks - 1 (`jaxneuro.stats.merged_blocks`), -1 for windows of none.
    Example:
      >>> rows = [{"window": np.array([2, -1])}]
      >>> next(LabelledStream(rows, np.array([[0], [0], [1]])))["labels"].tolist()
      [[1], [-1]]
    """

    def __init__(self, stream: Any, table: np.ndarray, block: np.ndarray | None = None):
        self._stream, self._table, self._block = iter(stream), table, block

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self

    def __next__(self) -> Mapping[str, Any]:
        batch = next(self._stream)
        window = np.asarray(batch["window"])
        real, at = window >= 0, np.maximum(window, 0)
        labels = np.where(real[:, None], self._table[at], np.int32(-1)).astype(np.int32)
        if self._block is None:
            return {**batch, "labels": labels}
        return {**batch, "labels": labels, "block": np.where(real, self._block[at], -1).astype(np.int32)}

    def __getattr__(self, name: str) -> Any:
        # only if the stream underneath has them: whoever drives this decides by that whether it can resume exactly
        if name in ("get_state", "set_state"):
            return getattr(self._stream, name)
        raise AttributeError(f"LabelledStream has no attribute {name!r}.")
