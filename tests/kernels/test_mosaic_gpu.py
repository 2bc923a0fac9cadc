# SPDX-License-Identifier: Apache-2.0
"""The Hopper kernels in Pallas' GPU interpreter: numbers against the references, and no data race.

The interpreter runs every copy, barrier and matmul instruction on the CPU, with a vector clock per thread. Kernels run
through the public ops where transforms are concerned, else directly.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import PartitionSpec as P
from jaxneuro_kernels import (
    Rows,
    dispatch,
    gather_dot,
    sae_adam,
    sae_backward,
    sparse_decode,
    topk,
    topk_mask,
)
from jaxneuro_kernels.aot import H100
from jaxneuro_kernels.encode_topk import mosaic_gpu as encode_gpu
from jaxneuro_kernels.encode_topk import reference as encode_reference
from jaxneuro_kernels.sae_backward import mosaic_gpu as backward_gpu
from jaxneuro_kernels.sae_backward import reference as backward_reference
from jaxneuro_kernels.sparse_decode import mosaic_gpu as products_gpu
from jaxneuro_kernels.sparse_decode import reference
from jaxneuro_kernels.topk import mosaic_gpu as topk_gpu
from jaxneuro_kernels.topk_mask import mosaic_gpu as mask_gpu
from jaxneuro_kernels.topk_mask import reference as mask_reference

from .conftest import normal
from .test_topk import SPECIAL, same

RACE = "RACE DETECTED"
NEGATIVE_NAN = np.array(0xFFC00000, np.uint32).view(np.float32)  # what 0/0 gives on x86


@contextlib.contextmanager
def interpreted():
    """Kernels traced here run in the interpreter, which looks for races."""
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        yield


@pytest.fixture
def no_race(capsys):
    """A race is printed by jax 0.11, and an error from 0.12 on."""
    with interpreted():
        yield
    assert RACE not in capsys.readouterr().out


@pytest.fixture
def on_hopper(monkeypatch, no_race):
    """The public ops believe that this is an H100."""
    monkeypatch.setattr(dispatch, "target", lambda: dispatch.Target("cuda", H100))


def entries(tokens=10, k=3, n=7, d=128, dtype=jnp.bfloat16, seed=0):
    """vals, idx, g, x, w: latent 3 twice in every token, latent 5 never."""
    rng = np.random.default_rng(seed)
    idx = rng.integers(0, n, (tokens, k)).astype(np.int32)
    idx[idx == 5] = 6
    idx[:, :2] = 3
    g, x = (normal(tokens, d, seed=seed + i, dtype=dtype) for i in (1, 2))
    return normal(tokens, k, seed=seed + 3), jnp.asarray(idx), g, x, normal(n, d, seed=seed + 4, dtype=dtype)


# Selection


def special_rows(n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, n)).astype(np.float32)
    x[1] = np.round(x[1] * 2) / 2  # ties
    x[2, [77, 99, 100]] = np.nan, np.inf, NEGATIVE_NAN
    x[3] = 0
    x[4, ::2], x[4, 1::2] = -0.0, 0.0
    x[5] = -np.inf
    x[5, 7] = 1e-40
    return jnp.asarray(x)


@pytest.mark.parametrize(
    ("k", "dtype", "rows"), [(1, "float32", 6), (7, "bfloat16", 6), (33, "float32", 6), (100, "bfloat16", 2)]
)
def test_topk(no_race, k, dtype, rows):
    x = special_rows(2048)[:rows].astype(dtype)
    assert topk_gpu.refuses(x, k) is None
    same(topk_gpu.topk(x, k), lax.top_k(x, k))


@settings(max_examples=4, deadline=None)
@given(st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=9), st.integers(0, 2**31), st.sampled_from([3, 20]))
def test_topk_of_anything(values, seed, k):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.choice(np.append(np.asarray(values, np.float32), NEGATIVE_NAN), (2, 2048)))
    with interpreted():
        got = topk_gpu.topk(x, k)
    same(got, lax.top_k(x, k))


def test_topk_takes_only_what_fits():
    assert topk_gpu.group_size(131072, 32) == 64
    assert "n = 1000" in topk_gpu.refuses(jnp.zeros((2, 1000)), 3)
    assert "no group" in topk_gpu.refuses(jnp.zeros((2, 2048)), 2000)
    assert "float16" in topk_gpu.refuses(jnp.zeros((2, 2048), jnp.float16), 3)
    huge = jax.ShapeDtypeStruct((1 << 14, 1 << 17), jnp.bfloat16)
    assert "2^31 elements" in topk_gpu.refuses(huge, 32)
    vals, rows = jax.ShapeDtypeStruct((8, 4), jnp.float32), jax.ShapeDtypeStruct((640, 16384), jnp.float32)
    assert "d = 16384 is more than the 12288" in products_gpu.refuses(vals, vals, rows)
    for k in (1, 2, 31, 32, 33, 100, 128, 256, 512):  # whole warpgroups of candidates, at most 32 barriers
        group = topk_gpu.group_size(131072, k)
        copies = topk_gpu._padded(k, group)
        assert copies >= k
        assert copies * group % 128 == 0
        assert copies % topk_gpu.copies_per_barrier(copies) == 0
        assert copies // topk_gpu.copies_per_barrier(copies) <= 32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [1, 200, 639])
def test_topk_mask(no_race, k, dtype):
    h = special_rows(640).astype(dtype)
    assert mask_gpu.refuses(h, k) is None
    kept = np.asarray(mask_gpu.topk_mask(h, k))
    assert (kept.sum(-1) == k).all()
    want = mask_reference.topk_mask(h, k)
    np.testing.assert_array_equal(kept, want if want.dtype == bool else np.asarray(want) != 0)


# Encoding


@pytest.mark.parametrize("pre_dtype", ["float32", "bfloat16"])
def test_encoder_matmul_and_its_maxima(no_race, pre_dtype):
    x, w = normal(256, 128, seed=1, dtype=jnp.bfloat16), normal(512, 128, seed=2, dtype=jnp.bfloat16)
    b = normal(512, seed=3)
    tiles = encode_gpu.Tiles(stages=2, band=1)
    pre, maxima = encode_gpu.matmul(x, w, b, 32, pre_dtype, tiles, sms=3)
    want = encode_reference.encode_topk(x, w, b, 1, pre_dtype)[2]
    assert pre.dtype == jnp.dtype(pre_dtype)
    pre, want = (np.asarray(a, np.float32) for a in (pre, want))
    np.testing.assert_allclose(pre, want, rtol=2**-7 if pre_dtype == "bfloat16" else 1e-5, atol=1e-4)
    np.testing.assert_array_equal(maxima, pre.reshape(256, 16, 32).max(-1).T)  # of exactly what was stored


def test_encode_topk(no_race, monkeypatch):
    monkeypatch.setattr(encode_gpu, "multiprocessors", lambda: 2)
    tokens, select = 6, topk_gpu.select

    def of_real_tokens(pre, maxima, k, group):  # interpreting all 128 of the padded block takes long
        vals, idx = select(pre[:tokens], maxima[:tokens], k, group)
        return tuple(jnp.pad(a, ((0, pre.shape[0] - tokens), (0, 0))) for a in (vals, idx))

    monkeypatch.setattr(topk_gpu, "select", of_real_tokens)
    x, w, b = normal(tokens, 64, seed=1, dtype=jnp.bfloat16), normal(2048, 64, seed=2, dtype=jnp.bfloat16), normal(2048)
    assert encode_gpu.refuses(x, w, b, 5, jnp.float32) is None
    vals, idx = encode_gpu.encode_topk(x, w, b, 5)
    want_vals, want_idx, _ = encode_reference.encode_topk(x, w, b, 5)
    np.testing.assert_array_equal(idx, want_idx)
    np.testing.assert_allclose(vals, want_vals, rtol=1e-5)


def test_encoder_takes_only_what_fits():
    x, w, b = jnp.zeros((3, 64), jnp.bfloat16), jnp.zeros((2048, 64), jnp.bfloat16), jnp.zeros(2048)
    assert "x is float32" in encode_gpu.refuses(x.astype(jnp.float32), w, b, 5, jnp.float32)
    assert "pre_dtype is float16" in encode_gpu.refuses(x, w, b, 5, jnp.float16)
    assert "d = 60" in encode_gpu.refuses(x[:, :60], w[:, :60], b, 5, jnp.float32)
    assert "k = 1999" in encode_gpu.refuses(x, w, b, 1999, jnp.float32)


# Products and the backward pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products(no_race, dtype):
    vals, idx, _, x, w = entries(dtype=dtype, d=256)
    assert products_gpu.refuses(vals, idx, w) is None
    got = products_gpu.sparse_decode(vals, idx, w, slots=2)
    np.testing.assert_allclose(got, reference.sparse_decode(vals, idx, w), rtol=1e-5, atol=1e-5)
    got = products_gpu.gather_dot(x, idx, w)
    np.testing.assert_allclose(got, reference.gather_dot(x, idx, w), rtol=1e-5, atol=1e-4)
    got = products_gpu.row_sum(vals, idx, x, w.shape[0])
    np.testing.assert_allclose(got, reference.row_sum(vals, idx, x, w.shape[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("relu", "split", "dtype"), [(True, 4, "bfloat16"), (False, 256, "float32")])
def test_backward(no_race, relu, split, dtype):
    """With split = 4, latent 3 is summed in parts."""
    vals, idx, g, x, w = entries(dtype=dtype)
    extra = normal(*vals.shape, seed=8)
    got = backward_gpu.sae_backward(vals, idx, g, x, w, extra, relu, split=split, slots=3)
    want = backward_reference.sae_backward(vals, idx, g, x, w, extra, relu)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    assert (np.asarray(got[1])[5] == 0).all()  # never active


def test_entries_of_no_latent_count_nowhere(no_race):
    vals, idx, g, x, w = entries(tokens=4)
    idx = idx.at[1, 2].set(w.shape[0]).at[2, 2].set(-1)
    got = backward_gpu.sae_backward(vals, idx, g, x, w, jnp.ones_like(vals), False)
    there = (idx >= 0) & (idx < w.shape[0])
    want = backward_reference.sae_backward(
        jnp.where(there, vals, 0.0), jnp.where(there, idx, 0), g, x, w, jnp.ones_like(vals), False
    )
    np.testing.assert_array_equal(got[0][~there], 0)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-5)


def rows(n, d, seed, positive=False):
    made = Rows(normal(n, d, seed=seed), normal(n, seed=seed + 1), normal(n, d, seed=seed + 2))
    return jax.tree.map(jnp.abs, made) if positive else made


@pytest.mark.parametrize("unit_norm", [True, False])
def test_adam(on_hopper, unit_norm):
    vals, idx, g, x, w = entries(dtype=jnp.float32)
    state = rows(*w.shape, 10)._replace(w_dec=w), rows(*w.shape, 20), rows(*w.shape, 30, positive=True)
    numbers = {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.99, "eps": 1e-3, "unit_norm": unit_norm}
    gradients = backward_reference.sae_backward(vals, idx, g, x, w, jnp.zeros_like(vals))
    want = backward_reference.sae_adam(gradients, *state, step=3, **numbers)
    for implementation in ("mosaic_gpu", "xla"):
        got = sae_adam(vals, idx, g, x, *state, 3, **numbers, implementation=implementation)
        for a, b in zip(jax.tree.leaves(tuple(got)), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_adam_is_optax_adam():
    vals, idx, g, x, w = entries(dtype=jnp.float32)
    parameters = rows(*w.shape, 10)._replace(w_dec=w)
    optimiser = optax.adam(1e-2, b1=0.8, b2=0.99, eps=1e-3)
    moments = optimiser.init(parameters)
    zero = jax.tree.map(jnp.zeros_like, parameters)
    state = (parameters, zero, zero)
    theirs = parameters
    for step in (1, 2, 3):
        state = sae_adam(vals, idx, g, x, *state, step, learning_rate=1e-2, b1=0.8, b2=0.99, eps=1e-3)[:3]
        out = sae_backward(vals, idx, g, x, theirs.w_dec)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimiser.update(Rows(out.dw_enc, out.db_enc, out.dw_dec), moments, theirs)
            theirs = optax.apply_updates(theirs, updates)
    for a, b in zip(state[0], theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Through the public ops


def test_derivatives_of_the_products(on_hopper):
    vals, idx, _, x, w = entries(tokens=4, dtype=jnp.float32)

    def loss(vals, x, w, implementation):
        kw = {"implementation": implementation}
        return jnp.sum(jnp.sin(sparse_decode(vals, idx, w, **kw))) + jnp.sum(jnp.sin(gather_dot(x, idx, w, **kw)))

    # Not jitted: inside jit the products are primitives, and the interpreter's callbacks cannot be lowered in one.
    got, want = (jax.grad(loss, (0, 1, 2))(vals, x, w, i) for i in ("mosaic_gpu", "xla"))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_vmap(on_hopper):
    vals, idx, _, _, w = entries(tokens=3)
    call = functools.partial(sparse_decode, implementation="mosaic_gpu")
    two = jnp.stack([w, 2 * w])
    got = jax.vmap(call, (None, None, 0))(vals, idx, two)
    want = [sparse_decode(vals, idx, v, implementation="xla") for v in two]
    np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check", [True, False])
def test_shard_map(on_hopper, check):
    """Traced, not run: the interpreter does not know meshes. Types over the mesh must agree all the same."""
    vals, idx, g, x, w = entries(tokens=4)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))

    def local(vals, idx, g, x, w):
        y = sparse_decode(vals, idx, w, implementation="mosaic_gpu")
        out = sae_backward(vals, idx, g, x, w, implementation="mosaic_gpu")
        return y, lax.psum(out.dw_dec, "data"), out.dvals

    f = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*[P("data")] * 4, P()),
        out_specs=(P("data"), P(), P("data")),
        check_vma=check,
    )
    y, dw, dvals = jax.eval_shape(f, vals, idx, g, x, w)
    assert (y.shape, dw.shape, dvals.shape) == ((4, 128), w.shape, vals.shape)


@pytest.mark.parametrize("op", ["topk", "topk_mask"])
def test_public_selection(on_hopper, op):
    x = special_rows(2048)[:2].reshape(2, 1, 2048)
    call = {"topk": topk, "topk_mask": topk_mask}[op]
    got, want = (call(x, 5, implementation=i) for i in ("mosaic_gpu", "xla"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_runs_are_bitwise_equal(no_race):
    vals, idx, g, x, w = entries()
    first, second = (
        backward_gpu.sae_backward(vals, idx, g, x, w, jnp.zeros_like(vals), split=4, slots=s) for s in (1, 3)
    )
    for a, b in zip(first, second, strict=True):  # nor does the number of buffers matter
        np.testing.assert_array_equal(a, b)


# The race detector has teeth


@pytest.mark.parametrize("missing", ["commit_smem", "barrier_wait"])
def test_a_removed_barrier_is_caught(monkeypatch, capsys, missing):
    vals, idx, _, _, w = entries(tokens=1, k=3)
    monkeypatch.setattr(products_gpu.plgpu, missing, lambda *_: None)
    caught = ""
    with interpreted():
        try:
            jax.block_until_ready(products_gpu.sparse_decode(vals, idx, w, slots=1))
        except Exception as e:  # from jax 0.12 on a race raises
            caught = str(e)
    assert RACE in caught + capsys.readouterr().out
