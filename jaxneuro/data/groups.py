# SPDX-License-Identifier: Apache-2.0
"""Which texts belong to which group: a folder, one file with a group field, or a dataset of the Hub."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError, pictures, unknown
from ..io.files import open_regular
from ..io.sources import BUNDLED_TEXT
from .documents import Collector, Documents
from .formats import SOURCES, format_of, stem, suffix, unpacked
from .hub import PREFIX, collect_hub
from .layouts import LAYOUTS, Source, check_formats, sources_of
from .records import Fields, Render, contents, template_fields


class Groups(dict[str, Documents]):
    """Documents by group name, in sorted order; `source` is where they came from.

    `n_skipped` counts bad records that were passed over, `skipped` says what was wrong with the first of them.
    """

    def __init__(
        self, documents: Mapping[str, Documents], source: str, skipped: Sequence[str] = (), n_skipped: int = 0
    ):
        super().__init__(sorted(documents.items()))
        self.source, self.skipped, self.n_skipped = source, tuple(skipped), n_skipped

    def skipped_note(self) -> str:
        """What a person should know of the records that were passed over; "" if none were."""
        if not self.n_skipped:
            return ""
        records = "record was" if self.n_skipped == 1 else "records were"
        return (
            f"{self.n_skipped} bad {records} skipped in {pictures(self.source)}; the first: {pictures(self.skipped[0])}"
        )

    def __missing__(self, name: str) -> Documents:
        raise unknown("group", name, self, where=self.source)

    def __repr__(self) -> str:
        return f"Groups({self.source}: {', '.join(f'{name} {len(d)}' for name, d in self.items())})"


def read_groups(
    path: str | os.PathLike,
    *,
    text_field: str = "text",
    group_field: str = "group",
    split: str = "train",
    skip_bad: bool = False,
    one_group: bool = False,
    render: Render = contents,
) -> Groups:
    """The texts of every group (a language, domain, relation ...), by name.

    | what `path` is | groups | documents |
    |---|---|---|
    | folder of files | names without suffix | .txt: paragraphs (blank lines between); records of the others |
    | folder of sub-folders | sub-folder names | .txt, .md, .py ...: the whole file; records of the others; by name |
    | one file of records | values of the group field | lines of .jsonl, rows of .csv .tsv .parquet, items of .json |
    | folder of `save_to_disk`, or in the Hub's layout | values of the group field, names of a ClassLabel | rows |
    | `hub:OWNER/NAME[/CONFIG][:SPLIT[:TEXT[:GROUP]]]` | values of the group field | rows (extra `hub`) |
    | `bundled` | languages and code | excerpts that come with this package |

    Records have a text field and, in one file for all groups, a group field; more fields are ignored. A field that
    holds messages ({"role", "content"} or {"from", "value"}) is a conversation, and one named `messages` or
    `conversations` is read where there is no `text`. Any file may end in .gz. Files are UTF-8 (a byte order mark is
    skipped; line ends of .txt become "\\n"). Documents that are empty or only white space are left out. In a folder,
    names that start with "." or "_", and README, LICENSE, NOTICE and the like, are skipped; any other file that cannot
    be read as text is an error, never passed over.

    Every file is read once here, to check it and to note where documents begin; after that a document is read
    when it is asked for. Memory: 16 bytes per document, plus one document or one parquet row group; the texts of a
    .json array; a .gz is unpacked into the system's temporary folder.

    Args:
      text_field: a field's name, or a template of several, "{instruction}\\n{output}".
      group_field: the field of a record that names its group.
      split: of a data set with several; the only one is taken whatever its name.
      skip_bad: pass over records that are damaged or have no text or group, and count them, instead of raising.
      one_group: text that names no groups is one group, named after the file or folder, instead of an error.
      render: the text of a conversation, from [{"role", "content"}, ...]; default: what is said, without roles.
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
    template_fields(text_field)  # a wrong template is no bad record
    collector = Collector(skip_bad)
    source = os.fspath(path)
    fields = Fields(text_field, group_field, render=render)
    try:
        if source.startswith(PREFIX):
            collect_hub(
                source, collector, fields._replace(otherwise=source.removeprefix(PREFIX) if one_group else None)
            )
        else:
            at = BUNDLED_TEXT if source == "bundled" else Path(source).expanduser()
            if one_group:
                fields = fields._replace(otherwise=stem(at))
            for found in sources_of(at, split) if at.is_dir() else [_one_file(at, one_group)]:
                _add(collector, found, fields)
    except OSError as e:
        raise UserError(f"cannot read {e.filename or source}: {e.strerror or e}.") from e
    groups = Groups(collector.groups(), source, collector.skipped, collector.n_skipped)
    if not groups:
        bad = f" ({groups.n_skipped} bad records, such as: {groups.skipped[0]})" if groups.skipped else ""
        raise UserError(f"no text in {source}{bad}. {LAYOUTS}")
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


def _one_file(path: Path, one_group: bool) -> Source:
    if not path.exists():
        known = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise unknown("file or folder", path.name, known, where=str(path.parent), hint=LAYOUTS)
    check_formats(path.parent, [path])
    if suffix(path) == ".txt" or suffix(path) in SOURCES:
        if not one_group:
            raise UserError(f"{path} is one text without groups. {LAYOUTS}")
        return Source(path, stem(path))
    return Source(path, None)


def _add(collector: Collector, source: Source, fields: Fields) -> None:
    form = format_of(source.path, in_group=source.in_group)
    assert form is not None, "sources_of checks every file"
    open_regular(source.path).close()  # a pipe would be waited for
    of_file = fields if source.group is None else fields._replace(group=None)
    collector.add(unpacked(source.path), form, of_file, group=source.group)
