# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are the texts of which group, and which are one data set with a group field."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import UserError, unknown
from ..io.files import read_json
from .formats import FORMATS, format_of, stem
from .records import group_name

NOTES: Final = ("readme", "license", "licence", "notice", "copying", "sources", "changelog")
RECORDS: Final = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside the rows."""
SHARD: Final = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.\w+(\.gz)?$")
"""A file of a data set on the Hub: train-00000-of-00002.parquet."""
LAYOUTS: Final = (
    "Expected a folder with GROUP.txt, GROUP.jsonl, GROUP.csv or GROUP.parquet (or a sub-folder GROUP of such files) "
    "for each group; one .jsonl, .json, .csv, .tsv or .parquet file, a folder that `save_to_disk` wrote or one in the "
    "Hub's layout (data/train-00000-of-00001.parquet), with the fields 'text' and 'group'; or "
    "'hub:OWNER/NAME:SPLIT:TEXT_FIELD:GROUP_FIELD'."
)


class Source(NamedTuple):
    """One file, and the group of all its documents; None: each record names its group."""

    path: Path
    group: str | None
    in_group: bool = False
    """Whether it lies in a folder of its group."""


def sources_of(folder: Path, split: str) -> list[Source]:
    """The files of a folder, sorted.

    Raises:
      UserError: a file that holds no text, a group twice, a group without files, no such split.
    """
    if (dataset := _dataset(folder, split)) is not None:
        return [Source(path, None) for path in dataset]
    seen: dict[str, Path] = {}
    found: list[Source] = []
    for entry in sorted(filter(_wanted, folder.iterdir())):
        name = group_name(entry.name if entry.is_dir() else stem(entry), str(folder))
        if name in seen:
            raise UserError(f"{folder}: group {name!r} is there twice, as {seen[name].name} and {entry.name}.")
        seen[name] = entry
        inside = _files_of_group(entry, split) if entry.is_dir() else [entry]
        if not inside:
            raise UserError(f"{folder}: the folder of group {name!r} has no files. {LAYOUTS}")
        found += [Source(path, name, entry.is_dir()) for path in inside]
    check_formats(folder, [source.path for source in found])
    return found


def _wanted(path: Path) -> bool:
    name = path.name.lower()
    return not name.startswith((".", "_")) and not name.startswith(NOTES) and name not in RECORDS


def _files_of_group(folder: Path, split: str) -> list[Path]:
    """The files of a group's own folder: those of a data set in it, else all below it."""
    if (dataset := _dataset(folder, split)) is not None:
        return dataset
    inside = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in inside if all(_wanted(folder / part) for part in p.relative_to(folder).parts))


def _dataset(folder: Path, split: str) -> list[Path] | None:
    """The files of a data set's split, if this folder is one: written by `save_to_disk`, or in the Hub's layout."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in folder.iterdir() if (p / "state.json").is_file())
        return _saved(folder / _one_split(splits, split, folder))
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _saved(folder)
    shards = {p: m for p in _below(folder) if (m := SHARD.match(p.name)) and _wanted(p)}
    if not shards:
        return None
    chosen = _one_split(sorted({m["split"] for m in shards.values()}), split, folder)
    return sorted(p for p, m in shards.items() if m["split"] == chosen)


def _below(folder: Path) -> Iterable[Path]:
    """Files of the folder and of its sub-folder `data`, where the Hub has them."""
    inside = [*folder.iterdir(), *((folder / "data").iterdir() if (folder / "data").is_dir() else ())]
    return (p for p in inside if p.is_file())


def _saved(folder: Path) -> list[Path]:
    """The files that state.json names: others beside them are left over from another writing."""
    state = read_json(folder / "state.json")
    files = state.get("_data_files") if isinstance(state, dict) else None
    names = [str(f.get("filename")) for f in files if isinstance(f, dict)] if isinstance(files, list) else []
    if not names or not all(name == Path(name).name for name in names):
        raise UserError(f"{folder / 'state.json'} names no files of rows. Save the data set again.")
    return [folder / name for name in names]


def _one_split(splits: list[str], split: str, folder: Path) -> str:
    if split in splits:
        return split
    if len(splits) == 1:
        return splits[0]
    raise unknown("split", split, splits, where=str(folder), hint="Choose one with split (--split).")


def check_formats(folder: Path, files: list[Path]) -> None:
    """Raises: UserError: some of them hold no text."""
    if bad := [str(f.relative_to(folder)) for f in files if format_of(f) is None]:
        shown = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise UserError(
            f"cannot read {shown} in {folder}: only {', '.join(FORMATS)} files, the same with .gz, and source code or "
            "markdown hold text. Convert, or put '_' in front of the name to leave it out."
        )
