# SPDX-License-Identifier: Apache-2.0
"""How far a result of an op is from its reference: on the first tokens and the first latents, the most used ones."""

import functools
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxneuro_kernels import Rows
from jaxneuro_kernels.sae_backward.reference import sae_adam
from jaxneuro_kernels.sparse_decode.reference import gather_dot, sparse_decode
from jaxneuro_kernels.topk.reference import topk
from jaxneuro_kernels.topk_mask.reference import topk_mask

FIRST: Final = 64
"""Tokens and latents that are checked."""
TOLERANCE: Final = {"topk": 0.0, "topk_mask": 0.0, "encode_topk, rounded": 2**-7}
"""Largest error by op: nothing is rounded, or to bfloat16, where neighbours are 2^-7 apart."""
SUMS: Final = 1e-4
"""Of the other ops, whose sums are float32 in another order. The operands are the same."""

type Error = Callable[[Any], float]
"""A result -> its largest difference from the reference, over the largest number of that output."""


def plain(a: Any) -> np.ndarray:
    """A JAX array, or another library's tensor, as a NumPy array; float32 if it is floating."""
    if hasattr(a, "detach"):
        a = (a.detach().float() if a.is_floating_point() else a).cpu().numpy()
    a = np.asarray(a)
    return a.astype(np.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a


def largest(*pairs: tuple[Any, Any]) -> float:
    """Of pairs (got, wanted), the largest difference over the largest number wanted. NaN where one is.

    Example:
      >>> largest(([1.0, 2.0], [1.0, 4.0]), ([3.0], [3.0]))
      0.5
    """
    together = [(plain(got), plain(want)) for got, want in pairs]
    return float(np.max([np.max(np.abs(got - want)) / max(np.max(np.abs(want)), 1e-30) for got, want in together]))


def same_values(vals: Any, want: Any) -> float:
    """Error of the k values of the first tokens, in whatever order they come."""
    return largest((np.sort(plain(vals[:FIRST]), axis=-1), np.sort(plain(want), axis=-1)))


def reference(op: str, operands: tuple, k: int, *, ties: bool = True) -> Error:
    """What compares results of an op with its reference.

    Args:
      op: one of `jaxneuro_kernels.shapes.OPS`.
      operands: of its case.
      k: of its shape.
      ties: whether topk must name the lowest indices among equals, in order: its own definition, not its peers'.
    """
    with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
        error = _OF[op](operands, k)
    return error if ties else lambda result: error((result[0], None))


def unit_rows(key: Array, shape: tuple[int, int]) -> Array:
    """Where dictionaries start."""
    w = jax.random.normal(key, shape)
    return w / jnp.linalg.norm(w, axis=1, keepdims=True)


def first_loss(x: Array, w: Array, k: int) -> Array:
    """The fraction of variance unexplained with w as encoder and decoder and no biases, some tokens at a time."""

    @jax.jit
    def lost(x: Array) -> Array:
        vals, idx = lax.top_k(jnp.dot(x, w.T, precision="highest"), k)
        return jnp.sum(jnp.square(sparse_decode(jax.nn.relu(vals), idx, w) - x))

    total = sum(float(lost(part)) for part in jnp.split(x, x.shape[0] // FIRST))
    return jnp.float32(total) / jnp.sum(jnp.square(x - x.mean(0, keepdims=True)))


def _of_topk(operands: tuple, k: int) -> Error:
    want, index = topk(operands[0][:FIRST], k)

    def error(result: Any) -> float:
        vals, idx = result
        if idx is not None and not np.array_equal(plain(idx[:FIRST]), index):
            return float("inf")
        return same_values(vals, want)

    return error


def _of_mask(operands: tuple, _: int) -> Error:
    h = operands[0][:FIRST]
    want = jnp.where(topk_mask(h, h.shape[-1] // 10), h, jnp.zeros((), h.dtype))
    return lambda result: largest((result[:FIRST], want))


def _of_encode(operands: tuple, k: int, pre_dtype: str = "float32") -> Error:
    x, w, b = operands
    pre = plain((x[:FIRST].astype(jnp.float32) @ w.astype(jnp.float32).T + b[None]).astype(pre_dtype))
    want = np.maximum(np.sort(pre, axis=1)[:, -k:], 0)

    def error(result: Any) -> float:
        vals, idx = result
        there = np.take_along_axis(pre, plain(idx[:FIRST]), axis=1)  # of equals in rounding, any may be named
        return max(same_values(vals, want), largest((vals[:FIRST], np.maximum(there, 0))))

    return error


def _of_product(product: Callable[..., Array], operands: tuple, _: int) -> Error:
    a, idx, w = operands
    want = product(a[:FIRST], idx[:FIRST], w)
    return lambda result: largest((result[:FIRST], want))


def _of_row_sum(operands: tuple, _: int) -> Error:
    want = _sums(*operands)
    return lambda result: largest((result[:FIRST], want))


def _of_backward(operands: tuple, _: int) -> Error:
    want = _gradients(*operands)
    return lambda result: largest(*((got[:FIRST], a) for got, a in zip(result, want, strict=True)))


def _of_adam(operands: tuple, _: int) -> Error:
    vals, idx, g, x, parameters, first, second = operands
    gradients = _gradients(vals, idx, g, x, parameters.w_dec)
    rows = [Rows(*(a[:FIRST] for a in state)) for state in (parameters, first, second)]
    numbers = {"step": 1, "learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "unit_norm": True}
    want = jax.tree.leaves(sae_adam(gradients, *rows, **numbers))
    return lambda result: largest(*((got[:FIRST], a) for got, a in zip(jax.tree.leaves(result), want, strict=True)))


def _sums(vals: Array, idx: Array, x: Array) -> Array:
    """Per latent among the first, the sum of vals x over its tokens."""
    z = jnp.zeros((idx.shape[0], FIRST), jnp.float32)
    z = z.at[jnp.arange(idx.shape[0])[:, None], idx].add(vals, mode="drop")
    return z.T @ x.astype(jnp.float32)


def _gradients(vals: Array, idx: Array, g: Array, x: Array, w: Array) -> tuple[Array, Array, Array, Array]:
    """(dvals of the first tokens, dw_dec, dw_enc and db_enc of the first latents)."""
    back = jnp.where(vals[:FIRST] > 0, gather_dot(g[:FIRST], idx[:FIRST], w), 0)
    products = g.astype(jnp.float32) @ w[:FIRST].astype(jnp.float32).T
    inside = jnp.take_along_axis(products, jnp.minimum(idx, FIRST - 1), axis=1) * (vals > 0)
    ones = jnp.ones((idx.shape[0], 1), jnp.float32)
    return back, _sums(vals, idx, g), _sums(inside, idx, x), _sums(inside, idx, ones)[:, 0]


_OF: Final[dict[str, Callable[[tuple, int], Error]]] = {
    "topk": _of_topk,
    "topk_mask": _of_mask,
    "encode_topk": _of_encode,
    "encode_topk, rounded": functools.partial(_of_encode, pre_dtype="bfloat16"),
    "sparse_decode": functools.partial(_of_product, sparse_decode),
    "gather_dot": functools.partial(_of_product, gather_dot),
    "row_sum": _of_row_sum,
    "sae_backward": _of_backward,
    "sae_adam": _of_adam,
}
