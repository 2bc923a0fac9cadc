# SPDX-License-Identifier: Apache-2.0
"""Files of tensors with one tensor changed: safetensors by header, npz by entry, .pt by pickle."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .values import ANSI, LEGAL, LIES, NONSENSE

type Header = dict[str, Any]
_SAME_SIZE: Final = {"F32": ("I32", "U32"), "BF16": ("F16", "I16", "U16"), "F64": ("I64",), "I64": ("F64",)}


def safetensors_file(rng: random.Random, content: bytes) -> tuple[bytes, str, str]:
    """One tensor of a safetensors file changed, in the header or in the data."""
    (n,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + n]), bytearray(content[8 + n :])
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    change = rng.choice(_CHANGES)
    what, means = change(rng, header, data, name)
    text = json.dumps(header).encode()
    if change is _twice:
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}".encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data), f"{name}: {what}", means


def _missing(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    begin, end = header.pop(name)["data_offsets"]
    del data[begin:end]
    for entry in (e for n, e in header.items() if n != "__metadata__" and e["data_offsets"][0] >= end):
        entry["data_offsets"] = [at - (end - begin) for at in entry["data_offsets"]]
    return "is left out", LEGAL if name in _OPTIONAL else NONSENSE


_OPTIONAL: Final = ("affine_skip_connection",)
"""Tensors without which a file is another whole one: nothing else in it speaks of them (Gemma Scope's transcoders)."""


def _renamed(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    new = rng.choice((f"{name}{ANSI}", "x" * 100_000, "", name.upper(), f"{name}.weight"))
    header[new] = header.pop(name)
    return f"is called {new!r:.30}", NONSENSE


def _extra(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    new = rng.choice((f"more{ANSI}", "surplus", f"{name}_2"))
    header[new] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    data += b"\0\0\0\0"
    return f"{new!r} is beside", LEGAL


def _twice(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    return "occurs twice", LIES


def _overlapping(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    other = rng.choice([n for n in header if n != "__metadata__"])
    header[name]["data_offsets"] = header[other]["data_offsets"]
    return f"lies where {other} lies", LIES if other != name else LEGAL


def _moved(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    begin, end = header[name]["data_offsets"]
    begin, end = rng.choice(
        ((begin + 4, end + 4), (begin, end - 4), (end, begin), (-4, end), (begin, 2**63), (0.5, end))
    )
    header[name]["data_offsets"] = [begin, end]
    return f"lies at {begin}, {end}", LIES


def _misshapen(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    shape = header[name]["shape"]
    size = int(np.prod(shape))
    choices = ([size], [1, *shape], shape[::-1], [*shape, 1], [], [2**40, 2**40], [0], [-1], [size + 1], "text", [True])
    new = rng.choice([c for c in choices if c != shape] or [[size + 1]])
    header[name]["shape"] = new
    return f"has shape {new} for {shape}", NONSENSE


def _relabelled(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    old = header[name]["dtype"]
    header[name]["dtype"] = new = rng.choice((*_SAME_SIZE.get(old, ("F64",)), "F99", 3, "f32", ANSI))
    return f"is {new!r} for {old}", NONSENSE


def _cast(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    entry = header[name]
    if entry["dtype"] != "F32":
        return _twice(rng, header, data, name)
    begin, end = entry["data_offsets"]
    dtype, code = rng.choice((("<f2", "F16"), ("<f8", "F64"), ("<i4", "I32")))
    new = np.frombuffer(bytes(data[begin:end]), "<f4").astype(dtype).tobytes()
    grown = len(new) - (end - begin)
    data[begin:end] = new
    entry |= {"dtype": code, "data_offsets": [begin, begin + len(new)]}
    for other in (e for n, e in header.items() if n not in ("__metadata__", name) and e["data_offsets"][0] >= end):
        other["data_offsets"] = [at + grown for at in other["data_offsets"]]
    return f"is cast to {code}", NONSENSE if code == "I32" else LEGAL


def _nonfinite(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    begin, end = header[name]["data_offsets"]
    if header[name]["dtype"] != "F32" or end - begin < 4:
        return _twice(rng, header, data, name)
    at = begin + 4 * rng.randrange((end - begin) // 4)
    data[at : at + 4] = struct.pack("<f", value := rng.choice((float("nan"), float("inf"), -float("inf"))))
    return f"holds {value}", NONSENSE


def _swapped(rng: random.Random, header: Header, data: bytearray, name: str) -> tuple[str, str]:
    other = rng.choice([n for n in header if n != "__metadata__"])
    header[name], header[other] = header[other], header[name]
    return f"and {other} change places", LEGAL


_CHANGES: Final[tuple[Callable[..., tuple[str, str]], ...]] = (
    *(_missing, _renamed, _extra, _twice, _overlapping, _moved, _misshapen, _relabelled, _cast, _nonfinite, _swapped),
)


def npz_file(rng: random.Random, content: bytes) -> tuple[bytes, str, str]:
    """One array of an .npz changed."""
    arrays = dict(np.load(io.BytesIO(content)))
    name, how = rng.choice(list(arrays)), rng.choice(_NPZ)
    entries = {f"{n}.npy": _npy(a) for n, a in arrays.items()}
    means = how(rng, arrays, name, entries) or NONSENSE
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as z:
        for n, data in entries.items():
            z.writestr(n, data)
    return out.getvalue(), f"{name}: {how.__name__.strip('_')}", means


def _npy(a: np.ndarray) -> bytes:
    f = io.BytesIO()
    np.save(f, a, allow_pickle=a.dtype == object)
    return f.getvalue()


def _npz_missing(rng: random.Random, arrays: dict, name: str, entries: dict) -> None:
    del entries[f"{name}.npy"]


def _npz_extra(rng: random.Random, arrays: dict, name: str, entries: dict) -> None:
    entries[rng.choice((f"more{ANSI}.npy", "zz.npy", "../zz.npy", "note.txt"))] = _npy(np.zeros(3))


def _npz_broken(rng: random.Random, arrays: dict, name: str, entries: dict) -> None:
    a = np.array(arrays[name], np.float32)  # of a type that has them, whatever the file had
    if not a.size:
        return
    a.flat[0] = rng.choice((np.nan, np.inf))
    entries[f"{name}.npy"] = _npy(a)


def _npz_shape(rng: random.Random, arrays: dict, name: str, entries: dict) -> None:
    a = arrays[name]
    entries[f"{name}.npy"] = _npy(rng.choice((a[None], a.ravel()[:-1], a[..., :0], np.concatenate([a, a]))))


def _npz_pickled(rng: random.Random, arrays: dict, name: str, entries: dict) -> None:
    entries[f"{name}.npy"] = _npy(np.array([print], dtype=object))


def _npz_claims(rng: random.Random, arrays: dict, name: str, entries: dict) -> None:
    """A header that says more than there is."""
    data = entries[f"{name}.npy"]
    old = str(arrays[name].shape).encode()
    new = rng.choice((b"(1099511627776,)", b"(-1,)", b"(2,2,2,2)", b"'a'", b"(" * 300))
    length = struct.unpack("<H", data[8:10])[0]
    header = data[10 : 10 + length].replace(old, new).rstrip() + b"\n"
    entries[f"{name}.npy"] = data[:8] + struct.pack("<H", len(header)) + header + data[10 + length :]


_NPZ: Final = (_npz_missing, _npz_extra, _npz_broken, _npz_shape, _npz_pickled, _npz_claims)

_LAUGHS: Final = b"(" + b"K\x01\x85q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"t"
"""60 tuples, each twice the one before: 2^60 steps to hash, or to write down."""
_DEEP: Final = b")" + b"\x85" * 200_000
_PICKLES: Final = tuple(
    b"\x80\x02" + body + b"."
    for junk in (_LAUGHS + b"h\x3c", _DEEP)
    for body in (
        b"}" + junk + b"K\x01s",
        junk,
        junk + b"Q",
        b"}X\x01\x00\x00\x00a" + junk + b"s",
        b"ccollections\nOrderedDict\n]" + junk + b"K\x01\x86a\x85R",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + junk + b"X\x03\x00\x00\x00cpuK\x04tQ",
        b"X\x0a\x00\x00\x00activation" + b"}X\x0a\x00\x00\x00activation" + junk + b"s",
    )
) + tuple(
    b"\x80\x02" + body + b"."
    for body in (
        b"cos\nsystem\nX\x04\x00\x00\x00echo\x85R",
        b"cbuiltins\nexec\n)R",
        *(b"K\x01" * 9, b"h\x63", b"(", b"0", b"tt", b"N" * 99),
    )
)


def torch_file(rng: random.Random, content: bytes) -> tuple[bytes, str, str]:
    """An entry of a .pt zip changed; of the older layout, a pickle in its place."""
    pickle = rng.choice(_PICKLES)
    if not content.startswith(b"PK"):
        return pickle, f"the pickle {pickle[:20]!r}...", NONSENSE
    with zipfile.ZipFile(io.BytesIO(content)) as z:
        entries = [[info.filename, z.read(info)] for info in z.infolist()]
    entry = rng.choice(entries)
    how = rng.choice(("pickle", "pickle", "leave out", "rename", "twice", "cut", "grow", "compress"))
    if how == "pickle":
        entry = next(e for e in entries if e[0].endswith("data.pkl"))
        entry[1] = pickle
    elif how == "leave out":
        entries.remove(entry)
    elif how == "twice":
        entries.append([*entry])
    elif how in ("cut", "grow"):
        entry[1] = entry[1][:-4] if how == "cut" else entry[1] + b"\0\0\0\0"
    elif how == "rename":
        entry[0] = rng.choice((f"archive/{ANSI}", "../../out", "/abs", entry[0] + "x"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if how == "compress" else zipfile.ZIP_STORED) as z:
        for name, data in entries:
            z.writestr(name, data)
    return out.getvalue(), f"{entry[0]!r:.40}: {how}", NONSENSE
