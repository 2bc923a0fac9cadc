# SPDX-License-Identifier: Apache-2.0
"""The public functions, their checks and their pseudo-derivatives. XLA fuses elementwise functions: no kernels."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from ..axes import aligned


def jumprelu(z: Array, theta: Array, bandwidth: Array | float) -> Array:
    """What is above its threshold.

        z [z > theta]

        d/dz = [z > theta]        d/dtheta = -(theta / bandwidth) K((z - theta) / bandwidth),   K(u) = [|u| < 1/2]

    The derivative to theta, 0 almost everywhere, is replaced by one whose mean over z estimates the derivative of the
    mean, from the z within half a bandwidth of theta.

    Args:
      z: pre-activations, [...], floating.
      theta: thresholds of z's dtype, broadcast against z from the right ([n_latents], or one for all).
      bandwidth: positive number or scalar, of z's unit; it has no derivative.
    Returns:
      z's shape and dtype. A NaN is above no threshold and gives 0.
    Raises:
      ValueError: shapes or types that do not fit; a bandwidth that is not positive (unless it is traced).
    Source: arXiv:2407.14435.
    Example:
      >>> z, theta = jnp.array([0.5, 1.1, 2.0]), jnp.array(1.0)
      >>> jumprelu(z, theta, 0.5).tolist()
      [0.0, 1.100000023841858, 2.0]
      >>> float(jax.grad(lambda t: jumprelu(z, t, 0.5).sum())(theta))  # one of the three is near
      -2.0
    """
    return _jumprelu(*_checked("jumprelu", z, theta, bandwidth))


def step(z: Array, theta: Array, bandwidth: Array | float) -> Array:
    """One where z is above its threshold, else zero; its sum over latents is L0, with a derivative to the thresholds.

        [z > theta]

        d/dz = 0        d/dtheta = -(1 / bandwidth) K((z - theta) / bandwidth),   K(u) = [|u| < 1/2]

    Args, Raises: see `jumprelu`.
    Returns:
      z's shape and dtype.
    Source: arXiv:2407.14435.
    Example:
      >>> z, theta = jnp.array([0.5, 1.1, 2.0]), jnp.array(1.0)
      >>> step(z, theta, 0.5).tolist()
      [0.0, 1.0, 1.0]
      >>> float(jax.grad(lambda t: step(z, t, 0.5).sum())(theta))
      -2.0
    """
    return _step(*_checked("step", z, theta, bandwidth))


def _checked(op: str, z: Array, theta: Array, bandwidth: Array | float) -> tuple[Array, Array, Array]:
    z, theta = jnp.asarray(z), jnp.asarray(theta)
    width = jnp.asarray(bandwidth)
    shapes = zip(reversed(theta.shape), reversed(z.shape), strict=False)
    fits = theta.ndim <= z.ndim and all(t in (1, n) for t, n in shapes) and not width.ndim
    if not (fits and theta.dtype == z.dtype and jnp.issubdtype(z.dtype, jnp.floating)):
        shown = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in (("z", z), ("theta", theta)))
        raise ValueError(
            f"{op}: {shown}, bandwidth {list(width.shape)} do not fit: theta broadcasts to z and has its floating"
            " dtype, bandwidth is a scalar."
        )
    if not isinstance(width, Tracer) and not width > 0:
        raise ValueError(f"{op}: bandwidth = {bandwidth}; it is positive.")
    return z, theta, width.astype(z.dtype)


def _gate(z: Array, theta: Array, value: Array) -> Array:
    return jnp.where(z > theta, value, jnp.zeros((), z.dtype))


def _box(z: Array, theta: Array, bandwidth: Array) -> Array:
    """K((z - theta) / bandwidth) / bandwidth."""
    near = jnp.abs(z - theta) < bandwidth / 2
    return jnp.where(near, 1 / bandwidth, jnp.zeros((), z.dtype))


@jax.custom_jvp
def _jumprelu(z: Array, theta: Array, bandwidth: Array) -> Array:
    del bandwidth
    return _gate(z, aligned(theta, z), z)


@_jumprelu.defjvp
def _jumprelu_jvp(primals, tangents):
    z, theta, bandwidth = primals
    dz, dtheta, _ = tangents
    theta, dtheta = aligned(theta, z), aligned(dtheta, z)
    return _gate(z, theta, z), _gate(z, theta, dz) - theta * _box(z, theta, bandwidth) * dtheta


@jax.custom_jvp
def _step(z: Array, theta: Array, bandwidth: Array) -> Array:
    del bandwidth
    return _gate(z, aligned(theta, z), jnp.ones((), z.dtype))


@_step.defjvp
def _step_jvp(primals, tangents):
    z, theta, bandwidth = primals
    theta, dtheta = aligned(theta, z), aligned(tangents[1], z)
    return _gate(z, theta, jnp.ones((), z.dtype)), -_box(z, theta, bandwidth) * dtheta
