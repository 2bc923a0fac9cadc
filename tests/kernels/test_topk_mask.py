# SPDX-License-Identifier: Apache-2.0
"""The mask of the k largest against a full stable sort: ties, NaN of both signs, infinities, signed zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxneuro_kernels import topk_mask
from jaxneuro_kernels.topk.bisect import image, k_largest
from jaxneuro_kernels.topk.order import to_key
from jaxneuro_kernels.topk_mask import reference, xla

from .conftest import normal
from .test_topk import NEGATIVE_NAN, SPECIAL, bits

N = 48


@functools.cache
def compiled(k):
    def want(h):
        return jnp.where(reference.topk_mask(h, k), h, jnp.zeros((), h.dtype))

    return jax.jit(functools.partial(topk_mask, k=k)), jax.jit(want)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 24, 47]),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.lists(st.one_of(st.sampled_from([*SPECIAL, NEGATIVE_NAN]), st.floats(-4, 4, width=16)), min_size=1, max_size=60),
    st.integers(0, 2**31),
)
def test_equals_a_stable_sort(k, dtype, values, seed):
    with np.errstate(over="ignore"):
        pool = np.asarray(values, np.float32).astype(jnp.dtype(dtype))
    h = jnp.asarray(np.random.default_rng(seed).choice(pool, (5, N)))
    ours, theirs = compiled(k)
    got = ours(h)
    assert got.dtype == h.dtype
    np.testing.assert_array_equal(bits(got), bits(theirs(h)))


def test_exactly_k_of_equal_values_the_first_of_them():
    h = jnp.asarray(np.array([[1, 2, 1, 2, 1, 0], [0.0, -0.0, 0.0, -0.0, 0.0, -1], [np.nan] * 6], np.float32))
    kept = jax.jit(xla.topk_mask, static_argnums=1)(h, 3)
    np.testing.assert_array_equal(kept, [[1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0]])


def test_many_columns_and_few_values():
    h = jnp.round(normal(16, 3000, seed=1))
    kept = np.asarray(jax.jit(xla.topk_mask, static_argnums=1)(h, 700))
    assert (kept.sum(1) == 700).all()
    np.testing.assert_array_equal(kept, reference.topk_mask(h, 700))


def test_images_keep_the_order_of_keys():
    x = jnp.asarray(np.array([*SPECIAL, NEGATIVE_NAN], np.float32))
    np.testing.assert_array_equal(image(x), to_key(x))
    for dtype in (jnp.bfloat16, jnp.float16):
        every = jax.lax.bitcast_convert_type(jnp.arange(-(2**15), 2**15, dtype=jnp.int16), dtype)
        every = every[np.isfinite(np.asarray(every, np.float32))]
        np.testing.assert_array_equal(np.argsort(image(every), stable=True), np.argsort(to_key(every), stable=True))


def test_wide_floats():
    with jax.enable_x64(True):
        h = np.random.default_rng(0).normal(size=(3, 40)) * 1e-12 + 1.0  # equal as float32
        np.testing.assert_array_equal(np.asarray(topk_mask(h, 7)) > 0, np.argsort(np.argsort(-h)) < 7)


@pytest.mark.parametrize("shape", [(N,), (2, N), (2, 3, N), (1, 2, 1, N)])
def test_leading_axes(shape):
    h = normal(*shape, seed=3)
    got = topk_mask(h, 9)
    assert got.shape == shape
    np.testing.assert_array_equal(got.reshape(-1, N), compiled(9)[1](h.reshape(-1, N)))


@pytest.mark.parametrize(("shape", "k"), [((0, N), 5), ((3, 0), 0), ((2, 0, N), N), ((0, N), 0)])
def test_empty(shape, k):
    got = topk_mask(jnp.zeros(shape, jnp.bfloat16), k)
    assert (got.shape, got.dtype) == (shape, jnp.bfloat16)


def test_none_and_all():
    h = normal(3, N, seed=2)
    assert not np.asarray(topk_mask(h, 0)).any()
    np.testing.assert_array_equal(topk_mask(h, N), h)


@pytest.mark.parametrize(
    ("h", "k", "message"),
    [
        (jnp.zeros((3, 8)), 9, r"topk_mask: k = 9 of h \[3, 8\]: k is an int from 0 to 8"),
        (jnp.zeros((3, 8)), -1, "k = -1"),
        (jnp.zeros((3, 8)), 2.0, "k is an int"),
        (jnp.zeros((3, 8), jnp.int32), 2, r"h is int32\[3, 8\]; give a floating array"),
        (jnp.zeros(()), 0, "at least one axis"),
    ],
)
def test_wrong_requests(h, k, message):
    with pytest.raises(ValueError, match=message):
        topk_mask(h, k)


def test_derivative_passes_straight_through():
    h = jnp.maximum(normal(4, N, seed=1), 0.0)  # zeros among the kept
    weight, tangent = normal(4, N, seed=2), normal(4, N, seed=3)
    kept = reference.topk_mask(h, 40)
    gradient = jax.grad(lambda h: jnp.sum(topk_mask(h, 40) * weight))(h)
    np.testing.assert_array_equal(gradient, jnp.where(kept, weight, 0.0))
    _, out = jax.jvp(lambda h: topk_mask(h, 40), (h,), (tangent,))
    np.testing.assert_array_equal(out, jnp.where(kept, tangent, 0.0))
    apart = jnp.asarray(np.random.default_rng(0).permutation(N).astype(np.float32) / 8)
    check_grads(jax.jit(lambda h: jnp.sin(topk_mask(h, 9))), (apart,), 1, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("check", [True, False])
def test_transforms(mesh, check):
    h = normal(4, 3, N, seed=1)
    want = topk_mask(h, 9)
    np.testing.assert_array_equal(jax.vmap(lambda a: topk_mask(a, 9), in_axes=1, out_axes=1)(h), want)
    np.testing.assert_array_equal(jax.jit(jax.checkpoint(lambda a: topk_mask(a, 9)))(h), want)
    sharded = jax.shard_map(
        lambda a: topk_mask(a, 9), mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check
    )
    np.testing.assert_array_equal(jax.jit(sharded)(h), want)
    gradient = jax.grad(lambda a: jnp.sum(jnp.square(sharded(a))))(h)
    np.testing.assert_array_equal(gradient, 2.0 * want)


@pytest.mark.parametrize("axes", ["data", ("data", "latent")])
def test_the_largest_of_a_union_of_shards(axes):
    both = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "latent"))
    key = jnp.asarray(np.random.default_rng(0).integers(-3, 3, 64).astype(np.int32))
    for check in (True, False):
        run = jax.shard_map(
            lambda a: k_largest(a, 20, axis_name=axes), mesh=both, in_specs=P(axes), out_specs=P(axes), check_vma=check
        )
        np.testing.assert_array_equal(jax.jit(run)(key), k_largest(key, 20))


@pytest.mark.usefixtures("this_machine")
def test_no_sort_and_no_second_copy():
    shape = jax.ShapeDtypeStruct((256, 4096), jnp.float32)
    compiled = jax.jit(functools.partial(topk_mask, k=1000)).lower(shape).compile()
    assert " sort(" not in compiled.as_text()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 256 * 4096 * 4 * 2.5  # keys and masks; a sort holds keys and indices twice
