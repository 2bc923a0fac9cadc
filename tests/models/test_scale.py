# SPDX-License-Identifier: Apache-2.0
"""One model on many devices and processes: the logits of one device, and no host that ever holds the model."""

import json
import os
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxneuro.io import read_safetensors, write_safetensors
from jaxneuro.models import Config, Transformer, load, save_pretrained, shapes
from jaxneuro.models.quantised import INPUTS

from .conftest import random_weights

ROOT = Path(__file__).parents[2]
CFG = Config(n_layers=4, d_model=128, n_heads=4, n_kv_heads=2, d_head=32, d_mlp=384, d_vocab=600, n_ctx=64, tied=False)
BYTES = 4 * sum(int(np.prod(s)) for s in shapes(CFG).values())
PACKED = sum(int(np.prod(s)) * (1 if leaf in INPUTS else 4) for leaf, s in shapes(CFG).items())
LARGEST = 4 * max(int(np.prod(s)) for s in shapes(CFG).values())
TOKENS = np.random.default_rng(3).integers(0, CFG.d_vocab, (4, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sharded checkpoint, large enough for its bytes to stand out."""
    path = tmp_path_factory.mktemp("model")
    weights = jax.tree.map(lambda a: a if a.ndim < 3 else a / 4, random_weights(CFG))  # scores of order 1: no chaos
    save_pretrained(Transformer(CFG, weights), path)
    tensors = {n: np.array(a) for n, a in read_safetensors(path / "model.safetensors").items()}
    (path / "model.safetensors").unlink()
    where = {n: f"model-{i % 3}.safetensors" for i, n in enumerate(tensors)}
    for shard in set(where.values()):
        write_safetensors(path / shard, {n: a for n, a in tensors.items() if where[n] == shard})
    content = {"metadata": {"total_size": BYTES}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(content))
    return path


def mesh(**axes):
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)


class Sent:
    """A device's part of a leaf, of which only bytes and dtype are remembered: it has left the host."""

    nbytes = 0

    def __init__(self, part):
        Sent.nbytes += part.nbytes
        self.dtype = part.dtype


@pytest.mark.parametrize(("dtype", "sent"), [(None, BYTES), ("int8", PACKED)])
def test_a_host_holds_one_leaf_of_one_device_and_never_the_model(folder, dtype, sent, monkeypatch):
    """Devices are played by counters: the memory of a CPU device would be the host's own."""

    def from_callback(shape, sharding, read):
        return [Sent(read(index)) for index in sharding.addressable_devices_indices_map(shape).values()]

    placed = mesh(fsdp=2, model=2)
    load(folder, mesh=placed, dtype=dtype)  # imports and caches are no weights
    monkeypatch.setattr(Sent, "nbytes", 0)
    monkeypatch.setattr(jax, "make_array_from_callback", from_callback)
    monkeypatch.setattr(jax, "device_put", lambda piece, device: jax.tree.map(Sent, piece))
    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", lambda shape, sharding, arrays: arrays)
    tracemalloc.start()
    try:
        load(folder, mesh=placed, dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sent < Sent.nbytes < 1.2 * sent  # norms and scales go to several devices
    assert LARGEST / 8 < peak < LARGEST / 2  # a quarter of the largest leaf, and its check for NaN


MESHES = [
    {"model": 1},
    {"fsdp": 2},
    {"model": 3},
    {"data": 2, "model": 2},
    {"data": 2, "model": 2, "fsdp": 2},
    {"model": 8},
]
"""3 divides no head and 8 none either: those leaves are whole on every device, and the others are not."""
EIGHT = """
import json
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxneuro.models import load
tokens, found = np.load({tokens!r}), []
for axes in {meshes!r}:
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)
    model = load({folder!r}, mesh=mesh)
    rows = NamedSharding(mesh, PartitionSpec("data" if "data" in axes else None))
    found.append(np.asarray(jax.jit(model.apply)(model.weights, jax.device_put(tokens, rows))))
np.save({out!r}, np.stack(found))
"""


def start(code, devices, *args):
    """A Python process with so many devices of a CPU."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def logits(folder):
    model = load(folder)
    return np.asarray(jax.jit(model.apply)(model.weights, jnp.asarray(TOKENS)))


def test_every_mesh_up_to_eight_devices_has_the_logits_of_one(folder, logits, tmp_path):
    np.save(tmp_path / "tokens.npy", TOKENS)
    paths = {"tokens": str(tmp_path / "tokens.npy"), "out": str(tmp_path / "out.npy"), "folder": str(folder)}
    process = start(EIGHT.format(meshes=MESHES, **paths), 8)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "axis 'kv_heads' of length 2 is replicated, the mesh axis 'model' of 8 does not divide it" in errors
    scale = np.abs(logits).max()
    for axes, found in zip(MESHES, np.load(tmp_path / "out.npy"), strict=True):
        np.testing.assert_allclose(found, logits, atol=1e-5 * scale, err_msg=str(axes))


TWO = """
import sys
import jax
jax.distributed.initialize({address!r}, 2, int(sys.argv[1]))
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxneuro.models import load, reader
read, copy = [], reader._Reader.slice
def counted(self, source, index):
    out = copy(self, source, index)
    read.append(out.nbytes)
    return out
reader._Reader.slice = counted
mesh = jax.make_mesh((2, 2), ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2)
model = load({folder!r}, mesh=mesh)
sys.stdout.write(f"bytes: {{sum(read)}}\\n")
everywhere = NamedSharding(mesh, PartitionSpec())
tokens = jax.make_array_from_callback({shape}, everywhere, lambda index: np.load({tokens!r})[index])
out = jax.jit(model.apply, out_shardings=everywhere)(model.weights, tokens)
np.save({out!r} + sys.argv[1], np.asarray(out.addressable_data(0)))
alone, packed = (load({folder!r}, dtype="int8", mesh=m).weights["blocks"]["mlp"]["down"] for m in (None, mesh))
for a, b in ((alone.q, packed.q), (alone.scale, packed.scale)):
    assert all(np.array_equal(s.data, np.asarray(a)[s.index]) for s in b.addressable_shards)
print("done")
"""


def test_two_processes_hold_one_model(folder, logits, tmp_path):
    """Two real processes of two devices each: every one reads its own half."""
    np.save(tmp_path / "tokens.npy", TOKENS)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    paths = {"tokens": str(tmp_path / "tokens.npy"), "out": str(tmp_path / "out"), "folder": str(folder)}
    code = TWO.format(address=address, shape=TOKENS.shape, **paths)
    both = [start(code, 2, str(i)) for i in range(2)]
    outs = [p.communicate(timeout=300) for p in both]
    assert all("done" in out for out, _ in outs), outs
    for i, (out, _) in enumerate(outs):
        read = int(out.split("bytes: ")[1].split()[0])
        assert 0.5 * BYTES < read < 0.55 * BYTES  # half of the matrices; norms whole, for each of its devices
        np.testing.assert_allclose(np.load(tmp_path / f"out{i}.npy"), logits, atol=1e-5 * np.abs(logits).max())
