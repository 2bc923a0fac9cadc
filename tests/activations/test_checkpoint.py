# SPDX-License-Identifier: Apache-2.0
"""A folder of checkpoints: exact, recognised, and clear when something is wrong with it."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxneuro.activations.checkpoint import Checkpoints, shapes
from jaxneuro.errors import UserError

STATE = {
    "a": (jnp.arange(6.0).reshape(2, 3), jnp.asarray([1, 2], jnp.int8)),
    "b": {"half": jnp.asarray([1.5, -2], jnp.bfloat16), "bool": jnp.asarray(True), "empty": jnp.zeros((0, 4))},
    "a/0": jnp.float32(jnp.nan),  # its path reads like that of the first leaf
    "key": jax.random.split(jax.random.key(3, impl="rbg"), 2),
}


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "c", {"k": 1})
    yield made
    made.close()


def test_everything_comes_back_bitwise(checkpoints, toys):
    meta = {"place": {"i": 3, "buffer": np.arange(4, dtype=ml_dtypes.bfloat16)}, "t": (1, b"\x00")}
    checkpoints.save(7, STATE, meta, wait=True)
    assert checkpoints.latest() == 7
    found = checkpoints.restore(7, shapes(STATE))
    assert jax.tree.structure(found) == jax.tree.structure(STATE)
    assert toys.equal(toys.numbers(found), toys.numbers(STATE))
    assert str(jax.random.key_impl(found["key"])) == "rbg"
    back = checkpoints.meta(7)
    assert back["place"]["buffer"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(back["place"]["buffer"], meta["place"]["buffer"])
    assert back["t"] == (1, b"\x00")


def test_the_last_two_are_kept(checkpoints):
    for step in (1, 5, 9):
        checkpoints.save(step, STATE, {}, wait=True)
    assert sorted(p.name for p in checkpoints.folder.iterdir() if p.name.isdigit()) == ["5", "9"]


def test_a_state_without_leaves(checkpoints):
    checkpoints.save(1, (), {"x": 1}, wait=True)
    assert checkpoints.restore(1, ()) == ()
    assert checkpoints.meta(1) == {"x": 1}


def test_a_damaged_checkpoint_says_where_to_go_on_from(checkpoints):
    for step in (1, 5):
        checkpoints.save(step, STATE, {}, wait=True)
    for file in (checkpoints.folder / "5" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=r"c/5 is damaged .* delete it to go on from step 1"):
        checkpoints.restore(5, shapes(STATE))
    assert checkpoints.restore(1, shapes(STATE))["a"][1].tolist() == [1, 2]


def test_no_room_is_said_with_numbers_and_keeps_the_last(checkpoints, monkeypatch):
    checkpoints.save(1, STATE, {}, wait=True)
    usage = shutil.disk_usage(checkpoints.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(UserError, match=r"the checkpoint of step 2 needs \d+ bytes .* but 10 .* are free"):
        checkpoints.save(2, STATE, {})
    assert checkpoints.latest() == 1


def test_a_folder_that_went_away(checkpoints, monkeypatch):
    """Here the folder goes away while the run is on, as an unmounted disk would."""
    checkpoints.save(1, STATE, {}, wait=True)
    shutil.rmtree(checkpoints.folder)
    checkpoints.folder.write_text("a file now")
    with pytest.raises(UserError, match=r"step 2 .* could not be written to"):
        checkpoints.save(2, STATE, {}, wait=True)


def test_a_refused_write_is_said_once_and_keeps_the_last(tmp_path):
    """A limit on the size of files stands for a full disk: in a process of its own, which must end soon and quietly."""
    code = f"""if True:
        import pathlib, resource, signal
        import jax.numpy as jnp
        from jaxneuro.activations.checkpoint import Checkpoints
        from jaxneuro.errors import UserError
        c = Checkpoints(pathlib.Path({str(tmp_path / "c")!r}), {{}})
        c.save(1, jnp.arange(100.0), {{}}, wait=True)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            c.save(2, jnp.sin(jnp.arange(1e6)), {{}})
            c.save(3, jnp.arange(100.0), {{}}, wait=True)
        except UserError as e:
            print(e, c.latest())
        c.close()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "could not be written" in done.stdout
    assert "The last whole one there is of step 1" in done.stdout
    assert done.stdout.endswith(" 1\n")
    assert done.stderr == ""


def test_other_runs_and_strange_folders_are_refused(tmp_path, checkpoints):
    with pytest.raises(UserError, match=r"belong to another run .*: identity.k: there 1, here 2"):
        Checkpoints(tmp_path / "c", {"k": 2})
    (tmp_path / "d" / "100").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds step folders \(100\) but no run.json"):
        Checkpoints(tmp_path / "d", {"k": 1})
    (tmp_path / "c" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is not valid JSON"):
        Checkpoints(tmp_path / "c", {"k": 1})
