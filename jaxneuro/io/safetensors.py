# SPDX-License-Identifier: Apache-2.0
"""safetensors files: read over mmap with every claim of the header checked, written whole or not at all.

A file is 8 bytes (little-endian length n), n bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the tensors'
bytes without holes. Source: the format description of github.com/huggingface/safetensors.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeGuard

import ml_dtypes
import numpy as np

from ..errors import UserError, quoted, shown
from .files import atomic_write, no_duplicates, open_regular, read_json

DTYPES: Final[dict[str, np.dtype]] = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_COPIED: Final = 64 * 2**20
_LONGEST_HEADER: Final = 100_000_000  # the limit of the reference implementation


class Tensors(Mapping[str, np.ndarray]):
    """{name: read-only array} of safetensors files; an array is a view of the file until it is copied from."""

    def __init__(
        self, views: Mapping[str, tuple[mmap.mmap | bytes, int, np.dtype, tuple[int, ...]]], metadata: dict[str, str]
    ):
        self._views = views
        self.metadata = metadata

    def __getitem__(self, name: str) -> np.ndarray:
        buffer, start, dtype, shape = self._views[name]
        return np.frombuffer(buffer, dtype, math.prod(shape), start).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def starting(self, *prefixes: str) -> "Tensors":
        """Those whose names start with one of these."""
        return Tensors({n: view for n, view in self._views.items() if n.startswith(prefixes)}, self.metadata)

    def renamed(self, names: Mapping[str, str]) -> "Tensors":
        """Those of `names`, {name: new name}."""
        return Tensors({new: self._views[old] for old, new in names.items()}, self.metadata)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header."""
        return self._views[name][3]

    def dtype(self, name: str) -> np.dtype:
        """Data type of one tensor, from the header."""
        return self._views[name][2]


def read_safetensors(path: str | os.PathLike, *, copied: int = _COPIED) -> Tensors:
    """Open one file. Nothing but the header is read until an array is used.

    The file is mapped: while arrays of it are in use it must not be shortened (by a download that starts again, say),
    or the process ends with SIGBUS. Small files are copied instead; models and dictionaries are copied when they are
    loaded.

    Args:
      copied: the largest file to copy, in bytes (64 MiB); 0: none.
    Raises:
      UserError: the file is missing, truncated or its header is not true; every false claim is listed.
    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
      >>> write_safetensors(path, {"x": np.arange(3, dtype=np.int32)})
      >>> read_safetensors(path)["x"].tolist()
      [0, 1, 2]
    """
    path = Path(path)
    try:
        with open_regular(path) as f:
            size = os.fstat(f.fileno()).st_size
            if size < 8:
                raise _bad(path, [f"it has {size} bytes; even an empty file has 10"])
            buffer = f.read() if size <= copied else mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}.") from e
    header, start = _header(path, buffer, size)
    metadata = header.pop("__metadata__", {})
    problems = [] if _is_text_map(metadata) else ["__metadata__ is not a map from text to text"]
    views = {}
    for name, entry in header.items():
        wrong = _wrong(entry)
        if wrong:
            problems.append(f"tensor {quoted(name)}: {wrong}")
        else:
            begin, _ = entry["data_offsets"]
            views[name] = (buffer, start + begin, DTYPES[entry["dtype"]], tuple(entry["shape"]))
    if not problems:
        problems = _gaps({n: tuple(e["data_offsets"]) for n, e in header.items()}, size - start)
    if problems:
        raise _bad(path, problems)
    return Tensors(views, metadata)


def _bad(path: Path, problems: list[str]) -> UserError:
    listed = "".join(f"\n  - {p}" for p in problems[:20])
    more = f"\n  - and {len(problems) - 20} more" if len(problems) > 20 else ""
    return UserError(f"{path} is not a whole safetensors file:{listed}{more}\nDownload or convert it again.")


def _header(path: Path, buffer: mmap.mmap | bytes, size: int) -> tuple[dict[str, Any], int]:
    (length,) = struct.unpack("<Q", buffer[:8])
    if length > _LONGEST_HEADER:
        raise _bad(path, [f"its header claims {length} bytes, more than the {_LONGEST_HEADER} a header may have"])
    if 8 + length > size:
        raise _bad(path, [f"its header claims {length} bytes, the file has {size}: it was cut short"])
    try:
        header = json.loads(buffer[8 : 8 + length].decode("utf-8"), object_pairs_hook=no_duplicates)
    except ValueError as e:
        raise _bad(path, [f"its header is not valid JSON ({e})"]) from e
    except RecursionError as e:
        raise _bad(path, ["its header is nested too deeply"]) from e
    if not isinstance(header, dict):
        raise _bad(path, ["its header is not a JSON object"])
    return header, 8 + length


def _is_text_map(value: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _wrong(entry: Any) -> str | None:
    """What is false about one tensor's entry by itself."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "its entry is not {dtype, shape, data_offsets}"
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        return f"unknown dtype {quoted(entry['dtype'])} (known: {', '.join(DTYPES)})"
    if not _counts(entry["shape"]):
        return f"its shape {shown(entry['shape'])} is not a list of counts"
    if not _counts(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
        return f"its data_offsets {shown(entry['data_offsets'])} are not two counts"
    begin, end = entry["data_offsets"]
    needed = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
    if end - begin != needed:
        return f"{entry['dtype']} {shown(entry['shape'])} takes {needed} bytes, its data_offsets hold {end - begin}"
    return None


def _gaps(offsets: dict[str, tuple[int, int]], size: int) -> list[str]:
    """Tensors must follow one another from 0 to the end of the file, without holes or overlap."""
    problems, reached = [], 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != reached:
            what = "overlaps the one before" if begin < reached else "leaves a hole before it"
            problems.append(f"tensor {quoted(name)} {what}: it begins at byte {begin} of the data, expected {reached}")
        reached = max(end, reached)
    if reached != size:
        how = "it was cut short" if reached > size else "something was appended"
        problems.append(f"the tensors take {reached} bytes, the file holds {size}: {how}")
    return problems


def read_checkpoint(folder: str | os.PathLike) -> Tensors:
    """The tensors of a Hugging Face folder: model.safetensors, or the shards that its index names.

    Shards are mapped however small they are: a host that loads its part of a model never holds the whole.

    Raises:
      UserError: no weights, missing shards, an index that does not agree with its shards.
    """
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.exists(single):
        return read_safetensors(single)
    if not os.path.exists(index):
        raise UserError(_no_weights(folder))
    content = read_json(index)
    where = content.get("weight_map", 0) if isinstance(content, dict) else 0
    if not _is_text_map(where) or any(Path(f).name != f for f in where.values()):
        raise UserError(f"{index} has no 'weight_map' from tensor names to names of files beside it.")
    shards = sorted(set(where.values()))
    if missing := [s for s in shards if not os.path.exists(folder / s)]:  # a name may be too long to exist
        raise UserError(
            f"{folder} lacks {', '.join(map(shown, missing[:8]))} of the {len(shards)} files that {index.name} names."
        )
    about = content.get("metadata") or {}
    claimed = about.get("total_size") if isinstance(about, dict) else None
    return _join(index, where, {s: read_safetensors(folder / s, copied=0) for s in shards}, claimed)


def _join(index: Path, where: dict[str, str], shards: dict[str, Tensors], claimed: Any) -> Tensors:
    problems = [f"tensor {quoted(n)} is not in {shown(s)}" for n, s in where.items() if n not in shards[s]]
    problems += [
        f"{shown(s)} holds {quoted(n)}, which the index "
        + (f"puts into {shown(where[n])}" if n in where else "does not name")
        for s, tensors in shards.items()
        for n in tensors
        if where.get(n) != s
    ]
    if problems:
        raise UserError(f"{index} does not agree with its shards:" + "".join(f"\n  - {p}" for p in problems[:20]))
    metadata = {k: v for tensors in shards.values() for k, v in tensors.metadata.items()}
    joined = Tensors({n: shards[s]._views[n] for n, s in where.items()}, metadata)
    found = sum(math.prod(joined.shape(n)) * joined.dtype(n).itemsize for n in joined)
    if claimed not in (None, found):
        raise UserError(
            f"{index} speaks of {shown(claimed)} bytes of tensors (metadata.total_size), its shards hold {found}: they "
            "are not of one download. Download it again; if the shards are right, take total_size out of the index."
        )
    return joined


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"no folder {folder}."
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
    text = f"{folder} has neither model.safetensors nor model.safetensors.index.json."
    if pickles:
        return f"{text} {', '.join(pickles)}: pickles can run code and are never opened; convert to safetensors."
    return f"{text} It holds: {', '.join(sorted(p.name for p in folder.iterdir())[:20]) or 'nothing'}."


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays to one file, atomically; only one tensor at a time is copied.

    The order is the reference implementation's (widest dtype first, then by name), so equal tensors give equal bytes.

    Raises:
      UserError: a dtype that the format lacks, a disk that is full.
    """
    arrays = {name: np.asarray(a) for name, a in tensors.items()}
    if unknown := [f"{n} ({a.dtype})" for n, a in arrays.items() if a.dtype not in _NAMES]:
        raise UserError(f"cannot write {path}: safetensors has no dtype for {', '.join(unknown)}.")
    order = sorted(arrays, key=lambda n: (-arrays[n].dtype.itemsize, n))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        a, begin = arrays[name], end
        end += a.nbytes
        header[name] = {"dtype": _NAMES[a.dtype], "shape": list(a.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            f.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
