# SPDX-License-Identifier: Apache-2.0
"""Documents: texts by number, read one at a time from where they lie, and how groups of them are put together."""

import bisect
import hashlib
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, overload

import numpy as np

from ..errors import UserError
from .records import Fields

KEPT_REASONS: Final = 5


class Part(Protocol):
    """The documents of one group in one file."""

    def __len__(self) -> int: ...
    def read(self, i: int) -> str:
        """Document i of this part."""
        ...


class Documents(Sequence[str]):
    """A group's texts, by number. Held in memory: 16 bytes per document, and the document being read.

    `fingerprint` is a hash of the texts in order, so equal texts in other files are the same documents.
    """

    def __init__(self, parts: Sequence[Part], fingerprint: str):
        self._parts = tuple(parts)
        self._ends = list(accumulate(len(p) for p in parts))
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]  # IndexError and negative numbers as in a list
        part = bisect.bisect_right(self._ends, i)
        return self._parts[part].read(i - (self._ends[part - 1] if part else 0))

    def __repr__(self) -> str:
        return f"Documents({len(self)} texts)"


class Entry(NamedTuple):
    """One document met while scanning: where it lies (bytes or rows), and what reads and checks it."""

    start: int
    stop: int
    read: Callable[[], tuple[str | None, str]]
    """(group, or None where the file's place says it; text). Raises UserError."""


class Format(NamedTuple):
    """How a kind of file is scanned (path, fields -> entries) and read again (path, fields, starts, stops -> part)."""

    scan: Callable[[Path, Fields], Iterator[Entry]]
    part: Callable[[Path, Fields, np.ndarray, np.ndarray], Part]


type Spans = tuple[array, array]  # starts, stops: 16 bytes per document, where lists of int would take 72


def _spans() -> Spans:
    return array("q"), array("q")


def _what_is_wrong(message: str) -> str:
    """The message up to its advice to pass over what has been passed over."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", message)
    end = next((i for i, sentence in enumerate(sentences) if "skip_bad=True" in sentence), len(sentences))
    return " ".join(sentences[:end])


class Collector:
    """Groups under construction: what was found of each, file by file, with a running hash of the texts."""

    def __init__(self, skip_bad: bool = False):
        self._parts: dict[str, list[Part]] = {}
        self._digests: dict[str, Any] = {}
        self._skip_bad = skip_bad
        self.skipped: list[str] = []
        """What was wrong with each record that was passed over, at most KEPT_REASONS of them."""
        self.n_skipped = 0

    def add(self, path: Path, form: Format, fields: Fields, group: str | None = None) -> None:
        """Scan one file. Its documents go to `group`, or each to the group that its record names."""
        found: dict[str, Spans] = {} if group is None else {group: _spans()}
        for entry in form.scan(path, fields):
            if (record := self.checked(entry.read)) is None:
                continue
            name = group if group is not None else str(record[0])
            starts, stops = found.setdefault(name, _spans())
            if not record[1].strip():
                continue  # an empty document is none
            starts.append(entry.start)
            stops.append(entry.stop)
            self.feed(name, record[1])
        for name, (starts, stops) in found.items():
            self.put(name, form.part(path, fields, np.asarray(starts), np.asarray(stops)))

    def checked[T](self, read: Callable[[], T]) -> T | None:
        """What `read` gives; None for a bad record that is to be passed over, which is counted."""
        try:
            return read()
        except UserError as e:
            if not self._skip_bad:
                raise
            self.n_skipped += 1
            if len(self.skipped) < KEPT_REASONS:
                self.skipped.append(_what_is_wrong(str(e)))
            return None

    def feed(self, name: str, text: str) -> None:
        """Hash one document of a group."""
        digest = self._digests.setdefault(name, hashlib.sha256())
        update_digest(digest, text)

    def put(self, name: str, part: Part) -> None:
        """Add a part to a group."""
        self._parts.setdefault(name, []).append(part)

    def groups(self) -> dict[str, Documents]:
        """Everything found, in sorted order of the names; a group without a text is there, and empty."""
        return {
            name: Documents(parts, self._digests[name].hexdigest() if name in self._digests else "empty")
            for name, parts in sorted(self._parts.items())
        }


def update_digest(digest: Any, text: str) -> None:
    """Hash one text with its length, so that moving a boundary between texts changes the hash."""
    raw = text.encode()
    digest.update(len(raw).to_bytes(8, "little"))
    digest.update(raw)


def fingerprint_of(texts: Sequence[str]) -> str:
    """The hash of texts in order; `Documents` know theirs, others are read."""
    known = getattr(texts, "fingerprint", None)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256()
    for text in texts:
        update_digest(digest, text)
    return digest.hexdigest()
