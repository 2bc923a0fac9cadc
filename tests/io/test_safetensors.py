# SPDX-License-Identifier: Apache-2.0
import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxneuro.errors import UserError
from jaxneuro.io import read_checkpoint, read_safetensors, write_safetensors
from jaxneuro.io.safetensors import DTYPES

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bfloat16": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "flags": np.array([True, False, True]),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
}


def build(header, data=b"", length=None):
    """The bytes of a file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


def same(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_written_is_read(path):
    write_safetensors(path, ARRAYS, {"format": "pt"})
    tensors = read_safetensors(path)
    assert set(tensors) == set(ARRAYS)
    assert len(tensors) == len(ARRAYS)
    assert tensors.metadata == {"format": "pt"}
    assert tensors.shape("matrix") == (2, 3)
    assert tensors.dtype("bfloat16") == ml_dtypes.bfloat16
    for name, array in ARRAYS.items():
        same(tensors[name], array)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_every_dtype_survives(path, dtype):
    array = np.array([0, 1, 1], np.int32).astype(dtype)
    write_safetensors(path, {"x": array})
    same(read_safetensors(path)["x"], array)


def test_agrees_with_the_reference_implementation(path):
    plain = {k: np.ascontiguousarray(v) for k, v in ARRAYS.items() if v.dtype != ml_dtypes.bfloat16}
    write_safetensors(path, plain, {"format": "pt"})
    ours = path.read_bytes()
    for name, array in safetensors.numpy.load(ours).items():
        same(array, plain[name])
    theirs = safetensors.numpy.save(plain, {"format": "pt"})
    path.write_bytes(theirs)
    for name, array in read_safetensors(path).items():
        same(array, plain[name])
    assert ours == theirs


def test_arrays_are_views_that_cannot_be_written(path):
    write_safetensors(path, ARRAYS)
    array = read_safetensors(path)["matrix"]
    assert array.base is not None
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


FALSE = {
    "an empty file": (b"", "0 bytes"),
    "a length beyond the file": (build({}, length=99), "its header claims 99 bytes, the file has 10"),
    "an absurd length": (build({}, length=2**40), "claims 1099511627776 bytes, more than"),
    "no JSON": (build(b"{oh no}"), "not valid JSON"),
    "not UTF-8": (build(b'{"\xff": 1}'), "not valid JSON"),
    "a list": (build([]), "not a JSON object"),
    "deep nesting": (build(b"[" * 100_000), "nested too deeply"),
    "a name twice": (build(b'{"a": 1, "a": 2}'), "'a' occurs twice"),
    "no entry": (build({"a": 3}), "'a': its entry is not"),
    "a key too many": (build({"a": entry(0, 4) | {"x": 1}}, b"0" * 4), "'a': its entry is not"),
    "an unknown dtype": (build({"a": entry(0, 4, dtype="F99")}, b"0" * 4), "unknown dtype 'F99'"),
    "a dtype that is no name": (build({"a": entry(0, 4, dtype=[])}, b"0" * 4), r"unknown dtype \[\]"),
    "a negative shape": (build({"a": entry(0, 4, shape=[-1])}, b"0" * 4), "not a list of counts"),
    "a boolean shape": (build({"a": entry(0, 4, shape=[True])}, b"0" * 4), "not a list of counts"),
    "three offsets": (build({"a": entry(0, 4) | {"data_offsets": [0, 4, 8]}}, b"0" * 4), "not two counts"),
    "a shape too large": (build({"a": entry(0, 4, shape=[2])}, b"0" * 4), "takes 8 bytes, its data_offsets hold 4"),
    "offsets backwards": (build({"a": entry(4, 0)}, b"0" * 4), "data_offsets hold -4"),
    "a hole": (build({"a": entry(4, 8)}, b"0" * 8), "'a' leaves a hole before it"),
    "an overlap": (build({"a": entry(0, 4), "b": entry(2, 6)}, b"0" * 6), "'b' overlaps the one before"),
    "data cut short": (build({"a": entry(0, 4)}, b"0" * 3), "take 4 bytes, the file holds 3: it was cut short"),
    "data appended": (build({"a": entry(0, 4)}, b"0" * 5), "something was appended"),
    "odd metadata": (build({"__metadata__": {"a": 1}}), "not a map from text to text"),
}


@pytest.mark.parametrize(("content", "message"), FALSE.values(), ids=list(FALSE))
def test_false_files_are_refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as e:
        read_safetensors(path)
    assert str(path) in str(e.value)


def test_every_truncation_is_noticed(path):
    write_safetensors(path, {"x": np.arange(3, dtype=np.int32)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_safetensors(path)


def test_all_false_claims_are_listed(path):
    path.write_bytes(build({"a": 3, "b": entry(0, 4, dtype="F99")}, b"0" * 4))
    with pytest.raises(UserError, match=r"(?s)'a'.*'b'"):
        read_safetensors(path)


def test_a_missing_file(path):
    with pytest.raises(UserError, match="cannot read"):
        read_safetensors(path)


def test_dtypes_that_do_not_exist(path):
    with pytest.raises(UserError, match=r"no dtype for x \(complex64\)"):
        write_safetensors(path, {"x": np.zeros(1, np.complex64)})
    assert not path.exists()


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    write_safetensors(path, {"x": np.zeros(1, np.int32)})
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_safetensors(path, {"x": np.ones(9, np.int32)})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.fixture
def sharded(tmp_path):
    write_safetensors(tmp_path / "1.safetensors", {"a": np.zeros(1, np.float32)}, {"format": "pt"})
    write_safetensors(tmp_path / "2.safetensors", {"b": np.ones(2, np.float32)})
    return tmp_path


def index(folder, content):
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_shards_are_joined(sharded):
    index(sharded, {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    tensors = read_checkpoint(sharded)
    assert {k: v.tolist() for k, v in tensors.items()} == {"a": [0.0], "b": [1.0, 1.0]}
    assert tensors.metadata == {"format": "pt"}


LYING = {
    "missing shards": ({"a": "1.safetensors", "b": "3.safetensors", "c": "4.safetensors"}, "lacks 3.*, 4.* of the 3"),
    "names too long for a disk": ({"a": "1.safetensors", "b": "z" * 300}, r"lacks z+… of the 2 files"),
    "a tensor elsewhere": ({"a": "2.safetensors", "b": "2.safetensors"}, "'a' is not in 2.safetensors"),
    "a tensor without a place": ({"a": "1.safetensors", "z": "2.safetensors"}, "holds 'b', which the index does not"),
    "a path": ({"a": "../1.safetensors"}, "names of files beside it"),
    "a number": ({"a": 1}, "names of files beside it"),
}


@pytest.mark.parametrize(("weight_map", "message"), LYING.values(), ids=list(LYING))
def test_lying_indices_are_refused(sharded, weight_map, message):
    index(sharded, {"weight_map": weight_map})
    with pytest.raises(UserError, match=message):
        read_checkpoint(sharded)


@pytest.mark.parametrize("content", [[], {}, {"weight_map": None}])
def test_an_index_without_a_map(sharded, content):
    index(sharded, content)
    with pytest.raises(UserError, match="no 'weight_map'"):
        read_checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded):
    write_safetensors(sharded / "2.safetensors", {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)})
    index(sharded, {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    with pytest.raises(UserError, match=r"holds 'a', which the index puts into 1\.safetensors"):
        read_checkpoint(sharded)


WHERE = {"a": "1.safetensors", "b": "2.safetensors"}


@pytest.mark.parametrize("size", [12, 12.0, None])
def test_an_index_may_say_how_many_bytes_there_are(sharded, size):
    index(sharded, {"metadata": {"total_size": size}, "weight_map": WHERE})
    assert set(read_checkpoint(sharded)) == {"a", "b"}


@pytest.mark.parametrize("size", [11, 24, 0, "12"])
def test_an_index_of_other_shards_is_refused(sharded, size):
    index(sharded, {"metadata": {"total_size": size}, "weight_map": WHERE})
    with pytest.raises(UserError, match=rf"speaks of {size} bytes .*total_size.*, its shards hold 12"):
        read_checkpoint(sharded)


def test_an_index_that_places_a_tensor_twice(sharded):
    text = '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "a": "2.safetensors"}}'
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json is not valid JSON: the key 'a' occurs twice"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("cut", [1, 4, 40])
def test_a_shard_that_is_cut_short(sharded, cut):
    index(sharded, {"weight_map": WHERE})
    shard = sharded / "2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"2\.safetensors is not a whole safetensors file"):
        read_checkpoint(sharded)


def test_folders_without_weights(tmp_path):
    with pytest.raises(UserError, match="It holds: nothing"):
        read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: pickles .* never opened"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        read_checkpoint(tmp_path / "nowhere")
