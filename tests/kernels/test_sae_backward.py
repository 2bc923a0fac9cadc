# SPDX-License-Identifier: Apache-2.0
"""The fused backward pass: against dense autodiff, on both routes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxneuro_kernels import Rows, sae_adam, sae_backward
from jaxneuro_kernels.sae_backward import reference, xla

from .conftest import normal, problem

_reference = jax.jit(reference.sae_backward, static_argnums=6)


@pytest.mark.parametrize(
    ("relu", "extra", "dtype"), [(True, None, "float32"), (True, 0.7, "bfloat16"), (False, 0.7, "float32")]
)
def test_equals_dense_autodiff(relu, extra, dtype):
    p = problem(dtype=dtype)
    more = jnp.zeros_like(p.vals) if extra is None else jnp.full_like(p.vals, extra)
    got = sae_backward(p.vals, p.idx, p.g, p.x, p.w_dec, dvals=None if extra is None else more, relu=relu)
    want = _reference(p.vals, p.idx, p.g, p.x, p.w_dec, more, relu)
    for name, a, b in zip(got._fields, got, want, strict=True):
        assert a.dtype == jnp.float32
        scale = float(np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_the_ordered_route_equals_the_one_in_place(monkeypatch, small):
    """What accelerators run, on this machine."""
    args = (small.vals, small.idx, small.g, small.x, small.w_dec, jnp.ones_like(small.vals))
    here = jax.jit(xla.sae_backward)(*args)
    routes = {}
    monkeypatch.setattr(xla.lax, "platform_dependent", lambda *a, **by: routes.update(by) or by["default"](*a))
    there = jax.jit(lambda *a: xla.sae_backward(*a))(*args)
    assert set(routes) == {"cpu", "default"}
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_transcoder_widths():
    p = problem(d=16)
    g, w_dec = jnp.ones((24, 7)), jnp.ones((640, 7))
    out = sae_backward(p.vals, p.idx, g, p.x, w_dec)
    assert (out.dw_dec.shape, out.dw_enc.shape, out.db_enc.shape) == ((640, 7), (640, 16), (640,))


def test_leading_axes_and_empties(small):
    flat = sae_backward(small.vals, small.idx, small.g, small.x, small.w_dec)
    parts = [a.reshape(2, 12, a.shape[-1]) for a in (small.vals, small.idx, small.g, small.x)]
    deep = sae_backward(*parts, small.w_dec)
    assert deep.dvals.shape == (2, 12, 5)
    for a, b in zip(flat[1:], deep[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    empty = sae_backward(*(a[:0] for a in parts), small.w_dec)
    assert empty.dvals.shape == (0, 12, 5)
    assert (np.asarray(empty.dw_dec) == 0).all()


def test_it_has_no_derivative(small):
    with pytest.raises(NotImplementedError, match="differentiate encode_topk and sparse_decode"):
        jax.grad(lambda g: jnp.sum(sae_backward(small.vals, small.idx, g, small.x, small.w_dec).dw_dec))(small.g)


def test_transforms(small, mesh):
    want = sae_backward(small.vals, small.idx, small.g, small.x, small.w_dec)
    mapped = jax.vmap(lambda g: sae_backward(small.vals, small.idx, g, small.x, small.w_dec))(
        jnp.stack([small.g, 2.0 * small.g])
    )
    np.testing.assert_allclose(mapped.dw_enc[1], 2 * want.dw_enc, rtol=1e-5, atol=1e-5)

    def local(vals, idx, g, x, w_dec):
        out = sae_backward(vals, idx, g, x, w_dec)
        return jax.lax.psum(out.dw_dec, "data"), out.dvals

    for check in (True, False):
        f = jax.shard_map(
            local, mesh=mesh, in_specs=(*[P("data")] * 4, P()), out_specs=(P(), P("data")), check_vma=check
        )
        dw_dec, dvals = jax.jit(f)(small.vals, small.idx, small.g, small.x, small.w_dec)
        np.testing.assert_allclose(dw_dec, want.dw_dec, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dvals, want.dvals, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("this_machine")
def test_bitwise_repeatable_and_small_in_memory():
    tokens, d, n, k = 1024, 8, 65536, 4
    shapes = [(tokens, k), (tokens, k), (tokens, d), (tokens, d), (n, d)]
    dtypes = [jnp.float32, jnp.int32, *[jnp.float32] * 3]
    run = jax.jit(sae_backward)
    memory = run.lower(*map(jax.ShapeDtypeStruct, shapes, dtypes)).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < tokens * n * 4 / 20  # a dense [tokens, n_latents] is 268 MB
    p = problem()
    first = run(p.vals, p.idx, p.g, p.x, p.w_dec)
    for _ in range(5):
        for a, b in zip(first, run(p.vals, p.idx, p.g, p.x, p.w_dec), strict=True):
            np.testing.assert_array_equal(a, b)


def test_wrong_requests(small):
    with pytest.raises(ValueError, match=r"sae_backward: vals float32\[24, 5\].*g float32\[24, 3\]"):
        sae_backward(small.vals, small.idx, small.g[:, :3], small.x, small.w_dec)


def adam_state(p, seed=20):
    """Parameters and moments of a problem."""
    shapes = (p.w.shape, p.b.shape, p.w_dec.shape)
    m, v = (Rows(*(normal(*s, seed=seed + i + j) for j, s in enumerate(shapes))) for i in (0, 5))
    return Rows(p.w, p.b, p.w_dec), m, jax.tree.map(jnp.abs, v)


@pytest.mark.parametrize("unit_norm", [True, False])
def test_adam_is_backward_and_then_adam(small, unit_norm):
    state = adam_state(small)
    numbers = {"learning_rate": 1e-2, "b1": 0.8, "b2": 0.99, "eps": 1e-3, "unit_norm": unit_norm}
    extra = normal(*small.vals.shape, seed=8)
    got = sae_adam(small.vals, small.idx, small.g, small.x, *state, 3, dvals=extra, **numbers)
    gradients = _reference(small.vals, small.idx, small.g, small.x, small.w_dec, extra, True)
    want = reference.sae_adam(gradients, *state, step=3, **numbers)
    for a, b in zip(jax.tree.leaves(tuple(got)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    norms = jnp.linalg.norm(got.parameters.w_dec, axis=1)
    assert bool(jnp.allclose(norms, 1, atol=1e-5)) == unit_norm


def test_adam_of_nothing_decays_the_moments(small):
    p, m, v = adam_state(small)
    for vals, idx, g, x in (
        (small.vals[:0], small.idx[:0], small.g[:0], small.x[:0]),
        (small.vals[:, :0], small.idx[:, :0], small.g, small.x),
    ):
        out = sae_adam(vals, idx, g, x, p, m, v, 1, learning_rate=0.0)
        assert out.dvals.shape == idx.shape
        np.testing.assert_allclose(out.first.w_enc, 0.9 * m.w_enc, rtol=1e-6)
        np.testing.assert_array_equal(out.parameters.b_enc, p.b_enc)


def test_adam_under_jit_and_vmap(small):
    p, m, v = adam_state(small)
    args = (small.vals, small.idx, small.g, small.x)
    want = sae_adam(*args, p, m, v, 2, learning_rate=1e-2)
    step = jax.jit(lambda p, m, v, t, rate: sae_adam(*args, p, m, v, t, learning_rate=rate))
    two = jax.tree.map(lambda a: jnp.stack([a, a]), (p, m, v))
    rates = jnp.array([1e-2, 0.0])
    swept = jax.jit(jax.vmap(step, (0, 0, 0, None, 0)))(*two, 2, rates)
    for a, b in zip(jax.tree.leaves(step(p, m, v, jnp.int32(2), 1e-2)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=4e-6, atol=4e-7)
    np.testing.assert_allclose(swept.parameters.w_dec[0], want.parameters.w_dec, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(swept.parameters.w_dec[1], p.w_dec)  # a rate of zero


def test_wrong_adam_requests(small):
    p, m, v = adam_state(small)
    args = (small.vals, small.idx, small.g, small.x)
    with pytest.raises(ValueError, match=r"sae_adam: first.b_enc is float32\[3\]; wanted float32\[640\]"):
        sae_adam(*args, p, m._replace(b_enc=jnp.zeros(3)), v, 1, learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"parameters.w_enc is bfloat16\[640, 16\]"):
        sae_adam(*args, p._replace(w_enc=p.w_enc.astype(jnp.bfloat16)), m, v, 1, learning_rate=1e-3)
    with pytest.raises(NotImplementedError, match="have no derivative themselves"):
        jax.grad(lambda g: jnp.sum(sae_adam(*args[:2], g, small.x, p, m, v, 1, learning_rate=1.0).first.w_dec))(small.g)
