# SPDX-License-Identifier: Apache-2.0
"""Which pictures belong to which group: a folder with a sub-folder for each, or a table of paths (extra `images`)."""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import numpy as np

from ..errors import UserError, quoted, shown, unknown
from ..errors import pictures as seen
from ..io.fields import TEXT, null_or, whole
from ..io.files import open_regular
from .documents import Collector
from .formats import FORMATS, format_of, stem, suffix, unpacked
from .layouts import NOTES
from .processor import Picture, pillow, rgb
from .records import Fields, group_name, template_fields
from .spans import state, unchanged

KINDS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names of the formats that are read, by what is in a file; of a moving picture the first frame."""
_SUFFIXES: Final = "png apng jpg jpeg jfif jpe webp gif bmp dib tif tiff ppm pgm pbm pnm"
SUFFIXES: Final = frozenset(f".{kind}" for kind in _SUFFIXES.split())
MOST_PIXELS: Final = 89_478_485
"""Of one picture, Pillow's own bound: 256 MB of three bytes each. A file of kilobytes can ask for more."""
LITTER: Final = frozenset(("thumbs.db", "desktop.ini"))
"""Files that systems leave in folders of pictures."""
PICTURE_LAYOUTS: Final = (
    f"Expected a folder with a sub-folder of pictures for each group, or a table ({', '.join(FORMATS)}) with the "
    "fields 'path' and 'group'. Kinds of pictures: PNG, JPEG, WebP, GIF, BMP, TIFF, PPM."
)
THREADS: Final = min(8, os.cpu_count() or 1)
AT_ONCE: Final = 64
"""Files checked together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureFields:
    """How a person says which pictures are meant: options of every command, arguments of `read_pictures`."""

    most_per_group: int | None = None
    """Of every group so many, drawn at random over all of it; None: all."""
    path_field: str = "path"
    """Of a table: the field with the path, as seen from the table's folder."""
    group_field: str = "group"
    """Of a table: the field that names the group."""
    document_field: str | None = None
    """Of a table: the field that says what belongs together (a patient, a film). Such pictures are no independent
    evidence: nulls permute them together, and they are not both studied and measured."""
    skip_bad: bool = False
    """Pass over files that are no whole pictures and say how many, instead of stopping."""


class PictureFile(NamedTuple):
    """One picture that was checked."""

    path: Path
    name: str
    """As it is shown: its path inside the folder that was read."""
    document: str | None
    digest: str
    """Of the file's content."""
    state: tuple[int, int]
    moving: bool = False
    """It has more frames or pages than the first, which is read."""

    def read(self) -> Picture:
        """The picture, upright, in RGB.

        Raises:
          UserError: the file is another one than was checked.
        """
        unchanged(self.path, self.state, again="read_pictures")
        return decoded(self.path)


class PictureFiles(Sequence[Picture]):
    """A group's pictures, by number, each decoded when it is asked for."""

    def __init__(self, files: Sequence[PictureFile]):
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, i: int) -> Picture: ...
    @overload
    def __getitem__(self, i: slice) -> list[Picture]: ...
    def __getitem__(self, i: int | slice) -> Picture | list[Picture]:
        found = self.files[i]
        return found.read() if isinstance(found, PictureFile) else [f.read() for f in found]

    def __repr__(self) -> str:
        return f"PictureFiles({len(self)} pictures)"


class Pictures(dict[str, PictureFiles]):
    """Pictures by group name, in sorted order; `source` is where they came from, `of_all` how many each group has, and
    `bad` how many of its files were found to be no whole pictures and passed over.

    `n_skipped` counts bad files that were passed over, `skipped` says what was wrong with the first of them.
    """

    def __init__(
        self,
        groups: Mapping[str, PictureFiles],
        source: str,
        of_all: Mapping[str, int],
        skipped: Sequence[str] = (),
        n_skipped: int = 0,
        bad: Mapping[str, int] | None = None,
    ):
        super().__init__(sorted(groups.items()))
        self.source, self.of_all, self.bad = source, dict(of_all), dict(bad or {})
        self.skipped, self.n_skipped = tuple(skipped), n_skipped

    def skipped_note(self) -> str:
        """What a person should know of the files that were passed over; "" if none were."""
        if not self.n_skipped:
            return ""
        files = "file was" if self.n_skipped == 1 else "files were"
        return f"{self.n_skipped} bad {files} skipped in {seen(self.source)}; the first: {seen(self.skipped[0])}"

    def moving_note(self) -> str:
        """What a person should know of the files with several pictures; "" if there are none."""
        moving = [file.name for files in self.values() for file in files.files if file.moving]
        if not moving:
            return ""
        files = "file holds" if len(moving) == 1 else "files hold"
        return f"{len(moving)} {files} several pictures, of which the first is read: {seen(moving[0])}" + (
            ", ..." if len(moving) > 1 else ""
        )

    def __missing__(self, name: str) -> PictureFiles:
        raise unknown("group", name, self, where=self.source)

    def __repr__(self) -> str:
        return f"Pictures({self.source}: {', '.join(f'{name} {len(files)}' for name, files in self.items())})"


class _Place(NamedTuple):
    """A picture that is named somewhere, not looked at yet."""

    path: Path
    name: str
    document: str | None = None


def read_pictures(
    path: str | os.PathLike,
    *,
    path_field: str = "path",
    group_field: str = "group",
    document_field: str | None = None,
    most_per_group: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    one_group: bool = False,
) -> Pictures:
    """The pictures of every group (a class, a style, a camera ...), by name, in an order that no file system decides.

    | what `path` is | groups | pictures |
    |---|---|---|
    | folder of sub-folders (torchvision's ImageFolder) | sub-folder names | all files below each |
    | one table (.jsonl .csv .tsv .json .parquet) | values of the group field | paths, as seen from its folder |

    PNG, JPEG, WebP, GIF, BMP, TIFF and PPM, known by their content. A picture comes upright (EXIF), in RGB: grey ones
    three times, transparent ones on white, CMYK converted, 16 bits as the nearest of 8; of several frames or pages the
    first (`Pictures.moving_note`). Numbers without a known range (32 bits, floating) are an error. Names that start
    with "." or "_", README, LICENSE and the like are skipped; any other file that is no whole picture is an error.
    Links to files are followed, links to folders only where they are a group.

    Every picture that is drawn is decoded once here, to check it, in several threads; afterwards when it is asked
    for. Memory: one picture per thread.

    Args:
      most_per_group: draw so many of each group at random, over all of it, and look at no others; None: all.
      seed: of the drawing. Same seed, same pictures; a group's draw depends on the seed and its number alone.
      path_field, group_field: of a table.
      document_field: of a table, a field that says which pictures belong together; None: each is by itself.
      skip_bad: pass over files that are no whole pictures (and records that name none) and count them, instead of
        raising; others are drawn for them.
      one_group: pictures in no group (a folder without sub-folders, a table without that field, one file) are one
        group, named after the folder or file, instead of an error.
    Raises:
      UserError: nothing is there, Pillow is not installed, a file that is no whole picture or has more than
        89,478,485 pixels, a picture in no group, a group without one, a missing field.
    Example:
      >>> import pathlib, tempfile
      >>> from PIL import Image
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for name in ("cats", "dogs"):
      ...     (folder / name).mkdir()
      ...     Image.new("L", (4, 3), 255).save(folder / name / "1.png")
      >>> pictures = read_pictures(folder)
      >>> pictures["cats"][0].size, pictures["cats"][0].mode, list(pictures)
      ((4, 3), 'RGB', ['cats', 'dogs'])
    """
    pillow("reading pictures")
    _check(most_per_group, seed, path_field, group_field, document_field)
    source, at = os.fspath(path), Path(path).expanduser()
    bad = Collector(skip_bad)  # it counts what is passed over
    try:
        if at.is_dir():
            places = dict(_of_folder(at, one_group, bad))
        else:
            places = _of_file(at, one_group, bad, Table(path_field, group_field, document_field))
    except OSError as e:
        raise UserError(f"cannot read {e.filename or source}: {e.strerror or e}.") from e
    found, of_all, damaged = {}, {}, {}
    for number, name in enumerate(sorted(places)):
        files, before = places[name], bad.n_skipped
        if most_per_group is not None:
            files = [files[i] for i in np.random.default_rng([seed, number]).permutation(len(files))]
        found[name] = PictureFiles(_checked(files, most_per_group, bad))
        damaged[name] = bad.n_skipped - before
        of_all[name] = len(files) - damaged[name]
    pictures = Pictures(found, source, of_all, bad.skipped, bad.n_skipped, damaged)
    _none_empty(pictures)
    return pictures


def _check(most_per_group: Any, seed: Any, *names: Any) -> None:
    """Raises: UserError: a number that is not whole or too small, a name of a field that is no text."""
    null_or(whole()).of(most_per_group, "most_per_group")
    whole(0, 2**64 - 1).of(seed, "seed")
    for kind, name in zip(("path_field", "group_field", "document_field"), names, strict=True):
        (null_or(TEXT) if kind == "document_field" else TEXT).of(name, kind)


def _none_empty(pictures: Pictures) -> None:
    why = f" ({pictures.n_skipped} bad files, such as: {pictures.skipped[0]})" if pictures.skipped else ""
    if not pictures:
        raise UserError(f"no pictures in {pictures.source}{why}. {PICTURE_LAYOUTS}")
    if empty := [name for name, files in pictures.items() if not len(files)]:
        names = ", ".join(map(quoted, empty[:10]))
        raise UserError(f"no pictures in group {names} of {pictures.source}{why}. Add pictures to it, or take it away.")


def _checked(places: Sequence[_Place], most: int | None, bad: Collector) -> list[PictureFile]:
    """The first `most` good ones, sorted by name."""
    wanted, found = len(places) if most is None else most, []
    # Here and not where pictures are read: which warnings are shown is a matter of the whole process.
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as threads:
        warnings.simplefilter("ignore")
        start = 0
        while start < len(places) and len(found) < wanted:
            some = places[start : start + min(AT_ONCE, wanted - len(found))]
            for place in threads.map(_looked_at, some):
                if (file := bad.checked(place)) is not None:
                    found.append(file)
            start += len(some)
    return sorted(found, key=lambda file: file.name)


def _looked_at(place: _Place) -> Callable[[], PictureFile]:
    """What gives the file, or raises what is wrong with it: `Collector.checked` decides where that is said."""
    try:
        file = _file(place)
    except UserError as e:
        return lambda e=e: _raise(e)
    return lambda: file


def _raise(e: Exception) -> Any:
    raise e


def _file(place: _Place) -> PictureFile:
    with open_regular(place.path) as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()  # type: ignore[arg-type]
    return PictureFile(place.path, place.name, place.document, digest, state(place.path), _opened(place.path)[1])


def decoded(path: Path) -> Picture:
    """A file as an upright picture in RGB.

    Raises:
      UserError: it is no picture of `KINDS`, only part of one, too large, or of numbers without a known range.
    """
    return _opened(path)[0]


def _opened(path: Path) -> tuple[Picture, bool]:
    """The first picture of a file, and whether there are more."""
    image = pillow("reading pictures")
    from PIL import ImageOps

    with open_regular(path) as f:
        try:
            picture = image.open(f, formats=KINDS)
            columns, rows = picture.size
            if columns * rows > MOST_PIXELS:
                raise image.DecompressionBombError(f"{columns:,} x {rows:,} pixels")
            deep = picture.mode == "RGB" and "RGB;16B" in str(getattr(picture, "tile", ""))
            picture.load()
            found = rgb(_eight_bits(ImageOps.exif_transpose(picture), picture.format, deep, path))
            return found, _moving(picture)
        except image.DecompressionBombError as e:
            raise UserError(
                f"{shown(path)}: a picture of more than {MOST_PIXELS:,} pixels ({shown(e)}) is not decoded. Make it "
                "smaller, or pass over such files with skip_bad=True."
            ) from None
        except (MemoryError, UserError):
            raise
        except Exception as e:  # Pillow's decoders raise whatever they stumble over
            raise UserError(
                f"cannot read {shown(path)}: no whole picture of a known kind ({shown(e, 200) or type(e).__name__}). "
                "Replace it, put '_' in front of its name to leave it out, or pass over such files with skip_bad=True."
            ) from None


def _moving(picture: Picture) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # a second frame that is damaged: the first one is whole
        return True


def _eight_bits(picture: Picture, kind: str | None, deep: bool, path: Path) -> Picture:
    """The nearest values of eight bits, where Pillow would cut off what is above 255; transparency is kept.

    Args:
      kind: Pillow's name of the format: numbers of a PGM are scaled to 16 bits by Pillow, in a mode of 32.
      deep: the picture is RGB of 16 bits, of which Pillow has read the upper eight.
    """
    clear = picture.info.get("transparency")
    if deep and isinstance(clear, tuple):
        picture.info["transparency"] = tuple(v >> 8 for v in clear)
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    if picture.mode == "F" or (picture.mode == "I" and kind != "PPM"):
        raise UserError(
            f"{shown(path)} holds numbers of no known range (Pillow's mode {picture.mode}). Save it with 8 or 16 bits, "
            "or pass over such files with skip_bad=True."
        )
    values = np.asarray(picture).astype(np.int64)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    if isinstance(clear, int):
        grey = np.stack([grey, np.where(values == clear, 0, 255).astype(np.uint8)], -1)
    return pillow("reading pictures").fromarray(grey)


# --- a folder ------------------------------------------------------------------------------------


def _of_folder(folder: Path, one_group: bool, bad: Collector) -> Iterator[tuple[str, list[_Place]]]:
    entries = sorted(p for p in folder.iterdir() if _wanted(p.name, p.is_dir()))
    inside, loose = [p for p in entries if p.is_dir()], [p for p in entries if not p.is_dir()]
    if one_group and not inside:
        yield folder.resolve().name or "pictures", _places(loose, folder, bad)
        return
    if loose:
        bad.checked(lambda: _in_no_group(loose, folder))
    for group in inside:
        name = group_name(group.name, str(folder))
        below = sorted(p for p in group.rglob("*") if not p.is_dir() and _wanted_below(p.relative_to(group)))
        yield name, _places(below, folder, bad)


def _in_no_group(loose: list[Path], folder: Path) -> None:
    more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
    table = f" To read a table, give its own path: {loose[0]}." if suffix(loose[0]) in FORMATS else ""
    raise UserError(
        f"{shown(folder)}: {quoted(loose[0].name)}{more} lies beside the sub-folders, in no group. Put it into one, "
        f"or put '_' in front of its name to leave it out.{table} {PICTURE_LAYOUTS}"
    )


def _places(files: Sequence[Path], folder: Path, bad: Collector) -> list[_Place]:
    """Those that can be pictures by their names."""
    places = [_Place(p, p.relative_to(folder).as_posix()) for p in files]
    return [place for place in places if bad.checked(lambda place=place: _named_so(place)) is not None]


def _named_so(place: _Place) -> _Place:
    if place.path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{shown(place.path)} is no picture by its name. Take it away, put '_' in front of its name, or pass over "
            f"such files with skip_bad=True. {PICTURE_LAYOUTS}"
        )
    return place


def _wanted(name: str, is_folder: bool) -> bool:
    """Not hidden, and no note beside the pictures; a picture may be called license-plate.jpg."""
    name = name.lower()
    note = not is_folder and name.startswith(NOTES) and Path(name).suffix not in SUFFIXES
    return not (name.startswith((".", "_")) or note or name in LITTER)


def _wanted_below(path: Path) -> bool:
    return _wanted(path.name, False) and all(_wanted(part, True) for part in path.parts[:-1])


# --- a table -------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Fields of a table of pictures."""

    path: str
    group: str
    document: str | None

    def fields(self, otherwise: str | None) -> Fields:
        """As of records of text, whose text is the path, behind the document where there is one."""
        if odd := [n for n in (self.path, self.document) if n is not None and template_fields(n)]:
            raise UserError(f"{quoted(odd[0])} is no name of a field of a table of pictures.")
        text = self.path if self.document is None else f"{{{self.document}}}\0{{{self.path}}}"
        return Fields(text, self.group, otherwise, may_be_empty=False, text_hint=_PATH_HINT, group_hint=_OWN_GROUP_HINT)


_PATH_HINT: Final = "Name the fields with path_field and document_field (--picture.path-field, -document-field)."
_OWN_GROUP_HINT: Final = "Name the field with group_field (on the command line: --picture.group-field)."


def _of_file(path: Path, one_group: bool, bad: Collector, table: Table) -> dict[str, list[_Place]]:
    if not path.exists():
        known = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise unknown("file or folder", path.name, known, where=str(path.parent), hint=PICTURE_LAYOUTS)
    if one_group and path.suffix.lower() in SUFFIXES:
        return {path.stem: [_Place(path, path.name)]}
    form = None if suffix(path) == ".txt" else format_of(path)
    if form is None or suffix(path) not in FORMATS:
        raise UserError(f"{shown(path)} is no folder and no table of pictures. {PICTURE_LAYOUTS}")
    open_regular(path).close()  # a pipe would be waited for
    bad.add(unpacked(path), form, table.fields(stem(path) if one_group else None))
    return {name: [_place(row, path, table) for row in rows] for name, rows in bad.groups().items()}


def _place(row: str, table: Path, fields: Table) -> _Place:
    document, _, name = row.rpartition("\0")
    return _Place(table.parent / name, name, None if fields.document is None else document)
