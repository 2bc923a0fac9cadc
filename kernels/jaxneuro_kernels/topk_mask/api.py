# SPDX-License-Identifier: Apache-2.0
"""The public op and its checks."""

import functools
from typing import Final

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..dispatch import HOPPER, TPU, Backend, Choice, Implementation, choose, kernel, run
from ..topk.api import check_k, size_of
from . import xla

BACKENDS: Final = {
    "mosaic_gpu": kernel(__name__, "mosaic_gpu", "topk_mask", HOPPER),
    "mosaic_tpu": kernel(__name__, "mosaic_tpu", "topk_mask", TPU),
    "xla": Backend(xla.topk_mask),
}


def topk_mask(h: Array, k: int, *, implementation: Implementation = None) -> Array:
    """The k largest of every row where they are, zero elsewhere.

        out[i] = h[i] if h[i] is among the k largest of its row else 0

    For k of a few per cent of n and more (top-k hidden units of an MLP: arXiv:2210.06313), where values and indices
    would weigh as much as the row. Exactly k are kept. Equal values: the lowest index first. Order as in `topk`.

    Args:
      h: [..., n], floating.
      k: how many, 0 <= k <= n. 0 gives zeros, n gives h.
      implementation: see `jaxneuro_kernels`.
    Returns:
      h's shape and dtype. The derivative passes straight through where h is kept, whatever the value kept.
    Raises:
      ValueError: k is negative or above n; h is no floating array with at least one axis.
    Example:
      >>> topk_mask(jnp.array([1.0, 3.0, -2.0, 3.0]), 2).tolist()
      [0.0, 3.0, 0.0, 3.0]
    """
    h = jnp.asarray(h)
    if not h.ndim or not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(f"topk_mask: h is {h.dtype}{list(h.shape)}; give a floating array with at least one axis.")
    check_k("topk_mask", "h", h.shape, k)
    choice = choose("topk_mask", BACKENDS, implementation, h, k, size=size_of(h, k))
    if k == h.shape[-1]:
        return h
    if 0 in (*h.shape, k):
        return jnp.zeros_like(h)
    return _topk_mask(h, k=int(k), choice=choice)


@functools.partial(jax.jit, static_argnames=("k", "choice"))
def _topk_mask(h: Array, *, k: int, choice: Choice) -> Array:
    """Which are kept is not differentiated: the derivative is that of a choice between h and 0."""
    kept = run("topk_mask", BACKENDS, choice, lax.stop_gradient(h), size=size_of(h, k), k=k)
    return jnp.where(kept, h, jnp.zeros((), h.dtype))
