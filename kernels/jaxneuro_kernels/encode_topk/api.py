# SPDX-License-Identifier: Apache-2.0
"""The public op, its checks and its derivative."""

import functools
import math
from typing import Any, Final, Literal, overload

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from ..axes import aligned
from ..dispatch import HOPPER, TPU, Backend, Choice, Implementation, choose, kernel, run
from ..sparse_decode import gather_dot
from ..topk.api import check_k
from . import xla

BACKENDS: Final = {
    "mosaic_gpu": kernel(__name__, "mosaic_gpu", "encode_topk", HOPPER),
    "mosaic_tpu": kernel(__name__, "mosaic_tpu", "encode_topk", TPU),
    "xla": Backend(xla.encode_topk),
}
WITH_PRE: Final = {"xla": Backend(xla.encode_topk_and_pre)}


@overload
def encode_topk(
    x: Array,
    w: Array,
    b: Array,
    k: int,
    *,
    relu: bool = True,
    keep_pre: Literal[False] = False,
    pre_dtype: DTypeLike = jnp.float32,
    implementation: Implementation = None,
) -> tuple[Array, Array]: ...
@overload
def encode_topk(
    x: Array,
    w: Array,
    b: Array,
    k: int,
    *,
    relu: bool = True,
    keep_pre: Literal[True],
    pre_dtype: DTypeLike = jnp.float32,
    implementation: Implementation = None,
) -> tuple[Array, Array, Array]: ...
def encode_topk(
    x: Array,
    w: Array,
    b: Array,
    k: int,
    *,
    relu: bool = True,
    keep_pre: bool = False,
    pre_dtype: DTypeLike = jnp.float32,
    implementation: Implementation = None,
) -> Any:
    """The k strongest latents of every token.

        pre = x w^T + b;   (vals, idx) = the k largest of each row, descending;   vals = max(vals, 0) if relu

    ReLU after the selection: the same values, and the indices name latents even where the value is 0 (count a latent
    as active only if its value is positive). Ties by lowest index, NaN as in `topk`.

    Sums are float32 whatever the operands are, and selected from as such by default. float32 operands are multiplied
    in full precision, slow on accelerators, unless `jax.default_matmul_precision` says otherwise. pre_dtype=bfloat16
    rounds pre first: half the memory traffic where it must pass through memory, and what autocast peers do, but of
    32,768 normal numbers the 32nd and 33rd are then equal in half of all rows, and the index decides.

    The derivative reaches x, w and b through the chosen k alone: no gradient of size [tokens, n_latents] exists, and
    what is not differentiated is not computed. (With keep_pre, a derivative asked of `pre` is dense, as it must be.)

    Args:
      x: [..., d], floating.
      w: [n_latents, d], x's dtype; one latent per row.
      b: [n_latents], floating; added in float32.
      k: 0 <= k <= n_latents.
      relu: clip the k values at zero.
      keep_pre: also return pre, [..., n_latents] in pre_dtype: all of it in memory.
      pre_dtype: what pre is rounded to before the selection.
      implementation: see `jaxneuro_kernels`.
    Returns:
      (vals float32 [..., k], idx int32 [..., k]) and, with keep_pre, pre.
    Raises:
      ValueError: shapes or types that do not fit; k out of range.
    Example:
      >>> vals, idx = encode_topk(jnp.array([[1.0, 3.0]]), jnp.eye(2), jnp.zeros(2), 1)
      >>> vals.tolist(), idx.tolist()
      ([[3.0]], [[1]])
    """
    x, w, b = jnp.asarray(x), jnp.asarray(w), jnp.asarray(b)
    check_encoder("encode_topk", x, w, b)
    check_k("encode_topk", "pre-activations", (*x.shape[:-1], w.shape[0]), k)
    table = WITH_PRE if keep_pre else BACKENDS
    pre_dtype = jnp.dtype(pre_dtype)
    if not jnp.issubdtype(pre_dtype, jnp.floating):
        raise ValueError(f"encode_topk: pre_dtype = {pre_dtype}; give a floating type.")
    size = size_of(x, w, k, pre_dtype)
    choice = choose("encode_topk", table, implementation, x, w, b, k, pre_dtype, size=size)
    batch = x.shape[:-1]
    if 0 in (*batch, k):
        shape = (*batch, k)
        empty = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)
        if not keep_pre:
            return empty
        dense = jnp.dot(x, w.T, preferred_element_type=jnp.float32)
        return *empty, (dense + aligned(b.astype(jnp.float32), dense)).astype(pre_dtype)
    static = {"k": int(k), "relu": relu, "keep_pre": keep_pre, "pre_dtype": pre_dtype, "choice": choice}
    out = _encode(x.reshape(-1, x.shape[-1]), w, b, **static)
    return tuple(a.reshape(*batch, a.shape[-1]) for a in out)


def size_of(x: Array, w: Array, k: int, pre_dtype: jnp.dtype) -> dict[str, Any]:
    """Entry of the table of measurements."""
    n, d = w.shape
    tokens = math.prod(x.shape[:-1])
    return {"dtype": f"{x.dtype.name}/{pre_dtype.name}", "tokens": tokens, "d": d, "n": n, "k": k}


def check_encoder(op: str, x: Array, w: Array, b: Array) -> None:
    """Raise unless shapes and types of tokens and encoder fit."""
    fits = x.ndim >= 1 and w.ndim == 2 and b.shape == w.shape[:1] and x.shape[-1] == w.shape[1]
    typed = x.dtype == w.dtype and all(jnp.issubdtype(a.dtype, jnp.floating) for a in (x, b))
    if not (fits and typed):
        shown = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in (("x", x), ("w", w), ("b", b)))
        raise ValueError(
            f"{op}: {shown} do not fit: x is [..., d], w [n_latents, d] of x's floating dtype, b [n_latents]."
        )


@functools.partial(jax.jit, static_argnames=("k", "relu", "keep_pre", "pre_dtype", "choice"))
def _encode(
    x: Array, w: Array, b: Array, *, k: int, relu: bool, keep_pre: bool, pre_dtype: jnp.dtype, choice: Choice
) -> tuple[Array, ...]:
    """The implementation is not differentiated: `chosen` and `_dense` give what it returns their derivatives."""
    backends, operands = WITH_PRE if keep_pre else BACKENDS, map(lax.stop_gradient, (x, w, b))
    size = size_of(x, w, k, pre_dtype)
    vals, idx, *pre = run("encode_topk", backends, choice, *operands, size=size, k=k, pre_dtype=pre_dtype)
    vals = chosen(x, w, b, vals, idx)
    return jax.nn.relu(vals) if relu else vals, idx, *(_dense(x, w, b, p) for p in pre)


def _chosen_primal(x: Array, w: Array, b: Array, vals: Array, idx: Array) -> Array:
    """vals, with the derivative of <x, w[idx]> + b[idx]."""
    del x, w, b, idx
    return vals


def _chosen_jvp(primals, tangents):
    x, w, _, vals, idx = primals
    dx, dw, db, *_ = tangents
    out = jnp.zeros_like(vals)
    if not isinstance(dx, SymbolicZero):
        out += gather_dot(dx, idx, w)
    if not isinstance(dw, SymbolicZero):
        out += gather_dot(x, idx, dw)
    if not isinstance(db, SymbolicZero):
        out += gather_dot(jnp.ones((*x.shape[:-1], 1), x.dtype), idx, db[:, None])
    return vals, out


chosen = jax.custom_jvp(_chosen_primal)
chosen.defjvp(_chosen_jvp, symbolic_zeros=True)


def _dense_primal(x: Array, w: Array, b: Array, pre: Array) -> Array:
    """pre, with the derivative of x w^T + b."""
    del x, w, b
    return pre


def _dense_jvp(primals, tangents):
    x, w, _, pre = primals
    dx, dw, db, _ = tangents

    def product(a, c):
        return jnp.dot(a, c.T, preferred_element_type=jnp.float32)

    return pre, (product(dx, w) + product(x, dw) + db.astype(jnp.float32)[None]).astype(pre.dtype)


_dense = jax.custom_jvp(_dense_primal)
_dense.defjvp(_dense_jvp)
