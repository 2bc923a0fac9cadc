# SPDX-License-Identifier: Apache-2.0
"""Selection over a whole batch: exact where it says so, one threshold for all shards, nothing dense in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxneuro_kernels import BatchTopK, batch_topk, encode_batch_topk, sparse_decode
from jaxneuro_kernels.batch_topk import reference
from jaxneuro_kernels.encode_topk import xla

from .conftest import normal, problem
from .test_topk import NEGATIVE_NAN, SPECIAL, bits

T, N = 6, 80


def dense(out, n):
    """The code as [tokens, n]. Every row's candidates are different latents."""
    idx = np.asarray(out.idx).reshape(-1, out.idx.shape[-1])
    z = np.zeros((idx.shape[0], n), out.vals.dtype)
    np.put_along_axis(z, idx, np.asarray(out.vals).reshape(idx.shape), 1)
    return z


_ours = jax.jit(batch_topk, static_argnames=("k", "slack", "relu"))
_theirs = jax.jit(reference.batch_topk, static_argnames=("k", "relu"))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(1, "bfloat16", True), (3, "float32", True), (12, "float32", False)]),
    st.lists(st.one_of(st.sampled_from([*SPECIAL, NEGATIVE_NAN]), st.floats(-4, 4, width=16)), min_size=1, max_size=60),
    st.integers(0, 2**31),
)
def test_equals_a_sort_of_the_batch(case, values, seed):
    k, dtype, relu = case
    pool = np.asarray(values, np.float32).astype(jnp.dtype(dtype))
    pre = jnp.asarray(np.random.default_rng(seed).choice(pool, (T, N)))
    out = _ours(pre, k=k, relu=relu)
    want, threshold = _theirs(pre, k=k, relu=relu)
    assert (out.vals.dtype, out.idx.dtype, out.overflow.dtype) == (pre.dtype, jnp.int32, jnp.int32)
    assert out.vals.shape == (T, max(4 * k, 32))
    if int(out.overflow) == 0:
        np.testing.assert_array_equal(bits(dense(out, N)), bits(want))
        np.testing.assert_array_equal(bits(out.threshold), bits(threshold))
    everything = _ours(pre, k=k, relu=relu, slack=N)  # every value is a candidate
    assert int(everything.overflow) == 0
    np.testing.assert_array_equal(bits(dense(everything, N)), bits(want))


def test_overflow_says_that_candidates_ran_out():
    pre = np.random.default_rng(0).random((8, 200)).astype(np.float32)
    pre[3] += 10
    few, enough = _ours(pre, k=12, slack=1), _ours(pre, k=12, slack=9)
    assert (int(few.overflow), int(enough.overflow)) == (1, 0)
    assert (np.asarray(few.vals) > 0).sum() == (np.asarray(enough.vals) > 0).sum() == 96
    np.testing.assert_array_equal(dense(enough, 200), _theirs(pre, k=12)[0])
    assert (np.asarray(enough.vals)[3] > 0).sum() == 96


def test_ties_go_to_the_first_tokens():
    out = batch_topk(jnp.ones((4, 5)), 2)
    np.testing.assert_array_equal(dense(out, 5), [[1] * 5, [1, 1, 1, 0, 0], [0] * 5, [0] * 5])
    assert float(out.threshold) == 1


def test_threshold_is_that_before_relu():
    out = batch_topk(-jnp.arange(1.0, 7.0).reshape(2, 3), 2)
    assert (np.asarray(out.vals) == 0).all()
    assert float(out.threshold) == -4
    np.testing.assert_array_equal(batch_topk(-jnp.arange(1.0, 7.0).reshape(2, 3), 2, relu=False).vals[0], [-1, -2, -3])


def test_encoding_equals_selection_from_pre_activations(small):
    out = encode_batch_topk(small.x, small.w, small.b, small.k)
    pre = small.x @ small.w.T + small.b[None]
    assert out.vals.dtype == jnp.float32
    np.testing.assert_allclose(dense(out, 640), reference.batch_topk(pre, small.k)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.threshold, reference.batch_topk(pre, small.k)[1], rtol=1e-6)


def _loss(x, w, b, w_dec, k, axis_name=None):
    out = encode_batch_topk(x, w, b, k, axis_name=axis_name)
    return jnp.sum(jnp.square(sparse_decode(out.vals, out.idx, w_dec)))


def _dense_loss(x, w, b, w_dec, k):
    pre = x @ w.T + b[None]
    threshold = jax.lax.stop_gradient(jnp.sort(pre.reshape(-1))[-x.shape[0] * k])
    return jnp.sum(jnp.square(jnp.where(pre >= threshold, jax.nn.relu(pre), 0.0) @ w_dec))


def test_gradients_equal_dense_autodiff(small):
    args = (small.x, small.w, small.b, small.w_dec)
    ours = jax.jit(jax.grad(_loss, (0, 1, 2, 3)), static_argnums=4)(*args, small.k)
    want = jax.jit(jax.grad(_dense_loss, (0, 1, 2, 3)), static_argnums=4)(*args, small.k)
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    apart = jnp.asarray(np.random.default_rng(0).permutation(120).astype(np.float32).reshape(3, 40) / 16)
    check_grads(jax.jit(lambda pre: jnp.sin(batch_topk(pre, 5).vals)), (apart,), 1, atol=1e-2, rtol=1e-2)


def test_leading_axes_and_empties(small):
    out = encode_batch_topk(small.x, small.w, small.b, 5)
    deep = encode_batch_topk(small.x.reshape(2, 3, 4, 16), small.w, small.b, 5)
    assert deep.vals.shape == deep.idx.shape == (2, 3, 4, 32)
    np.testing.assert_array_equal(deep.vals.reshape(24, 32), out.vals)
    pre = normal(N, seed=1)
    assert (np.asarray(batch_topk(pre, 3).vals) > 0).sum() == 3  # no leading axis: one token
    for empty in (batch_topk(jnp.zeros((2, 0, N)), 3), batch_topk(jnp.zeros((0, 0)), 0), batch_topk(pre[None], 0)):
        assert not np.asarray(empty.vals).any()
        assert (float(empty.threshold), int(empty.overflow)) == (np.inf, 0)
    every = batch_topk(pre[None], N)
    np.testing.assert_array_equal(dense(every, N)[0], np.maximum(pre, 0))


def test_transforms(small):
    args = (small.x, small.w, small.b, small.w_dec)
    loss = functools.partial(_loss, k=small.k)
    want = jax.jit(jax.grad(loss, (1, 2)))(*args)
    remat = jax.jit(jax.grad(jax.checkpoint(loss), (1, 2)))(*args)
    stack = np.stack([small.x, 2 * np.asarray(small.x)])
    mapped = jax.jit(jax.vmap(jax.grad(loss, (1, 2)), (0, None, None, None)))(stack, *args[1:])
    for a, b, c in zip(want, remat, mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())
        np.testing.assert_allclose(a, c[0], rtol=0, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("check", [True, False])
def test_one_selection_for_all_shards(mesh, check):
    pre = normal(12, 48, seed=2).at[9:].add(-9.0)  # nothing of the last shard is kept
    coarse = jnp.round(4 * pre) / 4
    parts = {"mesh": mesh, "in_specs": P("data"), "check_vma": check}
    together = jax.shard_map(
        lambda a: batch_topk(a, 6, axis_name="data"), out_specs=BatchTopK(P("data"), P("data"), P(), P()), **parts
    )
    split = jax.jit(together)
    for a, b in zip([*split(pre), *split(coarse)], [*batch_topk(pre, 6), *batch_topk(coarse, 6)], strict=True):
        np.testing.assert_array_equal(a, b)
    alone = jax.shard_map(lambda a: batch_topk(a, 6)[:2], out_specs=P("data"), **parts)
    np.testing.assert_array_equal(jax.jit(alone)(pre)[0][:3], batch_topk(pre[:3], 6).vals)


@pytest.mark.parametrize("check", [True, False])
def test_gradients_of_one_selection_for_all_shards(small, mesh, check):
    args = (small.x, small.w, small.b, small.w_dec)
    sharded = jax.shard_map(
        lambda *a: jax.lax.psum(_loss(*a, small.k, "data"), "data"),
        mesh=mesh,
        in_specs=(P("data"), P(), P(), P()),
        out_specs=P(),
        check_vma=check,
    )
    want = jax.jit(jax.grad(functools.partial(_loss, k=small.k), (0, 1, 2, 3)))(*args)
    for a, b in zip(want, jax.jit(jax.grad(sharded, (0, 1, 2, 3)))(*args), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


@pytest.mark.usefixtures("this_machine")
def test_nothing_dense_in_memory():
    tokens, d, n, k = 4096, 8, 16384, 8
    block = xla.block_rows(tokens, n, xla.BLOCKS["cpu"].multiplied) * n * 4
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, d), (n, d), (n,), (n, d))]
    step = jax.jit(jax.value_and_grad(_loss, (1, 2, 3)), static_argnums=4)
    memory = step.lower(*shapes, k).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 3 * block + 16 * tokens * 4 * k * 8 + 8 * n * d * 4
    assert memory.temp_size_in_bytes < tokens * n * 4 / 5  # 268 MB


def test_wrong_requests(small):
    for call, message in (
        (lambda: batch_topk(jnp.zeros((3, 8)), 9), r"batch_topk: k = 9 of pre \[3, 8\]"),
        (lambda: batch_topk(jnp.zeros((3, 8), jnp.int32), 1), r"pre is int32\[3, 8\]; give a floating array"),
        (lambda: batch_topk(jnp.zeros((3, 8)), 2, slack=0), "slack = 0: it is an int of at least 1"),
        (
            lambda: encode_batch_topk(small.x, small.w[:, :3], small.b, 2),
            r"encode_batch_topk: x .* w float32\[640, 3\]",
        ),
        (lambda: encode_batch_topk(small.x, small.w, small.b, 641), r"k = 641 of pre-activations \[24, 640\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_bitwise_repeatable():
    p = problem(seed=8)
    step = jax.jit(jax.value_and_grad(_loss, (0, 1, 2, 3)), static_argnums=4)
    first = jax.tree.leaves(step(p.x, p.w, p.b, p.w_dec, p.k))
    for a, b in zip(first, jax.tree.leaves(step(p.x, p.w, p.b, p.w_dec, p.k)), strict=True):
        np.testing.assert_array_equal(a, b)
