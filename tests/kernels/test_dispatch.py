# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs, and what is said when none can."""

import functools

import jax
import jax.numpy as jnp
import jaxneuro_kernels as kernels
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxneuro_kernels import aot, dispatch, tuned
from jaxneuro_kernels.dispatch import HOPPER, Backend, Choice, Target, choose, target
from jaxneuro_kernels.shapes import OPS, SHAPES, case

X = jnp.zeros((2, 8), jnp.float32)
IDX = jnp.zeros((2, 1), jnp.int32)
CALLS = {
    "topk": lambda **kw: kernels.topk(X, 2, **kw),
    "encode_topk": lambda **kw: kernels.encode_topk(X, X, X[:, 0], 1, **kw),
    "sparse_decode": lambda **kw: kernels.sparse_decode(X[:, :1], IDX, X, **kw),
    "gather_dot": lambda **kw: kernels.gather_dot(X, IDX, X, **kw),
    "row_sum": lambda **kw: kernels.row_sum(X[:, :1], IDX, X, 8, **kw),
    "sae_backward": lambda **kw: kernels.sae_backward(X[:, :1], IDX, X, X, X, **kw),
    "topk_mask": lambda **kw: kernels.topk_mask(X, 2, **kw),
    "batch_topk": lambda **kw: kernels.batch_topk(X, 2, **kw),
    "encode_batch_topk": lambda **kw: kernels.encode_batch_topk(X, X, X[:, 0], 1, **kw),
    "group_max": lambda **kw: kernels.group_max(X, 2, **kw),
    "encode_group_max": lambda **kw: kernels.encode_group_max(X, X, X[:, 0], 1, **kw),
}
CHOOSES = {"batch_topk": "topk", "encode_batch_topk": "encode_topk"}
"""Ops that leave the choice to another."""


@pytest.mark.parametrize("op", CALLS)
def test_every_op_takes_an_implementation(op):
    CALLS[op](implementation="xla")
    CALLS[op](implementation=("xla",))
    with pytest.raises(
        ValueError, match=rf"{CHOOSES.get(op, op)} has no implementation 'xal'. Did you mean 'xla'\? There are: .*xla"
    ):
        CALLS[op](implementation="xal")
    with pytest.raises(ValueError, match="empty sequence"):
        CALLS[op](implementation=())


def test_the_first_that_can_runs_and_reasons_are_kept():
    backends = {
        "fast": Backend(len, refuses=lambda x: f"needs even rows, x has {x}" if x % 2 else None),
        "wide": Backend(len, refuses=lambda x: "needs a TPU"),
        "xla": Backend(len),
    }
    assert choose("op", backends, ("fast", "xla"), 2).name == "fast"
    assert choose("op", backends, ("fast", "xla"), 3).name == "xla"
    with pytest.raises(ExceptionGroup, match="no implementation of fast, wide can take this call") as caught:
        choose("op", backends, ("fast", "wide"), 3)
    reasons = [str(e) for e in caught.value.exceptions]
    assert reasons == ["op: fast cannot run here: needs even rows, x has 3", "op: wide cannot run here: needs a TPU"]
    assert all(isinstance(e, NotImplementedError) for e in caught.value.exceptions)


@pytest.mark.parametrize("op", OPS)
def test_a_forced_kernel_on_the_wrong_device_says_why(op):
    call, operands, _ = case(op, SHAPES["study"], "float32")
    kernel_names = tuple(name for name in OPS[op].backends if name != "xla")
    assert "mosaic_gpu" in kernel_names
    with pytest.raises(
        ExceptionGroup, match=f"{OPS[op].name}: no implementation of {', '.join(kernel_names)}"
    ) as caught:
        jax.eval_shape(functools.partial(call, implementation=kernel_names), *operands)
    reasons = [str(e) for e in caught.value.exceptions]
    assert len(reasons) == len(kernel_names)
    assert "it is for Hopper devices (cuda), and this call runs on cpu" in reasons[0]


def drawn(operands, n):
    """Arrays of these shapes, made by NumPy: nothing is compiled for them."""
    rng = np.random.default_rng(0)

    def one(like):
        integers = like.dtype == jnp.int32
        a = rng.integers(0, n, like.shape) if integers else np.abs(rng.normal(size=like.shape))
        return jnp.asarray(a.astype(like.dtype))

    return jax.tree.map(one, operands)


@pytest.mark.parametrize("op", OPS)
def test_what_a_kernel_cannot_take_falls_back(op):
    """A preference ends in xla: sizes that no kernel takes give xla's numbers, forced ones the reason."""
    call, operands, _ = case(op, (6, 10, 70, 3), "float32")
    arrays = drawn(operands, 70)
    got, want = (call(*arrays, implementation=i) for i in (tuple(OPS[op].backends), "xla"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    with aot.pretend(), pytest.raises(ExceptionGroup) as caught:
        jax.eval_shape(functools.partial(call, implementation="mosaic_gpu"), *operands)
    assert any(word in str(caught.value.exceptions[0]) for word in ("multiple", "no group", "float32"))


def test_what_is_traced_for():
    assert target() == Target("cpu", "cpu")
    with aot.pretend():
        assert target() == Target("cuda", aot.H100)
    with aot.pretend("AMD Instinct MI300X"):
        assert target().platform == "rocm"
    with jax.default_device("cpu"):
        assert target().platform == "cpu"


@pytest.mark.parametrize(
    ("kind", "takes"),
    [(aot.H100, True), ("NVIDIA H200", True), ("NVIDIA GH200 480GB", True), ("NVIDIA A100-SXM4-80GB", False)],
)
def test_hopper_is_told_by_its_name(kind, takes):
    with aot.pretend(kind):
        if takes:
            assert choose("op", {"k": Backend(len, devices=HOPPER), "xla": Backend(len)}, "k") == Choice("k", True)
        else:
            with pytest.raises(ExceptionGroup):
                choose("op", {"k": Backend(len, devices=HOPPER), "xla": Backend(len)}, "k")


@pytest.fixture
def winning(monkeypatch):
    """A kernel that was measured to be the fastest everywhere, on a device that this pretends to be."""
    monkeypatch.setattr(dispatch, "target", lambda: Target("cuda", aot.H100))
    monkeypatch.setattr(tuned, "fastest", lambda *_, **__: "k")
    backends = {"k": Backend(len, devices=HOPPER), "xla": Backend(len)}
    return lambda implementation, *args: choose("op", backends, implementation, *args, size={"dtype": "float32"})


def test_operands_on_several_devices_are_not_given_to_a_kernel(winning, mesh):
    whole = jnp.zeros((4, 8))
    split = jax.device_put(whole, NamedSharding(mesh, P("data")))
    assert winning(None, whole).name == "k"
    assert winning(None, split).name == "xla"
    with pytest.raises(ExceptionGroup) as caught:
        winning("k", split)
    assert "lies on 4 devices; call it inside jax.shard_map" in str(caught.value.exceptions[0])


def test_a_trace_that_may_be_partitioned_gets_xla(winning, mesh):
    """In jit with several devices the compiler may split an operand; in shard_map it is one device's own."""
    seen = []

    def note(x):
        seen.append(winning(None, x).name)
        return x

    x = jnp.zeros((4, 8))
    jax.jit(note).trace(x)
    jax.jit(jax.shard_map(note, mesh=mesh, in_specs=P("data"), out_specs=P("data"))).trace(x)
    assert seen == ["xla", "k"]
    explicit = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))

    def forced(x):
        with pytest.raises(ExceptionGroup) as caught:
            winning("k", x)
        seen.append(str(caught.value.exceptions[0]))
        return x

    with jax.set_mesh(explicit):
        jax.jit(forced).trace(jax.device_put(x, NamedSharding(explicit, P("data"))))
    assert "an operand is sharded as" in seen[-1]


def test_strided_and_foreign_arrays():
    """Views of NumPy arrays, in any memory order, and other integer widths of k."""
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(6, 1400)).astype(np.float32))[::2, ::2]
    vals, idx = kernels.topk(x, np.int64(5))
    want = np.argsort(-x, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(idx, want)
    np.testing.assert_array_equal(vals, np.take_along_axis(x, want, 1))


@pytest.mark.parametrize("op", [op for op in OPS if op != "topk_mask"])
def test_no_tokens_and_no_k(op):
    """Of nothing comes nothing, in the right shapes, under every preference."""
    for shape in ((0, 128, 2048, 4), (3, 128, 2048, 0)):
        call, operands, _ = case(op, shape, "float32")
        arrays = drawn(operands, 2048)
        out = call(*arrays, implementation=("mosaic_gpu", "xla"))
        like = jax.eval_shape(lambda *a, call=call: call(*a), *operands)
        assert jax.tree.map(jnp.shape, out) == jax.tree.map(lambda a: a.shape, like)


def test_importing_loads_no_kernel_module():
    import subprocess
    import sys

    code = "import sys, jaxneuro_kernels; print([m for m in sys.modules if 'mosaic' in m and 'jaxneuro' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
