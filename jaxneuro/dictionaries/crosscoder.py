# SPDX-License-Identifier: Apache-2.0
"""Crosscoders: one set of latents for several sites or several models (Lindsey et al. 2024)."""

import dataclasses
from typing import Final

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..axes import aligned
from ..errors import UserError, unknown
from ..protocols import Method
from .activations import TopK
from .dictionary import SparseCoder
from .parts.numbers import numbers_checked
from .parts.selected import AuxK, inference_threshold, selecting
from .parts.start import split_sites
from .parts.training import Training

RULES: Final = {"batch_topk": lambda k: inference_threshold, "topk": lambda k: lambda memory, scales: TopK(k)}
"""How latents are selected in training -> k -> what stands for it at inference."""


@numbers_checked
def crosscoder(
    n_latents: int,
    k: int,
    widths: tuple[int, ...],
    *,
    rule: str = "batch_topk",
    k_start: int | None = None,
    k_steps: int = 0,
    auxk: AuxK | None = AuxK(),
    training: Training = Training(),
) -> Method:
    """A dictionary of batches {"x": [n, sum(widths)]} that join the activations of several sites, or of several models.

        pre = sum_s (x_s - b_dec,s) W_enc,s + b_enc;   z = k latents per token;   x_hat_s = z W_dec,s + b_dec,s
        loss = mean_n sum_s |x_s - x_hat_s|^2 / V + auxk.weight * AuxK

    Every site is scaled on its own (`Training.normalise`), so that none is heard above the others; latents are in units
    of the scaled sites, and decoder rows, all sites together, have norm 1 there. Which sites a latent lives at:
    `site_norms`. Selecting k latents over the batch is the default because an L1 penalty on each site's norm makes
    shared latents look exclusive to a model (arXiv:2504.02922); that form is `relu` with `Training(widths=widths)`.

    Args:
      n_latents, k, k_start, k_steps, auxk: see `topk`.
      widths: of the sites, in the order in which x joins them.
      rule: "batch_topk" (k per token on average) or "topk" (of each token).
      training: see `Training`; its widths are these.
    Returns:
      A Method; `finish` gives a `SparseCoder` of the joined activations, with `JumpReLU` or `TopK`.
    Raises:
      UserError: widths that do not make up x, or fewer than two; an unknown rule; else as `topk`.
    Source: transformer-circuits.pub/2024/crosscoders; arXiv:2504.02922 (BatchTopK).
    Example:
      >>> import jax
      >>> method = crosscoder(n_latents=16, k=2, widths=(2, 2))
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> site_norms(method.finish(state), (2, 2)).shape
      (16, 2)
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES, where="crosscoder")
    if len(widths) < 2 or min(widths) < 1:
        raise UserError(f"crosscoder: widths = {widths}: of two or more sites, each at least 1.")
    if training.widths not in ((), tuple(widths)):
        raise UserError(f"crosscoder: widths = {widths}, but Training.widths = {training.widths}: leave those out.")
    return selecting(
        "crosscoder",
        n_latents,
        k,
        rule=rule,
        activation=RULES[rule](k),
        training=dataclasses.replace(training, widths=tuple(widths)),
        auxk=auxk,
        k_start=k_start,
        k_steps=k_steps,
    )


def site_norms(
    dictionary: SparseCoder, widths: tuple[int, ...], scale: ArrayLike = 1.0
) -> Float[Array, "n_latents n_sites"]:
    """How strongly each latent writes to each site: |scale_s * W_dec,s|, one number per latent and site.

    Args:
      dictionary: of the joined sites.
      widths: of the sites.
      scale: [d_out], what each coordinate is multiplied by first, so that sites of different size compare:
        `state.scale_y`, with which the dictionary was trained. 1: raw units.
    Raises:
      UserError: widths that do not make up the decoder.
    Example:
      >>> from jaxneuro.dictionaries import Relu, SparseCoder
      >>> d = SparseCoder(W_enc=jnp.eye(3), W_dec=jnp.eye(3), b_enc=jnp.zeros(3), b_dec=jnp.zeros(3), activation=Relu())
      >>> site_norms(d, (2, 1)).tolist()
      [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    if sum(widths) != dictionary.d_out:
        raise UserError(f"site_norms: widths {widths} make {sum(widths)}, the decoder writes {dictionary.d_out}.")
    w = dictionary.W_dec.astype(jnp.float32)
    w = w * aligned(jnp.asarray(scale, jnp.float32), w)
    return jnp.stack([jnp.linalg.norm(part, axis=1) for part in split_sites(w, widths)], axis=1)


def relative_norms(norms: Float[Array, "n_latents n_sites"]) -> Float[Array, "n_latents n_sites"]:
    """Each site's share of a latent: norm_is / sum_s norm_is.

    Of two models, the second column is Lindsey et al.'s relative decoder norm: near 0, a latent of the first model
    alone; near 1, of the second; near 1/2, of both. 0 for a latent that writes nowhere.

    Args:
      norms: from `site_norms`, with the scales of training: else the site with the larger activations owns everything.
    Source: transformer-circuits.pub/2024/crosscoders, model diffing.
    Example:
      >>> relative_norms(jnp.array([[1.0, 0.0], [2.0, 2.0]])).tolist()
      [[1.0, 0.0], [0.5, 0.5]]
    """
    total = jnp.sum(norms, axis=1, keepdims=True)
    return norms / jnp.where(total > 0, total, jnp.float32(1))
