# SPDX-License-Identifier: Apache-2.0
"""True and shuffled group labels beside every batch: what counts are made for, and the null they are compared with."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class LabelledStream:
    """Adds `labels` int32 [B, 1 + S] to the batches of a stream, by window number; filler rows (window -1) get -1.

    Positions are those of the stream underneath (`get_state`, `set_state`), so a run over it resumes exactly.

    Args:
      stream: iterable of dict batches with `window` int [B].
      table: int32 [n_windows, 1 + S], true labels first (`jaxneuro.data.shuffled_labels`).
    Example:
      >>> rows = [{"window": np.array([2, -1])}]
      >>> next(LabelledStream(rows, np.array([[0], [0], [1]])))["labels"].tolist()
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

    def __getattr__(self, name: str) -> Any:
        # only if the stream underneath has them: whoever drives this decides by that whether it can resume exactly
        if name in ("get_state", "set_state"):
            return getattr(self._stream, name)
        raise AttributeError(f"LabelledStream has no attribute {name!r}.")
