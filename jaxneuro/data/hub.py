# SPDX-License-Identifier: Apache-2.0
"""Texts of a Hugging Face dataset (extra `hub`)."""

from array import array
from typing import Any, Final

import numpy as np

from ..errors import UserError, shown
from .documents import Collector
from .records import Fields, columns, group_name, group_of, text_of

PREFIX: Final = "hub:"
SCAN_ROWS: Final = 1024


class _Table:
    """Rows of a dataset, which `datasets` keeps memory-mapped on disk."""

    def __init__(self, table: Any, fields: Fields, rows: np.ndarray, source: str):
        self._table, self._fields, self._rows, self._source = table, fields._replace(group=None), rows, source

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> str:
        row = int(self._rows[i])
        return text_of(self._table[row], self._fields, f"{self._source}, row {row}")


def collect_hub(source: str, collector: Collector, fields: Fields) -> None:
    """Add the groups of `hub:OWNER/NAME[/CONFIG][:SPLIT[:TEXT[:GROUP]]]` (split "train" unless given).

    The split is downloaded whole into the cache of `datasets` and mapped from there.

    Raises:
      UserError: `datasets` is not installed, the dataset cannot be had, a field is missing or of the wrong kind.
    """
    name, split, text, group = _parse(source, fields)
    fields = fields._replace(text=text, group=group)
    table = _load(source, name, split)
    wanted = columns(fields, table.column_names, source)
    named = getattr(table.features.get(group), "int2str", None)  # ClassLabel: numbers that stand for names
    rows: dict[str, array] = {}
    row = 0
    for batch in table.select_columns(wanted).iter(batch_size=SCAN_ROWS):
        for values in zip(*(batch[n] for n in wanted), strict=True):
            record, where = dict(zip(wanted, values, strict=True)), f"{source}, row {row}"
            found = collector.checked(lambda r=record, w=where: (group_of(r, fields, w), text_of(r, fields, w)))
            if found is not None:
                key = group_name(named(record[group]), where) if named and group in record else str(found[0])
                kept = rows.setdefault(key, array("q"))
                if found[1].strip():
                    kept.append(row)
                    collector.feed(key, found[1])
            row += 1
    texts = table.select_columns(columns(fields._replace(group=None), table.column_names, source))
    for key, kept in rows.items():
        collector.put(key, _Table(texts, fields, np.asarray(kept), source))


def _parse(source: str, fields: Fields) -> tuple[list[str], str, str, str]:
    parts = source.removeprefix(PREFIX).split(":")
    repository = parts[0].split("/")
    if not 1 <= len(parts) <= 4 or not 1 <= len(repository) <= 3 or not all(parts) or not all(repository):
        raise UserError(
            f"cannot read {source!r}: expected hub:OWNER/NAME[/CONFIG][:SPLIT[:TEXT_FIELD[:GROUP_FIELD]]], "
            f"for example hub:papluca/language-identification:train:text:labels"
        )
    split, text, group = [*parts[1:], *("train", fields.text, fields.group or "group")[len(parts) - 1 :]]
    return repository, split, text, group


def _load(source: str, repository: list[str], split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise UserError(f"{source} needs the package 'datasets'. Run: pip install 'jaxneuro[hub]'.") from e
    try:
        return load_dataset("/".join(repository[:2]), *repository[2:], split=split)
    except Exception as e:  # network, unknown names and bad data come as a dozen unrelated types
        reason = shown((str(e).strip() or "no message").splitlines()[0].rstrip("."), 400)
        raise UserError(
            f"cannot load {source}: {type(e).__name__}: {reason}. Check the name, the split {split!r} and the "
            f"network, or save the dataset as .parquet and give that file."
        ) from e
