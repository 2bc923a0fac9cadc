# SPDX-License-Identifier: Apache-2.0
"""Learning rates and the default optimiser. Schedules are functions of a traced step: nothing recompiles."""

import functools
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

type Schedule = Callable[[Array], Array]
"""Step (int32) -> value."""
type Optimiser = Callable[[Any], optax.GradientTransformation]
"""What makes a transformation from a learning-rate schedule: `optax.adam`, `optax.adamw`, `optax.contrib.muon` ..."""
EPS: Final = 6.25e-10
"""Of Adam (arXiv:2406.04093): gradients of a normalised loss are small, so eps is."""


def _signum(rate: Any) -> optax.GradientTransformation:
    """w <- w - rate * sign(m), m the running mean of gradients (arXiv:1802.04434)."""
    return optax.chain(optax.ema(0.9, debias=False), optax.scale_by_sign(), optax.scale_by_learning_rate(rate))


def _schedule_free(rate: Any) -> optax.GradientTransformation:
    """Adam without momentum inside a running mean of iterates (arXiv:2405.15682); see `evaluated`."""
    return optax.contrib.schedule_free(optax.adam(rate, b1=0.0, eps=EPS), rate, b1=0.9)


class Row(NamedTuple):
    """An optimiser and the peak learning rate that is its own for a number of latents."""

    make: Optimiser
    rate: Callable[[int, int | None], float]
    """(latents, steps of the run or None) -> peak."""


LONG = 2**16
"""Steps from which the published rates are taken as they are."""
FASTEST = 1e-2
"""No shorter run raises the rate above this: 400 steps of 1,024 latents are best there, and worse at twice as much."""


def scaled_rate(n_latents: int, steps: int | None = None, at_16k: float = 2e-4) -> float:
    """at_16k / sqrt(n_latents / 2^14) (arXiv:2406.04093, section 3); in a shorter run sqrt(2^16 / steps) times that, at
    most 0.01.

    Published rates are of long runs; in a run of some hundred steps a dictionary does not get far enough with them.

    Example:
      >>> scaled_rate(2**14), scaled_rate(2**14, 2**12), scaled_rate(2**10, 100)
      (0.0002, 0.0008, 0.01)
    """
    rate = at_16k / (n_latents / 2**14) ** 0.5
    shorter = (LONG / steps) ** 0.5 if steps is not None and steps < LONG else 1.0
    return max(rate, min(rate * shorter, FASTEST))


OPTIMISERS: Final = {
    "adam": Row(functools.partial(optax.adam, b1=0.9, b2=0.999, eps=EPS), scaled_rate),
    "adamw": Row(functools.partial(optax.adamw, b1=0.9, b2=0.999, eps=EPS), scaled_rate),
    "muon": Row(optax.contrib.muon, lambda _, __: 2e-3),
    "signum": Row(_signum, lambda n_latents, _: scaled_rate(n_latents, at_16k=5e-3)),
    "schedule_free": Row(_schedule_free, lambda n_latents, _: scaled_rate(n_latents)),
}
"""Rates of Adam: arXiv:2406.04093; of Muon and signum: sparsify's. Muon moves matrices, Adam the vectors."""


def evaluated(state: Any, parameters: Any) -> Any:
    """The parameters to use: the running mean where the optimiser keeps one, else those that are trained."""
    if isinstance(state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(state, parameters)
    return parameters


def ramp(start: float, end: float, steps: int) -> Schedule:
    """From start to end, linear over so many steps, then end; with no steps, end at once.

    Example:
      >>> [float(ramp(0.0, 4.0, 4)(jnp.int32(s))) for s in (0, 1, 4, 9)]
      [0.0, 1.0, 4.0, 4.0]
    """

    def value(step: Array) -> Array:
        share = jnp.clip(jnp.asarray(step).astype(jnp.float32) / max(steps, 1), 0, 1) if steps else jnp.float32(1)
        return jnp.float32(start) + (jnp.float32(end) - jnp.float32(start)) * share

    return value


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


def clipped[T](gradients: T, most: float | Literal["unit"]) -> T:
    """Gradients shortened, all by one factor, where their norm together is above `most`; "unit": always of norm 1.

    Example:
      >>> [clipped({"w": jnp.array([3.0, 4.0])}, most)["w"].tolist() for most in (10.0, 2.5, "unit")]
      [[3.0, 4.0], [1.5, 2.0], [0.6000000238418579, 0.800000011920929]]
    """
    largest = jax.tree.reduce(jnp.maximum, jax.tree.map(lambda g: jnp.max(jnp.abs(g)), gradients))
    unit = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)  # squares of small gradients would be 0 in float32
    norm = unit * jnp.sqrt(sum((jnp.sum(jnp.square(g / unit)) for g in jax.tree.leaves(gradients)), jnp.float32(0)))
    shorter = jnp.float32(1) / norm if most == "unit" else jnp.minimum(jnp.float32(1), jnp.float32(most) / norm)
    factor = jnp.where(largest > 0, shorter, jnp.float32(1))
    return jax.tree.map(lambda g: g * factor, gradients)


def settled[T](tree: T) -> T:
    """The tree, computed before anything made from it.

    Around an optimiser's update: left to itself XLA's CPU compiler merges it with the projection before and the norm
    after, copies parameters and moments and spells scalars out over the matrices (8,192 x 256: 59 ms and 67 MB of
    temporary memory, against 10 ms and 8 MB).
    """
    return lax.optimization_barrier(tree)
