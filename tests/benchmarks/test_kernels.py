# SPDX-License-Identifier: Apache-2.0
"""Limits on known numbers, references that see an error, and every benchmark of the kernels at a tiny size."""

import importlib.util

import jax
import numpy as np
import pytest
from jaxneuro_kernels.shapes import OPS, SHAPES, case, fill
from rich.console import Console

from benchmarks import correctness, harness, kernels, limits, truth
from benchmarks.limits import COST, Cost, Limits, Size, least_ms, least_of

TINY = (64, 32, 256, 4)
SIZE = Size(tokens=8192, d=768, n=32768, k=32, item=2)


@pytest.mark.parametrize(
    ("op", "bytes_", "flops"),
    [
        ("topk", 8192 * (32768 * 2 + 32 * 6), 0),
        ("topk_mask", 2 * 8192 * 3072 * 2, 0),
        ("encode_topk", (8192 + 32768) * 768 * 2 + 8192 * 32 * 8, 412_316_860_416),
        ("sparse_decode", 8192 * 32 * (768 * 2 + 8) + 8192 * 768 * 4, 0),
        ("gather_dot", 8192 * 32 * (768 * 2 + 8 + 4) + 8192 * 768 * 2, 0),
        ("row_sum", 8192 * 32 * (768 * 2 + 8) + 32768 * 768 * 4, 0),
        ("sae_backward", 8192 * 32 * (2 * 768 * 2 + 12) + 32768 * (768 * (2 + 4 + 4) + 4), 0),
        ("sae_adam", 8192 * 32 * (2 * 768 * 2 + 12) + 32768 * (2 * 768 + 1) * 6 * 4, 0),
    ],
)
def test_what_an_op_must_move_and_multiply(op, bytes_, flops):
    assert COST[op](SIZE) == (bytes_, flops)


def test_every_op_has_a_cost_and_a_reference():
    assert {op.name for op in OPS.values()} == set(COST)
    assert set(truth._OF) == set(OPS)


def test_the_larger_of_two_times_is_the_limit():
    h100 = Limits(bytes=3e12, flops=8e14)
    assert least_ms(Cost(3e9), h100) == pytest.approx(1.0)
    assert least_ms(Cost(3e9, 8e12), h100) == pytest.approx(10.0)
    assert least_of("encode_topk", SIZE, h100) == pytest.approx(0.5154, rel=1e-3)  # 0.41 TFLOP at 800 a second
    parts = ("encode_topk", "sparse_decode", "sae_adam")
    assert least_of("step", SIZE, h100) == pytest.approx(sum(least_of(p, SIZE, h100) for p in parts))


def test_shares_and_ratios_of_finished_rows():
    measured = [
        {"implementation": name, "ours": ours, "p50_ms": ms}
        for name, ours, ms in (
            ("xla", True, 2.0),
            ("bad", True, None),
            ("torch", False, 6.0),
            (kernels.BARE, False, 1.0),
        )
    ]
    one = kernels.Comparison("topk", "", Size(1, 1, 1000, 1, 4), list)
    xla, bad, peer, bare = kernels.finished(measured, one, Limits(bytes=4008e3, flops=1.0))  # 1 ms
    assert xla == {
        "implementation": "xla",
        "p50_ms": 2.0,
        "share of limit": 0.5,
        "speed-up over": {"torch": 3.0},
        f"time / {kernels.BARE}": 2.0,
    }
    assert bad["share of limit"] is None
    assert bad["speed-up over"] == {"torch": None}
    assert peer["share of limit"] == round(1 / 6, 3)
    assert bare["share of limit"] == 1.0


@pytest.mark.parametrize("op", OPS)
def test_references_agree_with_the_op_and_see_a_wrong_result(op):
    this = case(op, TINY, "float32")
    operands = fill(this.operands, TINY[2])
    error, right = truth.reference(op, operands, TINY[3]), this.call(*operands)
    allowed = truth.TOLERANCE.get(op, truth.SUMS)
    assert error(right) <= allowed
    leaves, tree = jax.tree.flatten(right)
    for i, leaf in enumerate(leaves):
        wrong = [*leaves[:i], leaf + 1 if leaf.dtype == np.int32 else leaf * 1.02, *leaves[i + 1 :]]
        if leaf.dtype == np.int32 and op != "topk":
            wrong[i] = (leaf + 1) % TINY[2]
        assert error(jax.tree.unflatten(tree, wrong)) > allowed


def test_equals_in_another_order_are_wrong_for_us_and_right_for_peers():
    x = np.zeros((2, 8), np.float32)
    vals, idx = np.zeros((2, 2), np.float32), np.array([[1, 0], [0, 1]], np.int32)
    assert truth.reference("topk", (x,), 2)((vals, idx)) == np.inf
    assert truth.reference("topk", (x,), 2, ties=False)((vals, idx)) == 0


def test_correctness_fails_what_is_wrong_and_what_does_not_repeat():
    operands, state = (np.ones((4, 8), np.float32),), iter(range(100))

    def checked(call, error):
        return correctness._checked("op", "xla", lambda x, implementation: call(x), operands, error)

    assert checked(lambda x: x, lambda _: 0.0)["passed"]
    assert not checked(lambda x: x, lambda _: 1.0)["passed"]
    assert not checked(lambda x: x, lambda _: float("nan"))["passed"]
    unequal = checked(lambda x: jax.pure_callback(lambda a: a + next(state), x, x), lambda _: 0.0)
    assert unequal["repeats"] is False
    assert not unequal["passed"]
    assert checked(lambda x: 1 / 0, lambda _: 0.0)["failed"].startswith("ZeroDivisionError")


def test_every_benchmark_of_the_kernels_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setattr(kernels, "NAMES", ("tiny",))
    monkeypatch.setattr(kernels, "STEPS", {"tiny": TINY})
    monkeypatch.setattr(kernels, "SAMPLES", 1)
    monkeypatch.setattr(limits, "measure", lambda repeats: (Limits(1e10, 1e11), []))
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        rows = kernels.rows(1)
    assert not [r["failed"] for r in rows if "failed" in r]
    assert {r["op"] for r in rows} == {*OPS, "step"}
    assert all(r["error"] < 1e-2 for r in rows if r["implementation"] != kernels.BARE)
    assert all(r["error"] < 1e-5 for r in rows if r["op"] == "step")  # all from the same loss
    if importlib.util.find_spec("torch") is not None:
        assert {"torch.topk", "PyTorch", "PyTorch, sparse matrices"} < {r["implementation"] for r in rows}
    assert list(tmp_path.glob("kernels-*.json"))


def test_operands_that_cannot_be_made_are_a_row(monkeypatch):
    monkeypatch.setattr(truth, "reference", lambda *_, **__: 1 / 0)
    one = next(kernels.comparisons(None, Console()))
    (row,) = kernels._measured(one, 1)
    assert row["failed"].startswith("ZeroDivisionError")
    assert kernels.finished([row], one, Limits(1.0, 1.0))[0]["share of limit"] is None
