# SPDX-License-Identifier: Apache-2.0
"""Latents made of latents: a factorisation factorised again, and all levels refined together."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from ..errors import UserError
from .factorise import Factorisation, factorise
from .parts.multiplicative import dot


def hierarchy(
    w: Float[Array, "n_latents d"], sizes: Sequence[int], *, key: Key[Array, ""], **options
) -> tuple[Factorisation, ...]:
    """Factorise latents into fewer latents, and those again: w ~ g_1 w_1, w_1 ~ g_2 w_2, ...

    Row i of g_l says of which coarser latents the finer latent i is made.

    Args:
      w: latents, e.g. `Factorisation.w` or a dictionary's W_dec.
      sizes: latents of each level, descending.
      key: of all levels.
      **options: of `factorise`.
    Raises:
      UserError: sizes that do not descend.
    Source: the hierarchical factorisation of ordavid-s/snmf-mlp-decomposition.
    Example:
      >>> w = jnp.array([[1.0, 0, 0], [1.0, 0.1, 0], [0, 0, 1.0], [0, 0.1, 1.0]])
      >>> (level,) = hierarchy(w, [2], key=jax.random.key(0), sparsity=0.34, steps=200)
      >>> level.g.shape, level.w.shape
      ((4, 2), (2, 3))
    """
    if any(a < b for a, b in zip((w.shape[0], *sizes), sizes, strict=False)):
        raise UserError(f"hierarchy: sizes {list(sizes)} from {w.shape[0]} latents. Every level has fewer: descend.")
    levels: list[Factorisation] = []
    for i, size in enumerate(sizes):
        levels.append(factorise(levels[-1].w if levels else w, size, key=jax.random.fold_in(key, i), **options))
    return tuple(levels)


@functools.partial(jax.jit, static_argnames=("steps", "learning_rate", "nonnegative"))
def refine(
    x: Float[Array, "n d"],
    factors: Sequence[Float[Array, "rows columns"]],
    *,
    mask: Bool[Array, "n"] | None = None,
    steps: int = 500,
    learning_rate: float = 1e-3,
    nonnegative: bool = True,
) -> tuple[tuple[Float[Array, "rows columns"], ...], Float[Array, "steps"]]:
    """Fine-tune all levels together: x ~ g_0 g_1 ... w, by Adam on |x - x_hat|^2 / |x|^2.

    Args:
      x: activations.
      factors: (g of `factorise`, g of each level of `hierarchy`, w of the last).
      mask: which tokens count.
      steps, learning_rate: of Adam.
      nonnegative: set negative entries of all but the last factor to 0 after each step. The released code does not,
        and so gives up that latents are only added.
    Returns:
      (factors, loss before each step).
    Source: ordavid-s/snmf-mlp-decomposition (Adam, 1e-3, 500 steps); the projection is ours.
    Example:
      >>> x = jnp.array([[1.0, 2.0], [2.0, 4.0]])
      >>> factors, losses = refine(x, (jnp.ones((2, 1)), jnp.ones((1, 2))), steps=50, learning_rate=0.05)
      >>> bool(losses[-1] < losses[0])
      True
    """
    valid = jnp.ones(x.shape[0], bool) if mask is None else mask
    x = jnp.where(valid[:, None], x.astype(jnp.float32), 0)
    whole = jnp.sum(jnp.square(x))
    adam = optax.adam(learning_rate)

    def loss_of(factors: tuple[Array, ...]) -> Array:
        error = x - functools.reduce(dot, factors)
        return jnp.sum(jnp.square(jnp.where(valid[:, None], error, 0))) / whole

    def move(carry, _):
        factors, optimiser = carry
        loss, grad = jax.value_and_grad(loss_of)(factors)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, optimiser = adam.update(grad, optimiser, factors)
        moved: Any = optax.apply_updates(factors, updates)
        if nonnegative:
            moved = (*(jnp.maximum(f, 0) for f in moved[:-1]), moved[-1])
        return (moved, optimiser), loss

    start = tuple(f.astype(jnp.float32) for f in factors)
    (found, _), losses = lax.scan(move, (start, adam.init(start)), length=steps)
    return found, losses
