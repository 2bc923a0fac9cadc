# SPDX-License-Identifier: Apache-2.0
"""TopK sparse autoencoders (Gao et al., arXiv:2406.04093)."""

from ..protocols import Method
from .activations import TopK
from .parts.numbers import numbers_checked
from .parts.selected import AuxK, selecting
from .parts.training import Training


@numbers_checked
def topk(
    n_latents: int,
    k: int,
    *,
    k_start: int | None = None,
    k_steps: int = 0,
    auxk: AuxK | None = AuxK(),
    training: Training = Training(),
) -> Method:
    """A TopK dictionary of batches {"x": [n, d_in]}; with "y" ([n, d_out]) in the batches, a transcoder.

        z = relu(topk((x - b_dec) W_enc + b_enc, k)),  x_hat = z W_dec + b_dec,  e = y - x_hat       (y = x if absent)
        loss = mean_n |e_n|^2 / V + auxk.weight * AuxK

    V is the mean squared deviation of the *first batch*, fixed: the loss is then a mean over tokens (batches can be
    split, sharded or accumulated), and near FVU. `info["fvu"]` uses the batch's own variance. AuxK:
    `jaxneuro_kernels.add_auxk`. A transcoder does not subtract b_dec. "mask" (bool [n]) in the batch says which tokens
    count; tokens with NaN or infinity are left out and counted in `info["nonfinite_tokens"]`; a batch with nothing
    left, or with a loss that is not finite, changes nothing but `info["skipped_batches"]`.

    Decoder rows stay at norm 1 (projected gradient, then normalised). Start: random directions, W_enc = W_dec^T, b_dec
    the geometric median of the first batch. Inputs are scaled (`Training.normalise`) and the scale is folded into what
    `finish` returns: dictionaries take raw activations, latents are in raw units, decoder rows keep norm 1.

    Args:
      n_latents: latents.
      k: active latents per token.
      k_start, k_steps: begin with k_start >= k active latents and come down to k linearly over k_steps.
      auxk: the loss that revives dead latents; None leaves it out of the program.
      training: optimiser, schedules, precision, devices: see `Training`.
    Returns:
      A Method; `finish` gives a `SparseCoder`. Info: loss, fvu, l0, dead_fraction, auxk, learning_rate, tokens,
      nonfinite_tokens, skipped_batches.
    Raises:
      UserError: k above n_latents and the like, at once; a first batch that is not finite, constant, or of wrong type,
        from `init`.
    Source: arXiv:2406.04093 (loss, AuxK, starts, rate); normalisation as in SAELens' expected_average_only_in.
    Example:
      >>> import jax
      >>> method = topk(n_latents=16, k=2)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> state, info = jax.jit(method.step)(state, {"x": x})
      >>> method.finish(state).encode(x).shape, float(info["l0"]) <= 2
      ((64, 16), True)
    """
    return selecting(
        "topk",
        n_latents,
        k,
        rule="topk",
        activation=lambda memory, scales: TopK(k),
        training=training,
        auxk=auxk,
        k_start=k_start,
        k_steps=k_steps,
    )
