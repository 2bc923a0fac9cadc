# SPDX-License-Identifier: Apache-2.0
"""The public ops and their checks: rows are gathered once per subset, then it is a small dense MLP.

Two matmuls over m of n neurons move m / n of the weights, which is what one token at a time costs. For many tokens with
a subset each, mask instead (`topk_mask`): gathered rows would weigh more than the whole matrix.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from ..axes import aligned


class Mlp(NamedTuple):
    """The chosen neurons of an MLP, one per row. One subset per sentence: with a batch axis first, except b_out."""

    w_in: Array
    """[m, d_in]"""
    w_out: Array
    """[m, d_out]"""
    w_gate: Array | None
    """[m, d_in]"""
    b_in: Array | None
    """[m]"""
    b_out: Array | None
    """[d_out]"""


def gather_mlp(
    x: Array,
    neurons: Array,
    w_in: Array,
    w_out: Array,
    *,
    activation: Callable[[Array], Array],
    w_gate: Array | None = None,
    b_in: Array | None = None,
    b_out: Array | None = None,
) -> Array:
    """An MLP restricted to some of its neurons: the dense one with all others' activations at zero.

        out = sum_j h_j w_out[S_j] + b_out,   h = act(x w_in[S]^T + b_in[S])                       without w_gate
                                              h = act(x w_gate[S]^T) (x w_in[S]^T + b_in[S])       with it

    Plain autodiff. `compact_mlp` then `apply_mlp` do the same in two steps, for subsets that outlive a token.

    Args:
      x: [..., d_in], floating.
      neurons: int32 [m], the subset S; -1 is no neuron (padding); one listed twice counts twice. Or [batch, m], one
        subset per sentence of x [batch, ..., d_in].
      w_in: [n, d_in], x's dtype; one neuron per row, as all that follow.
      w_out: [n, d_out], x's dtype.
      activation: elementwise and finite at 0, e.g. `jax.nn.gelu`; it gets float32.
      w_gate: [n, d_in], x's dtype: a gated MLP, with the activation on the gate.
      b_in: [n], floating.
      b_out: [d_out], floating.
    Returns:
      float32 [..., d_out]. Sums are float32; h is rounded to w_out's dtype.
    Raises:
      ValueError: shapes or types that do not fit; a neuron below -1 or from n on (traced ones are no neuron).
    Example:
      >>> w = jnp.eye(3)
      >>> gather_mlp(jnp.array([1.0, 2.0, 3.0]), jnp.array([2, 0, -1]), w, w, activation=jax.nn.relu).tolist()
      [1.0, 0.0, 3.0]
    """
    mlp = compact_mlp(neurons, w_in, w_out, w_gate=w_gate, b_in=b_in, b_out=b_out)
    return apply_mlp(mlp, x, activation)


def compact_mlp(
    neurons: Array,
    w_in: Array,
    w_out: Array,
    *,
    w_gate: Array | None = None,
    b_in: Array | None = None,
    b_out: Array | None = None,
) -> Mlp:
    """The rows of the chosen neurons, one after the other; zeros for -1. Arguments and errors: see `gather_mlp`.

    Example:
      >>> mlp = compact_mlp(jnp.array([2, -1]), jnp.eye(3), jnp.eye(3))
      >>> mlp.w_in.tolist()
      [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    neurons, w_in, w_out = map(jnp.asarray, (neurons, w_in, w_out))
    _check_weights(neurons, w_in, w_out, w_gate, b_in, b_out)
    n = w_in.shape[0]
    if not isinstance(neurons, Tracer) and neurons.size and not -1 <= neurons.min() <= neurons.max() < n:
        raise ValueError(
            f"gather_mlp: neurons from {neurons.min()} to {neurons.max()}: there are 0 to {n - 1}, and -1."
        )
    rows = jnp.where(neurons < 0, n, neurons)  # out of range on the right side: from the left they would wrap around

    def chosen(a: Array) -> Array:
        return jnp.take(a, rows, axis=0, mode="fill", fill_value=0)

    gate, bias = (None if a is None else chosen(a) for a in (w_gate, b_in))
    return Mlp(chosen(w_in), chosen(w_out), gate, bias, b_out)


def apply_mlp(mlp: Mlp, x: Array, activation: Callable[[Array], Array]) -> Array:
    """The compacted MLP of x. Arguments and result: see `gather_mlp`.

    Raises:
      ValueError: x does not fit the rows.
    Example:
      >>> apply_mlp(compact_mlp(jnp.array([2]), jnp.eye(3), jnp.eye(3)), jnp.ones(3), jnp.sin).tolist()
      [0.0, 0.0, 0.8414709568023682]
    """
    x = jnp.asarray(x)
    batch = mlp.w_in.shape[:-2]
    if x.ndim <= len(batch) or x.shape[: len(batch)] != batch or x.shape[-1] != mlp.w_in.shape[-1]:
        raise ValueError(f"gather_mlp: x {list(x.shape)} does not fit the chosen rows of w_in, {list(mlp.w_in.shape)}.")
    if x.dtype != mlp.w_in.dtype:
        raise ValueError(f"gather_mlp: x is {x.dtype} and w_in {mlp.w_in.dtype}; give one floating type.")
    if batch:
        shared = mlp._replace(b_out=None)
        return _plus(jax.vmap(lambda rows, x: _apply(rows, x, activation))(shared, x), mlp.b_out)
    return _apply(mlp, x, activation)


def _apply(mlp: Mlp, x: Array, activation: Callable[[Array], Array]) -> Array:
    pre = _plus(_dot(x, mlp.w_in.T), mlp.b_in)
    hidden = activation(pre) if mlp.w_gate is None else activation(_dot(x, mlp.w_gate.T)) * pre
    return _plus(_dot(hidden.astype(mlp.w_out.dtype), mlp.w_out), mlp.b_out)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _plus(a: Array, bias: Array | None) -> Array:
    return a if bias is None else a + aligned(bias.astype(jnp.float32), a)


def _check_weights(
    neurons: Array, w_in: Array, w_out: Array, w_gate: Array | None, b_in: Array | None, b_out: Array | None
) -> None:
    n = w_in.shape[:1]
    fits = w_in.ndim == w_out.ndim == 2 and w_out.shape[:1] == n and neurons.ndim in (1, 2)
    fits = fits and (w_gate is None or w_gate.shape == w_in.shape)
    fits = fits and (b_in is None or b_in.shape == n) and (b_out is None or b_out.shape == w_out.shape[1:])
    weights = [a for a in (w_in, w_out, w_gate) if a is not None]
    biases = [a for a in (b_in, b_out) if a is not None]
    typed = neurons.dtype == jnp.int32 and all(a.dtype == w_in.dtype for a in weights)
    if not (fits and typed and all(jnp.issubdtype(a.dtype, jnp.floating) for a in (*weights, *biases))):
        named = {"neurons": neurons, "w_in": w_in, "w_out": w_out, "w_gate": w_gate, "b_in": b_in, "b_out": b_out}
        shown = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in named.items() if a is not None)
        raise ValueError(
            f"gather_mlp: {shown} do not fit: neurons is int32 [m] or [batch, m], weights are [n, width] of one"
            " floating dtype, b_in is [n], b_out [d_out]."
        )
