# SPDX-License-Identifier: Apache-2.0
"""Tuning: what is measured, what is left out and said, what the table keeps."""

import json

import jax.numpy as jnp
import pytest
from jaxneuro_kernels import aot, shapes, tune, tuned
from jaxneuro_kernels.dispatch import Backend, Target
from jaxneuro_kernels.topk import xla

SHAPE = (8, 16, 640, 4)


@pytest.fixture
def two_more(monkeypatch):
    """topk has a second implementation that is right with group = 8 alone, and a third that refuses."""

    def other(x, k, group=32):
        vals, idx = xla.topk(x, k)
        return (vals, idx) if group == 8 else (vals + jnp.ones_like(vals), idx)

    backends = {
        "other": Backend(other),
        "never": Backend(other, refuses=lambda *_: "it is a test"),
        "xla": Backend(xla.topk),
    }
    monkeypatch.setitem(shapes.OPS, "topk", shapes.OPS["topk"]._replace(backends=backends))
    monkeypatch.setattr(shapes.selection, "BACKENDS", backends)
    monkeypatch.setitem(tune.SPACE, ("topk", "other"), {"group": (8, 16)})


def test_the_best_of_each_that_agrees(two_more):
    said = []
    rows = tune.measure("topk", SHAPE, "float32", repeats=1, say=said.append)
    by_name = {row["implementation"]: row for row in rows}
    assert set(by_name) == {"xla", "other"}
    assert by_name["other"]["config"] == {"group": 8}
    assert by_name["xla"] | {"ms": 0} == {
        "op": "topk",
        "dtype": "float32",
        "tokens": 8,
        "n": 640,
        "k": 4,
        "implementation": "xla",
        "config": {},
        "ms": 0,
    }
    assert all(row["ms"] > 0 for row in rows)
    assert [s for s in said if "never cannot run here: it is a test" in s]
    assert sum("left out" in s for s in said) == 2  # the default and group = 16


def test_out_of_time_keeps_what_there_is(two_more):
    rows = tune.measure("topk", SHAPE, "float32", repeats=1, out_of_time=lambda: True)
    assert [row["implementation"] for row in rows] == ["xla"]


def test_disagreement():
    idx = jnp.arange(200, dtype=jnp.int32)
    assert tune.disagreement((jnp.ones(3), idx), (jnp.ones(3), idx.at[0].set(7))) is None  # one tie in 200
    assert "indices differ" in tune.disagreement((idx + 1,), (idx,))
    assert tune.disagreement(jnp.ones(3) + 1e-3, jnp.ones(3)) is None
    assert "values differ" in tune.disagreement(jnp.ones(3) * 1.1, jnp.ones(3))
    assert "values differ" in tune.disagreement(jnp.full(3, jnp.nan), jnp.ones(3))


def test_the_table_is_written_merged_and_found(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "target", lambda: Target("cuda", "Test 1"))
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setitem(shapes.SHAPES, "tiny", SHAPE)
    tuned.rows.cache_clear()
    for ops in (["topk", "sparse_decode"], ["topk"]):
        assert tune.main(["--ops", *ops, "--shapes", "tiny", "--repeats", "1"]) == 0
    table = json.loads((tmp_path / "test-1.json").read_text())
    assert table["device"] == "Test 1"
    assert sorted((r["op"], r["dtype"]) for r in table["rows"]) == [
        ("sparse_decode", "bfloat16"),
        ("topk", "bfloat16"),
        ("topk", "float32"),
    ]
    assert tuned.fastest("topk", "Test 1", dtype="float32", tokens=16, n=640, k=4) == "xla"  # within a factor of two
    assert tuned.fastest("topk", "Test 1", dtype="float32", tokens=17, n=640, k=4) is None
    assert tuned.fastest("topk", "Test 2", dtype="float32", tokens=8, n=640, k=4) is None
    assert "topk: mosaic_gpu cannot run here" in capsys.readouterr().out.replace("topk: topk:", "topk:")
    tuned.rows.cache_clear()


def test_time_is_up_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "target", lambda: Target("cuda", "Test 1"))
    assert tune.main(["--budget", "-1", "--out", str(tmp_path / "t.json")]) == 0
    assert "out of time before topk at gpt2-32k" in capsys.readouterr().out


def test_nothing_to_tune_on_a_cpu(capsys):
    assert tune.main([]) == 1
    assert "one implementation, xla" in capsys.readouterr().err


@pytest.mark.parametrize(("op", "implementation"), tune.SPACE)
def test_candidates_lower(op, implementation):
    """What a GPU is going to be asked to compile: the smallest and the largest numbers, at one shape."""
    first, *_, last = list(tune.configurations(op, implementation))[1:]
    for config in (first, last):
        this = shapes.case(op, shapes.SHAPES["gpt2-32k"])
        with tuned.using(config):
            text = aot.lower(lambda *a: this.call(*a, implementation=implementation), *this.operands, platform="cuda")
        assert "mosaic_gpu" in text, config
