# SPDX-License-Identifier: Apache-2.0
"""What torch.save wrote, read without torch: golden files, and files that must not be read."""

import collections
import contextlib
import io
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import zipfile

import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.io.torch_file import read_torch

GOLDEN = pathlib.Path(__file__).parents[1] / "dictionaries" / "fixtures" / "torch"


def archive(path, pickled, entries=(), *, compress=zipfile.ZIP_STORED):
    """A zip as torch.save lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w", compress) as z:
        z.writestr("a/data.pkl", pickled)
        for name, content in dict(entries).items():
            z.writestr(f"a/{name}", content)
    return path


def pickled_tensor(*, numel=6, offset=0, shape=(2, 3), strides=(3, 1), storage="FloatStorage", extra=b""):
    """The instructions torch.save writes for {"w": tensor}; protocol 2."""

    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def number(n):
        return b"J" + struct.pack("<i", n)

    def counts(ns):
        return b"(" + b"".join(map(number, ns)) + b"t"

    persistent = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text("0") + text("cpu") + number(numel)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + persistent[1:] + b"tQ" + number(offset)
    tensor += counts(shape) + counts(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("w") + tensor + b"s" + extra + b"."


VALUES = np.arange(6, dtype=np.float32)


def test_what_torch_wrote_comes_back():
    want = np.load(GOLDEN / "expected.npz")
    for name in ("zip.pt", "legacy.pt"):
        got = read_torch(GOLDEN / name)
        assert got["plain"] == {
            "k": 3,
            "rate": 0.5,
            "name": "tiny",
            "flags": [True, None],
            "shape": (2, 3),
            "big": 2**40,
        }
        for key in want.files:
            a = got["tensors"][key]
            wanted = want[key]
            assert a.shape == wanted.shape, key
            assert str(a.dtype) == ("bfloat16" if key == "bfloat16" else str(wanted.dtype)), key
            np.testing.assert_array_equal(np.asarray(a, wanted.dtype), wanted, err_msg=key)
        assert list(got["module"]) == ["weight", "bias"]  # an OrderedDict with _metadata, as state_dict() returns it
        assert got["tensors"]["view"].base is not None  # a transposed view keeps its strides
        with pytest.raises(ValueError, match="read-only"):
            got["tensors"]["view"][0, 0] = 1


def test_a_strided_view(tmp_path):
    pickled = pickled_tensor(offset=1, shape=(2, 2), strides=(1, 2))
    got = read_torch(archive(tmp_path / "a.pt", pickled, {"data/0": VALUES.tobytes()}))
    assert got["w"].tolist() == [[1, 3], [2, 4]]


def test_a_file_from_a_big_endian_machine(tmp_path):
    entries = {"byteorder": "big", "data/0": VALUES.astype(">f4").tobytes()}
    assert (
        read_torch(archive(tmp_path / "a.pt", pickled_tensor(), entries))["w"].tolist() == VALUES.reshape(2, 3).tolist()
    )


class Evil:
    """What a pickle can do: call anything."""

    def __reduce__(self):
        return os.system, ("echo pwned",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("value", [Evil(), {"a": [Evil()]}, collections.Counter("a"), {1, 2}, b"raw", 1j, range(3)])
def test_nothing_is_called(tmp_path, monkeypatch, value, protocol):
    def never(*args, **kwargs):
        raise AssertionError("code of the file ran")

    path = archive(tmp_path / "a.pt", pickle.dumps(value, protocol))
    monkeypatch.setattr(os, "system", never)
    monkeypatch.setattr(subprocess, "Popen", never)
    with pytest.raises(UserError, match=r"holds (the object|the pickle instruction|an object|a call)"):
        read_torch(path)


def test_the_refused_object_is_named(tmp_path):
    path = archive(tmp_path / "a.pt", pickle.dumps(Evil(), 2))
    with pytest.raises(UserError, match=r"a.pt holds the object (posix|nt).system.*load it with torch"):
        read_torch(path)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02ctorch\nFloatStorage\n.",  # a type alone
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.",  # a function alone
        b"\x80\x02}ctorch\nFloatStorage\nK\x01s.",  # as a key
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # called
        b"\x80\x02]q\x00h\x00a.",  # a list that contains itself
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.",  # attributes
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02c__main__\nEvil\n)\x81.",
    ],
)
def test_other_tricks_are_refused(tmp_path, pickled):
    pickletools.dis(pickled, io.StringIO())  # it is a valid pickle
    with pytest.raises(UserError, match="Only tensors and plain containers are read"):
        read_torch(archive(tmp_path / "a.pt", pickled))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numel": 7}, "has 24 bytes, its tensors need 28"),
        ({"numel": 2**30}, "has 24 bytes, its tensors need"),
        ({"shape": (3, 3)}, "reaches beyond its storage of 6"),
        ({"offset": 1}, "reaches beyond its storage of 6"),
        ({"strides": (3, 4)}, "reaches beyond its storage of 6"),
        ({"strides": (1,)}, r"has strides \(1,\)"),
        ({"shape": (-2, 3)}, "not described by a storage and counts"),
        ({"shape": (2**30, 2**30), "strides": (0, 0)}, "repeats the 6 elements"),
        ({"storage": "HalfStorage"}, "has 24 bytes, its tensors need 12"),
        ({"storage": "QInt8Storage"}, "the object torch.QInt8Storage"),
    ],
)
def test_tensors_that_are_not_there(tmp_path, changes, message):
    path = archive(tmp_path / "a.pt", pickled_tensor(**changes), {"data/0": VALUES.tobytes()})
    with pytest.raises(UserError, match=message):
        read_torch(path)


def test_a_missing_storage(tmp_path):
    with pytest.raises(UserError, match="no entry 'data/0'"):
        read_torch(archive(tmp_path / "a.pt", pickled_tensor()))


def test_compressed_entries_are_refused_unread(tmp_path):
    path = archive(
        tmp_path / "a.pt", pickled_tensor(numel=10**8), {"data/0": bytes(10**7)}, compress=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(UserError, match="is compressed, which torch"):
        read_torch(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    content = bytearray((GOLDEN / "zip.pt").read_bytes())
    with zipfile.ZipFile(GOLDEN / "zip.pt") as z:
        info = next(i for i in z.infolist() if i.filename.endswith("data/0"))
    lengths = struct.unpack("<HH", content[info.header_offset + 26 : info.header_offset + 30])  # of name and padding
    content[info.header_offset + 30 + sum(lengths)] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match="no whole file"):
        read_torch(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt"])
def test_a_file_cut_anywhere_is_an_error_that_names_it(tmp_path, name):
    whole = (GOLDEN / name).read_bytes()
    for end in [0, 1, 2, *range(3, len(whole) - 1, max(1, len(whole) // 60))]:
        (tmp_path / "a.pt").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"a\.pt"):
            read_torch(tmp_path / "a.pt")


@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_never_raise_anything_else(tmp_path, seed):
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(pickled_tensor(), np.uint8)
    for i in range(60):
        broken = whole.copy()
        broken[rng.integers(len(broken), size=2)] = rng.integers(256, size=2)
        path = archive(tmp_path / f"{i}.pt", broken.tobytes(), {"data/0": VALUES.tobytes()})
        with contextlib.suppress(UserError):
            read_torch(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"hello", b"\x80\x02K\x01.", b"\x80\x04" + b"(" * 100, b"\x80\x02" + b"]" * 9]
)
def test_other_files_are_no_torch_files(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match="no whole file"):
        read_torch(tmp_path / "a.pt")


def test_deep_nesting_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nested more than 64 levels"):
        read_torch(archive(tmp_path / "a.pt", b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read_torch(tmp_path / "nothing.pt")


# 60 memoised tuples, each twice the one before: 2^60 things for whoever walks it. `h\x3c` fetches the last.
DOUBLED = b"(" + b"K\x01\x85q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"t0"
DEEP = b")" + b"\x85" * 200_000
FETCHED = b"h\x3c"


def text(s):
    return b"X" + len(s).to_bytes(4, "little") + s


HOSTILE = {
    "a deep key": b"}" + DEEP + b"K\x01s",
    "a deep key of a dict from a mark": b"(" + DEEP + b"K\x01d",
    "a deep key of an OrderedDict": b"ccollections\nOrderedDict\n]" + DEEP + b"K\x01\x86a\x85R",
    "a deep name of an object": DEEP + text(b"x") + b"\x93",
    "a deep value": b"}K\x01" + DEEP + b"s",
    "a deep list": b"]" * 70 + b"a" * 69,
    "a list deepened from within": b"]q\x00" + b"]" * 60 + b"a" * 60 + b"0h\x00",
    "a doubled key": DOUBLED + b"}" + FETCHED + b"K\x01s",
    "a doubled key of many": DOUBLED + b"}(" + FETCHED + b"K\x01u",
    "a doubled key of an OrderedDict": DOUBLED + b"ccollections\nOrderedDict\n]" + FETCHED + b"K\x01\x86a\x85R",
    "a doubled persistent id": DOUBLED + FETCHED + b"Q",
    "a doubled storage key": DOUBLED + b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + FETCHED + b"K\x01K\x01tQ",
    "a doubled kind of storage": DOUBLED + b"(" + FETCHED + b"ctorch\nFloatStorage\nK\x01K\x01K\x01tQ",
    "a doubled name of an object": DOUBLED + FETCHED + text(b"x") + b"\x93",
    "a doubled call": DOUBLED + FETCHED + b")R",
    "a doubled state": DOUBLED + b"}" + FETCHED + b"b",
    "a long name of an object": text(b"m" * 1_000_000) + text(b"\x1b[2J") + b"\x93",
    "a shape of many": DOUBLED + b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00" + FETCHED + FETCHED + b"tR",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=list(HOSTILE))
def test_a_pickle_that_would_never_end_is_refused_at_once(tmp_path, body):
    path = archive(tmp_path / "a.pt", b"\x80\x02" + body + b".")
    with pytest.raises(UserError) as e:
        read_torch(path)
    assert len(str(e.value)) < 700
    assert "\x1b" not in str(e.value)


def test_containers_of_64_levels_are_read(tmp_path):
    value = 1
    for _ in range(60):
        value = {"a": [value]} if isinstance(value, int) else [value]
    assert read_torch(archive(tmp_path / "a.pt", pickle.dumps(value, 2))) == value


def test_more_than_ten_megabytes_of_instructions_are_refused(tmp_path):
    body = b"\x80\x02]" + b"K\x01a" * 4_000_000 + b"."
    with pytest.raises(UserError, match="more than 10,000,000"):
        read_torch(archive(tmp_path / "a.pt", body))
    (tmp_path / "b.pt").write_bytes(body)
    with pytest.raises(UserError):
        read_torch(tmp_path / "b.pt")


@pytest.mark.parametrize("byte", [0, 1, 2, 7, 255])
def test_booleans_are_0_and_1(tmp_path, byte):
    pickled = pickled_tensor(numel=2, shape=(2,), strides=(1,), storage="BoolStorage")
    path = archive(tmp_path / "a.pt", pickled, {"data/0": bytes([1, byte])})
    if byte < 2:
        assert read_torch(path)["w"].tolist() == [True, bool(byte)]
    else:
        with pytest.raises(UserError, match=f"booleans holds {byte}"):
            read_torch(path)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(UserError, match="a pipe, not a file"):
        read_torch(tmp_path / "a.pt")
