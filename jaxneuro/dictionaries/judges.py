# SPDX-License-Identifier: Apache-2.0
"""Measures of damage: what `recovered` takes as its judge."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..models import token_loss
from ..models.loss import counted_loss
from ..taps.compiled import compiled

type Judge = Callable[[Array, Array, Any], tuple[Array, Array]]
"""(output, output of the unchanged model, batch) -> (damage float32 [B], weight int32 [B]) per window."""
POSITIONS = 64
"""Positions whose distributions are held at once: 64 x 256k words in float32 are 64 MiB."""


def next_token_loss(output: Array, reference: Array, batch: Any) -> tuple[Float[Array, " batch"], Array]:
    """Summed cross entropy of each window's counted tokens, in nats, and their number: the default `Judge`."""
    return given_loss(token_loss(output, batch["tokens"], batch["mask"])[0], reference, batch)


def given_loss(
    output: Float[Array, "batch pos-1"], reference: Array, batch: Any
) -> tuple[Float[Array, " batch"], Int[Array, " batch"]]:
    """`next_token_loss` of a model that gives its loss and holds no logits (`jaxneuro.models.logits.loss_fn`)."""
    del reference
    return counted_loss(output, batch)


@compiled
def kl_divergence(
    output: Float[Array, "batch pos d_vocab"], reference: Float[Array, "batch pos d_vocab"], batch: Any
) -> tuple[Float[Array, " batch"], Int[Array, " batch"]]:
    """KL(original || edited) over the vocabulary, summed over each window's counted tokens, and their number.

        sum_t sum_v p_t(v) (log p_t(v) - log q_t(v)),   p of `reference`, q of `output`;   nats, float32

    A `Judge`: `recovered(..., judge=kl_divergence).original` is 0, and `recovered_zero` is the usual KL score.

    Args:
      output: logits of the edited model.
      reference: logits of the model as it is.
      batch: with "mask" and "counted", bool [batch, pos].
    Example:
      >>> on = {"mask": jnp.ones((1, 1), bool), "counted": jnp.ones((1, 1), bool)}
      >>> kl, n = kl_divergence(jnp.array([[[0.0, 0.0]]]), jnp.log(jnp.array([[[0.75, 0.25]]])), on)
      >>> round(float(kl[0]), 4), int(n[0])
      (0.1308, 1)
    """
    counted = batch["counted"] & batch["mask"]

    def position(logits: tuple[Array, Array]) -> Array:
        log_q, log_p = (jax.nn.log_softmax(a.astype(jnp.float32)) for a in logits)
        p = jnp.exp(log_p)
        return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0))

    def window(logits: tuple[Array, Array]) -> Array:
        return jax.lax.map(position, logits, batch_size=POSITIONS)

    kl = jax.lax.map(window, (output, reference))
    return jnp.sum(jnp.where(counted, kl, 0), 1), jnp.sum(counted, 1, dtype=jnp.int32)
