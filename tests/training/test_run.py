# SPDX-License-Identifier: Apache-2.0
"""The run: resumed bitwise, alone in its folder, refused in time, stopped when asked; sweeps equal solo runs."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from jaxneuro.dictionaries.native import load_native
from jaxneuro.errors import UserError
from jaxneuro.training import OPTIONS, Array, TrainConfig, run, train_dictionary
from jaxneuro.training.folder import claimed


def arrays(folder):
    return [np.asarray(a) for a in jax.tree.leaves(load_native(folder))]


def bitwise(a, b):
    return all((x == y).all() for x, y in zip(arrays(a), arrays(b), strict=True))


class Cut(RuntimeError):
    """Stands for the kill: raised between two steps, it leaves what a killed process leaves."""


def cut_after(monkeypatch, n):
    """The stream of the next run breaks after n batches."""
    opened = run.open_source

    def breaking(config):
        data = opened(config)

        class Stream:
            def __init__(self):
                self.inner, self.read = data.stream(), 0

            def __iter__(self):
                return self

            def __next__(self):
                self.read += 1
                if self.read > n + 1:  # one more: the first batch is read twice, for its shapes
                    raise Cut
                return next(self.inner)

            def get_state(self):
                return self.inner.get_state()

            def set_state(self, state):
                self.inner.set_state(state)

        return dataclasses.replace(data, stream=Stream)

    monkeypatch.setattr(run, "open_source", breaking)


def test_cut_between_checkpoints_and_continued_it_is_the_same_run(config, changed, monkeypatch):
    """After step 3 of 6, the checkpoint being of step 2; tests/cli kills a process anywhere."""
    config = changed(config, checkpoint_every=2)
    train_dictionary(config)
    again = changed(config, out=config.out.with_name("cut"))
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(Cut):
            train_dictionary(again)
    assert not (again.out / "results.json").exists()
    train_dictionary(again)
    assert bitwise(config.out / "dictionary", again.out / "dictionary")
    for name in ("metrics.jsonl", "results.json"):
        assert (config.out / name).read_bytes() == (again.out / name).read_bytes()
    assert len(json.loads((again.out / "config.json").read_text())["continued"]) == 1


def test_what_config_json_says_and_a_complete_run_is_left_alone(config, changed, capsys):
    train_dictionary(config)
    said = json.loads((config.out / "config.json").read_text())
    assert said["config"]["method"]["kind"] == "relu"
    assert said["seed"] == 0
    assert {"jax", "jaxneuro", "commit"} <= said["started"]["versions"].keys() | {"commit"}
    assert said["started"]["device"] == jax.devices()[0].device_kind
    before = {p: p.stat().st_mtime_ns for p in config.out.rglob("*") if p.name not in ("config.json", "out")}
    capsys.readouterr()
    train_dictionary(changed(config, nonfinite="stop", keep=True, checkpoint_every=3))
    assert "is complete" in capsys.readouterr().err
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    with pytest.raises(UserError, match=r"belongs to another run .*method.l1: there 0.1, here 0.2. .*--out"):
        train_dictionary(changed(config, method__l1=0.2))


def test_one_folder_is_one_run(config):
    with claimed(config), pytest.raises(UserError, match=str(config.out)):
        train_dictionary(config)
    assert not config.out.exists()
    config.out.mkdir(parents=True)
    (config.out / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds something that is no training run"):
        train_dictionary(config)
    assert [p.name for p in config.out.iterdir()] == ["thesis.tex"]


def test_members_of_a_sweep_are_what_they_would_be_alone(config, changed):
    """To 1e-5 of the largest value: another program rounds differently."""
    train_dictionary(changed(config, sweep={"l1": (0.1, 0.3), "seed": (0, 1)}))
    folders = {p.parent.name for p in config.out.glob("dictionary/*/dictionary.json")}
    assert folders == {"l1=0.1,seed=0", "l1=0.1,seed=1", "l1=0.3,seed=0", "l1=0.3,seed=1"}
    alone = changed(config, out=config.out.with_name("alone"), sweep={"seed": (1,)}, method__l1=0.3)
    train_dictionary(alone)
    found, wanted = (arrays(p) for p in (config.out / "dictionary/l1=0.3,seed=1", alone.out / "dictionary/seed=1"))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    other = arrays(config.out / "dictionary/l1=0.3,seed=0")
    assert np.abs(found[0] - other[0]).max() > 0.01
    judged = [json.loads((c.out / "results.json").read_text())["dictionaries"] for c in (config, alone)]
    assert abs(judged[0]["l1=0.3,seed=1"]["fvu"] - judged[1]["seed=1"]["fvu"]) < 1e-5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": OPTIONS["topk"](n_latents=4, k=8)}, "k = 8.*n_latents = 4"),
        ({"batch": 0}, "batch = 0 is below 1"),
        ({"tokens": 10}, "steps = 6 and tokens = 10: give one of them"),
        ({"sweep": {"l2": (1, 2)}}, "no option 'l2'. Did you mean 'l1'"),
        ({"sweep": {"l1": ("much",)}}, "'much' is not a finite number"),
        ({"sweep": {"seed": (1, 1)}}, "give different values"),
        ({"sweep": {"site": ("embed",)}}, "needs a live source"),
        ({"evaluate_tokens": 700}, "700 of the 768 rows .* at most half"),
        ({"export": ("sparsify",)}, "sparsify has no layout for relu"),
        ({"devices__data": 100}, "data 100 x latent 1 = 100 are asked for"),
        ({"devices__data": 3}, "cannot be cut into 3 equal parts"),
        ({"method": OPTIONS["transcoder"](n_latents=8, k=2)}, "a transcoder learns y from x"),
        ({"method__training__widths": (3, 3)}, r"widths \(3, 3\) make 6, but x is \[64, 8\]"),
        ({"source__path": "nothing.npy"}, "No such file"),
        ({"source__path": "nothing.pkl"}, "a file ends in .npy, .npz, .safetensors"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_computed(config, changed, changes, says):
    if isinstance(changes.get("source__path"), str):
        changes = {"source": Array(path=config.out.parent / changes["source__path"])}
    with pytest.raises(UserError, match=says):
        train_dictionary(changed(config, **changes))
    assert not (config.out / "checkpoints").exists()
    assert not (config.out / "dictionary").exists()


def test_what_does_not_fit_is_refused_with_numbers(config, monkeypatch):
    monkeypatch.setattr(run, "free_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"needs [\d.]+ kB on each device .* 1 kB are free.*Smaller: batch"):
        train_dictionary(config)
    assert not (config.out / "checkpoints").exists()


@pytest.fixture
def broken_file(tmp_path, planted_rows):
    """Whole batches of NaN, and single tokens."""
    x = planted_rows(768)
    x[100], x[200, 3] = np.nan, np.inf
    np.save(tmp_path / "broken.npy", x)
    return tmp_path / "broken.npy"


def test_tokens_that_are_not_finite_are_counted_or_end_the_run(config, changed, broken_file):
    """All 640 rows that are not held out are read in ten steps: two are broken."""
    config = changed(config, source=Array(path=broken_file), steps=10, checkpoint_every=3)
    with pytest.raises(UserError, match=r"nonfinite_tokens [12].*nonfinite is 'stop'"):
        train_dictionary(changed(config, nonfinite="stop"))
    train_dictionary(config)  # goes on from the last checkpoint
    last = json.loads((config.out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["nonfinite_tokens"] == 2
    assert last["skipped_batches"] == 0
    assert all(np.isfinite(a).all() for a in arrays(config.out / "dictionary"))


DEAD = {"normalise": "none", "b_dec_start": "zeros", "dead_after_tokens": 64, "learning_rate": 1e-9}


def test_all_latents_dead(config, changed, tmp_path, caplog):
    """Thresholds above every activation: nothing ever fires, and nothing can change that."""
    training = type(config.method.training)(**DEAD)
    method = OPTIONS["jumprelu"](n_latents=16, sparsity=0.0, threshold_start=1e3, training=training)
    dead = changed(config, method=method, steps=20)
    with pytest.raises(UserError, match=r"all latents are dead at step 4.*smaller learning_rate"):
        train_dictionary(dead)
    half = changed(dead, out=tmp_path / "half", sweep={"threshold_start": (1e3, 1e-3)})
    with caplog.at_level(logging.WARNING):
        train_dictionary(half)
    assert caplog.text.count("threshold_start=1000.0: all latents are dead at step 4") == 1
    assert (half.out / "results.json").exists()


def test_several_devices_agree_with_one(config, changed):
    """To 1e-5 of the largest value: sums over devices round differently."""
    train_dictionary(config)
    split = changed(config, out=config.out.with_name("split"), devices__data=2, devices__latent=2)
    train_dictionary(split)
    for a, b in zip(arrays(config.out / "dictionary"), arrays(split.out / "dictionary"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_it_finds_the_planted_directions(config, changed):
    """With all of 16 planted directions in R^8 at about 1.6 a token, k = 2 explains most of the variance."""
    method = OPTIONS["topk"](n_latents=32, k=2, auxk=None)
    train_dictionary(changed(config, method=method, steps=150, method__training__learning_rate=0.02))
    found = json.loads((config.out / "results.json").read_text())
    assert found["held_out"]
    assert 0.0 < found["dictionaries"]["dictionary"]["fvu"] < 0.25


def test_the_default_length(config, changed):
    assert changed(config, steps=None).updates == 10_000
    assert isinstance(config, TrainConfig)
