# SPDX-License-Identifier: Apache-2.0
"""The shuffle buffer: every row once, well mixed, resumed bitwise, in place, without traffic between devices."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneuro.activations import at_site, run
from jaxneuro.activations.buffer import buffer_bytes, shuffled
from jaxneuro.activations.mixing import mixing
from jaxneuro.activations.placement import compiled, own
from jaxneuro.errors import UserError
from jaxneuro.protocols import Method

KEY = jax.random.key(0)
N, DEPTH = 32, 8


def keep(names=("x", "mask")):
    """Remembers the last batch it was given, and how many there were."""

    def init(key, batch):
        return {"seen": {n: jnp.zeros_like(batch[n]) for n in names}, "steps": jnp.int32(0)}

    def step(state, batch):
        info = {"n": jnp.sum(batch["mask"], dtype=jnp.int32), "total": jnp.sum(batch["x"])}
        return {"seen": {n: batch[n] for n in names}, "steps": state["steps"] + 1}, info

    return Method(init, step, lambda state: jax.tree.map(np.asarray, state))


def rows(steps, n=N, masked=0.0, d=2):
    """Batches of rows that know their own number."""
    rng = np.random.default_rng(0)
    number = np.arange(steps * n, dtype=np.int32).reshape(steps, n)
    x = np.repeat(number[..., None], d, -1).astype(np.float32)
    return {"x": x, "number": number, "mask": rng.random((steps, n)) >= masked}


def through(method, batches):
    """(last state, {array: [steps, n, ...]} that the inner `keep` was given, infos), in one scan."""
    state = method.init(KEY, jax.tree.map(lambda a: a[0], batches))

    def one(state, batch):
        state, info = method.step(state, batch)
        return state, (state.inner["seen"], info)

    state, (seen, infos) = jax.jit(lambda s, b: jax.lax.scan(one, s, b))(state, batches)
    return jax.tree.map(np.asarray, (state, seen, infos))


@pytest.mark.parametrize("masked", [0.0, 0.3])
def test_every_row_comes_out_once(masked):
    batches = rows(5 * DEPTH, masked=masked)
    state, seen, infos = through(shuffled(keep(("x", "mask", "number")), N * DEPTH), batches)
    out = seen["mask"][DEPTH:]
    delivered, waiting = seen["number"][DEPTH:][out], state.rows["number"][state.rows["mask"]]
    assert sorted([*delivered, *waiting]) == batches["number"][batches["mask"]].tolist()
    assert (seen["x"][DEPTH:][out] == delivered[:, None]).all()  # the arrays of a row stay together
    assert len(waiting) == int(state.held) == round(infos["buffer_filled"][-1] * N * DEPTH)
    later = out[3 * DEPTH :]  # the slots that masked rows left empty are filled by now
    assert later.mean() == pytest.approx(1 - masked, abs=0.06)


def test_filling_takes_the_capacity_and_the_method_rests():
    batches = rows(DEPTH + 3)
    state, seen, infos = through(shuffled(keep(), N * DEPTH - 5), batches)  # rounded up
    assert state.rows["x"].shape == (1, N * DEPTH, 2)
    np.testing.assert_allclose(infos["buffer_filled"], np.minimum(np.arange(1, DEPTH + 4) / DEPTH, 1))
    assert not seen["x"][:DEPTH].any()
    assert not infos["total"][:DEPTH].any()
    assert infos["n"].tolist() == [0] * DEPTH + [N] * 3
    assert state.inner["steps"] == 3


@pytest.mark.usefixtures("this_machine")
def test_the_method_is_as_if_run_alone_on_what_is_delivered(toys):
    batches = [{"x": np.random.default_rng(i).normal(size=(16, toys.D)).astype(np.float32)} for i in range(20)]
    method = shuffled(toys.learner(), 64)
    state, step, alone = method.init(KEY, batches[0]), jax.jit(method.step), jax.jit(toys.learner().step)
    watched = shuffled(keep(), 64)
    watching, watch = watched.init(KEY, batches[0]), jax.jit(watched.step)
    inner = toys.learner().init(KEY, batches[0])
    for n, batch in enumerate(batches):
        state, info = step(state, batch)
        watching, _ = watch(watching, batch)
        if n >= 4:
            inner, said = alone(inner, {"x": watching.inner["seen"]["x"]})
            assert info["loss"] == said["loss"]
    assert toys.equal(toys.numbers(state.inner), toys.numbers(inner))


def test_rows_wait_geometrically():
    """Mean wait DEPTH steps, standard deviation sqrt(DEPTH (DEPTH - 1)); over 12,800 rows both to 3 %."""
    steps = 400 + 12 * DEPTH
    _, seen, _ = through(shuffled(keep(("number", "mask")), N * DEPTH), rows(steps))
    wait = np.arange(steps)[:, None] - seen["number"] // N
    early = (seen["number"] // N >= 2 * DEPTH) & (seen["number"] // N < 400)  # arrived when full; nearly all are out
    wait = wait[early & seen["mask"]]
    assert wait.min() == 1
    assert wait.mean() == pytest.approx(DEPTH, rel=0.03)
    assert wait.std() == pytest.approx(math.sqrt(DEPTH * (DEPTH - 1)), rel=0.05)


def test_a_million_tokens_are_mixed_as_well_as_a_uniform_sample():
    """2^20 rows in windows of 128. Expected: 1 just after filling, towards 1/2 later; 64 without a buffer.

    A batch of 16,384 rows has about 16,000 equal pairs of windows: its share is known to a percent.
    """
    n, length, capacity = 1 << 14, 128, 1 << 20
    depth = capacity // n
    method = shuffled(mixing(capacity, length), capacity)

    def batch(step):
        window = step * (n // length) + jnp.arange(n, dtype=jnp.int32) // length
        return {"x": window.astype(jnp.float32)[:, None], "window": window}

    steps = jnp.arange(depth + 2 * depth, dtype=jnp.int32)
    scan = jax.jit(lambda s: jax.lax.scan(lambda s, i: method.step(s, batch(i)), s, steps))
    state, infos = scan(method.init(KEY, batch(jnp.int32(0))))
    after = np.asarray(infos["mixing"])[depth:]
    assert after.max() < 1.1
    assert after[:4].mean() == pytest.approx(1, abs=0.05)
    assert after[-4:].mean() == pytest.approx(0.5, abs=0.05)
    assert method.finish(state) == pytest.approx(after.mean(), rel=1e-4)
    alone = mixing(capacity, length)
    _, info = alone.step(alone.init(KEY, None), batch(jnp.int32(3)))
    assert info["mixing"] == pytest.approx(capacity / n, rel=1e-3)


def test_the_seed_is_the_order():
    a, b, c = (through(shuffled(keep(), 64, seed=s), rows(10))[1]["x"] for s in (0, 0, 1))
    assert (a == b).all()
    assert not (a == c).all()


def test_rows_wait_in_half_the_memory_and_come_out_in_their_type():
    batches = rows(12) | {"x": np.random.default_rng(0).normal(size=(12, N, 2)).astype(np.float32)}
    state, seen, _ = through(shuffled(keep(("x", "number")), 64, dtype="bfloat16"), batches)
    assert state.rows["x"].dtype == jnp.bfloat16
    assert seen["x"].dtype == np.float32
    sent = batches["x"].reshape(-1, 2)[seen["number"][2:]]
    assert (seen["x"][2:] == np.asarray(jnp.asarray(sent, jnp.bfloat16), np.float32)).all()
    assert not (seen["x"][2:] == sent).all()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_bytes_are_known_before(dtype):
    batch = jax.tree.map(lambda a: a[0], rows(1))
    state = shuffled(keep(), 100, dtype=dtype).init(KEY, batch)
    assert buffer_bytes(batch, 100, dtype=dtype) == sum(a.nbytes for a in state.rows.values())


# ---- the compiled step


def heavy(d, product):
    """A model of one large product, and a method of another: so that their costs can be told apart."""

    def step(state, batch):
        loss = jnp.sum(jnp.square(batch["x"] @ state))
        return state * jnp.float32(0.5), {"loss": loss}

    return Method(lambda key, batch: jnp.ones((d, product), jnp.float32), step, np.asarray)


@pytest.mark.usefixtures("this_machine")
def test_exchanged_in_place():
    """What the program needs besides its arguments is a few batches, not a second buffer."""
    method = shuffled(heavy(16, 4), 64 * N)
    batch = {"x": jnp.ones((N, 16))}
    state = own(method.init(KEY, batch), None, borrowed=())
    program = compiled(method.step, state).lower(state, batch, {}).compile()
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary < buffer_bytes(batch, 64 * N) / 8
    assert program.memory_analysis().alias_size_in_bytes >= buffer_bytes(batch, 64 * N)


@pytest.mark.usefixtures("this_machine")
def test_the_update_does_not_wait_for_the_forward_pass():
    """The update alone costs what the method costs: nothing of the model is in front of it. And values agree."""
    d, method = 64, heavy(64, 512)

    def step(state, batch):
        return shuffled(method, 8 * N).step(state, {"x": batch["x"] @ batch["w"]})

    batch = {"x": jnp.ones((N, d)), "w": jnp.ones((d, d))}
    state = shuffled(method, 8 * N).init(KEY, {"x": batch["x"]})
    update = jax.jit(lambda s, b: (step(s, b)[1]["loss"], step(s, b)[0].inner))
    whole = jax.jit(step)
    flops = [f.lower(state, batch).compile().cost_analysis()["flops"] for f in (update, whole)]
    assert flops[1] - flops[0] == pytest.approx(2 * N * d * d, rel=0.05)
    for _ in range(12):
        state, info = whole(state, batch)
    broken = {**batch, "w": jnp.full((d, d), jnp.nan)}
    poisoned, same = whole(state, broken)
    assert same["loss"] == info["loss"] * jnp.float32(0.25)
    assert np.isfinite(poisoned.inner).all()
    assert np.isnan(poisoned.rows["x"]).any()


@pytest.mark.parametrize(("shape", "names"), [((4,), ("data",)), ((2, 2), ("data", "latent"))])
@pytest.mark.usefixtures("this_machine")
def test_each_device_shuffles_its_own_rows(shape, names, toy):
    """No row travels: the only traffic is sums to scalars. The buffer is split from its first moment."""
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    rng = np.random.default_rng(0)

    def batch(step):
        window = np.arange(8, dtype=np.int32) + 8 * step
        ones = np.ones((8, 16), bool)
        tokens = rng.integers(0, 32, (8, 16)).astype(np.int32)
        return jax.device_put({"tokens": tokens, "mask": ones, "counted": ones, "window": window}, split)

    weights = {"weights": jax.device_put(toy.weights, whole)}
    method = at_site(toy.apply, "blocks.0.resid_post", shuffled(keep(("x", "mask", "window")), 512))
    state = own(method.init(KEY, batch(0) | weights), whole, borrowed=())
    assert {a.sharding.spec[0] for a in state.rows.values()} == {"data"}
    assert state.rows["x"].shape == (shape[0], 512 // shape[0], 6)
    step = compiled(method.step, state)
    text = step.lower(state, batch(0), weights).compile().as_text()
    traffic = re.findall(r"= (\S+?\[[\d,]*\])\S* (?:all-|collective|reduce-scatter)", text)
    assert traffic
    assert all(t.endswith("[]") for t in traffic), traffic
    for i in range(12):
        state, _, _ = step(state, batch(i), weights)
    home = np.asarray(state.inner["seen"]["window"]) % 8 // (8 // shape[0])  # each device gets 8 / devices windows
    assert (home == np.repeat(np.arange(shape[0]), 128 // shape[0])).all()


# ---- resume


def resumable(folder, toys, kill_at=None, fail_at=None):
    """At a site of the toy model, through a buffer that takes 10 steps to fill, saved every 5: (state, metrics)."""
    toy, windows = toys.Toy(), toys.ToyWindows()

    def stream():
        for i in range(30):
            if i == kill_at:
                os.kill(os.getpid(), 9)
            if i == fail_at:
                raise ConnectionError
            yield windows.rows(np.arange(i * 4, i * 4 + 4) % 40)

    def step(state, batch):
        x = batch["x"] * batch["mask"][:, None].astype(jnp.float32)
        return state * jnp.float32(0.99) + x.T @ x, {"norm": jnp.sum(state**2)}

    products = Method(lambda key, batch: jax.random.normal(key, (6, 6)), step, np.asarray)
    method = at_site(toy.apply, "blocks.1.resid_post", shuffled(products, 400, dtype="bfloat16"))
    saved = {"checkpoint_dir": folder / "ckpt", "checkpoint_every": 5, "metrics": folder / "m.jsonl", "log_every": 1}
    whole = method._replace(finish=toys.numbers)
    state = run(whole, stream(), key=KEY, constants={"weights": toy.weights}, **saved)
    return state, (folder / "m.jsonl").read_bytes()


@pytest.mark.usefixtures("this_machine")
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path, toys):
    """Broken off while the buffer fills, and SIGKILL when it is full."""
    state, metrics = resumable(tmp_path / "whole", toys)
    code = "import pathlib, runpy, types; toys = types.SimpleNamespace(**runpy.run_path({!r})); "
    code += "runpy.run_path({!r})['resumable'](pathlib.Path({!r}), toys, {})"
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    folder = tmp_path / "broken"
    with pytest.raises(ConnectionError):
        resumable(folder, toys, fail_at=8)
    assert [p.name for p in (folder / "ckpt").glob("[0-9]*")] == ["5"]
    text = code.format(toys.__file__, __file__, str(folder), 23)
    done = subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    assert any(int(p.name) > 5 for p in (folder / "ckpt").glob("[0-9]*") if p.name.isdigit())
    again, lines = resumable(folder, toys)
    assert toys.equal(again, state)
    assert lines == metrics


# ---- refusals


def test_a_stream_too_short_to_fill_it_says_so():
    batches = [{"x": jnp.ones((4, 1))}] * 5
    with pytest.raises(UserError, match="was filling, 4 batches before the method's first step"):
        run(shuffled(keep(), 32), batches, key=KEY)
    assert run(shuffled(keep(), 16), batches, key=KEY)["steps"] == 1


def test_what_is_no_batch_of_rows_is_refused():
    with pytest.raises(UserError, match="capacity of 0 rows"):
        shuffled(keep(), 0)
    method = shuffled(keep(), 8)
    for batch in ({"x": jnp.ones((4, 1)), "weights": jnp.ones(3)}, jnp.ones((4, 1)), {}, {"x": jnp.float32(1)}):
        with pytest.raises(UserError, match="one row per token"):
            method.init(KEY, batch)
