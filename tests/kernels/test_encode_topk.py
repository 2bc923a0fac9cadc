# SPDX-License-Identifier: Apache-2.0
"""Encoding: exact selection, gradients of the chosen alone, one block of pre-activations at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxneuro_kernels import encode_topk, sparse_decode
from jaxneuro_kernels.encode_topk import reference, xla

from .conftest import problem

SPREAD = 40.0  # pre-activations this far apart do not change places under a finite difference


def test_equals_the_reference(small):
    vals, idx, pre = encode_topk(small.x, small.w, small.b, small.k, relu=False, keep_pre=True)
    want_vals, want_idx, want_pre = reference.encode_topk(small.x, small.w, small.b, small.k)
    np.testing.assert_allclose(pre, want_pre, rtol=0, atol=1e-6 * np.abs(want_pre).max())  # 16 products
    np.testing.assert_array_equal(idx, want_idx)
    np.testing.assert_allclose(vals, want_vals, rtol=0, atol=1e-6 * np.abs(want_pre).max())
    clipped, same = encode_topk(small.x, small.w, small.b - 100.0, small.k)
    assert (np.asarray(clipped) == 0).all()  # selected and clipped: an index, but no value
    assert same.shape == idx.shape


def test_sets_equal_a_float64_ranking():
    p = problem(tokens=200, n=2048, k=16, seed=3)
    idx = np.sort(encode_topk(p.x, p.w, p.b, p.k)[1], axis=1)
    pre = np.asarray(p.x, np.float64) @ np.asarray(p.w, np.float64).T + np.asarray(p.b, np.float64)
    order = np.argsort(-pre, axis=1, kind="stable")
    edge = np.take_along_axis(pre, order[:, p.k - 1 : p.k + 1], 1)
    clear = edge[:, 0] - edge[:, 1] > 1e-5  # closer than float32 sees: no claim
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(idx[clear], np.sort(order[:, : p.k], axis=1)[clear])


@pytest.mark.parametrize("tokens", [8, 50])
def test_blocks_change_nothing(tokens):
    p = problem(tokens=tokens, seed=tokens)
    run = jax.jit(xla._in_blocks, static_argnames=("select", "block"))
    select = functools.partial(xla.topk, k=p.k)
    whole = run(p.x, p.w, p.b, select=select, block=xla.Block(1 << 30, 1 << 30))
    few = xla.Block(640 * 4 * 16, 640 * 4 * 5)  # 16 tokens, selected 5 or 6 at a time
    parts = run(p.x, p.w, p.b, select=select, block=few)
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_gradients_equal_dense_autodiff(dtype, tolerance):
    p = problem(dtype=dtype, seed=5)
    ours = jax.jit(jax.grad(_sparse_loss, (0, 1, 2, 3)), static_argnums=4)(p.x, p.w, p.b, p.w_dec, p.k)
    wide = [a.astype(jnp.float32) for a in (p.x, p.w, p.b, p.w_dec)]
    dense = jax.jit(jax.grad(_dense_loss, (0, 1, 2, 3)), static_argnums=4)(*wide, p.k)
    for a, b, like in zip(ours, dense, (p.x, p.w, p.b, p.w_dec), strict=True):
        assert a.dtype == like.dtype
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=tolerance * np.abs(b).max())


def _sparse_loss(x, w, b, w_dec, k):
    vals, idx = encode_topk(x, w, b, k)
    return jnp.mean(jnp.square(sparse_decode(vals, idx, w_dec)))


def _dense_loss(x, w, b, w_dec, k):
    pre = x @ w.T + b[None]
    vals, idx = jax.lax.top_k(pre, k)
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
    z = jnp.zeros_like(pre).at[rows, idx].set(jax.nn.relu(vals))
    return jnp.mean(jnp.square(z @ w_dec))


def test_derivatives_by_finite_differences():
    # A rank per latent, far apart: order and sign are those of b, and the third value is clipped.
    p = problem(tokens=3, d=4, n=512, k=3, seed=1)
    rank = np.random.default_rng(0).permutation(512).astype(np.float32)
    b = jnp.asarray((rank - 509.5) * np.float32(SPREAD))
    check_grads(
        jax.jit(lambda x, w, b: jnp.sin(encode_topk(x, w, b, 3)[0] / 20)),
        (p.x, p.w, b),
        1,
        atol=2e-2,
        rtol=2e-2,
    )


def test_pre_has_its_dense_derivative(small):
    def total(x, w, b):
        return jnp.sum(jnp.cos(encode_topk(x, w, b, small.k, keep_pre=True)[2]))

    want = jax.grad(lambda x, w, b: jnp.sum(jnp.cos(x @ w.T + b[None])), (0, 1, 2))(small.x, small.w, small.b)
    for a, b in zip(jax.jit(jax.grad(total, (0, 1, 2)))(small.x, small.w, small.b), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("this_machine")
def test_no_dense_gradient_in_memory():
    tokens, d, n, k = 4096, 8, 16384, 8
    block = xla.block_rows(tokens, n, xla.BLOCKS["cpu"].multiplied) * n * 4
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, d), (n, d), (n,), (n, d))]
    step = jax.jit(jax.value_and_grad(_sparse_loss, (1, 2, 3)), static_argnums=4)
    memory = step.lower(*shapes, k).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 3 * block + 16 * tokens * k * 8 + 8 * n * d * 4  # dense: 268 MB per buffer
    assert memory.temp_size_in_bytes < tokens * n * 4 / 6


def test_bitwise_repeatable(small):
    step = jax.jit(jax.value_and_grad(_sparse_loss, (0, 1, 2, 3)), static_argnums=4)
    args = (small.x, small.w, small.b, small.w_dec, small.k)
    first = jax.tree.leaves(step(*args))
    for _ in range(5):
        for a, b in zip(first, jax.tree.leaves(step(*args)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_leading_axes_and_empties(small):
    x = small.x.reshape(2, 3, 4, 16)
    vals, idx = encode_topk(x, small.w, small.b, small.k)
    flat_vals, flat_idx = encode_topk(small.x, small.w, small.b, small.k)
    np.testing.assert_array_equal(idx.reshape(24, -1), flat_idx)
    np.testing.assert_array_equal(vals.reshape(24, -1), flat_vals)
    assert encode_topk(x[0, 0, 0], small.w, small.b, 5)[0].shape == (5,)
    vals, idx, pre = encode_topk(x[:0], small.w, small.b, 5, keep_pre=True)
    assert (vals.shape, idx.shape, pre.shape) == ((0, 3, 4, 5), (0, 3, 4, 5), (0, 3, 4, 640))
    assert encode_topk(x, small.w, small.b, 0)[1].shape == (2, 3, 4, 0)


def test_transforms(small, mesh):
    args = (small.x, small.w, small.b, small.w_dec)
    loss = functools.partial(_sparse_loss, k=small.k)
    want = jax.jit(jax.grad(loss, (1, 2, 3)))(*args)
    remat = jax.jit(jax.grad(jax.checkpoint(loss), (1, 2, 3)))(*args)
    stack = np.stack([small.x, np.asarray(small.x) * 2])
    mapped = jax.jit(jax.vmap(jax.grad(loss, (1, 2, 3)), (0, None, None, None)))(stack, *args[1:])
    for a, b, c in zip(want, remat, mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a, c[0], rtol=1e-5, atol=1e-6)
    for check in (True, False):
        sharded = jax.shard_map(
            lambda *a: jax.lax.pmean(loss(*a), "data"),
            mesh=mesh,
            in_specs=(P("data"), P(), P(), P()),
            out_specs=P(),
            check_vma=check,
        )
        for a, b in zip(want, jax.jit(jax.grad(sharded, (1, 2, 3)))(*args), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": jnp.zeros((640, 8))}, r"x float32\[24, 16\], w float32\[640, 8\], b float32\[640\] do not fit"),
        ({"b": jnp.zeros(7)}, r"b float32\[7\]"),
        ({"x": jnp.zeros((24, 16), jnp.bfloat16)}, "w .n_latents, d. of x's floating dtype"),
        ({"k": 641}, r"k = 641 of pre-activations \[24, 640\]"),
    ],
)
def test_wrong_requests(small, change, message):
    args = {"x": small.x, "w": small.w, "b": small.b, "k": small.k} | change
    with pytest.raises(ValueError, match=message):
        encode_topk(**args)


def test_nan_ranks_as_in_topk(small):
    w = small.w.at[7].set(jnp.nan)
    vals, idx = encode_topk(small.x, jnp.abs(w), small.b, small.k)  # abs: a positive NaN, which ranks first
    assert (np.asarray(idx)[:, 0] == 7).all()
    assert np.isnan(np.asarray(vals)[:, 0]).all()
