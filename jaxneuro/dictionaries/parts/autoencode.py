# SPDX-License-Identifier: Apache-2.0
"""Encode, select, decode as one function whose gradient is one pass over the active entries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxneuro_kernels import encode_topk, sae_backward, sparse_decode
from jaxtyping import Array, Bool, Float, Int


class Kernel(NamedTuple):
    """How the sparse products are computed; static."""

    k: int
    dtype: str = "float32"
    """Of the matmul's inputs; sums are float32 in any case."""
    implementation: str | tuple[str, ...] | None = None


class Code(NamedTuple):
    """What came out: the reconstruction without its bias, and the latents it was made from."""

    x_hat: Float[Array, "n d_out"]
    vals: Float[Array, "n k"]
    idx: Int[Array, "n k"]


def autoencode(
    x: Float[Array, "n d_in"],
    w_enc: Float[Array, "n_latents d_in"],
    b_enc: Float[Array, "n_latents"],
    w_dec: Float[Array, "n_latents d_out"],
    on: Bool[Array, "n k"],
    kernel: Kernel,
) -> Code:
    """z = relu(topk(x w_enc^T + b_enc)) where `on`;  x_hat = z w_dec.

    Weights have one latent per row. `on[t, j]` False switches the j-th strongest latent of token t off, in value and
    gradient: a mask of tokens, or a smaller k that is a traced value. Differentiable once, with `sae_backward`; use the
    ops of `jaxneuro_kernels` directly for higher derivatives.
    """
    return _autoencode(x, w_enc, b_enc, w_dec, on, kernel)


def _primal(x, w_enc, b_enc, w_dec, on, kernel):
    cast = jnp.dtype(kernel.dtype)
    x, w_enc, w_dec = x.astype(cast), w_enc.astype(cast), w_dec.astype(cast)
    vals, idx = encode_topk(x, w_enc, b_enc, kernel.k, implementation=kernel.implementation)
    vals = jnp.where(on, vals, jnp.float32(0))
    return Code(sparse_decode(vals, idx, w_dec, implementation=kernel.implementation), vals, idx)


def _forward(x, w_enc, b_enc, w_dec, on, kernel):
    code = _primal(x, w_enc, b_enc, w_dec, on, kernel)
    return code, (x, w_enc, b_enc, w_dec, code.vals, code.idx)


def _backward(kernel, saved, ct):
    x, w_enc, b_enc, w_dec, vals, idx = saved
    cast = jnp.dtype(kernel.dtype)
    out = sae_backward(
        *(vals, idx, ct.x_hat.astype(cast), x.astype(cast), w_dec.astype(cast)),
        dvals=ct.vals,
        implementation=kernel.implementation,
    )
    dx = sparse_decode(out.dvals, idx, w_enc.astype(cast), implementation=kernel.implementation)  # unused: not computed
    grads = (dx, x), (out.dw_enc, w_enc), (out.db_enc, b_enc), (out.dw_dec, w_dec)
    return *(g.astype(like.dtype) for g, like in grads), None


_autoencode = jax.custom_vjp(_primal, nondiff_argnums=(5,))
_autoencode.defvjp(_forward, _backward)
