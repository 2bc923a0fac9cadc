# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save, read without torch and without unpickling: tensors and plain containers, nothing else.

Source: torch 2.13, torch/serialization.py.
"""

import io
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from ..errors import UserError, quoted, shown
from .files import DAMAGED, open_regular
from .pickled import DEEPEST, LONGEST_PICKLE, Refused, Storage, TensorOf, interpret

_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C


def read_torch(path: str | os.PathLike) -> Any:
    """What torch.save wrote: tensors as read-only NumPy arrays inside dicts, lists and tuples.

    Views share memory and keep their strides, as in torch. Both layouts are read: the zip of torch 1.6 and later,
    and the one before it.

    Raises:
      UserError: the file is missing, cut short or damaged; or it holds anything but tensors, dicts, lists, tuples,
        numbers and text: the message names what.
    """
    path = Path(path)
    try:
        with open_regular(path) as f:
            if zipfile.is_zipfile(f):
                return _read_zip(f)
            f.seek(0)
            return _read_legacy(f)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}.") from e
    except MemoryError:
        raise UserError(f"{path} does not fit into memory ({path.stat().st_size:,} bytes).") from None
    except Refused as e:
        raise UserError(
            f"{path} holds {e}. Only tensors and plain containers are read from a .pt file, as a pickle can run any "
            "code. Where you trust the file, load it with torch and save its state_dict alone."
        ) from None
    except UserError:
        raise
    except DAMAGED as e:
        raise UserError(f"{path} is no whole file of torch.save: {_said(e)}. Download or convert it again.") from None


def _said(e: Exception) -> str:
    return f"no entry {quoted(e.args[0])}" if isinstance(e, KeyError) else shown(str(e), 300) or type(e).__name__


def _read_zip(f: BinaryIO) -> Any:
    with zipfile.ZipFile(f) as archive:
        infos = {}
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"{shown(info.filename)} is compressed, which torch.save never does")
            infos[info.filename.partition("/")[2]] = info
        if len(infos) < len(archive.infolist()):
            raise ValueError("an entry occurs twice")
        if "data.pkl" not in infos:
            raise ValueError("it is a zip without data.pkl")
        if (length := infos["data.pkl"].file_size) > LONGEST_PICKLE:
            raise ValueError(f"its pickle has {length:,} bytes, more than {LONGEST_PICKLE:,}")
        if "byteorder" in infos and infos["byteorder"].file_size > 16:
            raise ValueError("its byte order is no word")
        order = archive.read(infos["byteorder"]).decode("ascii") if "byteorder" in infos else "little"
        if order not in ("little", "big"):
            raise ValueError(f"its byte order is {order!r}")

        def bytes_of(storage: Storage) -> bytes:
            info = infos[f"data/{storage.key}"]
            if info.file_size != (want := storage.numel * storage.dtype.itemsize):
                raise ValueError(f"{shown(info.filename)} has {info.file_size} bytes, its tensors need {want}")
            return archive.read(info)  # checks the CRC

        return _filled(interpret(io.BytesIO(archive.read(infos["data.pkl"]))), bytes_of, order)


def _read_legacy(f: BinaryIO) -> Any:
    """magic, version, machine, object, storage keys: five pickles; then every storage, its length before it."""
    if f.read(2)[:1] != b"\x80":
        raise ValueError("it is neither a zip nor a pickle")
    f.seek(0)
    magic = interpret(f)
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise ValueError("it is a pickle that torch.save did not write")
    interpret(f)
    machine = interpret(f)
    value, keys = interpret(f), interpret(f)
    size, content = os.fstat(f.fileno()).st_size, {}
    wanted = {s.key: s for s in _storages(value)}
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or sorted(wanted) != sorted(set(keys)):
        raise ValueError("its list of storages is not that of its tensors")
    for key in keys:
        (numel,) = struct.unpack("<q", f.read(8))
        n_bytes = wanted[key].numel * wanted[key].dtype.itemsize
        if numel != wanted[key].numel or n_bytes > size - f.tell():
            raise ValueError(f"storage {key} should have {wanted[key].numel} elements; it was cut short")
        content[key] = f.read(n_bytes)
    little = machine.get("little_endian") if isinstance(machine, dict) else None
    if type(little) is not bool:
        raise ValueError("it does not say its byte order")
    return _filled(value, lambda storage: content[storage.key], "little" if little else "big")


def _storages(value: Any) -> list[Storage]:
    found: list[Storage] = []
    _mapped(value, lambda t: found.append(t.storage), {})
    return found


def _filled(value: Any, bytes_of: Callable[[Storage], bytes], order: str) -> Any:
    """Tensors for their descriptions."""
    read: dict[Storage, np.ndarray] = {}

    def array(t: TensorOf) -> np.ndarray:
        if t.storage not in read:
            words = np.frombuffer(bytes_of(t.storage), f"u{t.storage.dtype.itemsize}")
            if t.storage.dtype == bool and words.size and words.max() > 1:
                raise ValueError(f"a storage of booleans holds {words.max()}")
            read[t.storage] = (words if order == sys.byteorder else words.byteswap()).view(t.storage.dtype)
        step = t.storage.dtype.itemsize
        base = read[t.storage][t.offset :] if 0 not in t.shape else read[t.storage][:0]
        strides = tuple(s * step for s in t.strides)
        return np.lib.stride_tricks.as_strided(base, t.shape, strides, writeable=False)

    return _mapped(value, array, {})


def _mapped(value: Any, f: Callable[[TensorOf], Any], done: dict[int, Any], depth: int = 0) -> Any:
    """value with f of every tensor in it; a container that occurs twice is made once."""
    if isinstance(value, TensorOf):
        return f(value)
    if isinstance(value, Storage | np.dtype) or callable(value):
        raise Refused("a storage or a type that is no tensor")
    if not isinstance(value, dict | list | tuple):
        return value
    if depth > DEEPEST:
        raise Refused(f"containers nested more than {DEEPEST} levels deep")
    if id(value) not in done:
        done[id(value)] = _UNFINISHED
        if isinstance(value, dict):
            done[id(value)] = {k: _mapped(v, f, done, depth + 1) for k, v in value.items()}
        else:
            done[id(value)] = type(value)(_mapped(v, f, done, depth + 1) for v in value)
    if done[id(value)] is _UNFINISHED:
        raise Refused("a container that contains itself")
    return done[id(value)]


_UNFINISHED: Final = object()
