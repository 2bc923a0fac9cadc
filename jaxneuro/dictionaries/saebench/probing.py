# SPDX-License-Identifier: Apache-2.0
"""Sparse probing: how much of a concept is in a few latents."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...errors import UserError
from ...protocols import Dictionary
from .logistic import accuracy, logistics, nested
from .pooling import Activations, balanced, one_against_rest, pooled, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseProbing:
    """Accuracies on examples that no probe saw; yes and no weigh the same, so 0.5 is chance."""

    ks: tuple[int, ...]
    accuracy: Float[np.ndarray, "n_classes n_ks"]
    """Of probes that read k latents."""
    dense: Float[np.ndarray, " n_classes"]
    """Of probes that read the activations themselves: what there is to find."""
    latents: Int[np.ndarray, "n_classes k_max"]
    """The latents, best first; the first k of them are read."""
    n_test: int

    @property
    def mean(self) -> dict[int, float]:
        """Accuracy over classes by k: the benchmark's numbers."""
        return dict(zip(self.ks, self.accuracy.mean(0).tolist(), strict=True))


def by_mean_difference(z: Float[Array, "n n_latents"], y: Bool[Array, " n"], k: int) -> Int[Array, " k"]:
    """The k latents whose mean differs most between yes and no, in size.

    Example:
      >>> by_mean_difference(jnp.array([[1.0, 0, 5], [1, 0, 0]]), jnp.array([True, False]), 1).tolist()
      [2]
    """
    return jax.lax.top_k(jnp.abs(mean_difference(z, y)), k)[1].astype(jnp.int32)


def mean_difference(
    z: Float[Array, "n n_latents"], y: Bool[Array, " n"], weight: Float[Array, " n"] | None = None
) -> Float[Array, " n_latents"]:
    """Mean over yes less mean over no."""
    w = jnp.ones(y.shape, jnp.float32) if weight is None else weight
    yes, no = jnp.where(y, w, 0), jnp.where(y, 0, w)
    return jnp.matmul(yes / jnp.sum(yes) - no / jnp.sum(no), z, precision="highest")


def sparse_probing(
    dictionary: Dictionary,
    x: Activations,
    labels: Int[Array, " n"] | Bool[Array, "n n_classes"],
    *,
    mask: Bool[Array, "n pos"] | None = None,
    ks: Sequence[int] = (1, 2, 5, 10, 20, 50),
    test_fraction: float = 0.2,
    seed: int = 0,
    l2: float = 1.0,
) -> SparseProbing:
    """How well k latents tell a class from the rest, for each class and k.

    Latents are averaged over an example's tokens; on the training part the k with the largest difference of means are
    chosen and a logistic regression is fitted to them; it is judged on the rest. Yes and no are weighted to the same
    total where SAEBench draws equally many of both: the same quantity, without throwing examples away.

    Of SAEBench's metrics this is the one that an audit found most reliable (arXiv:2605.18229). Compare with `dense`,
    with a dictionary of random directions, and look at all k: one latent of a wide dictionary can be lucky.

    Args:
      dictionary: anything with `encode`.
      x: activations [n, d], or [n, pos, d] with a mask (leave special tokens out of it).
      labels: classes int [n], or bool [n, n_classes].
      l2: of the probes; 1 as in scikit-learn.
    Returns:
      SparseProbing.
    Raises:
      UserError: more latents asked for than there are, a class with too few examples, and as in `pooled`.
    Source: SAEBench, arXiv:2503.09532; sparse probing, arXiv:2305.01610.
    """
    examples, table = pooled(dictionary, x, mask), one_against_rest(labels)
    if len(table) != len(examples.x):
        raise UserError(f"sparse_probing: {len(table)} labels for {len(examples.x)} examples.")
    n_latents = examples.z.shape[1]
    if not ks or min(ks) < 1 or max(ks) > n_latents:
        raise UserError(f"sparse_probing: ks = {tuple(ks)}; each is from 1 to the {n_latents} latents there are.")
    train, test = split(table, test_fraction=test_fraction, seed=seed)
    data = [
        (examples.x[i], examples.z[i], jnp.asarray(table[i]), jnp.asarray(balanced(table[i]))) for i in (train, test)
    ]
    (x_train, _, y_train, w_train), (x_test, _, y_test, w_test) = data
    dense = accuracy(logistics(x_train, y_train, w_train, l2)(x_test), y_test, w_test)
    latents, found = _probed(*data[0][1:], *data[1][1:], l2, ks=tuple(ks))
    return SparseProbing(
        ks=tuple(ks),
        accuracy=np.asarray(found),
        dense=np.asarray(dense),
        latents=np.asarray(latents),
        n_test=len(test),
    )


@partial(jax.jit, static_argnames="ks")
def _probed(
    z: Array, y: Array, w: Array, z_test: Array, y_test: Array, w_test: Array, l2: float, *, ks: tuple[int, ...]
) -> tuple[Array, Array]:
    """Latents [n_classes, k_max] and accuracies [n_classes, n_ks]."""

    def one_class(c: tuple[Array, ...]) -> tuple[Array, Array]:
        y, w, y_test, w_test = c
        latents = by_mean_difference(z, y, max(ks))
        probes = nested(z[:, latents], y, w, l2, sizes=ks)
        return latents, accuracy(probes(z_test[:, latents]), y_test[:, None], w_test[:, None])

    return jax.lax.map(one_class, (y.T, w.T, y_test.T, w_test.T))
