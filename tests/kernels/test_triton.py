# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: in Pallas' interpreter against the references, and compiled for an NVIDIA GPU."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxneuro_kernels import aot, dispatch, gather_dot, row_sum, sae_backward, sparse_decode, triton
from jaxneuro_kernels.dispatch import Target
from jaxneuro_kernels.sae_backward import reference as backward_reference
from jaxneuro_kernels.shapes import SHAPES, case
from jaxneuro_kernels.sparse_decode import reference

from .conftest import problem

OPS = ("sparse_decode", "gather_dot", "row_sum", "sae_backward")


@pytest.fixture
def on_ampere(monkeypatch):
    monkeypatch.setattr(dispatch, "target", lambda: Target("cuda", "NVIDIA A100-SXM4-80GB"))
    monkeypatch.setattr(triton, "INTERPRET", True)
    monkeypatch.setattr(triton, "SPLIT", 8)  # latent 3 is summed in parts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products(on_ampere, dtype):
    p = problem(tokens=6, d=20, n=11, dtype=dtype)
    idx = p.idx % 11
    kw = {"implementation": "triton"}
    np.testing.assert_allclose(
        sparse_decode(p.vals, idx, p.w, **kw), reference.sparse_decode(p.vals, idx, p.w), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        gather_dot(p.x, idx, p.w, **kw), reference.gather_dot(p.x, idx, p.w), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        row_sum(p.vals, idx, p.x, 11, **kw), reference.row_sum(p.vals, idx, p.x, 11), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("relu", [True, False])
def test_backward_and_its_way_through_autodiff(on_ampere, relu):
    p = problem(tokens=6, d=20, n=11)
    idx, extra = p.idx % 11, jnp.full_like(p.vals, 0.5)
    got = sae_backward(p.vals, idx, p.g, p.x, p.w_dec[:11], dvals=extra, relu=relu, implementation="triton")
    want = backward_reference.sae_backward(p.vals, idx, p.g, p.x, p.w_dec[:11], extra, relu)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)

    def loss(vals, w, implementation):
        return jnp.sum(jnp.sin(sparse_decode(vals, idx, w, implementation=implementation)))

    grads = (jax.grad(loss, (0, 1))(p.vals, p.w, i) for i in ("triton", "xla"))
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_columns_beyond_one_block(on_ampere, monkeypatch):
    monkeypatch.setattr(triton, "BLOCK", 8)
    p = problem(tokens=3, d=20, n=640)
    np.testing.assert_allclose(
        gather_dot(p.x, p.idx, p.w, implementation="triton"),
        reference.gather_dot(p.x, p.idx, p.w),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        sparse_decode(p.vals, p.idx, p.w, implementation="triton"),
        reference.sparse_decode(p.vals, p.idx, p.w),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("op", OPS)
def test_lowers_for_cuda(op):
    call, operands, _ = case(op, SHAPES["gemma2-131k"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the lowering itself
        text = aot.lower(functools.partial(call, implementation="triton"), *operands, platform="cuda")
    assert "triton" in text


def test_it_takes_only_what_it_can(on_ampere, monkeypatch):
    p = problem(tokens=2, n=640)
    wide = p.w.astype(jnp.float8_e4m3fn)
    with pytest.raises(ExceptionGroup) as caught:
        sparse_decode(p.vals, p.idx, wide, implementation="triton")
    assert "float8_e4m3fn; it takes" in str(caught.value.exceptions[0])
    monkeypatch.setattr(triton, "target", lambda: Target("cuda", "NVIDIA B200"))
    with pytest.raises(ExceptionGroup):
        sparse_decode(p.vals, p.idx, p.w, implementation="triton")
