# SPDX-License-Identifier: Apache-2.0
"""Three bilinear primitives, closed under differentiation, so that no derivative of any order is ever dense.

    decode(vals, idx, w)    d/dvals: gather_dot     d/dw: row_sum
    gather_dot(x, idx, w)   d/dx: decode            d/dw: row_sum
    row_sum(vals, idx, x)   d/dvals: gather_dot     d/dx: decode

Primitives, because a `custom_vjp` has no forward mode, and the rules of the kernels behind them are these anyway.
Operands have any number of equal leading axes, put there by vmap; implementations are two-dimensional.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..dispatch import HOPPER, NVIDIA, Backend, Choice, choose, kernel, run
from ..vary import vary, varying
from . import xla

BACKENDS: Final[dict[str, dict[str, Backend]]] = {
    op: {
        "mosaic_gpu": kernel(__name__, "mosaic_gpu", op, HOPPER),
        "triton": kernel(__name__, "..triton", op, NVIDIA),
        "xla": Backend(getattr(xla, op)),
    }
    for op in ("sparse_decode", "gather_dot", "row_sum")
}

decode_p = Primitive("sparse_decode")
gather_dot_p = Primitive("gather_dot")
row_sum_p = Primitive("row_sum")


def bind(primitive: Primitive, a: Array, idx: Array, b: Array, **params: Any) -> Array:
    """Apply one of the three. Inside shard_map operands are first made to vary over the same mesh axes."""
    axes = varying(a, idx, b)
    return primitive.bind(vary(a, axes), vary(idx, axes), vary(b, axes), **params)


def size_of(idx: Array, b: Array, n_latents: int | None = None) -> dict[str, Any]:
    """Entry of the table of measurements. b: w, or the x of row_sum."""
    *_, rows, d = b.shape
    n = rows if n_latents is None else n_latents
    return {"dtype": b.dtype.name, "tokens": math.prod(idx.shape[:-1]), "d": d, "n": n, "k": idx.shape[-1]}


def _run(primitive: Primitive, *operands: Array, choice: Choice, **params: Any) -> Array:
    op = primitive.name

    def core(a, idx, b):
        return run(op, BACKENDS[op], choice, a, idx, b, size=size_of(idx, b, **params), **params)

    for _ in range(operands[1].ndim - 2):
        core = jax.vmap(core)
    return core(*operands)


def _derived(primitive: Primitive, choice: Choice, a: Array, idx: Array, b: Array, **params: Any) -> Array:
    """A product in the derivative of another: of the implementation asked for, or the fastest for this one."""
    if not choice.forced:
        op = primitive.name
        choice = choose(op, BACKENDS[op], None, a, idx, b, size=size_of(idx, b, **params))
    return bind(primitive, a, idx, b, choice=choice, **params)


# Shapes of the results, as the simplest program that has them: it also carries shardings and mesh axes along.
def _decode_shape(vals, idx, w, **_):
    return vals[..., :1].astype(jnp.float32) * w[..., :1, :].astype(jnp.float32)


def _gather_dot_shape(x, idx, w, **_):
    return idx.astype(jnp.float32) * x[..., :1].astype(jnp.float32) * w[..., :1, :1].astype(jnp.float32)


def _row_sum_shape(vals, idx, x, *, n_latents, **_):
    one = vals[..., :1, :1].astype(jnp.float32) * x[..., :1, :].astype(jnp.float32)
    return jnp.broadcast_to(one, (*one.shape[:-2], n_latents, one.shape[-1]))


def _jvp(primitive: Primitive, primals: Any, tangents: Any, **params: Any) -> tuple[Array, Any]:
    a, idx, b = primals
    da, _, db = tangents
    parts = []
    if type(da) is not ad.Zero:
        parts.append(bind(primitive, da, idx, b, **params))
    if type(db) is not ad.Zero:
        parts.append(bind(primitive, a, idx, db, **params))
    out = bind(primitive, a, idx, b, **params)
    return out, sum(parts[1:], parts[0])  # one at least: without any JAX does not ask


type _Transpose = Callable[[Array, Array, Array, int, Choice], Array]

# (cotangent, idx, the other operand, n_latents if the linear operand has that axis) -> cotangent of one operand
_TO_FIRST: Final[dict[str, _Transpose]] = {
    "sparse_decode": lambda ct, idx, w, n, choice: _derived(gather_dot_p, choice, ct, idx, w),
    "gather_dot": lambda ct, idx, w, n, choice: _derived(decode_p, choice, ct, idx, w),
    "row_sum": lambda ct, idx, x, n, choice: _derived(gather_dot_p, choice, x, idx, ct),
}
_TO_SECOND: Final[dict[str, _Transpose]] = {
    "sparse_decode": lambda ct, idx, vals, n, choice: _derived(row_sum_p, choice, vals, idx, ct, n_latents=n),
    "gather_dot": lambda ct, idx, x, n, choice: _derived(row_sum_p, choice, ct, idx, x, n_latents=n),
    "row_sum": lambda ct, idx, vals, n, choice: _derived(decode_p, choice, vals, idx, ct),
}


def _transpose(primitive: Primitive, ct: Any, a: Any, idx: Any, b: Any, **params: Any) -> list[Any]:
    first = ad.is_undefined_primal(a)
    linear, other = (a, b) if first else (b, a)
    if type(ct) is ad.Zero:
        back = ad.Zero(linear.aval)
    else:
        rule = (_TO_FIRST if first else _TO_SECOND)[primitive.name]
        back = rule(ct, idx, other, linear.aval.shape[-2], params["choice"]).astype(linear.aval.dtype)
    return [back, None, None] if first else [None, None, back]


def _batch(primitive: Primitive, args: Any, dims: Any, **params: Any) -> tuple[Array, int]:
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    front = [
        jnp.broadcast_to(x[None], (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(args, dims, strict=True)
    ]
    if primitive is row_sum_p or dims[2] is not None:
        return bind(primitive, front[0], front[1], front[2], **params), 0
    # One shared w: the new axis is more tokens.
    at = front[0].ndim - 3
    a, idx = (jnp.moveaxis(x, 0, at).reshape(*x.shape[1:-2], size * x.shape[-2], x.shape[-1]) for x in front[:2])
    out = bind(primitive, a, idx, args[2], **params)
    return out.reshape(*out.shape[:-2], size, -1, out.shape[-1]), at


def _define(primitive: Primitive, shape: Callable[..., Array]) -> None:
    run = functools.partial(_run, primitive)

    @functools.lru_cache(maxsize=256)
    def abstract(*avals, **params):
        (out,) = jax.make_jaxpr(functools.partial(shape, **params))(*avals).out_avals
        return out.strip_weak_type()

    primitive.def_impl(jax.jit(run, static_argnames=("choice", "n_latents")))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=False))
    ad.primitive_jvps[primitive] = functools.partial(_jvp, primitive)
    ad.primitive_transposes[primitive] = functools.partial(_transpose, primitive)
    batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)


_define(decode_p, _decode_shape)
_define(gather_dot_p, _gather_dot_shape)
_define(row_sum_p, _row_sum_shape)
