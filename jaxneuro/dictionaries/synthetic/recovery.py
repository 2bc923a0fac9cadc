# SPDX-License-Identifier: Apache-2.0
"""Did a dictionary find the features? Directions against directions, firing against firing."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...errors import UserError
from ..evaluate import Reconstruction, reconstruction
from ..linear import LinearDictionary, decoder
from ..parts.decoder import unit_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """Scores of SynthSAEBench; every mean is over all latents, dead ones count as 0."""

    mcc: float
    """Mean |cosine| of latents and features matched one to one: `mean_cosine`."""
    uniqueness: float
    """Different features among the latents' nearest, over the number of latents."""
    f1: float
    """Mean over latents of 2 precision recall / (precision + recall), 0 where undefined."""
    precision: float
    """Mean over latents: share of its firings at which its nearest feature fires; 0 for a latent that never fires."""
    recall: float
    """Mean over latents: share of the feature's firings at which the latent fires; 0 if the feature never fires."""
    true_l0: float
    """Mean number of features in a sample."""
    reconstruction: Reconstruction
    """Explained variance, L0, dead fraction ... on the same samples."""
    nearest: Int[np.ndarray, " n_latents"]
    """Each latent's feature: the largest |cosine| with its decoder row."""
    cosine: Float[np.ndarray, " n_latents"]
    """That |cosine|."""
    f1_by_latent: Float[np.ndarray, " n_latents"]


def cosines(W_dec: Float[Array, "n_latents d"], vectors: Float[Array, "n_features d"]) -> Float[np.ndarray, "l f"]:
    """|cosine| of every latent's direction with every feature's; 0 for rows of zeros."""
    rows, columns = (unit_rows(jnp.asarray(a).astype(jnp.float32)) for a in (W_dec, vectors))
    return np.abs(np.asarray(jnp.matmul(rows, columns.T, precision="highest")))


def mean_cosine(cosine: Float[np.ndarray, "n_latents n_features"]) -> float:
    """MCC: the mean over the best one-to-one matching (Hungarian), of min(n_latents, n_features) pairs.

    Source: arXiv:2505.20254.
    Example:
      >>> mean_cosine(np.array([[0.9, 0.8], [0.8, 0.1]]))
      0.8
    """
    from scipy.optimize import linear_sum_assignment  # a second to import, and needed here alone

    return float(cosine[linear_sum_assignment(cosine, maximize=True)].mean(dtype=np.float64))


def recovery(
    dictionary: LinearDictionary, vectors: Float[Array, "n_features d"], batches: Iterable[Mapping[str, Any]]
) -> Recovery:
    """Judge a dictionary by the features that made the data.

    F1 takes each latent as a detector of the feature nearest to it (not of its Hungarian partner), as the benchmark
    does; a latent fires where it is not 0.

    Args:
      dictionary: an autoencoder of x.
      vectors: the true directions, `features.vectors`.
      batches: {"x": [n, d], "z": [n, n_features], optional "mask"}: `synthetic_batches(..., truth=True)` with a seed
        that was not trained on, or any data whose features are known.
    Raises:
      UserError: a dictionary without decoder rows of that width, batches without z, and as in `reconstruction`.
    Source: arXiv:2602.14687; definitions as in SAELens 6.54 (whose dead latents and L0 count the same). Within sampling
      noise (about .005) at 500,000 samples.
    Example:
      >>> from jaxneuro.dictionaries import SparseCoder, TopK
      >>> eye, zeros = jnp.eye(3), jnp.zeros(3)
      >>> oracle = SparseCoder(W_enc=eye, W_dec=eye, b_enc=zeros, b_dec=zeros, activation=TopK(3))
      >>> z = jnp.array([[1.0, 0, 0], [0, 2, 0], [0, 1, 3]])
      >>> found = recovery(oracle, eye, [{"x": z, "z": z}])
      >>> found.mcc, found.f1, found.uniqueness, found.reconstruction.explained_variance
      (1.0, 1.0, 1.0, 1.0)
    """
    rows = decoder(dictionary, vectors.shape[1], where="recovery")
    cosine = cosines(rows, vectors)
    nearest = cosine.argmax(1).astype(np.int32)
    total: dict[str, np.ndarray] = {}

    def counted() -> Iterator[Mapping[str, Any]]:
        for batch in batches:
            if "z" not in batch:
                raise UserError("recovery: a batch has no 'z', the features that are in it. See synthetic_batches.")
            for name, n in _counts(dictionary, jnp.asarray(nearest), dict(batch)).items():
                total[name] = total.get(name, np.int64(0)) + np.asarray(n, np.int64)
            yield {name: batch[name] for name in ("x", "mask") if name in batch}

    rebuilt = reconstruction(dictionary, counted())
    precision = total["both"] / np.maximum(total["fired"], 1)
    recall = total["both"] / np.maximum(total["true"], 1)
    f1 = 2 * total["both"] / np.maximum(total["fired"] + total["true"], 1)
    return Recovery(
        mcc=mean_cosine(cosine),
        uniqueness=len(np.unique(nearest)) / len(nearest),
        f1=float(f1.mean()),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        true_l0=float(total["features"] / rebuilt.tokens),
        reconstruction=rebuilt,
        nearest=nearest,
        cosine=cosine.max(1),
        f1_by_latent=f1,
    )


@jax.jit
def _counts(dictionary: LinearDictionary, nearest: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Samples at which each latent fires, its feature fires, both do; and features that fire in all. int32."""
    valid = batch.get("mask", jnp.ones(batch["x"].shape[0], bool))[:, None]
    z = batch["z"]
    fired = (dictionary.encode(jnp.where(valid, batch["x"], 0)) != 0) & valid
    true = (z[:, nearest] > 0) & valid
    every = {"fired": fired, "true": true, "both": fired & true}
    counts = {name: jnp.sum(on, axis=0, dtype=jnp.int32) for name, on in every.items()}
    return counts | {"features": jnp.sum((z > 0) & valid, dtype=jnp.int32)}
