# SPDX-License-Identifier: Apache-2.0
"""Threshold autoencoders whose encoder is the decoder seen through the atomic inner product ("Atoms")."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ..protocols import Method
from .jumprelu import thresholded
from .parts.inputs import Inputs
from .parts.learner import Parameters
from .parts.numbers import numbers_checked
from .parts.selected import begin
from .parts.training import Training


@numbers_checked
def atoms(
    n_latents: int,
    *,
    sparsity: float | None = None,
    target_l0: float | None = None,
    bandwidth: float = 1e-3,
    threshold_start: float = 1e-3,
    sparsity_warmup_steps: int = 0,
    shrinkage: float = 1e-4,
    training: Training = Training(),
) -> Method:
    """A threshold dictionary: z = pre where pre > tau, else 0, with one tau for all latents.

        W_enc = S D^T at first,  S = (E[x x^T] + shrinkage * tr / d * I)^-1,  rows scaled so that <d_i, S d_i> = 1
        loss: as `jumprelu`

    The decoder's rows D are the atoms. Seen through S (the atomic inner product, a cosine after whitening), atoms that
    are nearly orthogonal can be read off by their inner products with x: tau separates those that are there. Whether
    they are is for `incoherence` to say: coherence, RIP and uniqueness checks, q*. E is over the first batch, which
    should hold more tokens than d.

    The definitions are from the abstract and reviews of the work; its training loss and coefficients are not public
    to us: this is a JumpReLU loss, and no reproduction.

    Args:
      shrinkage: of the second moment, as a share of its mean eigenvalue.
      n_latents, sparsity, target_l0, bandwidth, threshold_start, sparsity_warmup_steps, training: see `jumprelu`.
    Example:
      >>> import jax
      >>> method = atoms(n_latents=16, target_l0=4)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> method.finish(state).activation.threshold.shape
      ()
    """
    shared = begin(n_latents, training)

    def start(key: Key[Array, ""], inputs: Inputs, tied: bool) -> Parameters:
        p = shared(key, inputs, tied)
        if not tied:
            return p
        w = _seen(p["w_dec"], inputs.x - p["b_dec"][None], inputs, shrinkage)
        return p | {"w_enc": w / jnp.sum(w * p["w_dec"], axis=1, keepdims=True)}

    return thresholded(
        *("atoms", n_latents, sparsity, target_l0, bandwidth, threshold_start, sparsity_warmup_steps, training),
        shared=True,
        start=start,
    )


def _seen(
    rows: Float[Array, "n_latents d"], x: Float[Array, "n d"], inputs: Inputs, shrinkage: float
) -> Float[Array, "n_latents d"]:
    """Rows times S."""
    x = jnp.where(inputs.valid[:, None], x, jnp.float32(0))
    moment = jnp.dot(x.T, x, preferred_element_type=jnp.float32) / inputs.divisor
    d = moment.shape[0]
    ridge = jnp.float32(shrinkage) * jnp.trace(moment) / jnp.float32(d)
    return jnp.linalg.solve(moment + ridge * jnp.eye(d, dtype=jnp.float32), rows.T).T
