# SPDX-License-Identifier: Apache-2.0
"""Whole-file writes: to a temporary name beside the target, flushed to disk, then renamed over it."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(
            f"cannot write {path}: {e.strerror or e}. Nothing was changed there; "
            f"free some space or choose another folder, then run the same command again to go on."
        ) from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic_write(path) as f:
        f.write(text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON, atomically. NaN and infinity are refused by name: JSON has neither."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False, default=_plain)
    except ValueError as e:
        raise UserError(f"cannot write {path}: it would hold NaN or infinity ({e}).") from e
    write_text(path, text + "\n")


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
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return out


def read_json(path: str | os.PathLike, *, unique: bool = False) -> Any:
    """Read JSON.

    Args:
      unique: refuse an object with a key that occurs twice, instead of taking the last.
    Raises:
      UserError: the file is missing, not UTF-8 or not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=no_duplicates if unique else None)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}.") from e
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON: {e}.") from e


def save_npz(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write named arrays as a compressed .npz, atomically. Object arrays are refused (they would be pickled)."""
    for name, a in arrays.items():
        if np.asarray(a).dtype == object:
            raise UserError(f"cannot write {path}: array {name!r} holds Python objects.")
    with atomic_write(path) as f:
        np.savez_compressed(f, **arrays, allow_pickle=False)
