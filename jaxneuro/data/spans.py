# SPDX-License-Identifier: Apache-2.0
"""Files of lines: .txt, .jsonl, .csv and source code. Documents are ranges of bytes, read again at random."""

import csv
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import UserError
from .documents import Entry, Part
from .records import Fields, columns, group_of, text_of

BOM: Final = b"\xef\xbb\xbf"
type Parse = Callable[[str, str], str]
"""(what the bytes say, where) -> the document."""


class Spans:
    """Byte ranges of one file, each a document."""

    def __init__(self, path: Path, starts: np.ndarray, stops: np.ndarray, parse: Parse):
        self._path, self._starts, self._stops, self._parse = path, starts, stops, parse
        self._state = state(path)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, i: int) -> str:
        start, stop = int(self._starts[i]), int(self._stops[i])
        unchanged(self._path, self._state)
        with open(self._path, "rb") as f:
            f.seek(start)
            return self._parse(_decode(f.read(stop - start), self._path, start), f"{self._path}, byte {start}")


def state(path: Path) -> tuple[int, int]:
    """What tells whether a file is still the one that was scanned."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def unchanged(path: Path, before: tuple[int, int], *, again: str = "read_groups") -> None:
    """Raises: UserError: the file is gone or another one."""
    if not path.is_file() or state(path) != before:
        raise UserError(f"{path} changed while it was in use. Call {again} again.")


def _decode(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        at = offset + e.start
        raise UserError(
            f"{path} is not UTF-8: byte {raw[e.start]:#04x} at byte offset {at} ({e.reason}). Convert the file, "
            f"for example: iconv -f LATIN1 -t UTF-8 {path.name} > new.txt"
        ) from e


def _raw_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, byte offset, bytes) of each line; a byte order mark at the start is left out."""
    offset = 0
    with open(path, "rb") as f:
        for number, raw in enumerate(f, 1):
            skip = len(BOM) if number == 1 and raw.startswith(BOM) else 0
            yield number, offset + skip, raw[skip:]
            offset += len(raw)


# --- plain text ----------------------------------------------------------------------------------


def _plain(text: str, where: str = "") -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _paragraph(text: str, where: str = "") -> str:
    return _plain(text).rstrip("\n")


def scan_paragraphs(path: Path, fields: Fields) -> Iterator[Entry]:
    """Lines between blank ones."""
    held: list[bytes] = []
    start = stop = 0
    for _, offset, line in _raw_lines(path):
        if _decode(line, path, offset).strip():
            start = start if held else offset
            stop = offset + len(line)
            held.append(line)
        elif held:
            yield _found(start, stop, _paragraph(b"".join(held).decode()))
            held = []
    if held:
        yield _found(start, stop, _paragraph(b"".join(held).decode()))


def scan_whole(path: Path, fields: Fields) -> Iterator[Entry]:
    """The file as one document."""
    raw = path.read_bytes()
    start = len(BOM) if raw.startswith(BOM) else 0
    yield _found(start, len(raw), _plain(_decode(raw[start:], path, start)))


def _found(start: int, stop: int, text: str) -> Entry:
    return Entry(start, stop, lambda: (None, text))


def paragraphs(path: Path, fields: Fields, starts: np.ndarray, stops: np.ndarray) -> Part:
    return Spans(path, starts, stops, _paragraph)


def whole(path: Path, fields: Fields, starts: np.ndarray, stops: np.ndarray) -> Part:
    return Spans(path, starts, stops, _plain)


# --- lines of JSON -------------------------------------------------------------------------------


def scan_jsonl(path: Path, fields: Fields) -> Iterator[Entry]:
    """A JSON object per line; blank lines are passed over."""
    for number, offset, line in _raw_lines(path):
        if line.strip():
            read = functools.partial(_json_entry, path, fields, number, offset, line)
            yield Entry(offset, offset + len(line), read)


def _json_entry(path: Path, fields: Fields, number: int, offset: int, line: bytes) -> tuple[str | None, str]:
    record = json_record(_decode(line, path, offset), where := f"{path}, line {number}")
    return group_of(record, fields, where), text_of(record, fields, where)


def json_record(text: str, where: str) -> dict:
    """Raises: UserError: not one JSON object."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not valid JSON ({e}). Each line must be one JSON object.") from e
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object with its fields, found {type(record).__name__}.")
    return record


def jsonl(path: Path, fields: Fields, starts: np.ndarray, stops: np.ndarray) -> Part:
    return Spans(path, starts, stops, lambda text, where: text_of(json_record(text, where), fields, where))


# --- tables of text ------------------------------------------------------------------------------

csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))  # a document may be longer than its default of 128 KiB


def scan_csv(path: Path, fields: Fields, delimiter: str) -> Iterator[Entry]:
    """A row per document, with quotes as in RFC 4180; the first row names the fields."""
    ends = [0]  # the reader takes as many lines as a row has: where its last one ended is where the row ends

    def lines() -> Iterator[str]:
        for _, offset, line in _raw_lines(path):
            ends[0] = offset + len(line)
            yield _decode(line, path, offset)

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    header = _next_row(rows, path)
    if header is None:
        return
    _check_header(header, path)
    columns(fields, header, f"{path}, line 1")
    start = ends[0]
    while (row := _next_row(rows, path)) is not None:
        if row:
            yield Entry(start, ends[0], functools.partial(_csv_entry, header, row, fields, path, rows.line_num))
        start = ends[0]


def _next_row(rows: Any, path: Path) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as e:
        raise UserError(f"{path}, line {rows.line_num}: {e}. A quoted field must end with a quote.") from e


def _check_header(header: list[str], path: Path) -> None:
    if twice := [n for n in header if header.count(n) > 1]:
        raise UserError(f"{path}: the first row names the field {twice[0]!r} twice. Each needs a name of its own.")


def _csv_entry(header: list[str], row: list[str], fields: Fields, path: Path, line: int) -> tuple[str | None, str]:
    record = _csv_record(header, row, where := f"{path}, line {line}")
    return group_of(record, fields, where), text_of(record, fields, where)


def _csv_record(header: list[str], row: list[str], where: str) -> dict[str, str]:
    if len(row) != len(header):
        raise UserError(
            f"{where}: {len(row)} fields, but the first row names {len(header)} ({', '.join(header[:8])}). Put quotes "
            "around a field that holds the separator."
        )
    return dict(zip(header, row, strict=True))


def csv_rows(path: Path, fields: Fields, starts: np.ndarray, stops: np.ndarray, delimiter: str) -> Part:
    first = (_decode(line, path, offset) for _, offset, line in _raw_lines(path))
    header = next(csv.reader(first, delimiter=delimiter, strict=True), [])

    def parse(text: str, where: str) -> str:
        row = next(csv.reader([text], delimiter=delimiter, strict=True))
        return text_of(_csv_record(header, row, where), fields, where)

    return Spans(path, starts, stops, parse)
