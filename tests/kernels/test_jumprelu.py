# SPDX-License-Identifier: Apache-2.0
"""Thresholds that can be trained: the printed pseudo-derivatives, in both modes and under every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from jaxneuro_kernels import jumprelu, step
from jaxneuro_kernels.jumprelu import reference

from .conftest import normal

OPS = {"jumprelu": jumprelu, "step": step}
NUMBERS = st.floats(-8, 8, width=16)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=4, max_size=4), st.sampled_from([0.25, 0.5, 2.0]))
def test_equal_the_formulas(pairs, bandwidth):
    z, theta = jnp.asarray(np.asarray(pairs, np.float32).T)
    want = reference.derivatives(z, theta, bandwidth)
    for name, op in OPS.items():
        out, back = jax.vjp(lambda z, t, op=op: op(z, t, bandwidth), z, theta)
        np.testing.assert_array_equal(out, getattr(reference, name)(z, theta))
        dz, dtheta = back(jnp.ones(4))
        np.testing.assert_array_equal(dz, want[f"{name}_z"])
        np.testing.assert_allclose(dtheta, want[f"{name}_theta"], rtol=1e-6)


def test_borders():
    z, theta = jnp.array([1.0, 0.75, 1.25, 1.125, -jnp.inf, jnp.inf, jnp.nan]), jnp.float32(1.0)
    np.testing.assert_array_equal(step(z, theta, 0.5), [0, 0, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(jumprelu(z, theta, 0.5), [0, 0, 1.25, 1.125, 0, jnp.inf, 0])
    each = jax.jacobian(step, 1)(z, theta, 0.5)  # the box is open
    np.testing.assert_array_equal(each, [-2, 0, 0, -2, 0, 0, 0])


@pytest.mark.parametrize("op", OPS)
def test_the_expectation_is_estimated(op):
    """Over z of a smooth density, the mean pseudo-derivative is that of the mean: what the estimator is for."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=400_000).astype(np.float32))
    theta = 0.7
    density = np.exp(-(theta**2) / 2) / np.sqrt(2 * np.pi)
    got = jax.grad(lambda t: jnp.mean(OPS[op](z, t, 0.1)))(jnp.float32(theta))
    want = -density * (theta if op == "jumprelu" else 1)
    assert float(got) == pytest.approx(want, rel=0.03)  # 11,000 samples in the box: one per cent


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 1), (1, 5), (4, 3, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_thresholds_broadcast_from_the_right(op, shape, dtype):
    z = normal(4, 3, 5, seed=1, dtype=dtype)
    theta = jnp.abs(normal(*shape, seed=2, dtype=dtype))
    f = jax.jit(OPS[op])
    out, back = jax.vjp(lambda z, t: f(z, t, 0.5), z, theta)
    assert (out.shape, out.dtype) == (z.shape, z.dtype)
    dz, dtheta = back(jnp.ones_like(out))
    full = reference.derivatives(*(a.astype(jnp.float32) for a in (z, jnp.broadcast_to(theta, z.shape))), 0.5)
    _, summed = jax.vjp(lambda t: jnp.broadcast_to(t, z.shape), theta.astype(jnp.float32))
    assert (dz.dtype, dtheta.dtype, dtheta.shape) == (z.dtype, z.dtype, theta.shape)
    np.testing.assert_array_equal(dz.astype(jnp.float32), full[f"{op}_z"])
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(
        dtheta.astype(jnp.float32), summed(full[f"{op}_theta"])[0], rtol=tolerance, atol=tolerance * 4
    )


def test_derivative_to_z_by_finite_differences():
    z = jnp.array([-1.0, 0.3, 0.8, 2.0])
    check_grads(lambda z: jnp.sin(jumprelu(z, jnp.float32(0.5), 0.1)), (z,), 2, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("op", OPS)
def test_the_tangent_is_linear_and_both_modes_agree(op):
    z, theta, dz, dtheta, ct = normal(6, 5), *(normal(*s, seed=i) for i, s in enumerate([(5,), (6, 5), (5,), (6, 5)]))
    f = lambda z, t: OPS[op](z, t, 1.0)  # noqa: E731
    _, tangent = jax.jvp(f, (z, theta), (dz, dtheta))
    _, twice = jax.jvp(f, (z, theta), (2 * dz, 2 * dtheta))
    np.testing.assert_allclose(twice, 2 * tangent, rtol=1e-6)
    back = jax.vjp(f, z, theta)[1](ct)
    forward, backward = jnp.sum(tangent * ct), jnp.sum(dz * back[0]) + jnp.sum(dtheta * back[1])
    np.testing.assert_allclose(forward, backward, rtol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_transforms(op, mesh):
    z, theta = normal(8, 5), normal(5, seed=1)

    def loss(z, theta, bandwidth):
        return jnp.sum(jnp.sin(OPS[op](z, theta, bandwidth) + z))

    want = jax.jit(jax.grad(loss, (0, 1)))(z, theta, jnp.float32(0.5))  # a traced bandwidth
    assert float(jax.grad(loss, 2)(z, theta, jnp.float32(0.5))) == 0
    remat = jax.grad(jax.checkpoint(loss), (0, 1))(z, theta, 0.5)
    mapped = jax.vmap(jax.grad(loss, (0, 1)), (None, 0, 0))(z, theta[None], jnp.full(1, 0.5))
    for a, b, c in zip(want, remat, mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_allclose(a, c[0], rtol=1e-6)
    for check in (True, False):
        sharded = jax.shard_map(
            lambda *a: jax.lax.psum(loss(*a, 0.5), "data"),
            mesh=mesh,
            in_specs=(P("data"), P()),
            out_specs=P(),
            check_vma=check,
        )
        for a, b in zip(want, jax.jit(jax.grad(sharded, (0, 1)))(z, theta), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", OPS)
def test_wrong_requests_and_empties(op):
    z, theta = jnp.zeros((3, 8)), jnp.zeros(8)
    for args, message in (
        ((z, theta[:3], 0.1), rf"{op}: z float32\[3, 8\], theta float32\[3\], bandwidth \[\] do not fit"),
        ((theta, z, 0.1), "theta broadcasts to z"),
        ((z, theta.astype(jnp.bfloat16), 0.1), "has its floating dtype"),
        ((z.astype(jnp.int32), theta.astype(jnp.int32), 0.1), "floating"),
        ((z, theta, theta), r"bandwidth \[8\]"),
        ((z, theta, 0.0), "bandwidth = 0.0; it is positive"),
        ((z, theta, jnp.nan), "bandwidth = nan"),
    ):
        with pytest.raises(ValueError, match=message):
            OPS[op](*args)
    assert OPS[op](z[:0], theta, 0.1).shape == (0, 8)
