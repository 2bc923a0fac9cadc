# SPDX-License-Identifier: Apache-2.0
"""The public op, its checks and its derivative."""

import functools
import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..dispatch import HOPPER, TPU, Backend, Choice, Implementation, choose, kernel, run
from . import xla

BACKENDS: Final = {
    "mosaic_gpu": kernel(__name__, "mosaic_gpu", "topk", HOPPER),
    "mosaic_tpu": kernel(__name__, "mosaic_tpu", "topk", TPU),
    "xla": Backend(xla.topk),
}


def topk(x: Array, k: int, *, implementation: Implementation = None) -> tuple[Array, Array]:
    """The k largest of the last axis, in descending order.

    Exact. Equal values: the lowest index first. Order: -NaN < -inf < -0 < +0 < +inf < +NaN, as `jax.lax.top_k` (0/0
    makes a negative NaN on most processors, which ranks last). k = 0 and empty leading axes give empty arrays; k = n
    sorts.

    Args:
      x: [..., n], floating.
      k: how many, 0 <= k <= n.
      implementation: see `jaxneuro_kernels`.
    Returns:
      (values [..., k] of x's dtype, indices [..., k] int32). The derivative flows to the k chosen values of each row.
    Raises:
      ValueError: k is negative or above n; x is no floating array with at least one axis.
    Example:
      >>> vals, idx = topk(jnp.array([1.0, 3.0, 3.0, 2.0]), 2)
      >>> vals.tolist(), idx.tolist()
      ([3.0, 3.0], [1, 2])
    """
    x = jnp.asarray(x)
    if not x.ndim or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"topk: x is {x.dtype}{list(x.shape)}; give a floating array with at least one axis.")
    check_k("topk", "x", x.shape, k)
    choice = choose("topk", BACKENDS, implementation, x, k, size=size_of(x, k))
    if 0 in (*x.shape, k):
        shape = (*x.shape[:-1], k)
        return jnp.zeros(shape, x.dtype), jnp.zeros(shape, jnp.int32)
    return _topk(x, k=int(k), choice=choice)


def size_of(x: Array, k: int) -> dict[str, Any]:
    """Entry of the table of measurements."""
    return {"dtype": x.dtype.name, "tokens": math.prod(x.shape[:-1]), "n": x.shape[-1], "k": k}


def check_k(op: str, name: str, shape: tuple[int, ...], k: int) -> None:
    """Raise unless k of the last axis of this shape can be chosen."""
    if not isinstance(k, int | np.integer) or not 0 <= k <= shape[-1]:
        raise ValueError(f"{op}: k = {k} of {name} {list(shape)}: k is an int from 0 to {shape[-1]}.")


@functools.partial(jax.jit, static_argnames=("k", "choice"))
def _topk(x: Array, *, k: int, choice: Choice) -> tuple[Array, Array]:
    vals, idx = run("topk", BACKENDS, choice, lax.stop_gradient(x), size=size_of(x, k), k=k)
    return chosen(x, vals, idx), idx


# The selection is not differentiated, only the values chosen: integer outputs of a custom_jvp do not pass shard_map.
def _chosen_primal(x: Array, vals: Array, idx: Array) -> Array:
    """vals, with the derivative of x at idx."""
    del x, idx
    return vals


def _chosen_jvp(primals, tangents):
    _, vals, idx = primals
    return vals, jnp.take_along_axis(tangents[0], idx, axis=-1, mode="clip")


chosen = jax.custom_jvp(_chosen_primal)
chosen.defjvp(_chosen_jvp)
