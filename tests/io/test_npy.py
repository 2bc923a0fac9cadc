# SPDX-License-Identifier: Apache-2.0
"""Arrays are read within what the file and the memory have: no bomb, no claim, no pickle, no pipe."""

import io
import os
import time
import zipfile

import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.io.npy import read_npy, read_npz


def entry(shape, dtype="<f4", data=b""):
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, {"descr": dtype, "fortran_order": False, "shape": shape})
    return f.getvalue() + data


def archive(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in entries.items():
            z.writestr(f"{name}.npy", content)
    return path


def test_what_numpy_wrote_comes_back(tmp_path):
    x, y = np.arange(6.0).reshape(2, 3, order="F"), np.array(["a", "bc"])
    np.savez_compressed(tmp_path / "a.npz", x=x, y=y, s=np.float32(3))
    found = read_npz(tmp_path / "a.npz")
    assert {**found, "x": found["x"].tolist(), "y": found["y"].tolist()} == {"x": x.tolist(), "y": ["a", "bc"], "s": 3}
    assert list(read_npz(tmp_path / "a.npz", ("y", "z"))) == ["y"]
    np.save(tmp_path / "a.npy", x)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), x)


def test_an_array_that_nobody_asked_for_is_not_read(tmp_path):
    bomb = entry((2**28,), "|i1", bytes(2**28))  # a quarter of a gigabyte in 260 kB
    path = archive(tmp_path / "a.npz", x=entry((1,), data=b"abcd"), zz=bomb)
    began = time.monotonic()
    assert read_npz(path, ("x",))["x"].shape == (1,)
    assert time.monotonic() - began < 0.2


CLAIMS = {
    "terabytes": (entry((2**40,)), "claims 4,398,046,511,104 bytes"),
    "more than there is": (entry((3,), data=b"abcd"), "claims 12 bytes"),
    "less than there is": (entry((1,), data=b"abcdefgh"), "claims 4 bytes"),
    "objects": (entry((1,), "|O", b"\x80\x04."), "Python objects"),
    "nothing": (b"", "no whole .npz"),
    "another format": (b"abcdefghijkl", "no whole .npz"),
    "no Python": (entry((3,), data=b"abcd").replace(b"(3,)", b"((((")[:20] + b"(" * 300, "no whole .npz"),
    "a negative size": (entry((-1,), data=b"abcd"), "no whole .npz"),
}


@pytest.mark.parametrize(("content", "said"), CLAIMS.values(), ids=list(CLAIMS))
def test_claims_are_compared_before_anything_is_read(content, said, tmp_path):
    with pytest.raises(UserError, match=said):
        read_npz(archive(tmp_path / "a.npz", x=content))
    (tmp_path / "a.npy").write_bytes(content)
    if said != "claims 4 bytes":  # numpy reads over what follows
        with pytest.raises(UserError, match="no whole"):
            read_npy(tmp_path / "a.npy")


def test_a_large_file_is_mapped_and_a_small_one_is_not(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros(1000))
    assert not isinstance(read_npy(tmp_path / "a.npy"), np.memmap)
    monkeypatch.setattr("jaxneuro.io.npy.COPIED", 100)
    assert isinstance(read_npy(tmp_path / "a.npy"), np.memmap)


def test_pipes_and_other_files_are_no_arrays(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_text("no zip")
    for path, said in (("a.npz", "a pipe"), ("b.npz", "no whole .npz"), ("c.npz", "No such file")):
        with pytest.raises(UserError, match=said):
            read_npz(tmp_path / path)
        with pytest.raises(UserError):
            read_npy(tmp_path / path)
