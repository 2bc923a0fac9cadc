# SPDX-License-Identifier: Apache-2.0
"""Activations whose features are known: drawn from a config, sampled in one compiled program."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int, Key

from ...errors import UserError
from ..parts.decoder import unit_rows
from .config import SyntheticConfig, drawn_probabilities, firing_probabilities, parents

LEAST_OWN_VARIANCE = 0.01
"""Part of a feature's Gaussian that is never shared: rows of the factor that leave less are shortened (SAELens)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticFeatures:
    """The truth: directions, and how often, how strongly and with whom they fire. A pytree of its arrays."""

    vectors: Float[Array, "n_features d"]
    """Unit directions."""
    bias: Float[Array, "d"]
    probabilities: Float[Array, "n_features"]
    """What each feature should fire at (in a tree less often; see `drawn_probabilities`)."""
    thresholds: Float[Array, "n_features"]
    """A feature is drawn where its Gaussian exceeds this."""
    factor: Float[Array, "n_features rank"]
    """The Gaussians' covariance is factor factor^T + diag(own^2), with unit diagonal."""
    own: Float[Array, "n_features"]
    size: Float[Array, "n_features"]
    """Mean size when firing (before the parent's scale)."""
    spread: Float[Array, "n_features"]
    """Standard deviation of the size."""
    config: SyntheticConfig = dataclasses.field(metadata={"static": True})

    @property
    def parent(self) -> Int[np.ndarray, " n_features"]:
        """Each feature's parent, -1 without one; siblings exclude each other."""
        return parents(self.config)


def synthetic(config: SyntheticConfig, *, key: Key[Array, ""]) -> SyntheticFeatures:
    """Draw a synthetic model: near-orthogonal directions in superposition, Zipf firing, trees, shared causes.

    Two keys give two models of one distribution. The published model (seed 42) is a third: it was drawn by PyTorch's
    generators, whose numbers JAX does not have.

    Args:
      config: `SyntheticConfig()` is SynthSAEBench-16k, `REDUCED` its small sister.
    Source: arXiv:2602.14687; constants as in SAELens 6.54.
    Example:
      >>> from jaxneuro.dictionaries.synthetic import REDUCED
      >>> features = synthetic(REDUCED, key=jax.random.key(42))
      >>> x, z = sample(features, jax.random.key(0), 32)
      >>> x.shape, z.shape
      ((32, 64), (32, 512))
    """
    n = config.n_features
    of_vectors, of_bias, of_factor, of_spread = jax.random.split(key, 4)
    vectors = unit_rows(jax.random.normal(of_vectors, (n, config.d), jnp.float32))
    factor = jax.random.normal(of_factor, (n, config.rank), jnp.float32) * jnp.float32(config.correlation_scale)
    factor, own = _unit_diagonal(factor)
    spread = config.spread_mean + config.spread_std * jax.random.normal(of_spread, (n,), jnp.float32)
    bias = unit_rows(jax.random.normal(of_bias, (1, config.d), jnp.float32))[0] * jnp.float32(config.bias_norm)
    return SyntheticFeatures(
        vectors=orthogonalised(vectors, steps=config.orthogonal_steps, rate=config.orthogonal_rate),
        bias=bias,
        probabilities=jnp.asarray(firing_probabilities(config), jnp.float32),
        thresholds=threshold(drawn_probabilities(config)),
        factor=factor,
        own=own,
        size=jnp.asarray(np.linspace(config.size_first, config.size_last, n), jnp.float32),
        spread=jnp.abs(spread),
        config=config,
    )


def threshold(p: np.ndarray) -> Float[Array, " n"]:
    """What a standard normal exceeds with probability p.

    Example:
      >>> threshold(np.array([0.1586553, 1.0])).round(3).tolist()
      [1.0, -inf]
    """
    return -ndtri(jnp.asarray(p, jnp.float32))


def _unit_diagonal(factor: Array) -> tuple[Array, Array]:
    """The factor, with too long rows shortened, and the standard deviation that is left to each feature."""
    shared = jnp.sum(jnp.square(factor), axis=1)
    most = jnp.float32(1 - LEAST_OWN_VARIANCE)
    factor = jnp.where(shared[:, None] > most, factor * jnp.sqrt(most / shared)[:, None], factor)
    return factor, jnp.sqrt(1 - jnp.minimum(shared, most))


@partial(jax.jit, static_argnames=("steps", "rate"))
def orthogonalised(vectors: Float[Array, "n d"], *, steps: int, rate: float) -> Float[Array, "n d"]:
    """Unit vectors, pushed apart by Adam on

        sum_{i != j} (v_i . v_j)^2 + n sum_i (v_i . v_i - 1)^2

    The gradient is written out: 4 [V (V^T V) - s V + n (s - 1) V], s_i = |v_i|^2, needs a d x d product and never the
    n x n matrix of cosines.

    Source: arXiv:2602.14687; the loss as in SAELens.
    """
    adam = optax.adam(rate)
    v = unit_rows(vectors)

    def step(_: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        v, state = carry
        s = jnp.sum(v * v, axis=1, keepdims=True)
        gradient = 4 * (v @ (v.T @ v) - s * v + v.shape[0] * (s - 1) * v)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            update, state = adam.update(gradient, state)
        return v + jnp.asarray(update), state

    return unit_rows(jax.lax.fori_loop(0, steps, step, (v, adam.init(v)))[0])


@partial(jax.jit, static_argnames="n")
def sample(
    features: SyntheticFeatures, key: Key[Array, ""], n: int
) -> tuple[Float[Array, "n d"], Float[Array, "n n_features"]]:
    """(x, z): n activations and the features in them.

        g = e factor^T + own u,  e, u ~ N(0, 1);   a = relu(size + spread w) [g > threshold],  w ~ N(0, 1)
        level by level, a child c of q:   z_c = a_c (z_q / size_q) if c wins among its active siblings, else 0
        x = z vectors + bias

    The winner is drawn uniformly. Memory is a few arrays [n, n_features] (16k features, n = 1,024: 64 MiB each). Keys
    of another implementation (`jax.random.key(0, impl="rbg")`) draw faster on accelerators.

    Source: arXiv:2602.14687.
    """
    shared, alone, winners = jax.random.split(key, 3)
    config = features.config
    own, size = jax.random.normal(alone, (2, n, config.n_features), jnp.float32)
    g = jax.random.normal(shared, (n, config.rank), jnp.float32) @ features.factor.T + features.own[None] * own
    a = jax.nn.relu(features.size[None] + features.spread[None] * size)
    a = jnp.where(g > features.thresholds[None], a, jnp.float32(0))
    z = _through_the_trees(a, features.size, winners, config)
    return z @ features.vectors + features.bias[None], z


def _through_the_trees(a: Array, size: Array, key: Key[Array, ""], config: SyntheticConfig) -> Array:
    """Children only with their parent, scaled by it, one per family. Families lie side by side: no gather."""
    if not config.n_roots:
        return a
    draw = jax.random.uniform(key, (a.shape[0], config.nodes), jnp.float32)
    levels = [a[:, : config.n_roots]]
    for i, (start, stop) in enumerate(config.levels[1:]):
        parent, (first, _) = levels[-1], config.levels[i]
        family, lot = (b[:, start:stop].reshape(*parent.shape, config.branching) for b in (a, draw))
        winner = jnp.argmax(jnp.where(family > 0, lot, jnp.float32(-1)), axis=-1)
        won = jnp.arange(config.branching, dtype=winner.dtype)[None, None] == winner[..., None]
        scale = parent / size[None, first:start]
        levels.append(jnp.where(won, family * scale[..., None], jnp.float32(0)).reshape(a.shape[0], stop - start))
    return jnp.concatenate([*levels, a[:, config.nodes :]], axis=1)


def check(features: SyntheticFeatures, batch_size: int) -> None:
    """Raises UserError for a batch that cannot be drawn."""
    if batch_size < 1:
        raise UserError(f"batch_size is at least 1, not {batch_size}.")
    if not isinstance(features, SyntheticFeatures):
        raise UserError(f"features are SyntheticFeatures, from `synthetic`; this is a {type(features).__name__}.")
