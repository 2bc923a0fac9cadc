# SPDX-License-Identifier: Apache-2.0
"""The training step a JAX user writes first: `lax.top_k`, dense latents, autodiff, Adam. Benchmarks use it too."""

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

type Parameters = dict[str, Array]
OPTIMISER = optax.adam(1e-3)


def start(key: Array, d: int, n_latents: int) -> tuple[Parameters, optax.OptState]:
    """Parameters W_enc [d, n_latents], W_dec [n_latents, d], b_enc, b_dec (tied, unit rows) and Adam's state."""
    w_dec = jax.random.normal(key, (n_latents, d), jnp.float32)
    w_dec /= jnp.linalg.norm(w_dec, axis=1, keepdims=True)
    zeros = {"b_enc": jnp.zeros(n_latents, jnp.float32), "b_dec": jnp.zeros(d, jnp.float32)}
    p = {"W_enc": jnp.array(w_dec.T), "W_dec": w_dec, **zeros}
    return p, OPTIMISER.init(p)


def encode(p: Parameters, x: Array, k: int) -> Array:
    """Dense latents [n, n_latents]."""
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    vals, idx = lax.top_k(pre, k)
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
    return jnp.zeros_like(pre).at[rows, idx].set(jax.nn.relu(vals))


def loss(p: Parameters, x: Array, k: int) -> Array:
    """Fraction of the batch's variance unexplained."""
    x_hat = encode(p, x, k) @ p["W_dec"] + p["b_dec"]
    return jnp.sum(jnp.square(x_hat - x)) / jnp.sum(jnp.square(x - x.mean(0)))


def step(state: tuple[Parameters, optax.OptState], x: Array, k: int) -> tuple[tuple[Parameters, optax.OptState], Array]:
    """One step; jit it with donated state and static k."""
    p, moments = state
    value, gradient = jax.value_and_grad(loss)(p, x, k)
    updates, moments = OPTIMISER.update(gradient, moments, p)
    return (optax.apply_updates(p, updates), moments), value
