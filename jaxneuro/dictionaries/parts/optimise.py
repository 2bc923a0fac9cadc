# SPDX-License-Identifier: Apache-2.0
"""Learning rates and the default optimiser. Schedules are functions of a traced step: nothing recompiles."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

type Schedule = Callable[[Array], Array]
"""Step (int32) -> value."""
type Optimiser = Callable[[Any], optax.GradientTransformation]
"""What makes a transformation from a learning-rate schedule: `optax.adam`, `optax.adamw`, `optax.contrib.muon` ..."""

adam: Optimiser = functools.partial(optax.adam, b1=0.9, b2=0.999, eps=6.25e-10)
"""Adam as in arXiv:2406.04093: gradients of a normalised loss are small, so eps is."""


def scaled_rate(n_latents: int) -> float:
    """2e-4 / sqrt(n_latents / 2^14) (arXiv:2406.04093, section 3).

    Example:
      >>> scaled_rate(2**14)
      0.0002
    """
    return 2e-4 / (n_latents / 2**14) ** 0.5


def warm_then_decay(peak: float, *, warmup: int, steps: int | None) -> Schedule:
    """Linear from 0 over `warmup` steps, constant, then linear to 0 over the last fifth of `steps` (None: no end).

    Example:
      >>> rate = warm_then_decay(1.0, warmup=10, steps=100)
      >>> [round(float(rate(jnp.int32(s))), 2) for s in (0, 4, 50, 90, 100)]
      [0.1, 0.5, 1.0, 0.5, 0.0]
    """

    def rate(step: Array) -> Array:
        step = jnp.asarray(step).astype(jnp.float32)
        up = jnp.minimum((step + 1) / max(warmup, 1), 1)
        down = jnp.float32(1) if steps is None else jnp.clip((steps - step) / (0.2 * steps), 0, 1)
        return jnp.float32(peak) * up * down

    return rate


def settled[T](tree: T) -> T:
    """The tree, computed before anything made from it.

    Around an optimiser's update: left to itself XLA's CPU compiler merges it with the projection before and the norm
    after, copies parameters and moments and spells scalars out over the matrices (8,192 x 256: 59 ms and 67 MB of
    temporary memory, against 10 ms and 8 MB).
    """
    return lax.optimization_barrier(tree)
