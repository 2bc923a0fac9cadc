# SPDX-License-Identifier: Apache-2.0
"""JumpReLU dictionaries: a threshold per latent, trained on L0 itself (Rajamanoharan et al., arXiv:2407.14435)."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxneuro_kernels import jumprelu as above
from jaxneuro_kernels import step as counts
from jaxtyping import Array, Key

from ..errors import UserError
from ..protocols import Method
from .activations import JumpReLU
from .parts.dense import Latents, against, dense
from .parts.inputs import Inputs
from .parts.learner import Now, Parameters
from .parts.numbers import numbers_checked
from .parts.optimise import ramp
from .parts.selected import begin
from .parts.training import Training


@numbers_checked
def jumprelu(
    n_latents: int,
    *,
    sparsity: float | None = None,
    target_l0: float | None = None,
    bandwidth: float = 1e-3,
    threshold_start: float = 1e-3,
    sparsity_warmup_steps: int = 0,
    training: Training = Training(),
) -> Method:
    """A JumpReLU dictionary: z = pre where pre > theta, else 0, with one theta per latent.

        pre = (x - b_dec) W_enc + b_enc
        loss = (mean_n |y_n - x_hat_n|^2 + sparsity * L0) / V                                     sparsity given
        loss = (mean_n |y_n - x_hat_n|^2 + sparsity * (L0 / target_l0 - 1)^2) / V                 target_l0 given

    L0 = mean_n sum_i [pre_ni > theta_i]. Its derivative to theta, 0 almost everywhere, and that of z are the published
    pseudo-derivatives: `jaxneuro_kernels.jumprelu` and `step`. theta itself is trained, and used as 0 where it
    is below. V: see `topk`.

    Args:
      n_latents: latents.
      sparsity: coefficient of L0. Either this or target_l0 is needed; with target_l0, None means 1.
      target_l0: drive L0 to this number, instead of weighing it against the error. Either this or sparsity is needed.
      bandwidth: width of the kernel around theta from which theta learns.
      threshold_start: theta at first. It moves by at most about the learning rate in a step of Adam.
      sparsity_warmup_steps: coefficient from 0, linear, over so many steps.
      training: see `Training`. All four numbers above are for inputs whose mean squared norm is 1, as published; they
        are converted where `training.normalise` makes it d.
    Returns:
      A Method; `finish` gives a `SparseCoder` with `JumpReLU`.
    Raises:
      UserError: neither sparsity nor target_l0; numbers that are not positive.
    Source: arXiv:2407.14435 (loss, pseudo-derivatives), 2408.05147 (bandwidth, start); dictionary_learning (target, and
      theta itself: the paper's exp(log theta) moves by a share of itself, so that short runs miss the target).
    Example:
      >>> import jax
      >>> method = jumprelu(n_latents=16, target_l0=4)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> state, info = jax.jit(method.step)(state, {"x": x})
      >>> method.finish(state).encode(x).shape
      (64, 16)
    """
    return thresholded(
        "jumprelu", n_latents, sparsity, target_l0, bandwidth, threshold_start, sparsity_warmup_steps, training
    )


def thresholded(
    name: str,
    n_latents: int,
    sparsity: float | None,
    target_l0: float | None,
    bandwidth: float,
    threshold_start: float,
    warmup_steps: int,
    training: Training,
    *,
    shared: bool = False,
    start: Any = None,
) -> Method:
    """`jumprelu`, or with `shared` one threshold for all latents; `start` as in `dense`."""
    if sparsity is None and target_l0 is None:
        raise UserError(f"{name}: give sparsity (a coefficient of L0) or target_l0 (the L0 to reach).")
    weight = 1.0 if sparsity is None else sparsity
    for what, value in (("bandwidth", bandwidth), ("threshold_start", threshold_start), ("target_l0", target_l0)):
        if value is not None and not value > 0:
            raise UserError(f"{name}: {what} = {value} is not above 0.")
    if not weight >= 0 or warmup_steps < 0:
        raise UserError(f"{name}: sparsity = {weight}, sparsity_warmup_steps = {warmup_steps}: neither is below 0.")
    coefficient = ramp(0.0, weight, warmup_steps)
    axes, size_of = training.axes, functools.partial(against, "unit", training)
    theta = "theta" if shared else "threshold"

    def latents(p: Parameters, pre: Array, inputs: Inputs, now: Now) -> Latents:
        size = size_of(inputs.x.shape[1])
        threshold, width = p[theta] + lax.stop_gradient(_above_zero(p[theta]) - p[theta]), bandwidth * size
        on = jnp.sum(jnp.where(inputs.valid[:, None], counts(pre, threshold, width), jnp.float32(0)))
        penalty = coefficient(now.step) * jnp.float32(size**2) * _excess(on, inputs, now)
        return Latents(above(pre, threshold, width), penalty)

    def _excess(on: Array, inputs: Inputs, now: Now) -> Array:
        """This device's part of a sum over tokens."""
        if target_l0 is None:
            return on
        tokens = jnp.maximum(axes.over_tokens(inputs.tokens), 1).astype(jnp.float32)
        l0 = axes.over_tokens(axes.over_latents(on)) / tokens
        return jnp.square(l0 / jnp.float32(target_l0) - 1) * tokens / jnp.float32(axes.shards)

    def begin_above(key: Key[Array, ""], inputs: Inputs, tied: bool) -> Parameters:
        value = jnp.float32(threshold_start * size_of(inputs.x.shape[1]))
        thresholds = {theta: jnp.full(() if shared else (n_latents,), value, jnp.float32)}
        return (start or begin(n_latents, training))(key, inputs, tied) | thresholds

    def activation(p: Parameters, unit: Array) -> JumpReLU:
        return JumpReLU(_above_zero(p[theta]) / unit)

    return dense(n_latents, latents, activation, training=training, start=begin_above)


def _above_zero(theta: Array) -> Array:
    """Thresholds as they are used: below 0 a latent would pass negative pre-activations."""
    return jnp.maximum(theta, jnp.float32(0))
