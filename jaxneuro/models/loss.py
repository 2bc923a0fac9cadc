# SPDX-License-Identifier: Apache-2.0
"""The loss every causal model is measured by."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .inputs import NO_LABEL, check_ids


def token_loss(
    logits: Float[Array, "batch pos d_vocab"],
    tokens: Int[Array, "batch pos"],
    mask: Bool[Array, "batch pos"] | None = None,
) -> tuple[Float[Array, "batch pos-1"], Bool[Array, "batch pos-1"]]:
    """Next-token cross entropy, position by position.

        nll[b, t] = logsumexp(logits[b, t]) - logits[b, t, tokens[b, t+1]]       in nats, float32

    Args:
      logits: of the whole sequence, any float dtype.
      tokens: ids; -100, transformers' mark, is no label: there is nothing to predict.
      mask: True at real tokens; None: all real.
    Returns:
      (nll, valid): valid is True where both the token that predicts and the one predicted are real, and that is a
      label. nll is 0 elsewhere; average with `nll.mean(where=valid)`. A traced label outside the vocabulary gives NaN.
    Raises:
      UserError: a label outside the vocabulary, where ids are known.
    Example:
      >>> nll, valid = token_loss(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]))
      >>> [[round(v, 4) for v in row] for row in nll.tolist()], valid.tolist()
      ([[1.3863, 1.3863]], [[True, True]])
    """
    check_ids(tokens[:, 1:], logits.shape[-1], "tokens", None if mask is None else mask[:, 1:], also=NO_LABEL)
    valid = predictions(tokens, mask)
    # Labels and logits that nobody counts are replaced before: neither NaN nor its gradient leaves its position.
    labels = jnp.where(valid, tokens[:, 1:], 0)
    nll = cross_entropy(jnp.where(valid[..., None], logits[:, :-1], 0), labels)
    return jnp.where(valid, nll, 0), valid


def predictions(tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None) -> Bool[Array, "batch pos-1"]:
    """True where both the token that predicts and the one predicted are real, and the second is a label."""
    real = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    return real[:, :-1] & real[:, 1:] & (tokens[:, 1:] != NO_LABEL)


def counted_loss(
    nll: Float[Array, "batch pos-1"], batch: Mapping[str, Array]
) -> tuple[Float[Array, " batch"], Int[Array, " batch"]]:
    """Sum over each window's counted predictions, and their number; batch: "tokens", "mask" and "counted"."""
    valid = predictions(batch["tokens"], batch["mask"]) & batch["counted"][:, 1:]
    return jnp.sum(jnp.where(valid, nll, 0), 1), jnp.sum(valid, 1, dtype=jnp.int32)


def cross_entropy(logits: Float[Array, "*batch d_vocab"], targets: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """logsumexp(logits) - logits[target], in nats, float32; NaN for a target that there is no logit of."""
    scores, targets = logits.astype(jnp.float32), targets.astype(jnp.int32)
    targets = jnp.where(targets < 0, scores.shape[-1], targets)
    chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1, mode="fill")[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - chosen
