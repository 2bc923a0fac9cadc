# SPDX-License-Identifier: Apache-2.0
"""The public op and its checks."""

import math
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..dispatch import HOPPER, Backend, Choice, Implementation, choose, kernel, run
from . import xla

BACKENDS: Final = {
    "mosaic_gpu": kernel(__name__, "mosaic_gpu", "sae_backward", HOPPER),
    "xla": Backend(xla.sae_backward),
}


class SaeGradients(NamedTuple):
    """What `sae_backward` returns, all float32."""

    dvals: Array
    """[..., k]: of the values before ReLU; 0 where ReLU was shut."""
    dw_dec: Array
    """[n_latents, d_out]."""
    dw_enc: Array
    """[n_latents, d_in]."""
    db_enc: Array
    """[n_latents]."""


def sae_backward(
    vals: Array,
    idx: Array,
    g: Array,
    x: Array,
    w_dec: Array,
    *,
    dvals: Array | None = None,
    relu: bool = True,
    implementation: Implementation = None,
) -> SaeGradients:
    """All gradients of a sparse autoencoder (or transcoder) in one pass over its active entries.

    For vals, idx = encode_topk(x, w_enc, b_enc, k), y = sparse_decode(vals, idx, w_dec), and a loss with dL/dy = g and,
    besides, dL/dvals = dvals:

        dval[t,j]  = (<g[t], w_dec[idx[t,j]]> + dvals[t,j]) [vals[t,j] > 0]
        dw_dec[f]  = sum vals[t,j] g[t],  dw_enc[f] = sum dval[t,j] x[t],  db_enc[f] = sum dval[t,j]   over idx[t,j] = f

    The gradient of a bias subtracted from x is -db_enc @ w_enc: one row per latent, no pass over the tokens. Sums are
    float32 in a fixed order; two runs are bitwise equal. This is a derivative and has none itself: for higher ones,
    differentiate `encode_topk` and `sparse_decode`.

    Args:
      vals, idx: [..., k], from `encode_topk`.
      g: [..., d_out], floating.
      x: [..., d_in], floating: what was encoded.
      w_dec: [n_latents, d_out], floating.
      dvals: [..., k], a further gradient with respect to vals (a penalty on the latents); None: zero.
      relu: whether vals went through ReLU.
      implementation: see `jaxneuro_kernels`.
    Raises:
      ValueError: shapes or types that do not fit, with the shapes.
      NotImplementedError: it is differentiated.
    Example:
      >>> x = g = jnp.eye(2)
      >>> out = sae_backward(jnp.ones((2, 1)), jnp.array([[0], [1]]), g, x, jnp.eye(2))
      >>> out.dw_dec.tolist(), out.db_enc.tolist()
      ([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0])
    """
    vals, idx, g, x, w_dec = map(jnp.asarray, (vals, idx, g, x, w_dec))
    extra = jnp.zeros(vals.shape, jnp.float32) if dvals is None else jnp.asarray(dvals)
    _check(vals, idx, g, x, w_dec, extra)
    choice = choose(
        "sae_backward", BACKENDS, implementation, vals, idx, g, x, w_dec, extra, size=size_of(idx, g, w_dec)
    )
    n, k = w_dec.shape[0], idx.shape[-1]
    if 0 in idx.shape:
        shapes = idx.shape, w_dec.shape, (n, x.shape[-1]), (n,)
        return SaeGradients(*(jnp.zeros(s, jnp.float32) for s in shapes))
    flat = [a.reshape(-1, a.shape[-1]) for a in (vals, idx, g, x)]
    out = SaeGradients(*_backward(*flat, w_dec, extra.reshape(-1, k), relu, choice))
    return out._replace(dvals=out.dvals.reshape(idx.shape))


def size_of(idx: Array, g: Array, w_dec: Array) -> dict[str, Any]:
    """Entry of the table of measurements."""
    n, d = w_dec.shape
    return {"dtype": g.dtype.name, "tokens": math.prod(idx.shape[:-1]), "d": d, "n": n, "k": idx.shape[-1]}


def _check(vals: Array, idx: Array, g: Array, x: Array, w_dec: Array, extra: Array) -> None:
    named = {"vals": vals, "idx": idx, "g": g, "x": x, "w_dec": w_dec, "dvals": extra}
    fits = vals.shape == idx.shape == extra.shape and w_dec.ndim == 2 and idx.ndim >= 1 and g.ndim >= 1
    fits = fits and idx.shape[:-1] == g.shape[:-1] == x.shape[:-1] and g.shape[-1] == w_dec.shape[-1]
    fits = fits and all(jnp.issubdtype(a.dtype, jnp.floating) for n, a in named.items() if n != "idx")
    if not (fits and idx.dtype == jnp.int32):
        shown = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in named.items())
        raise ValueError(
            f"sae_backward: {shown} do not fit: leading axes are equal, idx is int32, g's last axis is that of w_dec."
        )


def _primal(
    vals: Array, idx: Array, g: Array, x: Array, w_dec: Array, extra: Array, relu: bool, choice: Choice
) -> tuple[Array, ...]:
    operands = (vals, idx, g, x, w_dec, extra)
    return run("sae_backward", BACKENDS, choice, *operands, size=size_of(idx, g, w_dec), relu=relu)


_custom = jax.custom_jvp(_primal, nondiff_argnums=(6, 7))
_backward = jax.jit(_custom, static_argnums=(6, 7))


@_custom.defjvp
def _no_derivative(relu: bool, choice: Choice, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "sae_backward is a gradient and has no derivative itself; differentiate encode_topk and sparse_decode instead."
    )
