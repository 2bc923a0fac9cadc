# SPDX-License-Identifier: Apache-2.0
"""MultiTopK: one dictionary that reconstructs well with k latents and with more (Gao et al., arXiv:2406.04093)."""

from ..errors import UserError
from ..protocols import Method
from .activations import TopK
from .parts.autoencode import Parts
from .parts.numbers import numbers_checked
from .parts.selected import AuxK, selecting
from .parts.training import Training


@numbers_checked
def multi_topk(
    n_latents: int,
    k: int,
    *,
    factor: int = 4,
    weight: float = 1 / 8,
    auxk: AuxK | None = AuxK(),
    training: Training = Training(),
) -> Method:
    """A TopK dictionary that is also trained at factor * k latents per token, so that k can be chosen afterwards.

        loss = L(k) + weight * L(factor * k) + auxk.weight * AuxK,     L(k) = mean_n |x_n - x_hat_n(k)|^2 / V

    Both reconstructions come from one code, the second adds the entries of rank k + 1 ... factor * k; gradients of both
    reach the encoder. Latents count as fired, and L0 is counted, at k.

    Args:
      factor: how many times k.
      weight: of the second loss; 1/8 as in the paper and in sparsify.
      n_latents, k, auxk, training: see `topk`.
    Source: arXiv:2406.04093, section 5.3.
    Example:
      >>> import jax
      >>> method = multi_topk(n_latents=16, k=2)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> method.finish(state).k
      2
    """
    if factor < 2 or factor * k > n_latents:
        raise UserError(f"multi_topk: factor {factor} times k = {k} of n_latents = {n_latents}: 2 k to n_latents.")
    return selecting(
        "multi_topk",
        n_latents,
        k,
        rule="topk",
        activation=lambda memory, scales: TopK(k),
        training=training,
        auxk=auxk,
        parts=Parts("rank", (k,)),
        level_weights=(1.0, weight),
        shown=0,
        k_most=factor * k,
    )
