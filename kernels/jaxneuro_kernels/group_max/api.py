# SPDX-License-Identifier: Apache-2.0
"""The public ops and their checks. Derivatives are those of `topk` and `encode_topk`."""

import functools
from typing import Final

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..dispatch import Backend, Choice, Implementation, choose, run
from ..encode_topk.api import check_encoder
from ..encode_topk.api import chosen as chosen_products
from ..topk.api import check_k, chosen
from . import xla

BACKENDS: Final = {"xla": Backend(xla.group_max)}
ENCODERS: Final = {"xla": Backend(xla.encode_group_max)}


def group_max(x: Array, k: int, *, implementation: Implementation = None) -> tuple[Array, Array]:
    """The largest of each of k equal consecutive slices of the last axis, in the order of the slices.

        idx[j] = argmax of x[j n/k : (j + 1) n/k],   vals[j] = x[idx[j]]

    k active values per row without a selection: one pass, no order among them. They are the k largest only if no two of
    those share a slice. Equal values: the lowest index. Order as in `topk`.

    Args:
      x: [..., n], floating.
      k: how many slices; it divides n. 0 gives empty arrays.
      implementation: see `jaxneuro_kernels`.
    Returns:
      (values [..., k] of x's dtype, indices [..., k] int32, ascending). The derivative flows to the k chosen values.
    Raises:
      ValueError: k is negative, above n or does not divide n; x is no floating array with at least one axis.
    Source: the "groupmax" activation of EleutherAI's sparsify.
    Example:
      >>> vals, idx = group_max(jnp.array([1.0, 3.0, 2.0, -1.0]), 2)
      >>> vals.tolist(), idx.tolist()
      ([3.0, 2.0], [1, 2])
    """
    x = jnp.asarray(x)
    if not x.ndim or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"group_max: x is {x.dtype}{list(x.shape)}; give a floating array with at least one axis.")
    _check_groups("group_max", "x", x.shape, k)
    choice = choose("group_max", BACKENDS, implementation, x, k)
    if 0 in (*x.shape, k):
        shape = (*x.shape[:-1], k)
        return jnp.zeros(shape, x.dtype), jnp.zeros(shape, jnp.int32)
    return _group_max(x, k=int(k), choice=choice)


def encode_group_max(
    x: Array, w: Array, b: Array, k: int, *, relu: bool = True, implementation: Implementation = None
) -> tuple[Array, Array]:
    """`group_max` of x w^T + b, one block of tokens at a time, as in `encode_topk`.

    Args:
      x: [..., d], floating.
      w: [n_latents, d], x's dtype; one latent per row.
      b: [n_latents], floating; added in float32.
      k: how many slices; it divides n_latents.
      relu: clip the k values at zero.
      implementation: see `jaxneuro_kernels`.
    Returns:
      (vals float32 [..., k], idx int32 [..., k]). The derivative reaches x, w and b through the chosen k alone.
    Raises:
      ValueError: shapes or types that do not fit; k does not divide n_latents.
    Example:
      >>> vals, idx = encode_group_max(jnp.array([[1.0, 3.0]]), jnp.eye(2), jnp.zeros(2), 1)
      >>> vals.tolist(), idx.tolist()
      ([[3.0]], [[1]])
    """
    x, w, b = jnp.asarray(x), jnp.asarray(w), jnp.asarray(b)
    check_encoder("encode_group_max", x, w, b)
    batch = x.shape[:-1]
    _check_groups("encode_group_max", "pre-activations", (*batch, w.shape[0]), k)
    choice = choose("encode_group_max", ENCODERS, implementation, x, w, b, k)
    if 0 in (*batch, k):
        return jnp.zeros((*batch, k), jnp.float32), jnp.zeros((*batch, k), jnp.int32)
    vals, idx = _encode(x.reshape(-1, x.shape[-1]), w, b, k=int(k), relu=relu, choice=choice)
    return vals.reshape(*batch, k), idx.reshape(*batch, k)


def _check_groups(op: str, name: str, shape: tuple[int, ...], k: int) -> None:
    check_k(op, name, shape, k)
    if k and shape[-1] % k:
        raise ValueError(f"{op}: k = {k} of {name} {list(shape)}: {shape[-1]} is no multiple of k.")


@functools.partial(jax.jit, static_argnames=("k", "choice"))
def _group_max(x: Array, *, k: int, choice: Choice) -> tuple[Array, Array]:
    vals, idx = run("group_max", BACKENDS, choice, lax.stop_gradient(x), k=k)
    return chosen(x, vals, idx), idx


@functools.partial(jax.jit, static_argnames=("k", "relu", "choice"))
def _encode(x: Array, w: Array, b: Array, *, k: int, relu: bool, choice: Choice) -> tuple[Array, Array]:
    vals, idx = run("encode_group_max", ENCODERS, choice, *map(lax.stop_gradient, (x, w, b)), k=k)
    vals = chosen_products(x, w, b, vals, idx)
    return jax.nn.relu(vals) if relu else vals, idx
