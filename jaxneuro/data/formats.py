# SPDX-License-Identifier: Apache-2.0
"""The files that hold documents: .txt, .jsonl and .parquet, scanned once with every check, then read at random."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import UserError, shown, unknown
from .documents import Entry, Fields, Format, Part

BOM: Final = b"\xef\xbb\xbf"
LONGEST_GROUP: Final = 200  # characters: a report writes each name on hundreds of places
SCAN_ROWS: Final = 1024  # parquet rows decoded at once while scanning

# --- files of lines: .txt and .jsonl -------------------------------------------------------------


class _Spans:
    """Byte ranges of one file, each a document."""

    def __init__(self, path: Path, starts: np.ndarray, stops: np.ndarray, parse: Callable[[str, str], str]):
        self._path, self._starts, self._stops, self._parse = path, starts, stops, parse
        self._state = _state(path)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, i: int) -> str:
        start, stop = int(self._starts[i]), int(self._stops[i])
        _unchanged(self._path, self._state)
        with open(self._path, "rb") as f:
            f.seek(start)
            return self._parse(_decode(f.read(stop - start), self._path, start), f"{self._path}, byte {start}")


def _state(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _unchanged(path: Path, state: tuple[int, int]) -> None:
    if not path.is_file() or _state(path) != state:
        raise UserError(f"{path} changed while it was in use. Call read_groups again.")


def _decode(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        at = offset + e.start
        raise UserError(
            f"{path} is not UTF-8: byte {raw[e.start]:#04x} at byte offset {at} ({e.reason}). Convert the file, "
            f"for example: iconv -f LATIN1 -t UTF-8 {path.name} > new.txt"
        ) from e


def _lines(path: Path) -> Iterator[tuple[int, int, bytes, str]]:
    """(number from 1, byte offset, bytes, text) of each line; a byte order mark at the start is left out."""
    offset = 0
    with open(path, "rb") as f:
        for number, raw in enumerate(f, 1):
            skip = len(BOM) if number == 1 and raw.startswith(BOM) else 0
            line = raw[skip:]
            yield number, offset + skip, line, _decode(line, path, offset + skip)
            offset += len(raw)


def _plain(text: str, where: str = "") -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _paragraph(text: str, where: str = "") -> str:
    return _plain(text).rstrip("\n")


def _scan_paragraphs(path: Path, fields: Fields) -> Iterator[Entry]:
    held: list[bytes] = []
    start = stop = 0
    for _, offset, line, text in _lines(path):
        if text.strip():
            start = start if held else offset
            stop = offset + len(line)
            held.append(line)
        elif held:
            yield Entry(None, start, stop, _paragraph(b"".join(held).decode()))
            held = []
    if held:
        yield Entry(None, start, stop, _paragraph(b"".join(held).decode()))


def _scan_whole(path: Path, fields: Fields) -> Iterator[Entry]:
    raw = path.read_bytes()
    start = len(BOM) if raw.startswith(BOM) else 0
    yield Entry(None, start, len(raw), _plain(_decode(raw[start:], path, start)))


def _scan_jsonl(path: Path, fields: Fields) -> Iterator[Entry]:
    for number, offset, line, text in _lines(path):
        if text.strip():
            record = _record(text, where := f"{path}, line {number}")
            group = None if fields.group is None else group_name(_field(record, fields.group, where), where)
            yield Entry(group, offset, offset + len(line), check_text(_field(record, fields.text, where), where))


def _record(text: str, where: str) -> dict:
    try:
        record = json.loads(text)
    except ValueError as e:
        raise UserError(f"{where}: not valid JSON ({e}). Each line must be one JSON object.") from e
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object with its fields, found {type(record).__name__}.")
    return record


def _field(record: dict, name: str, where: str) -> Any:
    if name not in record:
        raise unknown("field", name, record, where=where)
    return record[name]


def check_text(value: Any, where: str) -> str:
    """A record's text: a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise UserError(f"{where}: the text is {_kind(value)}; a string is needed.")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise UserError(f"{where}: the text holds half a surrogate pair at character {e.start}, no UTF-8.") from e
    return value


def group_name(value: Any, where: str) -> str:
    """A record's group: a whole number, or a string that is not empty and short enough to stand on every card."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{where}: the group is {_kind(value)}; a name or a whole number is needed.")
    if len(name := str(value)) > LONGEST_GROUP:
        raise UserError(
            f"{where}: the group's name {shown(name, 40)!r} has {len(name):,} characters; at most {LONGEST_GROUP} are "
            "allowed. Give a short name."
        )
    return name


def _kind(value: Any) -> str:
    return "empty" if value is None or value == "" else f"{value!r:.40} ({type(value).__name__})"


def _json_text(text: str, where: str, *, field: str) -> str:
    return check_text(_field(_record(text, where), field, where), where)


# --- parquet -------------------------------------------------------------------------------------


class _Rows:
    """Rows of one parquet file; one row group is in memory at a time."""

    def __init__(self, path: Path, field: str, rows: np.ndarray):
        self._path, self._field, self._rows = path, field, rows
        self._state = _state(path)
        meta = _parquet(path).metadata
        self._ends = np.cumsum([meta.row_group(g).num_rows for g in range(meta.num_row_groups)], dtype=np.int64)
        self._held: tuple[int, Any] = (-1, None)  # replaced as one, so that threads never see a mixture

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> str:
        row = int(self._rows[i])
        group = int(np.searchsorted(self._ends, row, side="right"))
        held, column = self._held
        if held != group:
            _unchanged(self._path, self._state)
            column = _parquet(self._path).read_row_group(group, columns=[self._field]).column(0)
            self._held = (group, column)
        first = int(self._ends[group - 1]) if group else 0
        return check_text(column[row - first].as_py(), f"{self._path}, row {row}")


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as e:
        raise UserError(f"{path} is not a readable parquet file: {e}.") from e


def _scan_parquet(path: Path, fields: Fields) -> Iterator[Entry]:
    file = _parquet(path)
    names = [n for n in (fields.text, fields.group) if n is not None]
    for name in names:
        if name not in file.schema_arrow.names:
            raise unknown("field", name, file.schema_arrow.names, where=str(path))
    row = 0
    for batch in file.iter_batches(SCAN_ROWS, columns=names):
        for values in zip(*(_column(batch, n, path, row) for n in names), strict=True):
            where = f"{path}, row {row}"
            group = None if fields.group is None else group_name(values[1], where)
            yield Entry(group, row, row + 1, check_text(values[0], where))
            row += 1


def _column(batch: Any, name: str, path: Path, row: int) -> list:
    try:
        return batch.column(name).to_pylist()
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: field {name!r} is not UTF-8 in rows {row} to {row + len(batch) - 1}: {e}.") from e


# --- the table -----------------------------------------------------------------------------------


def _spans(parse: Callable[[str, str], str]) -> Callable[[Path, Fields, np.ndarray, np.ndarray], Part]:
    return lambda path, fields, starts, stops: _Spans(path, starts, stops, parse)


WHOLE: Final = Format(_scan_whole, _spans(_plain))
FORMATS: Final[dict[str, Format]] = {
    ".txt": Format(_scan_paragraphs, _spans(_paragraph)),
    ".jsonl": Format(
        _scan_jsonl,
        lambda path, fields, starts, stops: _Spans(
            path, starts, stops, functools.partial(_json_text, field=fields.text)
        ),
    ),
    ".parquet": Format(_scan_parquet, lambda path, fields, starts, stops: _Rows(path, fields.text, starts)),
}
