# SPDX-License-Identifier: Apache-2.0
"""Dictionaries split by latent: equal to the whole, values, indices, ties and gradients, on two kinds of mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec as P
from jaxneuro_kernels import (
    SaeGradients,
    encode_topk,
    sae_backward,
    sharded_encode_topk,
    sharded_sae_backward,
    sharded_sparse_decode,
    sharded_topk,
    sparse_decode,
    topk,
)

from .conftest import normal
from .test_topk import NEGATIVE_NAN, SPECIAL, same

MESHES = {"latent": ((1, 4), P()), "data x latent": ((2, 2), P("data"))}
BOTH = pytest.mark.parametrize(("mesh", "tokens"), [(m, t) for m, t in MESHES.values()], ids=list(MESHES))
CHECK = pytest.mark.parametrize("check", [True, False])
ROWS = P("latent")


def on(shape, f, in_specs, out_specs, check=True):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(shape), ("data", "latent"))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check))


@functools.cache
def compiled(k):
    split = on((1, 4), lambda x: sharded_topk(x, k, "latent"), P(None, "latent"), P())
    return split, jax.jit(lambda x: topk(x, k))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 7, 48]),  # 48: more than a shard has, and all
    st.lists(st.one_of(st.sampled_from([*SPECIAL, NEGATIVE_NAN]), st.floats(-4, 4, width=16)), min_size=1, max_size=40),
    st.integers(0, 2**31),
)
def test_topk_of_parts_is_that_of_the_whole(k, values, seed):
    x = jnp.asarray(np.random.default_rng(seed).choice(np.asarray(values, np.float32), (5, 48)))
    split, whole = compiled(k)
    same(split(x), whole(x))


def _loss(x, w, b, w_dec, k, encode=encode_topk, decode=sparse_decode):
    vals, idx = encode(x, w, b, k)
    return jnp.sum(jnp.sin(decode(vals, idx, w_dec))) + jnp.sum(jnp.square(vals))


_split_loss = functools.partial(
    _loss,
    encode=lambda *a: sharded_encode_topk(*a, "latent"),
    decode=lambda *a: sharded_sparse_decode(*a, "latent"),
)


@BOTH
@CHECK
def test_values_indices_and_gradients_equal_the_whole(small, mesh, tokens, check):
    specs = (tokens, ROWS, ROWS)
    code = on(mesh, lambda *a: sharded_encode_topk(*a, small.k, "latent"), specs, tokens, check)
    vals, idx = code(small.x, small.w, small.b)
    want = encode_topk(small.x, small.w, small.b, small.k)
    np.testing.assert_array_equal(idx, want[1])
    np.testing.assert_allclose(vals, want[0], rtol=1e-6)

    decode = on(mesh, lambda *a: sharded_sparse_decode(*a, "latent"), (tokens, tokens, ROWS), tokens, check)
    np.testing.assert_allclose(decode(vals, idx, small.w_dec), sparse_decode(*want, small.w_dec), rtol=1e-5, atol=1e-5)

    def split(x, w, b, w_dec):
        return jax.lax.psum(_split_loss(x, w, b, w_dec, small.k), "data")

    args = (small.x, small.w, small.b, small.w_dec)
    outside = jax.jit(jax.grad(on(mesh, split, (*specs, ROWS), P(), check), (0, 1, 2, 3)))(*args)
    wanted = jax.jit(jax.grad(_loss, (0, 1, 2, 3)), static_argnums=4)(*args, small.k)
    for a, b in zip(outside, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


@BOTH
def test_gradients_from_inside(small, mesh, tokens):
    specs = (tokens, ROWS, ROWS, ROWS)

    def inside(x, w, b, w_dec):
        def loss(*a):
            return jax.lax.psum(_split_loss(*a, small.k), "data")

        return jax.grad(jax.checkpoint(loss), (0, 1, 2, 3))(x, w, b, w_dec)

    args = (small.x, small.w, small.b, small.w_dec)
    wanted = jax.jit(jax.grad(_loss, (0, 1, 2, 3)), static_argnums=4)(*args, small.k)
    for a, b in zip(on(mesh, inside, specs, specs)(*args), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


@BOTH
@CHECK
@pytest.mark.parametrize("relu", [True, False])
def test_backward_equals_the_whole(small, mesh, tokens, check, relu):
    vals, idx = encode_topk(small.x, small.w, small.b, small.k, relu=False)
    more = normal(*vals.shape, seed=9)
    args = (vals, idx, small.g, small.x)
    want = sae_backward(*args, small.w_dec, dvals=more, relu=relu)

    def split(vals, idx, g, x, w_dec, more):
        out = sharded_sae_backward(vals, idx, g, x, w_dec, "latent", dvals=more, relu=relu)
        return SaeGradients(out.dvals, *(jax.lax.psum(a, "data") for a in out[1:]))

    run = on(mesh, split, (*[tokens] * 4, ROWS, tokens), SaeGradients(tokens, ROWS, ROWS, ROWS), check)
    for name, a, b in zip(want._fields, run(*args, small.w_dec, more), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=name)


@CHECK
def test_gradient_of_topk(check):
    x, weight = normal(6, 48, seed=1), normal(6, 20, seed=2)
    run = on((1, 4), lambda x: sharded_topk(x, 20, "latent"), P(None, "latent"), P(), check)
    got = jax.grad(lambda x: jnp.sum(jnp.sin(run(x)[0]) * weight))(x)
    np.testing.assert_allclose(got, jax.grad(lambda x: jnp.sum(jnp.sin(topk(x, 20)[0]) * weight))(x), rtol=1e-6)


def test_leading_axes_empties_and_vmap(small):
    x = small.x.reshape(2, 3, 4, 16)
    code = functools.partial(sharded_encode_topk, k=5, axis_name="latent")
    want = encode_topk(x, small.w, small.b, 5)
    for f in (code, jax.vmap(code, (0, None, None))):
        vals, idx = on((1, 4), f, (P(), ROWS, ROWS), P())(x, small.w, small.b)
        np.testing.assert_array_equal(idx, want[1])
        np.testing.assert_allclose(vals, want[0], rtol=1e-6)
    for empty, k in ((x[:0], 5), (x, 0)):
        run = on((1, 4), functools.partial(code, k=k), (P(), ROWS, ROWS), P())
        assert run(empty, small.w, small.b)[1].shape == (*empty.shape[:-1], k)
    decode = on((1, 4), lambda *a: sharded_sparse_decode(*a, "latent"), (P(), P(), ROWS), P())
    np.testing.assert_allclose(decode(*want, small.w_dec), sparse_decode(*want, small.w_dec), rtol=1e-5, atol=1e-5)
    assert decode(*(a[:0] for a in want), small.w_dec).shape == (0, 3, 4, 16)


def test_two_axes_of_the_mesh(small):
    rows = P(("data", "latent"))
    run = on((2, 2), lambda *a: sharded_encode_topk(*a, 5, ("data", "latent")), (P(), rows, rows), P())
    np.testing.assert_array_equal(run(small.x, small.w, small.b)[1], encode_topk(small.x, small.w, small.b, 5)[1])


def test_only_codes_travel(small):
    """No collective of the forward or backward pass has n_latents elements or more than the candidates."""

    def split(x, w, b, w_dec):
        return jax.value_and_grad(lambda *a: _split_loss(*a, small.k), (1, 2, 3))(x, w, b, w_dec)

    run = on((1, 4), split, (P(), ROWS, ROWS, ROWS), (P(), (ROWS, ROWS, ROWS)))
    jaxpr = jax.make_jaxpr(run)(small.x, small.w, small.b, small.w_dec)
    sent = [
        eqn.outvars[0].aval.size
        for eqn in _equations(jaxpr.jaxpr)
        if any(name in eqn.primitive.name for name in ("all_gather", "psum", "all_to_all", "ppermute"))
    ]
    assert sent
    assert max(sent) <= 24 * max(16, small.k * 4)  # tokens x d, or tokens x k x shards


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def test_wrong_requests(small):
    for f, message in (
        (lambda x, w, b: sharded_encode_topk(x, w, b, 641, "latent"), r"k = 641 of pre-activations \[24, 640\]"),
        (
            lambda x, w, b: sharded_encode_topk(x, w[:, :3], b, 5, "latent"),
            r"sharded_encode_topk: x .* w float32\[160, 3\]",
        ),
        (lambda x, w, b: sharded_topk(x, 65, "latent"), r"sharded_topk: k = 65 of x \[24, 64\]"),
        (
            lambda x, w, b: sharded_sparse_decode(x, b.astype(jnp.int32), w, "latent"),
            r"sharded_sparse_decode: vals float32\[24, 16\], idx int32\[160\] do",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            on((1, 4), f, (P(), ROWS, ROWS), P())(small.x, small.w, small.b)
