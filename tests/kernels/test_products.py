# SPDX-License-Identifier: Apache-2.0
"""The three sparse products: against the reference, against each other's derivatives, under every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxneuro_kernels import gather_dot, row_sum, sparse_decode
from jaxneuro_kernels.sparse_decode import reference
from jaxneuro_kernels.sparse_decode.segments import CHUNK, by_latent, cut, sums_of_rows

from .conftest import normal, problem

N = 640
OPS = {
    "sparse_decode": (lambda p: (p.vals, p.w), lambda i: lambda v, w: sparse_decode(v, i, w), reference.sparse_decode),
    "gather_dot": (lambda p: (p.x, p.w), lambda i: lambda x, w: gather_dot(x, i, w), reference.gather_dot),
    "row_sum": (
        lambda p: (p.vals, p.x),
        lambda i: lambda v, x: row_sum(v, i, x, N),
        lambda v, i, x: reference.row_sum(v, i, x, N),
    ),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_reference(op, dtype):
    p = problem(dtype=dtype)
    operands, ours, theirs = OPS[op]
    a, b = operands(p)
    got = ours(p.idx)(a, b)
    assert got.dtype == jnp.float32  # sums are float32 whatever goes in
    np.testing.assert_allclose(got, theirs(a, p.idx, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_derivatives(op, small):
    operands, ours, theirs = OPS[op]
    a, b = operands(small)
    f, g = jax.jit(ours(small.idx)), jax.jit(lambda a, b: theirs(a, small.idx, b))
    out, back = jax.vjp(f, a, b)
    _, want_back = jax.vjp(g, a, b)
    ct = normal(*out.shape, seed=9)
    for got, ref in zip(back(ct), want_back(ct), strict=True):
        np.testing.assert_allclose(got, ref, rtol=1e-4, atol=1e-4)
    t = (np.ones_like(a), np.sin(b))
    np.testing.assert_allclose(jax.jvp(f, (a, b), t)[1], jax.jvp(g, (a, b), t)[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives(op, small):
    operands, ours, theirs = OPS[op]
    a, b = operands(small)

    def mixed(f):  # d/da of <1, dL/db>, L far from quadratic
        def loss(a, b):
            return jnp.sum(jnp.sin(f(a, b) / 4.0))

        return jax.jit(jax.grad(lambda a: jnp.sum(jnp.cos(jax.grad(loss, 1)(a, b)))))(a)

    np.testing.assert_allclose(
        mixed(ours(small.idx)), mixed(lambda a, b: theirs(a, small.idx, b)), rtol=1e-3, atol=1e-4
    )


def test_derivatives_by_finite_differences():
    p = problem(tokens=4, d=3, n=N, k=2)
    check_grads(jax.jit(lambda v, w: jnp.sin(sparse_decode(v, p.idx, w))), (p.vals, p.w), 1, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("op", OPS)
def test_derivatives_are_sparse_products(op, small):
    """No derivative, of any order, holds [tokens, n_latents] or [tokens, k, d]."""
    operands, ours, _ = OPS[op]
    f = ours(small.idx)

    def second(h):
        return jax.grad(lambda a, b: jnp.sum(jax.grad(h)(a, b)), 1)

    jaxpr = jax.make_jaxpr(second(lambda a, b: jnp.sum(jnp.square(f(a, b)))))(*operands(small))
    tokens, k, d = 24, 5, 16
    sizes = {v.aval.shape for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars}
    assert not sizes & {(tokens, N), (N, tokens), (tokens, k, d)}
    assert any(eqn.primitive.name in OPS for eqn in jaxpr.jaxpr.eqns)


@pytest.mark.parametrize("op", OPS)
def test_vmap_of_each_operand(op, small):
    operands, ours, _ = OPS[op]
    a, b = operands(small)
    two = np.stack([small.idx, np.asarray(small.idx)[::-1]])
    apply = jax.jit(lambda i, a, b: ours(i)(a, b))
    double, more = 2 * np.asarray(a), np.asarray(b) + 1
    ab = np.stack([a, double], 1), np.stack([b, more])
    cases = {
        "first": (lambda x: apply(small.idx, x, b), ab[0], 1),
        "second": (lambda x: apply(small.idx, a, x), ab[1], 0),
        "indices": (lambda i: apply(i, a, b), two, 0),
    }
    for name, (f, stacked, axis) in cases.items():
        want = [f(np.take(stacked, i, axis)) for i in range(2)]
        got = jax.jit(jax.vmap(f, axis))(stacked)
        np.testing.assert_allclose(got, np.stack(want), rtol=1e-5, atol=1e-5, err_msg=name)
    nested = jax.jit(jax.vmap(lambda i: jax.vmap(lambda x: ours(i)(x, b), 1)(ab[0])))(two)
    want = np.stack([np.stack([apply(i, x, b) for x in (a, double)]) for i in two])
    np.testing.assert_allclose(nested, want, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda x, y: jnp.sum(jnp.square(ours(small.idx)(x, y))), 1)
    summed, alone = jax.jit(jax.vmap(gradient, (1, 0)))(*ab), jax.jit(gradient)(double, more)
    np.testing.assert_allclose(summed[1], alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("check", [True, False])
def test_shard_map(small, mesh, check):
    def loss(vals, idx, w):
        return jnp.sum(jnp.square(sparse_decode(vals, idx, w)))

    sharded = jax.shard_map(
        lambda *a: jax.lax.psum(loss(*a), "data"),
        mesh=mesh,
        in_specs=(P("data"), P("data"), P()),
        out_specs=P(),
        check_vma=check,
    )
    got = jax.jit(jax.grad(sharded, (0, 2)))(small.vals, small.idx, small.w)
    for a, b in zip(got, jax.grad(loss, (0, 2))(small.vals, small.idx, small.w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0]))
def test_ordered_sums_equal_the_reference(seed, crowding):
    """The route without scatters (accelerators): any crowding of latents, chunk borders included."""
    rng = np.random.default_rng(seed)
    tokens, k, n, d = 32, 4, 12, 3
    idx = rng.integers(0, n, (tokens, k)).astype(np.int32)
    idx[rng.random((tokens, k)) < crowding] = int(rng.integers(0, n))
    vals, x = (rng.integers(-8, 8, s).astype(np.float32) for s in ((tokens, k), (tokens, d)))
    (got,) = _sums(jnp.asarray(idx), jnp.asarray(vals), jnp.asarray(x))
    np.testing.assert_array_equal(got, reference.row_sum(vals, idx, x, n))  # integers: exact in any order
    assert tokens * k > 4 * CHUNK


@jax.jit
def _sums(idx, vals, x):
    return sums_of_rows(idx, 12, ((vals, x),))


def test_order_of_sums_does_not_depend_on_other_latents():
    p = problem(tokens=64, seed=4)
    alone = jnp.where(p.idx == 3, p.vals, 0.0)
    run = jax.jit(lambda vals: sums_of_rows(p.idx, N, ((vals, p.x),))[0])
    np.testing.assert_array_equal(run(p.vals)[3], run(alone)[3])


def test_leading_axes_and_empties(small):
    vals, idx = (a.reshape(2, 12, 5) for a in (small.vals, small.idx))
    x = small.x.reshape(2, 12, 16)
    np.testing.assert_array_equal(
        sparse_decode(vals, idx, small.w).reshape(24, 16), sparse_decode(small.vals, small.idx, small.w)
    )
    assert gather_dot(x, idx, small.w).shape == (2, 12, 5)
    np.testing.assert_array_equal(row_sum(vals, idx, x, N), row_sum(small.vals, small.idx, small.x, N))
    assert sparse_decode(vals[:0], idx[:0], small.w).shape == (0, 12, 16)
    assert (np.asarray(sparse_decode(vals[..., :0], idx[..., :0], small.w)) == 0).all()
    assert (np.asarray(row_sum(vals[:0], idx[:0], x[:0], N)) == np.zeros((N, 16))).all()
    assert gather_dot(x[:, :0], idx[:, :0], small.w).shape == (2, 0, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: sparse_decode(p.vals[:3], p.idx, p.w), r"sparse_decode: vals float32\[3, 5\], idx int32\[24, 5\]"),
        (lambda p: sparse_decode(p.vals, p.idx.astype(jnp.int16), p.w), "idx is int32"),
        (lambda p: gather_dot(p.x[:, :3], p.idx, p.w), r"gather_dot: x float32\[24, 3\]"),
        (lambda p: row_sum(p.vals, p.idx, p.x, 0), "row_sum"),
        (lambda p: sparse_decode(p.idx, p.idx, p.w), "the rest floating"),
    ],
)
def test_wrong_requests(small, call, message):
    with pytest.raises(ValueError, match=message):
        call(small)


def test_bitwise_repeatable(small):
    for op, (operands, ours, _) in OPS.items():
        run = jax.jit(ours(small.idx))
        first = run(*operands(small))
        for _ in range(5):
            np.testing.assert_array_equal(first, run(*operands(small)), err_msg=op)


def test_long_latents_are_cut_into_parts():
    idx = jnp.asarray(np.array([[0, 1], [0, 2], [0, 4], [0, 2], [0, 2]], np.int32))
    parts = cut(by_latent(idx, 5), 2)
    used = np.asarray(parts.begin) < np.asarray(parts.end)
    np.testing.assert_array_equal(np.asarray(parts.owner)[used], [0, 0, 0, 2, 2])
    np.testing.assert_array_equal((parts.end - parts.begin)[used], [2, 2, 1, 2, 1])
    np.testing.assert_array_equal(parts.after - parts.first, [3, 0, 2, 0, 0])
