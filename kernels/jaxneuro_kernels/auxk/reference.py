# SPDX-License-Identifier: Apache-2.0
"""What AuxK means, in plain JAX: top-k over all latents with the living at minus infinity. Gradients by autodiff."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..sae_backward.adam import Rows
from ..topk.reference import topk


def auxk(parameters: Rows, dead: Array, x: Array, residual: Array, valid: Array, k_aux: int) -> Array:
    """Scalar. k_aux of the dead latents where there are more; two-dimensional x."""
    pre = jnp.where(dead[None], x @ parameters.w_enc.T + parameters.b_enc[None], -jnp.inf)
    _, idx = topk(lax.stop_gradient(pre), k_aux)
    kept = jnp.put_along_axis(jnp.zeros(pre.shape, bool), idx, jnp.array(True), axis=-1, inplace=False)
    a = jnp.where(kept & dead[None], jax.nn.relu(pre), 0.0)
    left = jnp.sum(jnp.square(residual - a @ parameters.w_dec), 1)
    mean = jnp.mean(residual, 0, where=valid[:, None])
    spread = jnp.sum(jnp.where(valid, jnp.sum(jnp.square(residual - mean[None]), 1), 0.0))
    return jnp.sum(jnp.where(valid, left, 0.0)) / spread
