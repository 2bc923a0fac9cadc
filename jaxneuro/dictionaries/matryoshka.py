# SPDX-License-Identifier: Apache-2.0
"""Matryoshka dictionaries: every prefix of the latents is a dictionary (Bussmann et al., arXiv:2503.17547)."""

from collections.abc import Sequence

from ..errors import UserError
from ..protocols import Method
from .parts.autoencode import Parts
from .parts.numbers import numbers_checked
from .parts.selected import AuxK, inference_threshold, selecting
from .parts.training import Training


@numbers_checked
def matryoshka(
    n_latents: int,
    k: int,
    *,
    prefixes: Sequence[int] | None = None,
    level_weights: Sequence[float] | None = None,
    k_start: int | None = None,
    k_steps: int = 0,
    auxk: AuxK | None = AuxK(),
    training: Training = Training(),
) -> Method:
    """Nested BatchTopK dictionaries: general features come first, and special ones do not absorb them.

        loss = sum_i w_i mean_n |x_n - x_hat_n^(i)|^2 / V + auxk.weight * AuxK
        x_hat^(i) = b_dec + the reconstruction from the active latents among the first m_i;   m_1 < ... < m_last

    Which latents are active is one BatchTopK selection; see `batch_topk` for inference. L0, fvu and AuxK are of all
    latents.

    Args:
      prefixes: m_1 ... m_last = n_latents. None: n_latents / 16, / 8, / 4, / 2 and all.
      level_weights: w_i. None: all 1 (SAELens; dictionary_learning: 1 / number of levels, the same to Adam but for
        AuxK).
      n_latents, k, k_start, k_steps, auxk, training: see `topk`.
    Raises:
      UserError: prefixes that do not grow to n_latents, not one weight for each; else as `topk`.
    Source: arXiv:2503.17547.
    Example:
      >>> import jax
      >>> method = matryoshka(n_latents=16, k=2, prefixes=(4, 16))
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> state, info = jax.jit(method.step)(state, {"x": x})
      >>> float(info["loss"]) > float(info["fvu"])  # two levels
      True
    """
    ends = tuple(prefixes) if prefixes is not None else tuple(m for s in (4, 3, 2, 1, 0) if (m := n_latents >> s))
    weights = tuple(level_weights) if level_weights is not None else (1.0,) * len(ends)
    if not ends or ends[-1] != n_latents or any(a >= b for a, b in zip((0, *ends), ends, strict=False)):
        raise UserError(f"matryoshka: prefixes {ends} do not grow to n_latents = {n_latents}.")
    if len(weights) != len(ends):
        raise UserError(f"matryoshka: {len(weights)} level_weights for {len(ends)} prefixes.")
    return selecting(
        "matryoshka",
        n_latents,
        k,
        rule="batch_topk",
        activation=inference_threshold,
        training=training,
        auxk=auxk,
        k_start=k_start,
        k_steps=k_steps,
        parts=Parts("index", ends[:-1]),
        level_weights=weights,
    )
