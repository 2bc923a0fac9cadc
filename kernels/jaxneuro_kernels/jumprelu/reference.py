# SPDX-License-Identifier: Apache-2.0
"""The two functions and their pseudo-derivatives, as printed in arXiv:2407.14435. Equal shapes."""

import jax.numpy as jnp
from jax import Array


def jumprelu(z: Array, theta: Array) -> Array:
    """z H(z - theta)."""
    return jnp.where(z > theta, z, 0.0)


def step(z: Array, theta: Array) -> Array:
    """H(z - theta)."""
    return jnp.where(z > theta, 1.0, 0.0)


def kernel(u: Array) -> Array:
    """The rectangle: 1 for |u| < 1/2."""
    return jnp.where((u > -0.5) & (u < 0.5), 1.0, 0.0)


def derivatives(z: Array, theta: Array, bandwidth: float) -> dict[str, Array]:
    """By name: d jumprelu/dz, d jumprelu/dtheta, d step/dz, d step/dtheta."""
    near = kernel((z - theta) / bandwidth)
    return {
        "jumprelu_z": step(z, theta),
        "jumprelu_theta": -theta / bandwidth * near,
        "step_z": jnp.zeros_like(z),
        "step_theta": -1 / bandwidth * near,
    }
