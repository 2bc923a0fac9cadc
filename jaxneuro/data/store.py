# SPDX-License-Identifier: Apache-2.0
"""Token ids of a group's documents: made once, in memory or in a cache on disk that proves itself when it is opened."""

import hashlib
import json
import logging
import os
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from ..errors import UserError
from ..io.files import atomic_write, read_json, write_json
from .documents import fingerprint_of
from .tokenizer import Tokenizer

VERSION: Final = 2  # of the cache's layout: part of every fingerprint
BATCH_DOCUMENTS: Final = 256
BATCH_CHARACTERS: Final = 1_000_000  # bounds what the tokenizer holds at once, about 100 bytes per character
CRC_BYTES: Final = 1 << 18

type Progress = Callable[[int, int, str], None]
"""(documents done, documents in all, which group)"""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenStore:
    """Documents as token ids without the special tokens around them: document d is `ids[offsets[d]:offsets[d + 1]]`."""

    ids: np.ndarray
    """int32 [n_tokens]; a read-only memory map when it lies in a cache."""
    offsets: np.ndarray
    """int64 [n_documents + 1]"""
    n_counted: int
    """Tokens that are not special (a text may spell special tokens out inside)."""
    truncated_documents: int
    truncated_tokens: int
    """Documents cut at `max_per_document`, and the tokens that were cut off."""
    fingerprint: str

    @property
    def n_documents(self) -> int:
        """Documents that have at least one token."""
        return len(self.offsets) - 1


def tokenize(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_per_document: int | None = None,
    max_tokens: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    progress: Progress | None = None,
    name: str = "",
) -> TokenStore:
    """Tokenize documents in order, in bounded memory when there is a cache folder.

    With `cache_dir`, ids lie in an int32 .npy file that is mapped, under a name made from the hash of texts,
    tokenizer and settings; it is written under a temporary name and renamed. On opening, fingerprint, sizes and
    checksums must hold, or it is built again (and a warning is logged). Files of other texts or settings stay.

    Args:
      texts: documents; those that give no token are left out.
      max_per_document: cut each document there, and count what was cut.
      max_tokens: stop when so many tokens are there, cutting the last document.
      progress: called with (documents done, documents in all, name).
    Raises:
      UserError: the cache folder cannot be written.
    """
    settings = [VERSION, fingerprint_of(texts), tokenizer.fingerprint, max_per_document, max_tokens]
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    count = _Count(texts, tokenizer, max_per_document, max_tokens, progress, name)
    if cache_dir is None:
        ids = np.concatenate([np.empty(0, np.int32), *count.chunks()])
        return TokenStore(ids=ids, offsets=count.offsets(), fingerprint=fingerprint, **count.numbers())
    base = Path(cache_dir) / f"tokens-{fingerprint[:32]}"
    if (found := _open(base, fingerprint)) is None:
        _build(base, fingerprint, count)
        found = _open(base, fingerprint)
    if found is None:
        raise UserError(f"the token cache {base}.* was written and cannot be read back. Use another cache folder.")
    return found


class _Count:
    """One pass over the documents: yields their ids, and remembers where documents end."""

    def __init__(self, texts, tokenizer, max_per_document, max_tokens, progress, name):
        self._texts, self._tokenizer, self._name = texts, tokenizer, name
        self._max_per_document, self._max_tokens, self._progress = max_per_document, max_tokens, progress
        self._ends = array("q", [0])
        self.n_counted = self.truncated_documents = self.truncated_tokens = 0

    def chunks(self) -> Iterator[np.ndarray]:
        """int32 arrays, a batch of documents each."""
        done = 0
        for batch in _batches(self._texts):
            kept = [
                part
                for ids in self._tokenizer.encode_batch(batch)
                if len(part := self._keep(self._tokenizer.bare(ids)))
            ]
            done += len(batch)
            if kept:
                chunk = np.concatenate(kept)
                self.n_counted += int(np.count_nonzero(~self._tokenizer.is_special(chunk)))
                yield chunk
            if self._progress is not None:
                self._progress(done, len(self._texts), self._name)
            if self._max_tokens is not None and self._ends[-1] >= self._max_tokens:
                break

    def _keep(self, ids: list[int]) -> np.ndarray:
        have = self._ends[-1]
        room = len(ids) if self._max_tokens is None else max(0, self._max_tokens - have)
        limit = len(ids) if self._max_per_document is None else self._max_per_document
        kept = np.asarray(ids[: min(room, limit)], np.int32)
        if len(kept):
            self._ends.append(have + len(kept))
            if limit < len(ids):
                self.truncated_documents += 1
                self.truncated_tokens += len(ids) - limit
        return kept

    def offsets(self) -> np.ndarray:
        """int64 [n_documents + 1]"""
        return np.array(self._ends, np.int64)

    def numbers(self) -> dict[str, int]:
        """The counts, by the names that TokenStore gives them."""
        return {k: getattr(self, k) for k in ("n_counted", "truncated_documents", "truncated_tokens")}


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == BATCH_DOCUMENTS or characters + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _files(base: Path) -> tuple[Path, Path, Path]:
    return tuple(base.with_name(base.name + end) for end in (".npy", ".offsets.npy", ".json"))  # type: ignore[return-value]


def _build(base: Path, fingerprint: str, count: _Count) -> None:
    ids, offsets, meta = _files(base)
    with atomic_write(ids) as f:
        _write_npy(f, np.dtype("<i4"), count.chunks())
    with atomic_write(offsets) as f:
        _write_npy(f, np.dtype("<i8"), [count.offsets()])
    crc = {path.name: _crc(path) for path in (ids, offsets)}
    write_json(meta, {"fingerprint": fingerprint, "crc32": crc, **count.numbers()})  # last: it vouches for the others


def _write_npy(f: BinaryIO, dtype: np.dtype, chunks: Any) -> None:
    """A .npy file whose length is known only at the end: NumPy pads headers so that the length can grow in place."""
    n = 0
    _header(f, dtype, n)
    start = f.tell()
    for chunk in chunks:
        f.write(np.ascontiguousarray(chunk, dtype))
        n += len(chunk)
    f.seek(0)
    _header(f, dtype, n)
    if f.tell() != start:
        raise RuntimeError("the .npy header did not keep its length")  # NumPy's padding holds up to 10^20
    f.seek(0, os.SEEK_END)


def _header(f: BinaryIO, dtype: np.dtype, n: int) -> None:
    np.lib.format.write_array_header_1_0(f, {"descr": dtype.str, "fortran_order": False, "shape": (n,)})


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as f:
        while block := f.read(CRC_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def _open(base: Path, fingerprint: str) -> TokenStore | None:
    ids, offsets, meta = _files(base)
    if not meta.exists():
        return None
    try:
        about = read_json(meta)
        if about["fingerprint"] != fingerprint:
            raise ValueError("it belongs to other text or settings")
        if about["crc32"] != {path.name: _crc(path) for path in (ids, offsets)}:
            raise ValueError("a checksum differs")
        store = TokenStore(
            ids=np.load(ids, mmap_mode="r", allow_pickle=False),
            offsets=np.load(offsets, allow_pickle=False),
            fingerprint=fingerprint,
            **{k: int(about[k]) for k in ("n_counted", "truncated_documents", "truncated_tokens")},
        )
        if store.ids.dtype != np.int32 or store.offsets[-1] != len(store.ids):
            raise ValueError("its arrays do not fit together")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as e:  # UserError is a ValueError
        log.warning("the token cache %s.* is not usable (%s); building it again", base, e)
        return None
    return store
