# SPDX-License-Identifier: Apache-2.0
"""Whole-file writes: to a temporary name beside the target, flushed to disk, then renamed over it."""

import contextlib
import errno
import itertools
import json
import math
import os
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from ..errors import UserError, quoted, shown


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` complete, or not at all.

    Raises:
      UserError: the folder cannot be written or the disk is full; the old file, if any, is as it was.
    Example:
      >>> import tempfile, pathlib
      >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.bin"
      >>> with atomic_write(target) as f: _ = f.write(b"whole")
      >>> target.read_bytes()
      b'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            raise UserError(f"cannot write {shown(path, 400)}: the name is too long. Choose a shorter one.") from e
        raise UserError(
            f"cannot write {path}: {e.strerror or e}. Nothing was changed there; "
            f"free some space or choose another folder, then run the same command again to go on."
        ) from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


_numbers: Final = itertools.count()
"""Two threads of a process may write one file: the later whole one stays."""
_TEMPORARY: Final = re.compile(r"^\..+\.(\d+)(-\d+)?\.tmp$")


def clear_temporary(folder: str | os.PathLike, *, deep: bool = False) -> None:
    """Remove what `atomic_write` of processes that are gone left in a folder and in those in it; the folder is ours.

    Args:
      deep: in all folders below too.

    Example:
      >>> import tempfile, pathlib
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / ".run.json.999999999.tmp").write_text("{")
      1
      >>> clear_temporary(folder)
      >>> list(folder.iterdir())
      []
    """
    with contextlib.suppress(OSError):
        for path in [f for p in (("**/.*.tmp",) if deep else (".*.tmp", "*/.*.tmp")) for f in Path(folder).glob(p)]:
            found = _TEMPORARY.match(path.name)
            if found and not _alive(int(found[1])):
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic_write(path) as f:
        f.write(text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON, atomically. NaN and infinity are refused by name: JSON has neither."""
    try:
        text = json_text(value, indent=1)
    except ValueError as e:
        raise UserError(f"cannot write {path}: it would hold NaN or infinity ({e}).") from e
    write_text(path, text + "\n")


def json_text(value: Any, **how: Any) -> str:
    """JSON of numbers, texts, arrays and paths, as every reader takes it; `how`: of json.dumps.

    Raises:
      ValueError: NaN or infinity among them, which JSON has not; `or_null` writes them.
    Example:
      >>> json_text({"loss": or_null(float("nan")), "rate": np.float32([0.5, 1])})
      '{"loss": null, "rate": [0.5, 1.0]}'
    """
    return json.dumps(value, allow_nan=False, default=_plain, **how)


def or_null(value: float) -> float | None:
    """A number for JSON: null where it is NaN or infinite, which is how JSON says that nothing is known."""
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy and JAX arrays and scalars
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of `json.loads` for objects in which a key that occurs twice is an error."""
    out = dict(pairs)
    if len(out) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {quoted(twice)} occurs twice")
    return out


_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A file opened for reading, if it is one: a pipe, a device or a folder is refused instead of waited for.

    Raises:
      UserError: it is none, or cannot be read.
    Example:
      >>> open_regular("/dev/null")
      Traceback (most recent call last):
      jaxneuro.errors.UserError: cannot read /dev/null: it is a device, not a file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(fd, "rb")
        os.close(fd)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise UserError(f"cannot read {shown(path, 400)}: {getattr(e, 'strerror', None) or e}.") from e
    kind = next((name for test, name in _KINDS if test(mode)), "something else")
    raise UserError(f"cannot read {shown(path, 400)}: it is {kind}, not a file.")


DAMAGED: Final = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
"""What zipfile, zlib, numpy (whose headers are Python) and pickletools raise of a file that is not whole."""
LARGEST_JSON: Final = 200_000_000
"""Bytes. The largest that is met is an index of shards, a few megabytes."""
DEEPEST_JSON: Final = 64


def read_json(path: str | os.PathLike) -> Any:
    """Read JSON. Its numbers may be NaN or infinite where Python wrote it: `fields` refuses those that matter.

    Raises:
      UserError: the file is missing, no regular file, larger than 200 MB, not UTF-8, not JSON, nested deeper than 64
        levels, or has an object with a key that occurs twice.
    """
    name = shown(path, 400)
    with open_regular(path) as f:
        if (size := os.fstat(f.fileno()).st_size) > LARGEST_JSON:
            raise UserError(f"{name} has {size:,} bytes, more than the {LARGEST_JSON:,} that a JSON file may have.")
        content = f.read()
    try:
        value = json.loads(content.decode(), object_pairs_hook=no_duplicates)
        if _deeper(value, DEEPEST_JSON):
            raise RecursionError
    except RecursionError:
        raise UserError(f"{name} is nested more than {DEEPEST_JSON} levels deep.") from None
    except ValueError as e:
        raise UserError(f"{name} is not valid JSON: {e}.") from e
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value has more levels than these."""
    level = [value]
    for _ in range(levels):
        if not level:
            return False
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
    return bool(level)


def save_npz(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write named arrays as a compressed .npz, atomically. Object arrays are refused (they would be pickled)."""
    for name, a in arrays.items():
        if np.asarray(a).dtype == object:
            raise UserError(f"cannot write {path}: array {name!r} holds Python objects.")
    with atomic_write(path) as f:
        np.savez_compressed(f, **arrays, allow_pickle=False)


class Before(NamedTuple):
    """What was there when a command began."""

    missing: tuple[Path, ...]
    """Of a folder and those around it, the ones that were not there, innermost first."""
    names: frozenset[str]
    """What the folder held."""


def before(folder: Path) -> Before:
    """How a folder is before a command uses it."""
    missing = tuple(p for p in (folder, *folder.parents) if not p.exists())
    return Before(missing, frozenset(p.name for p in folder.iterdir()) if folder.is_dir() else frozenset())


def holds(record: Path, keys: Collection[str]) -> bool:
    """Whether a file is the record of a run: JSON with these keys. One of that name may be somebody else's.

    Raises:
      UserError: it is there and no JSON.
    """
    said = read_json(record) if record.exists() else None
    return isinstance(said, dict) and set(keys) <= said.keys()


@contextlib.contextmanager
def nothing_left(folder: Path, was: Before, claim: Collection[str] = ()) -> Iterator[None]:
    """A command's folder; where it ends before anything was computed, what was made for it goes, and nothing else.

    Args:
      was: what `before` gave before the folder was made. Where there is a lock, enter this under it.
      claim: names of files that say whose the folder is: with these and empty files alone it holds no result.
    Example:
      >>> import tempfile
      >>> out = Path(tempfile.mkdtemp()) / "a" / "b"
      >>> with nothing_left(out, before(out), {"config.json"}):
      ...     out.mkdir(parents=True)
      ...     _ = (out / "config.json").write_text("{}")
      >>> out.parent.exists()
      False
    """
    try:
        yield
    finally:
        new = [p for p in folder.iterdir() if p.name not in was.names] if folder.is_dir() else []
        if all(p.name in claim or (p.is_file() and not p.stat().st_size) for p in new):
            for path in new:
                path.unlink(missing_ok=True)
            for path in was.missing:
                with contextlib.suppress(OSError):  # it holds something by now, or was never made
                    path.rmdir()
