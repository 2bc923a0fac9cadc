# SPDX-License-Identifier: Apache-2.0
"""The loop: compiled once, logged late, resumed bitwise, refused clearly."""

import json
import logging
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneuro.activations import driver, log, run
from jaxneuro.errors import UserError
from jaxneuro.protocols import Method

KEY = jax.random.key(0)


def summing(dtype=jnp.float32):
    return Method(
        init=lambda key, batch: jnp.zeros(batch["x"].shape[1:], dtype),
        step=lambda s, batch: (s + batch["x"].sum(0), {"first": batch["x"][0, 0]}),
        finish=np.asarray,
    )


def ones(n):
    return [{"x": np.full((4, 2), i, np.float32)} for i in range(n)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("this_machine")
def test_equals_the_three_functions_called_by_hand(toys):
    m = toys.learner()
    batches = list(toys.Stream())
    state = m.init(jax.random.key(3), batches[0])
    step = jax.jit(m.step)
    for batch in batches:
        state, _ = step(state, batch)
    assert toys.equal(toys.learn(), m.finish(state))


def test_compiled_once_even_if_init_gives_weak_types_and_numbers(toys):
    traces = []
    toys.learn(method=toys.new_learner(traces))
    assert len(traces) == 1


def test_steps_is_an_upper_bound_and_a_shortfall_is_said(caplog):
    assert run(summing(), ones(10), key=KEY, steps=3)[0] == 4 * (0 + 1 + 2)
    with caplog.at_level(logging.WARNING):
        run(summing(), ones(3), key=KEY, steps=5)
    assert "the stream ended after 3 of 5 steps" in caplog.text


def test_metrics_at_log_points_and_at_the_end(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("from another run\n")
    run(summing(), ones(10), key=KEY, metrics=path, log_every=4)
    assert lines(path) == [{"step": s, "first": float(s - 1)} for s in (4, 8, 10)]


def test_infos_are_read_once_per_log_point_and_one_point_late(monkeypatch):
    events = []
    real = np.asarray

    class Spy:
        def __getattr__(self, name):
            return getattr(np, name)

        def asarray(self, x):
            events.append("read")
            return real(x)

    class Sink:
        def write(self, step, values):
            events.append(f"write {step}")

        def close(self):
            events.append("close")

    monkeypatch.setattr(log, "np", Spy())
    run(summing(), ones(9), key=KEY, metrics=Sink(), log_every=3, progress=lambda d, t, _: events.append(d))
    late = ["read", "write 3"], ["read", "write 6"], ["read", "write 9"]
    assert events == [0, 1, 2, 3, 4, 5, *late[0], 6, 7, 8, *late[1], 9, *late[2], 9, "close"]


def test_the_host_runs_ahead_by_no_more_than_the_queues(monkeypatch):
    """Batches read minus steps finished: AHEAD waiting, IN_FLIGHT running, one being handed over."""
    read, gaps = [], []

    def stream():
        for b in ones(30):
            read.append(1)
            yield b

    real = driver.compiled

    def spying(step, state):
        inner = real(step, state)

        class Tick:
            def __init__(self, array):
                self.array = array

            def block_until_ready(self):
                self.array.block_until_ready()
                gaps.append(len(read) - len(gaps))

        def one(*args):
            state, info, tick = inner(*args)
            return state, info, Tick(tick)

        return one

    monkeypatch.setattr(driver, "compiled", spying)
    run(summing(), stream(), key=KEY)
    assert len(gaps) == 30 - driver.IN_FLIGHT
    assert max(gaps) <= 2 + driver.IN_FLIGHT + 2


def test_constants_are_arguments_and_survive(toys):
    scale = jnp.float32(0.5)
    traces = []
    a = toys.learn(method=toys.new_learner(traces), constants={"scale": scale})
    assert not scale.is_deleted()
    assert len(traces) == 1
    assert not toys.equal(a, toys.learn())


def test_a_state_that_is_a_constant_or_a_batch_is_not_donated_away():
    w = jnp.ones((4, 2))
    x = jnp.ones((4, 2))
    m = Method(
        init=lambda key, b: {"w": b["w"], "again": jax.device_put(b["w"]), "x": b["x"], "key": key},
        step=lambda s, b: (jax.tree.map(lambda v: v, s) | {"w": s["w"] + b["x"]}, {}),
        finish=lambda s: float(s["w"][0, 0]),
    )
    key = jax.random.key(5)
    assert run(m, [{"x": x}] * 3, key=key, constants={"w": w}) == 4.0
    assert not any(a.is_deleted() for a in (w, x, key))
    assert float(w.sum() + x.sum()) == 16


def test_batches_need_not_be_dicts_without_constants():
    m = Method(lambda k, b: jnp.zeros(()), lambda s, b: (s + b.sum(), s), float)
    assert run(m, [np.ones(3, np.float32)] * 2, key=KEY) == 6.0
    with pytest.raises(UserError, match=r"constants are merged into dict batches; this stream's are float32\[3\]"):
        run(m, [np.ones(3, np.float32)], key=KEY, constants={"w": jnp.ones(2)})


def test_non_finite_numbers_are_null_and_said(tmp_path, caplog):
    texts = []
    m = Method(lambda k, b: jnp.zeros(()), lambda s, b: (s, {"loss": jnp.log(b["x"][0, 0] - 4), "ok": s}), float)
    m = m._replace(step=lambda s, b: (s, {"loss": jnp.log(b["x"][0, 0] - jnp.float32(4)), "ok": s}))
    path = tmp_path / "m.jsonl"
    with caplog.at_level(logging.WARNING):
        run(m, ones(7), key=KEY, metrics=path, log_every=1, progress=lambda d, t, text: texts.append(text))
    assert [line["loss"] for line in lines(path)][:5] == [None] * 5
    assert lines(path)[6]["loss"] == pytest.approx(np.log(2))
    assert "loss not finite at 5 log points" in texts[-1]
    assert caplog.text.count("loss is nan at step 1") == 1


# ---- resume


def saved(folder):
    """Steps of the whole checkpoints."""
    return sorted(int(p.name) for p in (folder / "ckpt").glob("[0-9]*") if p.name.isdigit())


@pytest.mark.parametrize(("fail_at", "there"), [(0, []), (3, []), (13, [5, 10]), (20, [10, 15]), (29, [20, 25])])
def test_killed_anywhere_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path, toys, whole, fail_at, there):
    with pytest.raises(ConnectionError):
        toys.learn(tmp_path, toys.Stream(fail_at=fail_at))
    assert saved(tmp_path) == there
    traces = []
    result = toys.learn(tmp_path, method=toys.new_learner(traces))
    assert toys.equal(result, whole[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole[1]
    assert len(traces) == 1


def test_killed_three_times(tmp_path, toys, whole):
    for fail_at in (6, 13, 27):
        with pytest.raises(ConnectionError):
            toys.learn(tmp_path, toys.Stream(fail_at=fail_at))
    assert toys.equal(toys.learn(tmp_path), whole[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole[1]


def test_a_finished_run_only_restores(tmp_path, toys, whole):
    toys.learn(tmp_path)
    traces = []
    assert toys.equal(toys.learn(tmp_path, method=toys.new_learner(traces)), whole[0])
    assert not traces
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole[1]


def test_more_steps_later(tmp_path, toys, whole):
    toys.learn(tmp_path, steps=12)
    assert toys.equal(toys.learn(tmp_path), whole[0])
    with pytest.raises(UserError, match="is of step 30, past the 12 steps asked for"):
        toys.learn(tmp_path, steps=12)


def test_a_plain_list_is_read_again(tmp_path, toys, whole):
    batches = list(toys.Stream())

    def broken():
        yield from batches[:17]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        toys.learn(tmp_path, broken())
    assert toys.equal(toys.learn(tmp_path, batches), whole[0])
    with pytest.raises(UserError, match=r"30 batches into the stream, but it has only 9 now"):
        toys.learn(tmp_path, batches[:9])


def test_what_is_saved_is_the_state_of_that_step_while_later_steps_run(tmp_path):
    """The write goes on in the background, from a state that the next step overwrites."""
    m = Method(
        init=lambda k, b: jnp.zeros((1 << 20,), jnp.float32),
        step=lambda s, b: (s + jnp.float32(1), {}),
        finish=np.asarray,
    )
    options = {"key": KEY, "checkpoint_dir": tmp_path, "checkpoint_every": 3}

    def broken():
        yield from ones(8)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        run(m, broken(), **options)
    seen = run(m._replace(step=lambda s, b: (s, {})), ones(6), **options)
    assert (seen == 6).all()


def test_metrics_that_were_shortened_are_noticed(tmp_path, toys):
    toys.learn(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics.jsonl has 0 bytes, but the checkpoint of step 30 was written when"):
        toys.learn(tmp_path)


def test_saves_by_the_clock_when_no_number_is_given(tmp_path, toys, whole, monkeypatch):
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)
    with pytest.raises(ConnectionError):
        toys.learn(tmp_path, toys.Stream(fail_at=20), checkpoint_every=None)
    assert len(saved(tmp_path)) == 2
    assert saved(tmp_path)[-1] > 10
    assert toys.equal(toys.learn(tmp_path), whole[0])


# ---- signals, in another process


def stop_at_step(process, step, number):
    for line in process.stdout:
        if line == f"step {step}\n":
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    return max(int(said.split()[1]) for said in out.splitlines() or [f"step {step}"]), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("this_machine")
def test_signal_saves_at_the_step_and_then_acts(tmp_path, toys, spawn, number):
    process = spawn(sleep=0.05)
    last, err = stop_at_step(process, 7, number)
    assert process.returncode == -number, err
    assert last < 20
    assert saved(tmp_path)[-1] == last  # not only at multiples of 5
    assert not (tmp_path / "ckpt" / "run.lock").exists()
    whole = tmp_path / "whole"
    assert toys.equal(toys.learn(tmp_path), toys.learn(whole))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("this_machine")
def test_kill_9_during_a_save_leaves_the_last_good_one(tmp_path, toys, spawn, caplog):
    process = spawn(kill_in_save=10)
    _, err = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL, err
    folder = tmp_path / "ckpt"
    assert list(folder.glob("10.orbax-checkpoint-tmp*"))  # it was hit in the middle
    assert not (folder / "10").exists()
    assert (folder / "5").exists()
    big = toys.learner(size=200_000)
    short = {"method": big._replace(finish=lambda s: np.asarray(s["w"][0])), "steps": 11, "checkpoint_every": 50}
    with caplog.at_level(logging.WARNING):
        resumed = toys.learn(tmp_path, **short)
    assert f"took over the lock that process {process.pid} on" in caplog.text
    assert not list(folder.glob("*tmp*"))
    assert resumed.tobytes() == toys.learn(**short).tobytes()


def test_signal_within_this_process_closes_everything_first(tmp_path, toys, whole):
    class Interrupting(toys.Stream):
        def __next__(self):
            if self.i == 13:
                signal.raise_signal(signal.SIGINT)
            return super().__next__()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        toys.learn(tmp_path, Interrupting())
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "ckpt" / "14").exists()
    assert toys.equal(toys.learn(tmp_path), whole[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole[1]


# ---- sharding


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_over_four_devices_equals_one(tmp_path, toys, kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    traces, states = [], []
    spied = toys.new_learner(traces)
    spied = spied._replace(finish=lambda s: states.append(s) or toys.numbers(s))
    options = {"sharding": NamedSharding(mesh, P("data")), "constants": {"scale": jnp.float32(1)}}
    if kind == AxisType.Explicit:  # such a mesh makes the program say where a contraction over "data" ends
        inner = spied

        def step(s, batch):
            return inner.step(s, {**batch, "x": jax.sharding.reshard(batch["x"], NamedSharding(mesh, P()))})

        spied = spied._replace(step=step)
    sharded = toys.learn(tmp_path, method=spied, **options)
    single = toys.learn(constants={"scale": jnp.float32(1)})
    assert len(traces) == 1
    assert len(states[0]["w"].sharding.device_set) == 4
    for name in single:
        np.testing.assert_allclose(sharded[name].astype("f4"), single[name].astype("f4"), rtol=2e-4, atol=2e-5)
    assert toys.equal(toys.learn(tmp_path, method=spied, **options), sharded)  # restored onto the mesh


def test_a_step_made_of_shard_map_resumes(tmp_path, toys):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def local(s, x):
        return s + jax.lax.psum(x.sum(0), "data")

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    m = summing()._replace(step=lambda s, b: (mapped(s, b["x"]), {}))
    m = m._replace(init=lambda key, b: jnp.zeros(toys.D))
    options = {"key": KEY, "sharding": NamedSharding(mesh, P("data")), "checkpoint_every": 4}
    whole = run(m, toys.Stream(), **options)
    with pytest.raises(ConnectionError):
        run(m, toys.Stream(fail_at=9), checkpoint_dir=tmp_path, **options)
    assert run(m, toys.Stream(), checkpoint_dir=tmp_path, **options).tobytes() == whole.tobytes()
    expected = sum(b["x"].sum(0, dtype=np.float64) for b in toys.Stream())
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-4)


def test_a_batch_that_the_devices_do_not_divide():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(UserError, match=r"a batch leaf float32\[3,2\] cannot be laid out"):
        run(summing(), [{"x": np.ones((3, 2), np.float32)}], key=KEY, sharding=NamedSharding(mesh, P("data")))


# ---- refusals


def test_another_runs_checkpoint_is_refused_with_what_differs(tmp_path, toys):
    toys.learn(tmp_path, identity={"lr": 0.1, "data": "abc"}, constants={"scale": jnp.float32(1)})

    def refused(**changed):
        asked = {"identity": {"lr": 0.1, "data": "abc"}, "constants": {"scale": jnp.float32(1)}} | changed
        with pytest.raises(UserError) as e:
            toys.learn(tmp_path, **asked)
        return str(e.value)

    assert "identity.config.lr: there 0.1, here 0.2" in refused(identity={"lr": 0.2, "data": "abc"})
    assert "identity.config.data: there abc, here absent" in refused(identity={"lr": 0.1})
    assert "identity.key: there key<fry> [0, 3], here key<fry> [0, 4]" in refused(key=jax.random.key(4))
    assert "identity.constants.(values): there" in refused(constants={"scale": jnp.float32(2)})
    assert "identity.state.w: there float32[8,8], here float32[8,5]" in refused(method=toys.learner(size=5))
    smaller = [{"x": b["x"][:4]} for b in toys.Stream()]
    assert "identity.batch.x: there float32[16,8], here float32[4,8]" in refused(stream=smaller)
    assert (tmp_path / "ckpt" / "30").exists()


def test_two_runs_cannot_share_a_folder(tmp_path, toys):
    class Second(toys.Stream):
        def __next__(self):
            if self.i == 3:
                toys.learn(tmp_path)
            return super().__next__()

    with pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on"):
        toys.learn(tmp_path, Second())


def test_an_empty_stream_and_unequal_batches():
    with pytest.raises(UserError, match="the stream holds no batch"):
        run(summing(), [], key=KEY)
    ragged = [*ones(2), {"x": np.ones((3, 2), np.float32)}]
    with pytest.raises(UserError, match=r"batch 3 differs .* x: there float32\[4,2\], here float32\[3,2\]"):
        run(summing(), ragged, key=KEY)
    with pytest.raises(UserError, match="no array of numbers: text"):
        run(summing(), [{"x": np.ones((4, 2), np.float32), "text": "abc"}], key=KEY)


def test_steps_and_infos_that_cannot_be():
    grows = summing()._replace(step=lambda s, b: (jnp.concatenate([s, s]), {}))
    with pytest.raises(UserError, match=r"step changes its state .* float32\[2\], here float32\[4\]"):
        run(grows, ones(2), key=KEY)
    vector = summing()._replace(step=lambda s, b: (s, {"grad": s}))
    with pytest.raises(UserError, match=r"info is made of scalars, but grad is float32\[2\]"):
        run(vector, ones(2), key=KEY)
    words = summing()._replace(init=lambda k, b: {"name": "abc"})
    with pytest.raises(UserError, match="state leaf 'name' is str: a state is made of arrays"):
        run(words, ones(2), key=KEY)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps counts steps and is at least 1, not 0"),
        ({"checkpoint_every": 0}, "checkpoint_every counts steps"),
        ({"log_every": -1}, "log_every counts steps"),
        ({"constants": {"x": jnp.ones(2)}}, "'x': in the batches and in the constants"),
        ({"sharding": jax.sharding.SingleDeviceSharding(jax.devices()[0])}, "sharding is a jax.sharding.NamedSharding"),
        ({"metrics": 3}, r"metrics is a path or an object with write\(step, values\)"),
    ],
)
def test_wrong_arguments(options, match):
    with pytest.raises(UserError, match=match):
        run(summing(), ones(2), key=KEY, **options)
