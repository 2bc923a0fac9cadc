# SPDX-License-Identifier: Apache-2.0
"""Texts of a Hugging Face dataset (extra `hub`)."""

from array import array
from typing import Any, Final

import numpy as np

from ..errors import UserError, unknown
from .documents import Collector
from .formats import check_text, group_name

PREFIX: Final = "hub:"
SCAN_ROWS: Final = 1024


class _Table:
    """Rows of a dataset, which `datasets` keeps memory-mapped on disk."""

    def __init__(self, texts: Any, field: str, rows: np.ndarray):
        self._texts, self._field, self._rows = texts, field, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> str:
        return self._texts[int(self._rows[i])][self._field]


def collect_hub(source: str, collector: Collector, *, text_field: str, group_field: str) -> None:
    """Add the groups of `hub:OWNER/NAME[/CONFIG][:SPLIT[:TEXT[:GROUP]]]` (split "train" unless given).

    The split is downloaded whole into the cache of `datasets` and mapped from there.

    Raises:
      UserError: `datasets` is not installed, the dataset cannot be had, a field is missing or of the wrong kind.
    """
    name, split, text, group = _parse(source, text_field, group_field)
    table = _load(source, name, split)
    for field in (text, group):
        if field not in table.column_names:
            raise unknown("field", field, table.column_names, where=source)
    named = getattr(table.features[group], "int2str", str)  # ClassLabel: numbers that stand for names
    rows: dict[str, array] = {}
    row = 0
    for batch in table.select_columns([text, group]).iter(batch_size=SCAN_ROWS):
        for value, label in zip(batch[text], batch[group], strict=True):
            where = f"{source}, row {row}"
            group_name(label, where)
            found = rows.setdefault(key := group_name(named(label), where), array("q"))
            if check_text(value, where).strip():
                found.append(row)
                collector.feed(key, value)
            row += 1
    texts = table.select_columns([text])
    for key, found in rows.items():
        collector.put(key, _Table(texts, text, np.asarray(found)))


def _parse(source: str, text_field: str, group_field: str) -> tuple[list[str], str, str, str]:
    parts = source.removeprefix(PREFIX).split(":")
    repository = parts[0].split("/")
    if not 1 <= len(parts) <= 4 or not 1 <= len(repository) <= 3 or not all(parts) or not all(repository):
        raise UserError(
            f"cannot read {source!r}: expected hub:OWNER/NAME[/CONFIG][:SPLIT[:TEXT_FIELD[:GROUP_FIELD]]], "
            f"for example hub:papluca/language-identification:train:text:labels"
        )
    split, text, group = [*parts[1:], *("train", text_field, group_field)[len(parts) - 1 :]]
    return repository, split, text, group


def _load(source: str, repository: list[str], split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise UserError(f"{source} needs the package 'datasets'. Run: pip install 'jaxneuro[hub]'.") from e
    try:
        return load_dataset("/".join(repository[:2]), *repository[2:], split=split)
    except Exception as e:  # network, unknown names and bad data come as a dozen unrelated types
        reason = (str(e).strip() or "no message").splitlines()[0].rstrip(".")
        raise UserError(
            f"cannot load {source}: {type(e).__name__}: {reason}. Check the name, the split {split!r} and the "
            f"network, or save the dataset as .parquet and give that file."
        ) from e
