# SPDX-License-Identifier: Apache-2.0
"""What a latent responds to: its strongest positions, and whether it tells sentences with a concept from others."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..errors import UserError
from .parts.decoder import unit_rows


class TopPositions(NamedTuple):
    """Of each latent, strongest first."""

    values: Float[Array, "n_latents k"]
    """0 where there are fewer than k positions with a positive value."""
    positions: Int[Array, "n_latents k"]
    """-1 there."""


def top_positions(z: Float[Array, "n n_latents"], k: int = 25, *, mask: Bool[Array, "n"] | None = None) -> TopPositions:
    """The k tokens with the largest coefficients of each latent: the contexts a description is made from.

    Raises:
      UserError: k not between 1 and the number of tokens.
    Source: 25 positions: ordavid-s/snmf-mlp-decomposition.
    Example:
      >>> found = top_positions(jnp.array([[0.0, 1.0], [3.0, 0.0], [2.0, 0.0]]), k=2)
      >>> found.positions.tolist()
      [[1, 2], [0, -1]]
    """
    if not 1 <= k <= z.shape[0]:
        raise UserError(f"top_positions: k = {k} of {z.shape[0]} tokens: between 1 and their number.")
    counted = z if mask is None else jnp.where(mask[:, None], z, 0)
    values, positions = lax.top_k(counted.T, k)
    on = values > 0
    return TopPositions(jnp.where(on, values, 0), jnp.where(on, positions, -1))


def sentence_scores(
    W_dec: Float[Array, "n_latents d"],
    x: Float[Array, "sentences tokens d"],
    mask: Bool[Array, "sentences tokens"] | None = None,
) -> Float[Array, "sentences n_latents"]:
    """max over the tokens of a sentence of cosine(latent, activation).

    A sentence without a token that counts scores -1, the least there is.

    Source: the concept detection of ordavid-s/snmf-mlp-decomposition.
    Example:
      >>> sentence_scores(jnp.eye(2), jnp.array([[[3.0, 0.0], [0.6, 0.8]]])).round(1).tolist()
      [[1.0, 0.800...]]
    """
    x, w = unit_rows(x.astype(jnp.float32)), unit_rows(W_dec.astype(jnp.float32))
    cosine = jnp.einsum("std,kd->stk", x, w, precision=lax.Precision.HIGHEST)
    return jnp.max(cosine if mask is None else jnp.where(mask[..., None], cosine, -1), 1, initial=-1)


class Detection(NamedTuple):
    """How a latent's sentence scores differ."""

    positive: Float[Array, "n_latents"]
    """Mean score of the sentences with the concept."""
    neutral: Float[Array, "n_latents"]
    """Mean score of the others."""

    @property
    def difference(self) -> Float[Array, "n_latents"]:
        """positive - neutral. The paper prints a log ratio of the two means whose exact form we could not verify."""
        return self.positive - self.neutral


def concept_detection(
    positive: Float[Array, "sentences n_latents"], neutral: Float[Array, "others n_latents"]
) -> Detection:
    """Mean `sentence_scores` of sentences with a concept and of neutral ones.

    Example:
      >>> concept_detection(jnp.array([[0.75], [0.25]]), jnp.array([[0.25]])).difference.tolist()
      [0.25]
    """
    return Detection(jnp.mean(positive, 0), jnp.mean(neutral, 0))
