# SPDX-License-Identifier: Apache-2.0
"""How the documents of one group become rows: one after another, kept apart, or one each."""

from typing import Final, Protocol

import numpy as np

from .store import TokenStore


class Packing(Protocol):
    """How many rows there are, and the token ids of each, without specials around."""

    per_document: bool

    def __init__(self, store: TokenStore, capacity: int, separator: int | None): ...
    def __len__(self) -> int: ...
    def row(self, i: int) -> np.ndarray:
        """int32 [at most capacity]"""
        ...

    def block(self) -> np.ndarray:
        """int64 [len]: numbers from 0; rows that share a document, directly or through others, have the same."""
        ...


class Concatenated:
    """All documents in one sequence, the separator between two of them, cut every `capacity` tokens."""

    per_document = False

    def __init__(self, store: TokenStore, capacity: int, separator: int | None):
        self._ids, self._capacity, self._separator = store.ids, capacity, separator
        self._gap = 0 if separator is None else 1
        n = store.n_documents
        self._n = len(store.ids) + self._gap * max(0, n - 1)
        # Where each document starts in the sequence (a separator in front of all but the first), and an end mark.
        self._starts = np.append(store.offsets[:-1] + self._gap * np.arange(n, dtype=np.int64), self._n + 1)

    def __len__(self) -> int:
        return -(-self._n // self._capacity)

    def row(self, i: int) -> np.ndarray:
        first, last = i * self._capacity, min((i + 1) * self._capacity, self._n)
        if self._separator is None:
            return self._ids[first:last]
        position = np.arange(first, last, dtype=np.int64)
        begun = np.searchsorted(self._starts, position, side="right")  # documents that start at or before it
        # A separator has no id of its own: it reads its neighbour's, which is replaced.
        ids = self._ids[position - (begun - 1)]
        return np.where(position + 1 == self._starts[begun], np.int32(self._separator), ids)

    def block(self) -> np.ndarray:
        """A row begins a new block if no document lies on both sides of its first position."""
        first = np.arange(len(self), dtype=np.int64) * self._capacity
        begun = np.searchsorted(self._starts, first, side="right") - 1  # the document that starts at or before it
        end = self._starts[begun + 1] - self._gap  # its own end, before the separator
        end = np.where(begun + 1 == len(self._starts) - 1, self._n, end)
        return np.cumsum(~((self._starts[begun] < first) & (first < end))) - 1


class Apart:
    """Every row is a piece of one long document, or several whole short ones: no document is in rows of two blocks.

    A document longer than `capacity` is cut into as few pieces as possible, all of nearly the same length, so that no
    row is a scrap. Shorter ones fill rows in their order, the separator between two of them. Rows are padded.
    """

    per_document = False

    def __init__(self, store: TokenStore, capacity: int, separator: int | None):
        self._ids, self._offsets, self._separator = store.ids, store.offsets, separator
        rows: list[tuple[int, int, int]] = []  # (first id, last id, block)
        gap = 0 if separator is None else 1
        room = 0  # left in the last row, if that holds whole documents
        for a, b in zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist(), strict=True):
            n = b - a
            if n + gap <= room:
                rows[-1] = (rows[-1][0], b, rows[-1][2])
                room -= n + gap
                continue
            pieces, block = -(-n // capacity), rows[-1][2] + 1 if rows else 0
            edges = [a + n * i // pieces for i in range(pieces + 1)]
            rows += [(edges[i], edges[i + 1], block) for i in range(pieces)]
            room = capacity - n if pieces == 1 else 0
        self._rows = np.array(rows, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, i: int) -> np.ndarray:
        first, last = self._rows[i, :2]
        inside = self._offsets[np.searchsorted(self._offsets, first, "right") : np.searchsorted(self._offsets, last)]
        ids = self._ids[first:last]
        return ids if self._separator is None else np.insert(ids, inside - first, np.int32(self._separator))

    def block(self) -> np.ndarray:
        """A long document's pieces, or one row of short documents."""
        return self._rows[:, 2]


class OneDocument:
    """One document per row."""

    per_document = True

    def __init__(self, store: TokenStore, capacity: int, separator: int | None):
        self._store = store

    def __len__(self) -> int:
        return self._store.n_documents

    def row(self, i: int) -> np.ndarray:
        return self._store.ids[self._store.offsets[i] : self._store.offsets[i + 1]]

    def block(self) -> np.ndarray:
        """Every row is its own."""
        return np.arange(len(self), dtype=np.int64)


PACKINGS: Final = {"windows": Concatenated, "apart": Apart, "documents": OneDocument}
