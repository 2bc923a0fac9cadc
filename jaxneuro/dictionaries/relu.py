# SPDX-License-Identifier: Apache-2.0
"""ReLU dictionaries with an L1 penalty (Bricken et al. 2023; Anthropic's April 2024 form)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..errors import UserError
from ..protocols import Method
from .activations import Relu
from .parts.dense import Latents, against, dense, site_norms
from .parts.inputs import Inputs
from .parts.learner import Now, Parameters
from .parts.numbers import numbers_checked
from .parts.optimise import ramp
from .parts.selected import begin
from .parts.training import Training


@numbers_checked
def relu(n_latents: int, l1: float, *, l1_warmup_steps: int = 0, training: Training = Training()) -> Method:
    """A ReLU dictionary: z = relu((x - b_dec) W_enc + b_enc),  x_hat = z W_dec + b_dec.

        loss = (mean_n |y_n - x_hat_n|^2 + l1 * mean_n sum_i z_ni |W_dec,i|) / V

    Decoder rows are free and weigh their latents (with `training.widths`, a crosscoder's L1: the sum of a row's norms
    at all sites), so the penalty cannot be evaded by small latents with large rows; `finish` moves the norms into the
    latents. V: see `topk`.

    Args:
      n_latents: latents.
      l1: coefficient, for inputs of mean norm sqrt(d) (5 in Anthropic's and SAELens' recipes); converted where
        `training.normalise` makes them of another norm.
      l1_warmup_steps: from 0 to l1, linear, over so many steps.
      training: see `Training`. (Start: decoder rows of norm 0.1, W_enc = W_dec^T.)
    Returns:
      A Method; `finish` gives a `SparseCoder` with `Relu`. Info also has l1: mean_n sum_i z_ni |W_dec,i|.
    Source: transformer-circuits.pub/2024/april-update (loss, start).
    Example:
      >>> method = relu(n_latents=16, l1=0.1)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> state, info = jax.jit(method.step)(state, {"x": x})
      >>> float(info["l1"]) > 0
      True
    """
    if not l1 >= 0 or l1_warmup_steps < 0:
        raise UserError(f"relu: l1 = {l1}, l1_warmup_steps = {l1_warmup_steps}: neither is below 0.")
    coefficient = ramp(0.0, l1, l1_warmup_steps)
    axes = training.axes

    def latents(p: Parameters, pre: Array, inputs: Inputs, now: Now) -> Latents:
        z, scale = jax.nn.relu(pre), jnp.float32(against("sqrt_d", training, inputs.x.shape[1]))
        size = jnp.where(inputs.valid[:, None], z, jnp.float32(0)).sum(0) @ site_norms(p["w_dec"], training.widths)
        return Latents(z, coefficient(now.step) * scale * size, info={"l1": axes.over_latents(size) / now.divisor})

    def start(key, inputs: Inputs, tied: bool) -> Parameters:
        p = begin(n_latents, training)(key, inputs, tied)
        return p | {name: jnp.float32(0.1) * p[name] for name in ("w_enc", "w_dec")}

    return dense(n_latents, latents, lambda p, unit: Relu(), training=training, start=start, unit_decoder=False)
