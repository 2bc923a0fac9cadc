# SPDX-License-Identifier: Apache-2.0
"""What an intervention is judged by: a table of functions of the model's output, with their units."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..axes import by_position
from ..errors import UserError, unknown
from ..models import token_loss
from ..models.loss import counted_loss


class Measure(NamedTuple):
    """A damage per window. Sums of `value` are divided by sums of `weight`, per group."""

    fn: Callable[[Array, Array, Any], tuple[Array, Array]]
    """(output, output without intervention, batch) -> (value float32 [B], weight int32 [B])."""
    name: str
    change: str
    """What a difference of it is called."""
    unit: str
    needs_logits: bool = False


def _loss(output: Array, reference: Array, batch: Any) -> tuple[Float[Array, " batch"], Array]:
    return _given(token_loss(output, batch["tokens"], batch["mask"])[0], reference, batch)


def _given(output: Array, reference: Array, batch: Any) -> tuple[Float[Array, " batch"], Array]:
    return counted_loss(output, batch)


def mean_pool(hidden: Float[Array, "batch pos d"], on: Bool[Array, "batch pos"]) -> Float[Array, "batch d"]:
    """Mean of the positions that are on, float32; 0 for a row without any."""
    total = jnp.sum(jnp.where(on[..., None], hidden.astype(jnp.float32), 0), 1)
    return total / jnp.maximum(jnp.sum(on, 1), 1).astype(jnp.float32)[:, None]


def vector(output: Array, mask: Bool[Array, "batch pos"]) -> Float[Array, "batch d"]:
    """One float32 vector per row: a pooled output as it is, else the mean over positions."""
    return output.astype(jnp.float32) if output.ndim == 2 else mean_pool(by_position(output, mask.shape), mask)


def _own_loss(output: Array, reference: Array, batch: Any) -> tuple[Float[Array, " batch"], Array]:
    label = jnp.argmax(reference, -1, keepdims=True)
    logits = output.astype(jnp.float32)
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, label, -1)[:, 0]
    real = jnp.any(batch["mask"], 1)
    return jnp.where(real, loss, 0), real.astype(jnp.int32)


def _shift(output: Array, reference: Array, batch: Any) -> tuple[Float[Array, " batch"], Array]:
    a, b = (vector(h, batch["mask"]) for h in (output, reference))
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    cosine = jnp.sum(a * b, -1) / jnp.maximum(norms, jnp.float32(1e-30))
    real = jnp.any(batch["mask"], 1)
    return jnp.where(real, 1 - cosine, 0), real.astype(jnp.int32)


MEASURES: Final[dict[str, Measure]] = {
    "loss": Measure(_loss, "loss", "increase of loss", "nats per token", needs_logits=True),
    "given_loss": Measure(_given, "loss", "increase of loss", "nats per token"),
    "embedding_shift": Measure(_shift, "embedding shift", "shift of the mean-pooled last hidden state", "1 - cosine"),
    "own_loss": Measure(
        _own_loss, "loss of its own prediction", "increase of the loss of its own prediction", "nats per picture"
    ),
    "picture_shift": Measure(_shift, "embedding shift", "shift of the picture's embedding", "1 - cosine"),
}
"""loss: next-token cross entropy of counted tokens, for models with logits. given_loss: the same of a model
that gives its loss and holds no logits (`jaxneuro.models.logits.loss_fn`). embedding_shift: one minus the cosine
between the mean-pooled outputs with and without the intervention, for encoders (0 without one). own_loss: cross entropy
of a classifier's output [batch, class] against the class that it predicts without the intervention. picture_shift:
embedding_shift of a picture's pooled vector [batch, d], or of the mean of its map."""


def measure_named(measure: str | Measure) -> Measure:
    """A row of `MEASURES`, or the given measure itself.

    Raises:
      UserError: no measure of that name.
    """
    if isinstance(measure, Measure):
        return measure
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES, hint="Or give a jaxneuro.neurons.Measure.")
    return MEASURES[measure]


def check_output(apply: Callable, weights: Any, batch: Any, measure: Measure) -> None:
    """Refuse a measure of logits for a model whose output is too narrow for its own tokens: it has no unembedding.

    Raises:
      UserError: as said.
    """
    if not measure.needs_logits:
        return
    width = jax.eval_shape(apply, weights, batch["tokens"], batch["mask"]).shape[-1]
    if (top := int(jnp.max(batch["tokens"]))) >= width:
        raise UserError(
            f"measure {measure.name!r} needs logits, but the model's output has width {width} and the text holds token "
            f"{top}: this model has no head. Use measure='embedding_shift'."
        )


def per_group(value: Array, group: Array, n_groups: int) -> Array:
    """Sum [B] per group -> [K], dtype kept; rows with a group outside 0 .. K - 1 are left out."""
    one_hot = jax.nn.one_hot(group, n_groups, dtype=value.dtype)
    return jnp.sum(value[:, None] * one_hot, 0)
