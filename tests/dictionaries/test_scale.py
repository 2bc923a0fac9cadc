# SPDX-License-Identifier: Apache-2.0
"""One dictionary on many devices, in parts, by any optimiser: the numbers of one device and the whole batch."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneuro import dictionaries as d
from jaxneuro import parallel
from jaxneuro.errors import UserError

from .conftest import D_IN, planted

N, BATCH, STEPS = 48, 64, 8
ADAM = functools.partial(optax.adam, eps=1e-6)
"""The default's eps is so small that of a gradient of rounding errors (a latent alone at its token) Adam makes a whole
step, in another direction on another mesh."""
TRAINING = d.Training(learning_rate=1e-2, warmup_steps=1, dead_after_tokens=2 * BATCH, optimiser=ADAM)
JUMP = {"bandwidth": 0.1, "threshold_start": 0.05}
METHODS = {
    "topk": lambda t: d.topk(N, 2, training=t),
    "batch_topk": lambda t: d.batch_topk(N, 2, training=t),
    "group_max": lambda t: d.group_max(N, 8, training=t),
    "matryoshka": lambda t: d.matryoshka(N, 2, prefixes=(24, 48), training=t),
    "relu": lambda t: d.relu(N, 1.0, training=t),
    "jumprelu": lambda t: d.jumprelu(N, target_l0=2, **JUMP, training=t),
    "gated": lambda t: d.gated(N, 1.0, training=t),
    "matching_pursuit": lambda t: d.matching_pursuit(N, 2, training=t),
    "atoms": lambda t: d.atoms(N, target_l0=2, **JUMP, training=t),
}
X = planted(1, STEPS * BATCH)[0].reshape(STEPS, BATCH, D_IN)
MASK = np.random.default_rng(0).random((STEPS, BATCH)) < 0.9


def mesh(**axes):
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)


def trained(make, training):
    """(infos by step, dictionary, final state)."""
    method, where = make(training), None
    if training.mesh is not None:
        where = NamedSharding(training.mesh, PartitionSpec("data" if "data" in training.mesh.axis_names else None))
    batches = [jax.device_put({"x": x, "mask": mask}, where) for x, mask in zip(X, MASK, strict=True)]
    state = method.init(jax.random.key(0), batches[0])
    kept = jax.tree.map(lambda a: a.sharding, state)
    step = jax.jit(method.step, out_shardings=(kept, None)).lower(state, batches[0]).compile()  # one for every step
    infos = []
    for batch in batches:
        state, info = step(state, batch)
        infos.append({name: float(value) for name, value in info.items()})
    return infos, method.finish(state), state


@functools.cache
def alone(name, training=TRAINING):
    return trained(METHODS[name], training)


def agree(ours, theirs, rtol=2e-5):
    for one, two in zip(ours[0], theirs[0], strict=True):
        assert one == pytest.approx(two, rel=rtol, abs=1e-6)
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # of steps of 1e-2: a token near a kink of the loss


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("matryoshka", "relu")])
def test_a_mesh_gives_the_numbers_of_one_device(name):
    ours = trained(METHODS[name], dataclasses.replace(TRAINING, mesh=mesh(data=2, latent=2)))
    agree(ours, alone(name))
    p = ours[2].parameters["w_dec"]
    assert p.addressable_shards[0].data.shape == (N // 2, D_IN)  # no device has all rows
    moments = ours[2].optimiser[0].mu["w_dec"]
    assert moments.sharding == p.sharding


@pytest.mark.parametrize(("optimiser", "axes"), [("muon", {"latent": 4}), ("schedule_free", {"data": 4})], ids=str)
def test_every_optimiser_on_a_mesh_of_one_axis(optimiser, axes):
    """muon reads whole matrices, of which no device has more than a quarter of the rows."""
    training = dataclasses.replace(TRAINING, optimiser=optimiser, learning_rate=None)
    ours = trained(METHODS["topk"], dataclasses.replace(training, mesh=mesh(**axes)))
    agree(ours, alone("topk", training))
    losses = [info["loss"] for info in ours[0]]
    assert losses[-1] != losses[1]
    rows = ours[2].parameters["w_dec"].addressable_shards[0].data.shape[0]
    assert rows == N // axes.get("latent", 1)


def test_parts_of_a_batch_add_up():
    """Means over tokens: exactly; AuxK's unit is each part's own, so it is left out."""

    def make(training):
        return d.topk(N, 2, auxk=None, training=training)

    agree(trained(make, dataclasses.replace(TRAINING, accumulate=4)), trained(make, TRAINING))


def test_parts_on_a_mesh():
    agree(trained(METHODS["relu"], dataclasses.replace(TRAINING, accumulate=2, mesh=mesh(data=2))), alone("relu"))


@pytest.mark.usefixtures("this_machine")
def test_parts_take_less_memory():
    def temporary(accumulate):
        method = d.relu(2048, 1.0, training=dataclasses.replace(TRAINING, accumulate=accumulate))
        batch = {"x": jax.ShapeDtypeStruct((2048, D_IN), jnp.float32)}
        state = jax.eval_shape(method.init, jax.random.key(0), batch)
        found = jax.jit(method.step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes

    assert temporary(8) < temporary(1) / 3


def test_clipping_shortens_the_whole_gradient():
    def moved(clip):
        training = dataclasses.replace(TRAINING, optimiser=lambda rate: optax.sgd(1.0), clip_norm=clip)
        method = d.relu(N, 1.0, training=training)
        before = method.init(jax.random.key(0), {"x": jnp.asarray(X[0])})
        after = jax.jit(method.step)(before, {"x": jnp.asarray(X[0])})[0]
        move = [np.ravel(after.parameters[k] - before.parameters[k]) for k in before.parameters]
        return np.concatenate(move).astype(np.float64)

    free, short, unit = moved(None), moved(1e-3), moved("unit")
    assert np.linalg.norm(free) > 2e-3
    assert np.linalg.norm(short) == pytest.approx(1e-3, rel=1e-2)  # differences of float32 numbers of size 1
    assert np.linalg.norm(unit) == pytest.approx(1, rel=1e-3)
    for other in (short, unit):
        assert free @ other / np.linalg.norm(free) / np.linalg.norm(other) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["batch_topk"])
def test_pmap_gives_the_numbers_of_one_device(name):
    method = METHODS[name](dataclasses.replace(TRAINING, data_axis="data"))
    plain, infos = METHODS[name](TRAINING), alone(name)[0]
    start = plain.init(jax.random.key(0), {"x": jnp.asarray(X[0]), "mask": jnp.asarray(MASK[0])})
    state, step = parallel.replicate(start, 4), parallel.pmap_step(method)
    for x, mask, want in zip(X, MASK, infos, strict=True):
        state, info = step(state, parallel.split({"x": x, "mask": mask}, 4))
        got = {key: np.asarray(value) for key, value in info.items()}
        assert all((value == value[0]).all() for value in got.values())
        assert {key: float(value[0]) for key, value in got.items()} == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert method.finish(parallel.one(state)).n_latents == N
    with pytest.raises(UserError, match=r"batches of \[64\] rows cannot be dealt to 3 devices"):
        parallel.split({"x": X[0]}, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mesh": {"model": 2}}, r"axes \('model',\); name them 'data' and 'latent'"),
        ({"mesh": {"data": 2}, "data_axis": "data"}, "mesh or data_axis"),
    ],
)
def test_wrong_meshes(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TRAINING, **(change | {"mesh": mesh(**change["mesh"])}))


def test_what_cannot_be_cut_is_refused():
    batch = {"x": jnp.asarray(X[0])}
    with pytest.raises(UserError, match=r"n_latents \(50\) cannot be cut into 4 equal parts"):
        d.topk(50, 2, training=dataclasses.replace(TRAINING, mesh=mesh(latent=4))).init(jax.random.key(0), batch)
    training = dataclasses.replace(TRAINING, mesh=mesh(data=4), accumulate=3)
    with pytest.raises(UserError, match=r"tokens \(64\) cannot be cut into 12 equal parts"):
        d.topk(N, 2, training=training).init(jax.random.key(0), batch)


PROCESS = """
import json, sys
import jax
jax.distributed.initialize({address!r}, 2, int(sys.argv[1]))
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxneuro import dictionaries as d
from jaxneuro.activations import array_batches, run
mesh = jax.make_mesh((2, 2), ("data", "latent"), axis_types=(AxisType.Auto,) * 2)
training = d.Training(learning_rate=1e-2, warmup_steps=1, dead_after_tokens=128, mesh=mesh)
stream = array_batches(np.load({data!r}), batch_size=64, seed=None, epochs=1, shard=(jax.process_index(), 2))
learned = run(d.relu(48, 1.0, training=training), stream, key=jax.random.key(0), log_every=1,
              sharding=NamedSharding(mesh, PartitionSpec("data")), metrics={metrics!r})
sys.stdout.write(f"learned: {{learned.W_dec.shape}}\\n")
"""


def test_two_processes_train_one_dictionary(tmp_path):
    """Tokens and latents split over two real processes of two devices each."""
    np.save(tmp_path / "x.npy", X.reshape(-1, D_IN))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    code = PROCESS.format(address=address, data=str(tmp_path / "x.npy"), metrics=str(tmp_path / "metrics.jsonl"))
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    start = functools.partial(subprocess.Popen, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [start([sys.executable, "-c", code, str(i)]) for i in range(2)]
    outs = [p.communicate(timeout=300) for p in both]
    assert all("learned: (48, 16)" in out for out, _ in outs), outs
    plain = METHODS["relu"](dataclasses.replace(TRAINING, optimiser="adam"))
    state = plain.init(jax.random.key(0), {"x": jnp.asarray(X[0])})
    step = jax.jit(plain.step)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == STEPS
    for x, line in zip(X, lines, strict=True):
        state, info = step(state, {"x": x})
        assert line["loss"] == pytest.approx(float(info["loss"]), rel=1e-5)
        assert line["dead_fraction"] == pytest.approx(float(info["dead_fraction"]), abs=1e-6)
