# SPDX-License-Identifier: Apache-2.0
"""Which texts belong to which group: a folder, one file with a group field, or a dataset of the Hub."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..errors import UserError, unknown
from ..io.sources import BUNDLED_TEXT
from .documents import Collector, Documents, Fields
from .formats import FORMATS, WHOLE, group_name
from .hub import PREFIX, collect_hub

NOTES: Final = ("readme", "license", "licence", "notice", "copying", "sources", "changelog")
LAYOUTS: Final = (
    "Expected a folder with GROUP.txt, GROUP.jsonl or GROUP.parquet (or a sub-folder GROUP of such files) for "
    "each group, or one .jsonl or .parquet file with the fields 'text' and 'group', or "
    "'hub:OWNER/NAME:SPLIT:TEXT_FIELD:GROUP_FIELD'."
)


class Groups(dict[str, Documents]):
    """Documents by group name, in sorted order; `source` is where they came from."""

    def __init__(self, documents: Mapping[str, Documents], source: str):
        super().__init__(sorted(documents.items()))
        self.source = source

    def __missing__(self, name: str) -> Documents:
        raise unknown("group", name, self, where=self.source)

    def __repr__(self) -> str:
        return f"Groups({self.source}: {', '.join(f'{name} {len(d)}' for name, d in self.items())})"


def read_groups(path: str | os.PathLike, *, text_field: str = "text", group_field: str = "group") -> Groups:
    """The texts of every group (a language, domain, relation ...), by name.

    | what `path` is | groups | documents |
    |---|---|---|
    | folder of files | names without suffix | .txt: paragraphs (blank lines between), .jsonl: lines, .parquet: rows |
    | folder of sub-folders | sub-folder names | .txt: the whole file; .jsonl: lines; .parquet: rows; sorted by name |
    | one .jsonl or .parquet | values of the group field | lines, rows |
    | `hub:OWNER/NAME[/CONFIG][:SPLIT[:TEXT[:GROUP]]]` | values of the group field | rows (extra `hub`) |
    | `bundled` | languages and code | excerpts that come with this package |

    Records have a text field and, in one file for all groups, a group field; more fields are ignored. Files are
    UTF-8 (a byte order mark is skipped; line ends of .txt become "\\n"). Documents that are empty or only white
    space are left out. In a folder, names that start with "." or "_", and README, LICENSE, NOTICE and the like,
    are skipped; any other file that cannot be read as text is an error, never passed over.

    Every file is read once here, to check it and to note where documents begin; after that a document is read
    when it is asked for. Memory: 16 bytes per document, plus one document or one parquet row group.

    Raises:
      UserError: nothing is there, a file of another kind, a group twice, an empty group, text that is not UTF-8
        (file and byte offset), a line that is no JSON object (file and line), a missing field.
    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "de.txt").write_text("Guten Tag.\\n\\nWie geht es?\\n")
      >>> _ = (folder / "en.jsonl").write_text('{"text": "Good day."}\\n')
      >>> groups = read_groups(folder)
      >>> list(groups), list(groups["de"])
      (['de', 'en'], ['Guten Tag.', 'Wie geht es?'])
    """
    collector = Collector()
    source = os.fspath(path)
    try:
        if source.startswith(PREFIX):
            collect_hub(source, collector, text_field=text_field, group_field=group_field)
        elif (folder := BUNDLED_TEXT if source == "bundled" else Path(source).expanduser()).is_dir():
            _collect_folder(folder, collector, text_field)
        else:
            _collect_file(folder, collector, Fields(text_field, group_field))
    except OSError as e:
        raise UserError(f"cannot read {e.filename or source}: {e.strerror or e}.") from e
    groups = Groups(collector.groups(), source)
    if not groups:
        raise UserError(f"no text in {source}. {LAYOUTS}")
    if empty := [name for name, documents in groups.items() if not len(documents)]:
        raise UserError(
            f"{_plural(empty)} no text in {source}. Add text to {'it' if len(empty) == 1 else 'them'}, "
            f"or take {'it' if len(empty) == 1 else 'them'} away."
        )
    return groups


def require_groups(groups: Mapping[str, Sequence[str]], at_least: int = 2) -> None:
    """Refuse too few groups: what is specific to a group can only be said against another one.

    Raises:
      UserError: fewer than `at_least` groups.
    """
    if len(groups) < at_least:
        where = f" in {source}" if (source := getattr(groups, "source", "")) else ""
        raise UserError(
            f"{len(groups)} group{where} ({', '.join(groups) or 'none'}); at least {at_least} are needed to compare. "
            f"Add another group. {LAYOUTS}"
        )


def _plural(names: list[str]) -> str:
    quoted = ", ".join(repr(n) for n in names)
    return f"group {quoted} has" if len(names) == 1 else f"groups {quoted} have"


def _wanted(path: Path) -> bool:
    return not path.name.startswith((".", "_")) and not path.name.lower().startswith(NOTES)


def _collect_folder(folder: Path, collector: Collector, text_field: str) -> None:
    files: dict[str, list[Path]] = {}
    seen: dict[str, Path] = {}
    for entry in sorted(filter(_wanted, folder.iterdir())):
        name = group_name(entry.name if entry.is_dir() else entry.stem, str(folder))
        if name in seen:
            raise UserError(f"{folder}: group {name!r} is there twice, as {seen[name].name} and {entry.name}.")
        seen[name] = entry
        files[name] = _files_below(entry) if entry.is_dir() else [entry]
    _check_suffixes(folder, [f for found in files.values() for f in found])
    for name, found in files.items():
        if not found:
            raise UserError(f"{folder}: the folder of group {name!r} has no files. {LAYOUTS}")
        for file in found:
            form = WHOLE if _suffix(file) == ".txt" and seen[name].is_dir() else FORMATS[_suffix(file)]
            collector.add(file, form, Fields(text_field), group=name)


def _files_below(folder: Path) -> list[Path]:
    inside = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in inside if all(_wanted(folder / part) for part in p.relative_to(folder).parts))


def _collect_file(path: Path, collector: Collector, fields: Fields) -> None:
    if not path.exists():
        known = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise unknown("file or folder", path.name, known, where=str(path.parent), hint=LAYOUTS)
    if _suffix(path) == ".txt":
        raise UserError(f"{path} is one text without groups. {LAYOUTS}")
    _check_suffixes(path.parent, [path])
    collector.add(path, FORMATS[_suffix(path)], fields)


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _check_suffixes(folder: Path, files: list[Path]) -> None:
    if bad := [str(f.relative_to(folder)) for f in files if _suffix(f) not in FORMATS]:
        shown = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise UserError(
            f"cannot read {shown} in {folder}: only {', '.join(FORMATS)} files hold text. Convert, or put '_' in "
            f"front of the name to leave it out."
        )
