# SPDX-License-Identifier: Apache-2.0
"""What a benchmark's row says. Nothing here is timed against anything."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness
from benchmarks.harness import Program, run, told, with_ratio


def program(op="double", function=lambda x: x * 2, arguments=None, **options):
    arguments = (np.ones(3, np.float32),) if arguments is None else arguments
    return Program(op, function, arguments, {"n": 3}, "float32", **options)


def test_a_row_has_times_and_what_compiling_took():
    (row,) = run([program(reference=lambda y: float(abs(y - 2).max()), columns={"implementation": "plain"})], 3)
    assert list(row)[:2] == ["op", "implementation"]
    assert row["error"] == 0
    assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
    assert row["compile_ms"] > 0
    assert "failed" not in row


def broken_at_call(_):
    raise OSError("no device\n  left")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"function": lambda x: x @ jnp.ones((2, 2), jnp.float32)}, "TypeError: dot_general requires"),
        ({"compiled": broken_at_call}, "OSError: no device left"),
        ({"reference": lambda y: 1 / 0}, "ZeroDivisionError"),
        ({"start": lambda: 1 / 0}, "ZeroDivisionError"),
    ],
)
def test_what_fails_is_a_row_with_its_error_and_the_rest_is_measured(options, error):
    rows = list(run([program("bad", **options), program("good")], 2, inner=2))
    assert rows[0]["failed"].startswith(error)
    assert rows[0]["p50_ms"] is None
    assert rows[1]["p50_ms"] > 0
    for base in ("bad", "good"):
        ratios = [r[f"time / {base}"] for r in with_ratio(rows, base)]
        assert ratios == [None, 1.0 if base == "good" else None]
    harness.show("rows of unequal columns", rows)


def test_a_program_that_fails_later_keeps_no_times():
    calls = itertools.count()

    def sometimes(x):
        if next(calls) == 2:
            raise OSError("lost")
        return x

    (row,) = run([program(compiled=sometimes)], 4)
    assert row["failed"] == "OSError: lost"
    assert row["p50_ms"] is None


def test_calls_of_a_sample_take_the_sets_of_arguments_in_turn():
    seen = []
    sets = [(i,) for i in range(3)]
    one = program(compiled=lambda i: seen.append(i), arguments=sets[0], others=tuple(sets[1:]))
    list(run([one], 2, inner=3))
    assert seen == [0, 0, 0, 1, 2, 0, 1, 2]  # first call, the call that tells how many fit, two samples


def test_a_training_step_carries_its_state():
    losses = []

    def step(state, x):
        return state + x, state

    one = program(
        function=step,
        arguments=(np.float32(1),),
        start=lambda: jnp.zeros((), jnp.float32),
        wait=lambda loss: losses.append(float(loss)),
    )
    list(run([one], 3))
    assert losses == [0, 1, 2, 3]


def test_foreign_programs_get_their_state_and_say_their_peak():
    kept = iter([7, 40])
    one = program(compiled=lambda state, x: state.append(x), start=list, peak=lambda: next(kept))
    (row,) = run([one], 2)
    assert row["peak_bytes"] == 40
    assert row["compile_ms"] is None


@pytest.mark.parametrize("together", [True, False])
def test_rows_come_in_the_order_of_the_programs(together):
    rows = run([program(op) for op in "abc"], 2, together=together)
    assert [r["op"] for r in rows] == ["a", "b", "c"]


def test_the_first_of_a_group_speaks_for_it():
    group = ExceptionGroup("all", [ExceptionGroup("inner", [NotImplementedError("because")]), ValueError("other")])
    assert told(group) == "NotImplementedError: because"


def test_no_committed_result_speaks_of_a_check_that_was_not_made():
    for path in harness.RESULTS.glob("*.json"):
        assert '"not checked"' not in path.read_text(), path.name


def test_results_say_whether_the_kernels_were_correct(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)

    def saved():
        return json.loads(harness.save("kernels", []).read_text())["machine"].get("correctness")

    assert saved() is None
    row = {"op": "topk", "implementation": "xla", "passed": True}
    path = harness.save("correctness", [row])
    assert saved() == "passed"
    harness.save("correctness", [row, row | {"op": "row_sum", "passed": False}])
    assert saved() == "failed: row_sum (xla)"
    of_another_commit = json.loads(path.read_text())
    of_another_commit["machine"]["commit"] = "another"
    path.write_text(json.dumps(of_another_commit))
    assert saved() is None
