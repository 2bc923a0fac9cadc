# SPDX-License-Identifier: Apache-2.0
"""Arrays that numpy.save and numpy.savez wrote, read within what the file says: names first, then sizes, then numbers.

A few kilobytes of a compressed .npz can stand for gigabytes, and a header can claim terabytes. What is asked for is
compared with the zip's directory and with the memory there is before any of it is read; nothing is unpickled.
"""

import math
import os
import zipfile
from collections.abc import Collection
from typing import IO, Final

import numpy as np

from ..errors import UserError, quoted, shown
from .files import DAMAGED, open_regular


def read_npz(
    path: str | os.PathLike, names: Collection[str] | None = None, *, known: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of a .npz.

    Args:
      names: those to read, where they are there; None: all.
      known: those that may be there, another is an error before anything is read; None: any.
    Raises:
      UserError: the file is missing, damaged or no .npz; an array of Python objects, of another size than it claims, or
        that does not fit into memory.
    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npz"
      >>> np.savez(path, x=np.arange(3), y=np.zeros(9))
      >>> read_npz(path, ("x",))
      {'x': array([0, 1, 2])}
    """
    where = shown(path, 400)
    with open_regular(path) as f:
        try:
            with zipfile.ZipFile(f) as archive:
                infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                if len(infos) < len(archive.infolist()):
                    raise ValueError("an array occurs twice")
                if known is not None and (more := sorted(set(infos) - set(known))):
                    raise ValueError("; ".join(f"unknown tensor {shown(n)}" for n in more[:8]))
                wanted = {n: info for n, info in infos.items() if names is None or n in names}
                _check_memory(sum(info.file_size for info in wanted.values()), where)
                return {name: _read(archive, info) for name, info in wanted.items()}
        except UserError:
            raise
        except MemoryError:
            raise _too_large(f.seek(0, os.SEEK_END), where) from None
        except DAMAGED as e:
            raise UserError(f"{where} is no whole .npz of arrays: {shown(str(e), 300) or type(e).__name__}.") from None


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of a .npy; up to 64 MiB are copied, a larger file is mapped.

    A mapped file must not be shortened while it is used: the process would end with SIGBUS.

    Raises:
      UserError: the file is missing, damaged, no .npy, or an array of Python objects.
    """
    where = shown(path, 400)
    with open_regular(path) as f:
        try:
            shape, dtype = _header(f)
            size, there = math.prod(shape) * dtype.itemsize, os.fstat(f.fileno()).st_size - f.tell()
            if size > there:
                raise ValueError(f"its header claims {size:,} bytes, {there:,} are there")
            mapped = size > COPIED
            return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        except DAMAGED as e:
            raise UserError(f"{where} is no whole .npy: {shown(str(e), 300) or type(e).__name__}.") from None


COPIED: Final = 64 * 2**20
"""Bytes of a file that is copied instead of mapped."""


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as entry:
        shape, dtype = _header(entry)
        size = math.prod(shape) * dtype.itemsize
        if entry.tell() + size != info.file_size:
            raise ValueError(f"{quoted(info.filename)} claims {size:,} bytes of numbers, {info.file_size:,} are there")
    with archive.open(info) as entry:
        return np.lib.format.read_array(entry, allow_pickle=False)


def _header(f: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(f)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format .npy")
    shape, _, dtype = readers[version](f)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which would have to be unpickled")
    return shape, dtype


def _check_memory(size: int, where: str) -> None:
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return
    if size > free:
        raise _too_large(size, where)


def _too_large(size: int, where: str) -> UserError:
    return UserError(f"{where} does not fit into memory: its arrays have {size:,} bytes.")
