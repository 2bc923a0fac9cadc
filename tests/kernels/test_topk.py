# SPDX-License-Identifier: Apache-2.0
"""Top-k against `lax.top_k` and a full stable sort: ties, signed zeros, NaN, infinities, denormals, every rank."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxneuro_kernels import topk
from jaxneuro_kernels.shapes import SHAPES
from jaxneuro_kernels.topk import reference, xla

from .conftest import normal

NEGATIVE_NAN = np.array(-1, np.int32).view(np.float32)
SPECIAL = [0.0, -0.0, 1.0, 1.0, 2.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3.4e38]
N = 512


def bits(a):
    """Exact comparison: -0 is not +0, NaN of one sign is not the other."""
    a = np.asarray(a)
    return a.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[a.itemsize])


def same(got, want):
    np.testing.assert_array_equal(np.asarray(got[1]), np.asarray(want[1]))
    np.testing.assert_array_equal(bits(got[0]), bits(want[0]))


@functools.cache
def compiled(k, dtype):
    return jax.jit(functools.partial(topk, k=k)), jax.jit(lambda x: lax.top_k(x, k))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 8]),
    st.sampled_from(["float32", "bfloat16"]),
    st.lists(st.one_of(st.sampled_from(SPECIAL), st.floats(-4, 4, width=32)), min_size=1, max_size=80),
    st.integers(0, 2**31),
)
def test_equals_lax_top_k(k, dtype, values, seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.choice(np.asarray(values, np.float32), (6, N)), dtype)
    ours, theirs = compiled(k, dtype)
    same(ours(x), theirs(x))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=12), st.integers(0, 2**31), st.sampled_from([8, 32]))
def test_two_levels_equal_a_stable_sort_for_every_group(values, seed, group):
    rng = np.random.default_rng(seed)
    pool = np.append(np.asarray(values, np.float32), NEGATIVE_NAN)
    x = jnp.asarray(rng.choice(pool, (4, N)))
    same(_two_level(x, 7, group), _sorted(x, 7))


_two_level = jax.jit(xla.two_level, static_argnums=(1, 2))
_sorted = jax.jit(reference.topk, static_argnums=1)


_certified = jax.jit(xla.certified, static_argnums=(1, 2))
_unstable = jax.jit(xla._unstable, static_argnums=(1, 2))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=12), st.integers(0, 2**31), st.booleans())
def test_what_runs_on_a_gpu_equals_a_stable_sort(values, seed, ties):
    rng = np.random.default_rng(seed)
    pool = np.append(np.asarray(values, np.float32), NEGATIVE_NAN)
    x = rng.choice(pool, (4, N)) if ties else rng.normal(size=(4, N)).astype(np.float32)
    same(_certified(jnp.asarray(x), 7, 8), _sorted(jnp.asarray(x), 7))


def test_ties_that_a_selection_may_cut_are_noticed():
    x = normal(4, N, seed=2)
    assert bool(_unstable(x, 7, 8)[2])
    tied, order = np.array(x), np.argsort(-np.asarray(x[2]))
    tied[2, order[7]] = tied[2, order[6]]
    assert not bool(_unstable(jnp.asarray(tied), 7, 8)[2])
    assert not bool(_unstable(x.at[0, 3].set(jnp.nan), 7, 8)[2])
    above = x.at[1, 100].set(x[1].max())  # a tie among the best cuts nothing
    vals, idx, exact = _unstable(above, 7, 8)
    assert bool(exact)
    same((vals, idx), lax.top_k(above, 7))


def test_a_tie_between_a_better_group_and_an_earlier_one():
    x = np.zeros((2, N), np.float32)
    x[0, [8, 9, 10, 0]] = 2, 1, 1, 1  # the second group is chosen first, its ones must not come first
    x[1, [100, 101, 40, 41, 7]] = 3, 2, 2.5, 2, 2
    want = [[8, 0, 9], [100, 40, 7]]
    np.testing.assert_array_equal(_two_level(jnp.asarray(x), 3, 8)[1], want)
    np.testing.assert_array_equal(lax.top_k(x, 3)[1], want)


@pytest.mark.parametrize(
    ("n", "k", "dtype"),
    [
        (640, 5, "float16"),
        (1000, 3, "bfloat16"),
        (4096, 8, "float32"),
        (100, 100, "bfloat16"),
        (7, 3, "float32"),
        (513, 1, "float32"),
    ],
)
def test_sizes_and_dtypes(n, k, dtype):
    x = normal(*(9, n), seed=n, dtype=dtype)
    got = topk(x, k)
    assert (got[0].dtype, got[1].dtype) == (jnp.dtype(dtype), jnp.int32)
    same(got, lax.top_k(x, k))


def test_two_levels_run_where_they_should():
    assert xla.group_size(8192, 32) == 16
    assert xla.group_size(1024, 32) is None  # one level is as fast
    assert xla.group_size(8191, 32) is None  # no equal groups
    for tokens, _, n, k in SHAPES.values():
        assert xla.group_size(n, k), (tokens, n, k)


@pytest.mark.parametrize("shape", [(640,), (2, 640), (2, 3, 640), (1, 2, 1, 640)])
def test_leading_axes(shape):
    x = normal(*shape, seed=0)
    got = topk(x, 5)
    assert got[0].shape == (*shape[:-1], 5)
    same(got, lax.top_k(x, 5))


@pytest.mark.parametrize(("shape", "k"), [((0, 640), 5), ((3, 640), 0), ((2, 0, 640), 5), ((3, 0), 0)])
def test_empty(shape, k):
    vals, idx = topk(jnp.zeros(shape, jnp.bfloat16), k)
    assert vals.shape == idx.shape == (*shape[:-1], k)
    assert (vals.dtype, idx.dtype) == (jnp.bfloat16, jnp.int32)


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (jnp.zeros((3, 8)), 9, r"topk: k = 9 of x \[3, 8\]: k is an int from 0 to 8"),
        (jnp.zeros((3, 8)), -1, "k = -1"),
        (jnp.zeros((3, 8)), 2.0, "k is an int"),
        (jnp.zeros((3, 8), jnp.int32), 2, r"x is int32\[3, 8\]; give a floating array"),
        (jnp.zeros(()), 0, "at least one axis"),
    ],
)
def test_wrong_requests(x, k, message):
    with pytest.raises(ValueError, match=message):
        topk(x, k)


def test_derivative_reaches_the_chosen_alone():
    x = normal(*(4, 640), seed=1)
    weight = normal(*(4, 5), seed=2)
    idx = topk(x, 5)[1]
    gradient = jax.grad(lambda x: jnp.sum(topk(x, 5)[0] * weight))(x)
    want = np.zeros(x.shape, np.float32)
    np.put_along_axis(want, np.asarray(idx), np.asarray(weight), 1)
    np.testing.assert_array_equal(gradient, want)
    t = normal(*x.shape, seed=3)
    _, tangent = jax.jvp(lambda x: topk(x, 5)[0], (x,), (t,))
    np.testing.assert_array_equal(tangent, jnp.take_along_axis(t, idx, 1))


def test_transforms(mesh):
    x = normal(*(4, 3, 640), seed=1)
    want = lax.top_k(x, 5)
    same(jax.vmap(lambda a: topk(a, 5), in_axes=1, out_axes=1)(x), want)
    same(jax.jit(jax.checkpoint(lambda a: topk(a, 5)))(x), want)
    sharded = jax.shard_map(lambda a: topk(a, 5), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    same(jax.jit(sharded)(x), want)
    gradient = jax.grad(lambda a: jnp.sum(jnp.square(sharded(a)[0])))(x)
    np.testing.assert_allclose(gradient, jax.grad(lambda a: jnp.sum(jnp.square(topk(a, 5)[0])))(x), rtol=1e-6)
