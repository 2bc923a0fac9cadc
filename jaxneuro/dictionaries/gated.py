# SPDX-License-Identifier: Apache-2.0
"""Gated dictionaries: a gate chooses latents, a magnitude says how much (Rajamanoharan et al., 2404.16014)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ..errors import UserError
from ..protocols import Method
from .activations import Gated
from .parts.dense import Latents, against, dense
from .parts.inputs import Inputs
from .parts.learner import Now, Parameters
from .parts.numbers import numbers_checked
from .parts.optimise import ramp
from .parts.selected import begin
from .parts.training import Training


@numbers_checked
def gated(n_latents: int, l1: float, *, l1_warmup_steps: int = 0, training: Training = Training()) -> Method:
    """A Gated dictionary: the L1 penalty chooses latents without shrinking them.

        u = (x - b_dec) W_enc;   pi_gate = u + b_gate;   pi_mag = u exp(r_mag) + b_mag;   z = [pi_gate > 0] relu(pi_mag)
        loss = mean_n (|y - z W_dec - b_dec|^2 + l1 sum_i relu(pi_gate,i) + |y - relu(pi_gate) W_dec' - b_dec'|^2) / V

    W_dec' and b_dec' are constants there: the gate learns to reconstruct with the decoder as it is. Decoder rows have
    norm 1. V: see `topk`.

    Args:
      l1: coefficient, for inputs of mean norm sqrt(d); converted where `training.normalise` makes them of another.
      l1_warmup_steps: from 0 to l1, linear, over so many steps.
      n_latents, training: see `topk`.
    Returns:
      A Method; `finish` gives a `SparseCoder` with `Gated`.
    Source: arXiv:2404.16014, equations 5 to 8.
    Example:
      >>> method = gated(n_latents=16, l1=0.1)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> method.finish(state).encode(x).shape
      (64, 16)
    """
    if not l1 >= 0 or l1_warmup_steps < 0:
        raise UserError(f"gated: l1 = {l1}, l1_warmup_steps = {l1_warmup_steps}: neither is below 0.")
    coefficient = ramp(0.0, l1, l1_warmup_steps)

    def latents(p: Parameters, pre: Array, inputs: Inputs, now: Now) -> Latents:
        on, size = inputs.valid[:, None], against("sqrt_d", training, inputs.x.shape[1])
        gate = jax.nn.relu(pre + p["b_gate"][None])
        z = jnp.where(gate > 0, jax.nn.relu(pre * jnp.exp(p["r_mag"])[None] + p["b_mag"][None]), jnp.float32(0))
        penalty = coefficient(now.step) * jnp.float32(size) * jnp.sum(jnp.where(on, gate, jnp.float32(0)))
        return Latents(z, penalty, also=gate)

    def activation(p: Parameters, unit: Array) -> Gated:
        return Gated(r_mag=p["r_mag"], b_mag=p["b_mag"] / unit, b_gate=p["b_gate"] / unit)

    def start(key: Key[Array, ""], inputs: Inputs, tied: bool) -> Parameters:
        p = begin(n_latents, training)(key, inputs, tied)
        del p["b_enc"]
        return p | {name: jnp.zeros(n_latents, jnp.float32) for name in ("b_gate", "b_mag", "r_mag")}

    return dense(
        n_latents,
        latents,
        activation,
        training=training,
        start=start,
        through_centre=lambda grads, p: grads["b_gate"] + jnp.exp(p["r_mag"]) * grads["b_mag"],
    )
