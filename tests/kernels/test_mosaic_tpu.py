# SPDX-License-Identifier: Apache-2.0
"""The TPU kernels in interpret mode, bit for bit against the references; and that they lower at real shapes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jaxneuro_kernels import aot, encode_topk, topk, topk_mask
from jaxneuro_kernels.encode_topk import mosaic_tpu as encode_tpu
from jaxneuro_kernels.encode_topk import reference as encode_reference
from jaxneuro_kernels.shapes import SHAPES
from jaxneuro_kernels.topk import bins, mosaic_tpu, reference
from jaxneuro_kernels.topk_mask import mosaic_tpu as mask_tpu
from jaxneuro_kernels.topk_mask import reference as mask_reference

from .conftest import normal
from .test_topk import NEGATIVE_NAN, SPECIAL, same

TOKENS, N = 20, 1024  # blocks of 16 rows and of 32: the last is not full
TPU_V5E = {"kind": "TPU v5e", "platform": "tpu", "cores": 1}


@functools.cache
def interpreted(f, *static, **config):
    """f of arrays and then these, compiled for the CPU as the TPU would run it."""

    def call(*arrays):
        with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
            return f(*arrays, *static, **config)

    return jax.jit(call)


def ties(*shape, seed, dtype=jnp.float32):
    return jnp.round(normal(*shape, seed=seed) * 2).astype(dtype)


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["float32", "bfloat16"]),
    st.lists(st.one_of(st.sampled_from(SPECIAL), st.floats(-4, 4, width=32)), min_size=1, max_size=60),
    st.integers(0, 2**31),
)
def test_topk_equals_a_stable_sort(dtype, values, seed):
    pool = np.append(np.asarray(values, np.float32), NEGATIVE_NAN)
    x = jnp.asarray(np.random.default_rng(seed).choice(pool, (TOKENS, N)), dtype)
    same(interpreted(mosaic_tpu.topk, 7)(x), reference.topk(x, 7))


@pytest.mark.parametrize(("tokens", "n", "k"), [(16, 256, 1), (17, 2048, 32), (16, 1024, 128)])
def test_topk_sizes(tokens, n, k):
    for seed in range(2):
        x = ties(tokens, n, seed=seed)
        same(interpreted(mosaic_tpu.topk, k)(x), reference.topk(x, k))


def test_a_crowded_bin_is_noticed_and_its_rows_computed_again():
    x = np.array(normal(TOKENS, N, seed=1))
    x[3, [5, 261, 517]] = 9, 8, 7  # bin 5 holds three of the best and keeps two
    x[4, [5, 261, 517]] = 9, 9, 9
    x[5] = 0  # the best are the first seven: bins hold one each
    x[6, [5, 261]] = 9, 8  # just fits
    x[7] = NEGATIVE_NAN  # below every key of an empty bin
    x = jnp.asarray(x)
    _, idx = interpreted(mosaic_tpu.select, 7, bins=256, levels=2)(x)
    want = reference.topk(x, 7)
    rejected = (np.asarray(idx) < 0).any(1)
    assert rejected[[3, 4, 7]].all()
    assert not rejected[[5, 6]].any()
    assert rejected.sum() <= 4  # ordinary rows are not
    np.testing.assert_array_equal(idx[~rejected], want[1][~rejected])
    same(interpreted(mosaic_tpu.topk, 7, bins=256, levels=2)(x), want)


def test_only_blocks_with_a_rejected_row_are_computed_again(monkeypatch):
    monkeypatch.setattr(bins, "REPAIR_ROWS", 8)
    vals, idx = jnp.zeros((20, 3)), jnp.zeros((20, 3), jnp.int32)

    def again(part):
        return vals[: part.shape[0]] + part[:, :1], idx[: part.shape[0]] + jnp.int32(7)

    fix = jax.jit(lambda idx: bins.repaired(vals, idx, jnp.ones((20, 4)), again))
    assert (np.asarray(fix(idx)[1]) == 0).all()
    got = fix(idx.at[9].set(-1))
    np.testing.assert_array_equal(got[1][:, 0], np.repeat([0, 7, 0], [8, 8, 4]))
    np.testing.assert_array_equal(got[0][:, 0], np.repeat([0, 1, 0], [8, 8, 4]))
    np.testing.assert_array_equal(fix(idx.at[19].set(-1))[1][:, 0], np.repeat([0, 7], [12, 8]))


def encoder(tokens, d, n, seed, dtype):
    """Small integers: sums are exact in any order."""
    rng = np.random.default_rng(seed)
    x, w = (jnp.asarray(rng.integers(-3, 4, s).astype(np.float32), dtype) for s in ((tokens, d), (n, d)))
    return x, w, jnp.asarray(rng.integers(-3, 4, n).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "pre_dtype", "config"),
    [
        ("float32", "float32", {}),
        ("bfloat16", "bfloat16", {"bins": 256, "levels": 1}),
        ("bfloat16", "float32", {"rows": 16, "together": 1, "parts": 2}),
    ],
)
def test_encode_equals_the_reference(dtype, pre_dtype, config):
    parts = config.pop("parts", None)
    for seed in range(3):
        x, w, b = encoder(TOKENS, 256, N, seed, dtype)
        b = b.at[jnp.array([1, 300, 700, 900])].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1e4]))
        b = b.at[8].set(NEGATIVE_NAN)
        *want, _ = encode_reference.encode_topk(x, w, b, 7, jnp.dtype(pre_dtype))
        if parts:
            got = interpreted(encode_tpu.select, 7, jnp.dtype(pre_dtype), parts=parts, **config)(x, w, b)
        else:
            got = interpreted(encode_tpu.encode_topk, 7, jnp.dtype(pre_dtype), **config)(x, w, b)
        same(got, want)


def test_a_crowded_bin_of_latents():
    x, w, b = encoder(TOKENS, 256, N, 0, "bfloat16")
    select = interpreted(encode_tpu.select, 7, jnp.dtype("bfloat16"), bins=256, levels=1)
    crowded = b.at[jnp.array([5, 261])].set(1e4)
    assert (np.asarray(select(x, w, crowded)[1]) == -1).all()
    apart = 129 * np.arange(7)  # a bin each
    idx = np.sort(select(x, w, b.at[jnp.asarray(apart)].set(1e4))[1], axis=1)
    np.testing.assert_array_equal(idx, np.broadcast_to(apart, idx.shape))


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([(1, "float32"), (100, "float32"), (100, "bfloat16")]),
    st.lists(st.one_of(st.sampled_from(SPECIAL), st.floats(-4, 4, width=32)), min_size=1, max_size=60),
    st.integers(0, 2**31),
)
def test_mask_equals_a_stable_sort(which, values, seed):
    k, dtype = which
    pool = np.append(np.asarray(values, np.float32), NEGATIVE_NAN)
    h = jnp.asarray(np.random.default_rng(seed).choice(pool, (TOKENS, 384)), dtype)
    np.testing.assert_array_equal(interpreted(mask_tpu.topk_mask, k)(h), mask_reference.topk_mask(h, k))


def test_mask_of_distinct_values():
    h = normal(TOKENS, 384, seed=0)
    np.testing.assert_array_equal(interpreted(mask_tpu.topk_mask, 100)(h), mask_reference.topk_mask(h, 100))


def test_inside_shard_map(mesh):
    one = jax.sharding.Mesh(mesh.devices[:1], ("data",))
    spec = jax.sharding.PartitionSpec("data")
    f = jax.shard_map(lambda x: mosaic_tpu.topk(x, 3), mesh=one, in_specs=spec, out_specs=spec)
    x = ties(16, 256, seed=0)
    same(interpreted(f)(x), reference.topk(x, 3))


def test_levels_are_enough():
    rng = np.random.default_rng(0)
    for k, n_bins in ((8, 256), (32, 256), (64, 512)):
        for m in (1, 2):
            drawn = np.sort(rng.integers(0, n_bins, (20000, k)), axis=1)
            wrong = (drawn[:, m:] == drawn[:, :-m]).any(1).mean()
            assert wrong <= 1.05 * math.comb(k, m + 1) / n_bins**m
    for tokens, d, n, k in SHAPES.values():
        x, w = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((tokens, d), (n, d)))
        reason = encode_tpu.refuses(x, w, w, k)
        assert reason is None or d % 128, reason


def test_what_is_refused_says_why():
    f32, bf16, half = (functools.partial(jnp.zeros, dtype=t) for t in (jnp.float32, jnp.bfloat16, jnp.float16))
    assert "float16" in mosaic_tpu.refuses(half((2, 512)), 3)
    assert "rows of 1000 are no multiple of 256" in mosaic_tpu.refuses(f32((2, 1000)), 3)
    assert "a bin would have to keep more than 8" in mosaic_tpu.refuses(f32((2, 8192)), 4096)
    assert "d = 100" in encode_tpu.refuses(f32((2, 100)), f32((512, 100)), f32(512), 3)
    assert "pre_dtype is float16" in encode_tpu.refuses(f32((2, 128)), f32((512, 128)), f32(512), 3, jnp.float16)
    assert "multiple of 128 or above 65536" in mask_tpu.refuses(bf16((2, 100)), 3)
    with pytest.raises(ExceptionGroup, match="no implementation of mosaic_tpu") as caught:
        topk(f32((2, 512)), 3, implementation="mosaic_tpu")
    assert "it is for TPU devices" in str(caught.value.exceptions[0])


@pytest.mark.parametrize("name", ["gpt2-32k", "gemma2-131k-128"])
def test_lowers_at_real_shapes(name):
    tokens, d, n, k = SHAPES[name]
    x, w, pre = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((tokens, d), (n, d), (tokens, n)))
    b, h = jax.ShapeDtypeStruct((n,), jnp.float32), jax.ShapeDtypeStruct((512, 14336), jnp.float32)
    named = {"implementation": "mosaic_tpu"}
    programs = [
        (lambda x, w, b: encode_topk(x, w, b, k, **named), (x, w, b)),
        (lambda pre: topk(pre, k, **named), (pre,)),
        (lambda h: topk_mask(h, 1400, **named), (h,)),
    ]
    with aot.pretend(**TPU_V5E):
        for f, shapes in programs:
            assert "tpu_custom_call" in aot.lower(f, *shapes, platform="tpu")
