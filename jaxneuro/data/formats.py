# SPDX-License-Identifier: Apache-2.0
"""Which files hold documents, and how: each is scanned once with every check, then read at random."""

import atexit
import functools
import gzip
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Final

from ..errors import UserError
from . import spans, tables
from .documents import Format

WHOLE: Final = Format(spans.scan_whole, spans.whole)


def _separated(delimiter: str) -> Format:
    return Format(
        functools.partial(spans.scan_csv, delimiter=delimiter), functools.partial(spans.csv_rows, delimiter=delimiter)
    )


FORMATS: Final[dict[str, Format]] = {
    ".txt": Format(spans.scan_paragraphs, spans.paragraphs),
    ".jsonl": Format(spans.scan_jsonl, spans.jsonl),
    ".json": Format(tables.scan_json, tables.held_json),
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": Format(tables.scan_parquet, tables.parquet),
    ".arrow": Format(tables.scan_arrow, tables.arrow),
}
"""Files of many documents, by suffix."""
_SOURCES: Final = """
md markdown rst tex org html xml py pyi js ts jsx tsx c h cc cpp hpp cs java kt rs go rb php swift scala sh sql r jl lua
pl hs ml"""
SOURCES: Final = frozenset(f".{kind}" for kind in _SOURCES.split())
"""Suffixes of files that are one document each."""
PACKED: Final = ".gz"


def suffix(path: Path) -> str:
    """What decides the format: ".jsonl" of "a.jsonl", "A.JSONL" and "a.jsonl.gz"."""
    name = path.name.lower()
    return Path(name.removesuffix(PACKED)).suffix


def stem(path: Path) -> str:
    """The name without what says the format."""
    return (Path(path.name[: -len(PACKED)]) if path.name.lower().endswith(PACKED) else path).stem


def format_of(path: Path, *, in_group: bool = False) -> Format | None:
    """How a file is read; None if it holds no text. A .txt in a group's own folder is one document."""
    kind = suffix(path)
    if kind in SOURCES or (kind == ".txt" and in_group):
        return WHOLE
    return FORMATS.get(kind)


def unpacked(path: Path) -> Path:
    """The file itself, or what a .gz file holds, in a folder that goes when the process ends.

    Raises:
      UserError: it is damaged.
    """
    if not path.name.lower().endswith(PACKED):
        return path
    folder = Path(tempfile.mkdtemp(prefix="jaxneuro-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / path.name[: -len(PACKED)]
    try:
        with gzip.open(path, "rb") as source, open(target, "wb") as f:
            shutil.copyfileobj(source, f)
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f"{path} is not a whole gzip file: {e}. Download or write it again.") from e
    return target
