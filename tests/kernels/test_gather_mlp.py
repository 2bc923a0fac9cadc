# SPDX-License-Identifier: Apache-2.0
"""The MLP of a chosen few: the dense one with the others' activations at zero, whatever the subset."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxneuro_kernels import apply_mlp, compact_mlp, gather_mlp
from jaxneuro_kernels.gather_mlp import reference

from .conftest import normal

N, D, OUT = 40, 6, 7
KINDS = {"plain": (), "bias": ("b_in", "b_out"), "gated": ("w_gate",), "all": ("w_gate", "b_in", "b_out")}
SHAPES = {"w_in": (N, D), "w_out": (N, OUT), "w_gate": (N, D), "b_in": (N,), "b_out": (OUT,)}


def weights(kind, dtype="float32"):
    names = ("w_in", "w_out", *KINDS[kind])
    return {n: normal(*SHAPES[n], seed=i, dtype=dtype if n[0] == "w" else "float32") for i, n in enumerate(names)}


run = jax.jit(functools.partial(gather_mlp, activation=jax.nn.gelu))
dense = jax.jit(functools.partial(reference.gather_mlp, activation=jax.nn.gelu))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_dense_mlp_with_the_others_at_zero(kind, dtype, tolerance):
    w, x = weights(kind, dtype), normal(3, 4, D, seed=9, dtype=dtype)
    subset = np.random.default_rng(0).permutation(N)[:13].astype(np.int32)
    got = run(x, subset, **w)
    assert (got.shape, got.dtype) == ((3, 4, OUT), jnp.float32)
    want = dense(x, jnp.asarray(subset), **w)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * float(jnp.abs(want).max()))
    everything = dense(x, jnp.arange(N, dtype=jnp.int32), **w)
    whole = run(x, jnp.arange(N, dtype=jnp.int32), **w)
    np.testing.assert_allclose(whole, everything, rtol=0, atol=tolerance * float(jnp.abs(everything).max()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, N - 1), min_size=9, max_size=9))
def test_any_subset_with_padding_and_duplicates(subset):
    w, x, subset = weights("all"), normal(5, D, seed=9), jnp.asarray(np.asarray(subset, np.int32))
    np.testing.assert_allclose(run(x, subset, **w), dense(x, subset, **w), rtol=1e-4, atol=1e-4)


def test_padding_reads_and_changes_nothing():
    w, x = weights("all"), normal(5, D, seed=9)
    w["w_in"] = w["w_in"].at[jnp.array([0, N - 1])].set(jnp.nan)  # where a wrapped or clipped -1 would land
    subset = jnp.array([3, -1, 8, -1], jnp.int32)
    got = run(x, subset, **w)
    np.testing.assert_allclose(got, run(x, jnp.array([3, 8], jnp.int32), **w), rtol=1e-5, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x, subset, **w))))(x)
    assert np.isfinite(np.asarray(gradient)).all()
    nothing = run(x, jnp.full(3, -1, jnp.int32), **w)
    np.testing.assert_allclose(nothing, jnp.broadcast_to(w["b_out"], (5, OUT)))


@pytest.mark.parametrize("kind", ["plain", "all"])
def test_one_subset_per_sentence(kind):
    w, x = weights(kind), normal(3, 4, D, seed=9)
    subsets = jnp.asarray(np.random.default_rng(0).integers(-1, N, (3, 9)).astype(np.int32))
    got = run(x, subsets, **w)
    for i in range(3):
        np.testing.assert_allclose(got[i], run(x[i], subsets[i], **w), rtol=1e-5, atol=1e-5)
    mlp = compact_mlp(subsets, **w)
    np.testing.assert_allclose(apply_mlp(mlp, x[:, 0], jax.nn.gelu), got[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_dense_autodiff(kind):
    w, x = weights(kind), normal(5, D, seed=9)
    subset = jnp.array([3, 8, -1, 3, 20], jnp.int32)

    def loss(f):
        return jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, subset, **w))), (0, 1)))

    for a, b in zip(*(jax.tree.leaves(loss(f)(x, w)) for f in (run, dense)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_derivatives_by_finite_differences():
    w, x = weights("all"), normal(2, D, seed=9) / 4
    subset = jnp.array([3, 8, -1], jnp.int32)
    check_grads(lambda x: jnp.sin(run(x, subset, **w)), (x,), 1, atol=2e-2, rtol=2e-2)


def test_leading_axes_and_empties():
    w, x = weights("all"), normal(2, 3, 4, D, seed=9)
    subset = jnp.array([3, 8], jnp.int32)
    flat = run(x.reshape(24, D), subset, **w)
    np.testing.assert_allclose(run(x, subset, **w).reshape(24, OUT), flat, rtol=1e-5, atol=1e-6)
    assert run(x[0, 0, 0], subset, **w).shape == (OUT,)
    assert run(x[:0], subset, **w).shape == (0, 3, 4, OUT)
    assert run(x[:0], jnp.zeros((0, 2), jnp.int32), **w).shape == (0, 3, 4, OUT)
    np.testing.assert_allclose(run(x[0, 0], subset[:0], **w), jnp.broadcast_to(w["b_out"], (4, OUT)))


def test_transforms(mesh):
    w, x = weights("all"), normal(4, 3, D, seed=9)
    subset = jnp.array([3, 8, -1, 30], jnp.int32)

    def loss(x, w):
        return jnp.sum(jnp.square(run(x, subset, **w)))

    want = jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(x, w))
    remat = jax.tree.leaves(jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))(x, w))
    for check in (True, False):
        sharded = jax.shard_map(
            lambda *a: jax.lax.psum(loss(*a), "data"),
            mesh=mesh,
            in_specs=(P("data"), P()),
            out_specs=P(),
            check_vma=check,
        )
        split = jax.tree.leaves(jax.jit(jax.grad(sharded, (0, 1)))(x, w))
        for a, b, c in zip(want, remat, split, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-4)
    mapped = jax.vmap(lambda x, s: run(x, s, **w))(x, jnp.stack([subset] * 4))
    np.testing.assert_allclose(mapped, run(x, subset, **w), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("this_machine")
def test_gathered_once_and_small():
    """Weights beyond the chosen rows are neither copied nor multiplied."""
    n, d, m = 16384, 64, 256
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, d), (n, d), (n, d))]
    f = jax.jit(lambda x, s, a, b: gather_mlp(x, s, a, b, activation=jax.nn.relu))
    memory = f.lower(shapes[0], jax.ShapeDtypeStruct((m,), jnp.int32), *shapes[1:]).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 6 * m * d * 4  # all rows: 4 MB a matrix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": jnp.array([0, N], jnp.int32)}, "neurons from 0 to 40: there are 0 to 39, and -1"),
        ({"neurons": jnp.array([0, -2], jnp.int32)}, "neurons from -2 to 0"),
        ({"neurons": jnp.array([0.0])}, "neurons is int32"),
        ({"w_out": jnp.zeros((3, OUT))}, r"w_in float32\[40, 6\], w_out float32\[3, 7\]"),
        ({"w_gate": jnp.zeros((N, OUT))}, r"w_gate float32\[40, 7\]"),
        ({"b_in": jnp.zeros(3)}, r"b_in float32\[3\]"),
        ({"w_out": jnp.zeros((N, OUT), jnp.bfloat16)}, "of one floating dtype"),
        ({"x": jnp.zeros((5, 3))}, r"x \[5, 3\] does not fit the chosen rows of w_in, \[2, 6\]"),
        ({"x": jnp.zeros((5, D), jnp.bfloat16)}, "x is bfloat16 and w_in float32"),
        ({"neurons": jnp.zeros((3, 2), jnp.int32)}, r"x \[5, 6\] does not fit the chosen rows of w_in, \[3, 2, 6\]"),
    ],
)
def test_wrong_requests(change, message):
    args = {"x": normal(5, D), "neurons": jnp.array([1, 2], jnp.int32), **weights("all")} | change
    with pytest.raises(ValueError, match=message):
        gather_mlp(**args, activation=jax.nn.relu)


def test_traced_neurons_out_of_range_are_none():
    w, x = weights("all"), normal(5, D, seed=9)
    got = run(x, jnp.array([3, N + 5], jnp.int32), **w)
    np.testing.assert_allclose(got, run(x, jnp.array([3, -1], jnp.int32), **w), rtol=1e-6)
