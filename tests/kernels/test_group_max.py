# SPDX-License-Identifier: Apache-2.0
"""Maxima of groups: against a stable sort of every group, gradients of the chosen alone, one block at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxneuro_kernels import encode_group_max, group_max, sparse_decode
from jaxneuro_kernels.encode_topk import xla
from jaxneuro_kernels.group_max import reference

from .conftest import normal, problem
from .test_topk import NEGATIVE_NAN, SPECIAL, same

N = 48


@functools.cache
def compiled(k):
    return jax.jit(functools.partial(group_max, k=k)), jax.jit(functools.partial(reference.group_max, k=k))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 6, 48]),
    st.sampled_from(["float32", "bfloat16"]),
    st.lists(st.one_of(st.sampled_from([*SPECIAL, NEGATIVE_NAN]), st.floats(-4, 4, width=16)), min_size=1, max_size=60),
    st.integers(0, 2**31),
)
def test_equals_a_stable_sort_of_every_group(k, dtype, values, seed):
    pool = np.asarray(values, np.float32).astype(jnp.dtype(dtype))
    x = jnp.asarray(np.random.default_rng(seed).choice(pool, (5, N)))
    ours, theirs = compiled(k)
    got = ours(x)
    assert (got[0].dtype, got[1].dtype) == (x.dtype, jnp.int32)
    same(got, theirs(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoding_equals_the_reference(dtype):
    p = problem(dtype=dtype, seed=2)
    vals, idx = encode_group_max(p.x, p.w, p.b, 5, relu=False)
    want_vals, want_idx = reference.encode_group_max(p.x, p.w, p.b, 5)
    assert vals.dtype == jnp.float32
    np.testing.assert_array_equal(idx, want_idx)
    np.testing.assert_allclose(vals, want_vals, rtol=1e-6)
    clipped, same_idx = encode_group_max(p.x, p.w, p.b - 100.0, 5)
    assert (np.asarray(clipped) == 0).all()
    assert same_idx.shape == idx.shape


def _loss(x, w, b, w_dec):
    vals, idx = encode_group_max(x, w, b, 5)
    return jnp.mean(jnp.square(sparse_decode(vals, idx, w_dec)))


def _dense_loss(x, w, b, w_dec):
    groups = (x @ w.T + b[None]).reshape(-1, 5, 128)
    z = jax.nn.one_hot(groups.argmax(-1), 128) * jax.nn.relu(groups)
    return jnp.mean(jnp.square(z.reshape(-1, 640) @ w_dec))


def test_gradients_equal_dense_autodiff(small):
    args = (small.x, small.w, small.b, small.w_dec)
    for a, b in zip(*(jax.jit(jax.grad(f, (0, 1, 2, 3)))(*args) for f in (_loss, _dense_loss)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_derivative_reaches_the_chosen_alone():
    x, weight, tangent = normal(4, N, seed=1), normal(4, 6, seed=2), normal(4, N, seed=3)
    idx = group_max(x, 6)[1]
    want = np.zeros(x.shape, np.float32)
    np.put_along_axis(want, np.asarray(idx), np.asarray(weight), 1)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(group_max(x, 6)[0] * weight))(x), want)
    _, out = jax.jvp(lambda x: group_max(x, 6)[0], (x,), (tangent,))
    np.testing.assert_array_equal(out, jnp.take_along_axis(tangent, idx, 1))
    apart = jnp.asarray(np.random.default_rng(0).permutation(N).astype(np.float32) / 8)
    check_grads(jax.jit(lambda x: jnp.sin(group_max(x, 6)[0])), (apart,), 1, atol=1e-2, rtol=1e-2)


def test_leading_axes_and_empties(small):
    x = normal(2, 3, N, seed=1)
    same([a.reshape(6, 6) for a in group_max(x, 6)], group_max(x.reshape(6, N), 6))
    assert group_max(x[0, 0], 6)[1].shape == (6,)
    for shape, k in (((0, N), 6), ((3, N), 0), ((3, 0), 0)):
        vals, idx = group_max(jnp.zeros(shape, jnp.bfloat16), k)
        assert vals.shape == idx.shape == (*shape[:-1], k)
        assert (vals.dtype, idx.dtype) == (jnp.bfloat16, jnp.int32)
    deep = encode_group_max(small.x.reshape(2, 12, 16), small.w, small.b, 5)
    same([a.reshape(24, 5) for a in deep], encode_group_max(small.x, small.w, small.b, 5))
    assert encode_group_max(small.x[:0], small.w, small.b, 5)[0].shape == (0, 5)
    every = group_max(x, N)
    same(every, (x, jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), x.shape)))


@pytest.mark.parametrize("check", [True, False])
def test_transforms(small, mesh, check):
    x = normal(4, 3, N, seed=1)
    want = group_max(x, 6)
    same(jax.vmap(lambda a: group_max(a, 6), in_axes=1, out_axes=1)(x), want)
    args = (small.x, small.w, small.b, small.w_dec)
    gradient = jax.jit(jax.grad(_loss, (1, 2, 3)))(*args)
    remat = jax.jit(jax.grad(jax.checkpoint(_loss), (1, 2, 3)))(*args)
    mapped = jax.jit(jax.vmap(jax.grad(_loss, (1, 2, 3)), (0, None, None, None)))(small.x[None], *args[1:])
    sharded = jax.shard_map(
        lambda *a: jax.lax.pmean(_loss(*a), "data"),
        mesh=mesh,
        in_specs=(P("data"), P(), P(), P()),
        out_specs=P(),
        check_vma=check,
    )
    split = jax.jit(jax.grad(sharded, (1, 2, 3)))(*args)
    for a, b, c, d in zip(gradient, remat, mapped, split, strict=True):
        for other in (b, c[0], d):
            np.testing.assert_allclose(a, other, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("this_machine")
def test_nothing_dense_in_memory():
    tokens, d, n = 4096, 8, 16000
    block = xla.block_rows(tokens, n, xla.BLOCKS["cpu"].multiplied) * n * 4
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, d), (n, d), (n,), (n, d))]
    memory = jax.jit(jax.value_and_grad(_loss, (1, 2, 3))).lower(*shapes).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 3 * block + 16 * tokens * 5 * 8 + 8 * n * d * 4
    assert memory.temp_size_in_bytes < tokens * n * 4 / 6  # 262 MB


def test_wrong_requests(small):
    for call, message in (
        (lambda: group_max(jnp.zeros((3, 8)), 3), r"group_max: k = 3 of x \[3, 8\]: 8 is no multiple of k"),
        (lambda: group_max(jnp.zeros((3, 8)), 9), "k is an int from 0 to 8"),
        (lambda: group_max(jnp.zeros((3, 8), jnp.int32), 2), r"x is int32\[3, 8\]; give a floating array"),
        (lambda: encode_group_max(small.x, small.w, small.b, 7), r"k = 7 of pre-activations \[24, 640\]: 640 is no"),
        (lambda: encode_group_max(small.x, small.w[:, :3], small.b, 5), r"encode_group_max: x .* w float32\[640, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
