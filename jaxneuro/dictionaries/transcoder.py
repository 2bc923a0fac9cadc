# SPDX-License-Identifier: Apache-2.0
"""Transcoders: what a layer's output is made of, from its input (Dunefsky et al., arXiv:2406.11944)."""

from ..protocols import Method
from .activations import TopK
from .parts.numbers import numbers_checked
from .parts.selected import AuxK, selecting
from .parts.training import Training


@numbers_checked
def transcoder(
    n_latents: int,
    k: int,
    *,
    skip: bool = False,
    k_start: int | None = None,
    k_steps: int = 0,
    auxk: AuxK | None = AuxK(),
    training: Training = Training(),
) -> Method:
    """A TopK transcoder of batches {"x": [n, d_in], "y": [n, d_out]}: y from few latents of x.

        z = relu(topk(x W_enc + b_enc, k));   y_hat = z W_dec + b_dec + [x W_skip^T]
        loss = mean_n |y_n - y_hat_n|^2 / V + auxk.weight * AuxK

    Args:
      skip: add an affine path beside the latents, from zero (arXiv:2501.18823): what is linear needs no latents.
      n_latents, k, k_start, k_steps, auxk, training: see `topk`.
    circuit-tracer and SAELens have no TopK transcoders (sparsify has): `jumprelu`, `relu`, `batch_topk` and
    `matryoshka` on batches with y are transcoders too, which both can read.

    Raises:
      UserError: batches without y; else as `topk`.
    Source: arXiv:2406.11944 (transcoders), 2501.18823 (skip), 2406.04093 (TopK).
    Example:
      >>> import jax
      >>> method = transcoder(n_latents=16, k=2, skip=True)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x, "y": x[:, :3]})
      >>> method.finish(state)(x).shape
      (64, 3)
    """
    return selecting(
        "transcoder",
        n_latents,
        k,
        rule="topk",
        activation=lambda memory, scales: TopK(k),
        training=training,
        auxk=auxk,
        k_start=k_start,
        k_steps=k_steps,
        needs_y=True,
        skip=skip,
    )
