# SPDX-License-Identifier: Apache-2.0
"""Files of columns: .parquet, the .arrow files of `datasets`, and .json arrays of records."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from ..errors import UserError, shown
from ..io.files import read_json
from .documents import Entry, Part
from .records import Fields, columns, group_of, text_of
from .spans import state, unchanged

SCAN_ROWS: Final = 1024  # rows decoded at once while scanning


class _Table(Protocol):
    """An open file: its columns, and its rows in pieces that fit in memory."""

    names: Sequence[str]
    metadata: Mapping[bytes, bytes]
    ends: np.ndarray
    """int64: the row after the last one of each piece."""

    def piece(self, i: int, wanted: list[str]) -> Any: ...


class _Parquet:
    names: Sequence[str]
    metadata: Mapping[bytes, bytes]

    def __init__(self, path: Path):
        import pyarrow.parquet

        self._file = _readable(path, "parquet", pyarrow.parquet.ParquetFile)
        self.names, self.metadata = self._file.schema_arrow.names, self._file.schema_arrow.metadata or {}
        meta = self._file.metadata
        self.ends = np.cumsum([meta.row_group(g).num_rows for g in range(meta.num_row_groups)], dtype=np.int64)

    def piece(self, i: int, wanted: list[str]) -> Any:
        return self._file.read_row_group(i, columns=wanted)


class _Arrow:
    """A stream of record batches, as `Dataset.save_to_disk` writes it, mapped; or an Arrow file of them."""

    names: Sequence[str]
    metadata: Mapping[bytes, bytes]

    def __init__(self, path: Path):
        self._batches = _readable(path, "Arrow", _batches)
        schema = self._batches[0].schema if self._batches else None
        self.names, self.metadata = (schema.names, schema.metadata or {}) if schema is not None else ([], {})
        self.ends = np.cumsum([len(b) for b in self._batches], dtype=np.int64)

    def piece(self, i: int, wanted: list[str]) -> Any:
        return self._batches[i].select(wanted)


def _batches(path: Path) -> list[Any]:
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return list(pa.ipc.open_stream(source))
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(source)
        return [file.get_batch(i) for i in range(file.num_record_batches)]


def _readable(path: Path, kind: str, open_: Callable[[Path], Any]) -> Any:
    import pyarrow

    try:
        return open_(path)
    except (pyarrow.ArrowException, OSError) as e:
        if isinstance(e, FileNotFoundError | PermissionError):
            raise
        raise UserError(f"{path} is not a readable {kind} file: {shown(str(e), 400)}.") from e


def _labels(table: _Table, name: str | None) -> list[str] | None:
    """The names that the numbers of a ClassLabel column stand for, which `datasets` keeps beside the schema."""
    try:
        features = json.loads(table.metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[name]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def _scan(path: Path, fields: Fields, open_: Callable[[Path], _Table]) -> Iterator[Entry]:
    table = open_(path)
    if not len(table.ends):
        return
    wanted, labels, row = columns(fields, table.names, str(path)), _labels(table, fields.group), 0
    for i in range(len(table.ends)):
        for record in _records(_piece(table, i, wanted, path), wanted, path, row):
            where = f"{path}, row {row}"
            yield Entry(row, row + 1, lambda r=record, w=where: (_named(r, fields, labels, w), text_of(r, fields, w)))
            row += 1


def _named(record: Mapping[str, Any], fields: Fields, labels: list[str] | None, where: str) -> str | None:
    if labels is None or fields.group is None or fields.group not in record:
        return group_of(record, fields, where)
    value = record[fields.group]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(labels):
        raise UserError(f"{where}: the group is {value!r:.40}; the file names the classes 0 to {len(labels) - 1}.")
    return group_of({fields.group: labels[value]}, fields, where)


def _piece(table: _Table, i: int, wanted: list[str], path: Path) -> Any:
    import pyarrow

    try:
        return table.piece(i, wanted)
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path} is damaged: {shown(str(e), 400)}. Download or write it again.") from e


def _records(piece: Any, wanted: list[str], path: Path, first: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(piece), SCAN_ROWS):
        part = piece.slice(start, SCAN_ROWS)
        values = [_values(part, name, path, first + start) for name in wanted]
        yield from (dict(zip(wanted, row, strict=True)) for row in zip(*values, strict=True))


def _values(part: Any, name: str, path: Path, row: int) -> list:
    try:
        return part.column(name).to_pylist()
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: field {name!r} is not UTF-8 in rows {row} to {row + len(part) - 1}: {e}.") from e


class _Rows:
    """Rows of one file; one piece of it is in memory at a time."""

    def __init__(self, path: Path, fields: Fields, rows: np.ndarray, open_: Callable[[Path], _Table]):
        self._path, self._fields, self._rows, self._open = path, fields._replace(group=None), rows, open_
        self._state = state(path)
        table = open_(path)
        self._wanted, self._ends = columns(self._fields, table.names, str(path)) if len(rows) else [], table.ends
        self._held: tuple[int, Any] = (-1, None)  # replaced as one, so that threads never see a mixture

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> str:
        row = int(self._rows[i])
        number = int(np.searchsorted(self._ends, row, side="right"))
        held, piece = self._held
        if held != number:
            unchanged(self._path, self._state)
            piece = _piece(self._open(self._path), number, self._wanted, self._path)
            self._held = (number, piece)
        inside = row - (int(self._ends[number - 1]) if number else 0)
        record = {name: piece.column(name)[inside].as_py() for name in self._wanted}
        return text_of(record, self._fields, f"{self._path}, row {row}")


def scan_parquet(path: Path, fields: Fields) -> Iterator[Entry]:
    return _scan(path, fields, _Parquet)


def scan_arrow(path: Path, fields: Fields) -> Iterator[Entry]:
    return _scan(path, fields, _Arrow)


def parquet(path: Path, fields: Fields, starts: np.ndarray, stops: np.ndarray) -> Part:
    return _Rows(path, fields, starts, _Parquet)


def arrow(path: Path, fields: Fields, starts: np.ndarray, stops: np.ndarray) -> Part:
    return _Rows(path, fields, starts, _Arrow)


# --- one JSON array ------------------------------------------------------------------------------


class _Held:
    """Texts in memory: a JSON array has no place to read one record from."""

    def __init__(self, texts: list[str]):
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def read(self, i: int) -> str:
        return self._texts[i]


def scan_json(path: Path, fields: Fields) -> Iterator[Entry]:
    """An array of records, or an object with one array of them ("data", "rows", ...)."""
    for i, record in enumerate(_array(path)):
        yield Entry(i, i + 1, lambda r=record, w=f"{path}, record {i}": _json_entry(r, fields, w))


def _json_entry(record: Any, fields: Fields, where: str) -> tuple[str | None, str]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object with its fields, found {type(record).__name__}.")
    return group_of(record, fields, where), text_of(record, fields, where)


def _array(path: Path) -> list[Any]:
    value = read_json(path)
    found = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else [value]
    if len(found) == 1 and isinstance(found[0], list):
        return found[0]
    raise UserError(
        f'{path} holds no array of records. Write [{{"text": ...}}, ...], or one record per line in a .jsonl file.'
    )


def held_json(path: Path, fields: Fields, starts: np.ndarray, stops: np.ndarray) -> Part:
    records = _array(path)
    return _Held([text_of(records[i], fields, f"{path}, record {i}") for i in starts])
