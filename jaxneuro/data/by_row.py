# SPDX-License-Identifier: Apache-2.0
"""What is read by row: one, several, or a slice of them; how much of it counts."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class ByRow(Sequence[dict[str, np.ndarray]]):
    """A sequence of rows, each a dict of arrays, that can read several at once."""

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows stacked on axis 0."""
        raise NotImplementedError

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.rows(range(*i.indices(len(self))))
        i = range(len(self))[i]  # IndexError and negative numbers as in a list
        return {name: column[0] for name, column in self.rows([i]).items()}


CHUNK = 1024
"""Rows looked at together when tokens are counted."""


class Counted(Protocol):
    """Rows by number, with their groups: `Windows`, `Subset`, `Paired`."""

    @property
    def group_names(self) -> Sequence[str]:
        """Names of the groups."""
        ...

    @property
    def group(self) -> np.ndarray:
        """int32 [n_rows]."""
        ...

    def rows(self, indices: Any) -> dict[str, np.ndarray]:
        """Stacked rows, with "counted"."""
        ...


def counted_of(rows: Counted, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 [n]: counted positions of these rows. Pictures know them (`counted_each`), without being decoded."""
    known = getattr(rows, "counted_each", None)
    return rows.rows(indices)["counted"].sum(1, dtype=np.int64) if known is None else known[np.asarray(indices)]


def counted_per_row(rows: Counted) -> np.ndarray:
    """int64 [n_rows]: counted positions of every row."""
    n = len(rows.group)
    found = [counted_of(rows, np.arange(a, min(a + CHUNK, n))) for a in range(0, n, CHUNK)]
    return np.concatenate([np.zeros(0, np.int64), *found])


def counted_per_group(rows: Counted) -> np.ndarray:
    """int64 [n_groups]: counted positions of all rows."""
    total = np.zeros(len(rows.group_names), np.int64)
    np.add.at(total, rows.group, counted_per_row(rows))
    return total
