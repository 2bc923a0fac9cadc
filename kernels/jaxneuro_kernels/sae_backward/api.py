# SPDX-License-Identifier: Apache-2.0
"""The public op and its checks."""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from ..dispatch import HOPPER, NVIDIA, Backend, Choice, Implementation, choose, kernel, run
from . import xla
from .adam import Rows, rates

BACKENDS: Final = {
    "mosaic_gpu": kernel(__name__, "mosaic_gpu", "sae_backward", HOPPER),
    "triton": kernel(__name__, "..triton", "sae_backward", NVIDIA),
    "xla": Backend(xla.sae_backward),
}
ADAM: Final = {
    "mosaic_gpu": kernel(__name__, "mosaic_gpu", "sae_adam", HOPPER),
    "xla": Backend(xla.sae_adam),
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
    _check("sae_backward", vals, idx, g, x, w_dec, extra)
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


class SaeStep(NamedTuple):
    """What `sae_adam` returns, all float32."""

    parameters: Rows
    first: Rows
    second: Rows
    dvals: Array
    """[..., k], as `SaeGradients.dvals`."""


def sae_adam(
    vals: Array,
    idx: Array,
    g: Array,
    x: Array,
    parameters: Rows,
    first: Rows,
    second: Rows,
    step: ArrayLike,
    *,
    learning_rate: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    unit_norm: bool = False,
    w_dec: Array | None = None,
    dvals: Array | None = None,
    relu: bool = True,
    implementation: Implementation = None,
) -> SaeStep:
    """`sae_backward` and a step of Adam in one pass over the latents: their gradients need not reach memory.

        m' = b1 m + (1 - b1) grad,   v' = b2 v + (1 - b2) grad^2
        p' = p - learning_rate (m' / (1 - b1^step)) / (sqrt(v' / (1 - b2^step)) + eps)            (as `optax.adam`)

    With unit_norm, each row of w_dec first loses the part of its gradient along itself, and is divided by its norm
    afterwards. Every latent steps, active or not: its moments decay.

    Args:
      vals, idx, g, x, dvals, relu, implementation: as for `sae_backward`.
      parameters: `Rows`: w_enc [n_latents, d_in], b_enc [n_latents], w_dec [n_latents, d_out], float32.
      first, second: Adam's moments, `Rows` of the same shapes.
      step: of this step, counted from 1.
      learning_rate: may be traced.
      b1, b2, eps: of Adam.
      unit_norm: keep the rows of w_dec at norm 1.
      w_dec: what x was decoded with, where that is a rounded copy. None: parameters.w_dec.
    Returns:
      `SaeStep`: new arrays; donate the old ones.
    Raises:
      ValueError: shapes or types that do not fit, with the shapes.
      NotImplementedError: it is differentiated.
    Example:
      >>> p = Rows(jnp.eye(2), jnp.zeros(2), jnp.eye(2))
      >>> zero = jax.tree.map(jnp.zeros_like, p)
      >>> ones, idx = jnp.ones((2, 1)), jnp.array([[0], [1]])
      >>> out = sae_adam(ones, idx, jnp.eye(2), jnp.eye(2), p, zero, zero, 1, learning_rate=0.5)
      >>> out.parameters.w_dec.tolist()
      [[0.5, 0.0], [0.0, 0.5]]
    """
    vals, idx, g, x = map(jnp.asarray, (vals, idx, g, x))
    decoder = parameters.w_dec if w_dec is None else jnp.asarray(w_dec)
    extra = jnp.zeros(vals.shape, jnp.float32) if dvals is None else jnp.asarray(dvals)
    _check("sae_adam", vals, idx, g, x, decoder, extra)
    _check_rows(parameters, first, second, decoder, x)
    choice = choose("sae_adam", ADAM, implementation, vals, idx, g, x, decoder, extra, size=size_of(idx, g, decoder))
    shape, flat = idx.shape, (vals, idx, g, x, extra)
    if 0 in shape:  # nothing is active, and the moments decay all the same: one entry of value 0
        choice = Choice("xla", forced=False)
        flat = [jnp.zeros((1, max(1, a.shape[-1])), a.dtype) for a in flat]
    *operands, extra = (a.reshape(-1, a.shape[-1]) for a in flat)
    r = rates(jnp.asarray(step), learning_rate, b1, b2, eps)
    p, m, v, back = _adam(*operands, decoder, extra, parameters, first, second, r, relu, unit_norm, choice)
    return SaeStep(p, m, v, jnp.zeros(shape, jnp.float32) if 0 in shape else back.reshape(shape))


def _check_rows(parameters: Rows, first: Rows, second: Rows, w_dec: Array, x: Array) -> None:
    n = w_dec.shape[0]
    wanted = (n, x.shape[-1]), (n,), w_dec.shape
    for name, rows in (("parameters", parameters), ("first", first), ("second", second)):
        for field, a, shape in zip(Rows._fields, rows, wanted, strict=True):
            if a.shape != shape or a.dtype != jnp.float32:
                raise ValueError(
                    f"sae_adam: {name}.{field} is {a.dtype}{list(a.shape)}; wanted float32{list(shape)}, from x "
                    f"{list(x.shape)} and w_dec {list(w_dec.shape)}."
                )


def size_of(idx: Array, g: Array, w_dec: Array) -> dict[str, Any]:
    """Entry of the table of measurements."""
    n, d = w_dec.shape
    return {"dtype": g.dtype.name, "tokens": math.prod(idx.shape[:-1]), "d": d, "n": n, "k": idx.shape[-1]}


def _check(op: str, vals: Array, idx: Array, g: Array, x: Array, w_dec: Array, extra: Array) -> None:
    named = {"vals": vals, "idx": idx, "g": g, "x": x, "w_dec": w_dec, "dvals": extra}
    fits = vals.shape == idx.shape == extra.shape and w_dec.ndim == 2 and idx.ndim >= 1 and g.ndim >= 1
    fits = fits and idx.shape[:-1] == g.shape[:-1] == x.shape[:-1] and g.shape[-1] == w_dec.shape[-1]
    fits = fits and all(jnp.issubdtype(a.dtype, jnp.floating) for n, a in named.items() if n != "idx")
    if not (fits and idx.dtype == jnp.int32):
        shown = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in named.items())
        raise ValueError(
            f"{op}: {shown} do not fit: leading axes are equal, idx is int32, g's last axis is that of w_dec."
        )


def _primal(
    vals: Array, idx: Array, g: Array, x: Array, w_dec: Array, extra: Array, relu: bool, choice: Choice
) -> tuple[Array, ...]:
    operands = (vals, idx, g, x, w_dec, extra)
    return run("sae_backward", BACKENDS, choice, *operands, size=size_of(idx, g, w_dec), relu=relu)


def _adam_primal(*operands: Any) -> tuple[Rows, Rows, Rows, Array]:
    *arrays, relu, unit_norm, choice = operands
    size = size_of(arrays[1], arrays[2], arrays[4])
    return run("sae_adam", ADAM, choice, *arrays, size=size, relu=relu, unit_norm=unit_norm)


def _without_derivative(f: Callable, static: tuple[int, ...]) -> Callable:
    custom = jax.custom_jvp(f, nondiff_argnums=static)

    @custom.defjvp
    def _(*_: Any) -> Any:
        raise NotImplementedError(
            "sae_backward and sae_adam are gradients and have no derivative themselves; differentiate encode_topk and "
            "sparse_decode instead."
        )

    return jax.jit(custom, static_argnums=static)


_backward = _without_derivative(_primal, (6, 7))
_adam = _without_derivative(_adam_primal, (10, 11, 12))
