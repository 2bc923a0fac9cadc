# SPDX-License-Identifier: Apache-2.0
"""BatchTopK: k latents per token on average, chosen over the whole batch (Bussmann et al., arXiv:2412.06410)."""

from ..protocols import Method
from .parts.numbers import numbers_checked
from .parts.selected import AuxK, inference_threshold, selecting
from .parts.training import Training


@numbers_checked
def batch_topk(
    n_latents: int,
    k: int,
    *,
    k_start: int | None = None,
    k_steps: int = 0,
    auxk: AuxK | None = AuxK(),
    training: Training = Training(),
) -> Method:
    """A BatchTopK dictionary: as `topk`, but a token may have more latents than another.

        pre = (x - b_dec) W_enc + b_enc;   z = relu(pre) at the n k largest of all pre of the batch's n valid tokens

    One token alone has no batch: at inference a latent is on above a threshold, the running mean (rate 0.1) of the
    batches' smallest kept pre-activation. `finish` returns a `SparseCoder` with `JumpReLU` at that one threshold;
    `info["threshold"]` shows it, in units of the scaled input.

    Args, Raises: see `topk`. With `training.accumulate`, each part of the batch chooses for itself.
    Source: arXiv:2412.06410; a running mean as in SAELens (rate 0.01 there, which lags in short runs).
    Example:
      >>> import jax
      >>> method = batch_topk(n_latents=16, k=2)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> state, info = jax.jit(method.step)(state, {"x": x})
      >>> float(info["l0"]) <= 2, float(info["threshold"]) > 0
      (True, True)
    """
    return selecting(
        "batch_topk",
        n_latents,
        k,
        rule="batch_topk",
        activation=inference_threshold,
        training=training,
        auxk=auxk,
        k_start=k_start,
        k_steps=k_steps,
    )
