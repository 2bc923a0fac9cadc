# SPDX-License-Identifier: Apache-2.0
"""Feature absorption: a latent that stays silent where it should fire, because a more special one took its place."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...errors import UserError
from ..linear import LinearDictionary, decoder
from .logistic import Probe, f1, logistics, nested, sparse_logistics
from .pooling import Activations, balanced, one_against_rest, pooled, split

SILENT = 1e-8
"""A latent below this does not fire."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
    """SAEBench's numbers."""

    jump: float = 0.03
    """F1 that one more latent must add to count as a part of the split class."""
    full_cosine: float = 0.025
    """Least cosine of probe and the one absorbing latent (full absorption)."""
    part_cosine: float = 0.1
    """Least cosine of probe and each of several absorbing latents (absorbed fraction)."""
    share: float = 0.4
    """Least part of the activation's projection on the probe that absorbers must carry."""
    absorbers: int = 3
    """Most absorbing latents (absorbed fraction)."""
    least_f1: float = 0.6
    """Classes whose probe is worse are left out: without a probe there is no truth."""
    least_examples: int = 20
    """Classes with fewer examples that the probe finds are left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absorption:
    """Lower is better. nan: a class that was left out."""

    fraction: float
    """Mean over classes of the absorbed fraction."""
    full: float
    """Mean over classes of the share of examples with one absorber and every main latent silent."""
    by_class: Float[np.ndarray, " n_classes"]
    """Absorbed fraction."""
    full_by_class: Float[np.ndarray, " n_classes"]
    main_latents: tuple[Int[np.ndarray, " k"], ...]
    """Latents into which each class is split, best first."""
    probe_f1: Float[np.ndarray, " n_classes"]
    split_f1: Float[np.ndarray, "n_classes max_split"]
    """F1 of probes on 1, 2, ... latents."""


@partial(jax.jit, static_argnames="absorbers")
def absorbed(
    x: Float[Array, "n d"],
    z: Float[Array, "n n_latents"],
    probe: Float[Array, " d"],
    W_dec: Float[Array, "n_latents d"],
    main: Bool[Array, " n_latents"],
    *,
    full_cosine: float = 0.025,
    part_cosine: float = 0.1,
    share: float = 0.4,
    absorbers: int = 3,
) -> tuple[Bool[Array, " n"], Float[Array, " n"]]:
    """(full, fraction): whether, and by how much, each example's concept is carried by other than its main latents.

        a = x . u,   c_i = z_i W_dec_i . u,   u = probe / |probe|
        full      all main latents silent, a > 0, and the latent with the largest c has cosine >= full_cosine and
                  c >= share a
        fraction  A = sum of the `absorbers` largest c_i > 0 of other latents with cosine >= part_cosine, M = main c's;
                  0 if a <= 0, M >= a or A < share a, 1 if M <= 0, else A' / (A' + M) with A' = min(A, a - M)

    Source: SAEBench, arXiv:2503.09532, after arXiv:2409.14507. For unit decoder rows c is theirs (they write z cosine).
    Example:
      >>> x, z = jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 1.0]])  # latent 0 silent, latent 1 holds it all
      >>> full, part = absorbed(x, z, jnp.array([1.0, 0.0]), jnp.array([[1.0, 0.0], [1.0, 1.0]]),
      ...                       jnp.array([True, False]))
      >>> full.tolist(), part.tolist()
      ([True], [1.0])
    """
    unit = probe / jnp.linalg.norm(probe)
    along = jnp.matmul(W_dec, unit, precision="highest")
    norm = jnp.linalg.norm(W_dec, axis=1)
    cosine = along / jnp.where(norm > 0, norm, 1)
    total, carried = jnp.matmul(x, unit, precision="highest"), z * along[None]
    silent = jnp.all(jnp.where(main, z < SILENT, True), axis=1)
    top = jnp.argmax(carried, axis=1)
    most = jnp.take_along_axis(carried, top[:, None], axis=1)[:, 0]
    full = silent & (total > 0) & (cosine[top] >= full_cosine) & (most >= share * total)
    own = jnp.sum(jnp.where(main, carried, 0), axis=1)
    others = jnp.where(~main & (cosine >= part_cosine), jax.nn.relu(carried), 0)
    taken = jnp.sum(jax.lax.top_k(others, min(absorbers, z.shape[1]))[0], axis=1)
    missing = jnp.minimum(taken, total - own)
    part = jnp.where(own > 0, missing / jnp.where(own > 0, missing + own, 1), 1)
    return full, jnp.where((total <= 0) | (own >= total) | (taken < share * total), 0, jnp.clip(part, 0, 1))


def split_latents(latents: np.ndarray, f1_of_k: np.ndarray, jump: float = 0.03) -> np.ndarray:
    """The first k latents, k growing while another adds more than `jump` to F1.

    Example:
      >>> split_latents(np.array([7, 3, 5]), np.array([0.5, 0.6, 0.61])).tolist()
      [7, 3]
    """
    grows = np.diff(f1_of_k) > jump
    return latents[: 1 + (len(grows) if grows.all() else int(np.argmin(grows)))]


def absorption(
    dictionary: LinearDictionary,
    x: Activations,
    labels: Int[Array, " n"] | Bool[Array, "n n_classes"],
    *,
    mask: Bool[Array, "n pos"] | None = None,
    probes: Probe | None = None,
    max_split: int = 10,
    thresholds: Thresholds | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    l1: float = 0.01,
    l2: float = 1.0,
) -> Absorption:
    """How much of each class (a word's first letter, say) is hidden in latents that stand for something more special.

    On the training part: a probe per class on the activations, sparse probes on all latents, whose largest weights give
    the order in which latents join a class's main latents, and probes on the first 1 .. max_split of them. On the test
    part: latents join while F1 grows by more than `jump`; then `absorbed` on the examples of the class that its
    activation probe finds.

    Args:
      dictionary: an autoencoder of x with a linear decoder.
      x: activations [n, d], one per example (the word's token); or [n, pos, d] with a mask, which are averaged.
      labels: classes int [n], or bool [n, n_classes].
      probes: directions of the classes, [n_classes, d] and [n_classes], if you have better ones.
      max_split: most main latents of a class.
      l1: of the sparse probes.
    Returns:
      Absorption. Memory: n x n_latents numbers.
    Raises:
      UserError: no class whose probe is good enough, a class with too few examples, and as in `pooled`.
    Source: SAEBench, arXiv:2503.09532, after arXiv:2409.14507.
    """
    t = thresholds or Thresholds()
    examples, table = pooled(dictionary, x, mask), one_against_rest(labels)
    if len(table) != len(examples.x):
        raise UserError(f"absorption: {len(table)} labels for {len(examples.x)} examples.")
    W_dec = decoder(dictionary, examples.x.shape[1], where="absorption").astype(jnp.float32)
    sizes = tuple(range(1, min(max_split, W_dec.shape[0]) + 1))
    train, test = split(table, test_fraction=test_fraction, seed=seed)
    y, w, y_test = jnp.asarray(table[train]), jnp.asarray(balanced(table[train])), jnp.asarray(table[test])
    probes = probes or logistics(examples.x[train], y, w, l2)
    x_test, z_test = (a[test] for a in examples)
    scores = probes(x_test)
    probe_f1 = np.asarray(f1(scores, y_test))
    latents, of_size = (np.asarray(a) for a in _splits(examples.z[train], y, w, z_test, y_test, l1, l2, sizes=sizes))
    main = tuple(split_latents(*c, t.jump) for c in zip(latents, of_size, strict=True))
    found = np.asarray((scores > 0) & y_test)
    rates = np.full((2, table.shape[1]), np.nan)
    limits = {name: getattr(t, name) for name in ("full_cosine", "part_cosine", "share", "absorbers")}
    for c in np.flatnonzero((probe_f1 >= t.least_f1) & (found.sum(0) >= t.least_examples)):
        is_main = jnp.zeros(W_dec.shape[0], bool).at[main[c]].set(True)
        each = absorbed(x_test, z_test, probes.w[c], W_dec, is_main, **limits)
        rates[:, c] = [np.asarray(a)[found[:, c]].mean() for a in each]
    if np.isnan(rates).all():
        raise UserError(
            f"absorption: no class has a probe with F1 >= {t.least_f1} and {t.least_examples} test examples that it "
            f"finds (F1 {probe_f1.round(2).tolist()}, found {found.sum(0).tolist()}). Give more examples, or other "
            f"thresholds."
        )
    return Absorption(
        fraction=float(np.nanmean(rates[1])),
        full=float(np.nanmean(rates[0])),
        by_class=rates[1],
        full_by_class=rates[0],
        main_latents=main,
        probe_f1=probe_f1,
        split_f1=of_size,
    )


@partial(jax.jit, static_argnames="sizes")
def _splits(
    z: Array, y: Array, w: Array, z_test: Array, y_test: Array, l1: float, l2: float, *, sizes: tuple[int, ...]
) -> tuple[Array, Array]:
    """Latents [n_classes, max_split] and F1 of probes on the first 1, 2, ... of them, [n_classes, max_split]."""
    no_weighs_one = w / jnp.min(jnp.where(y, jnp.inf, w), axis=0, keepdims=True)  # the unit of l1 in the original
    order = jax.lax.top_k(sparse_logistics(z, y, no_weighs_one, l1).w, sizes[-1])[1]

    def one_class(c: tuple[Array, ...]) -> Array:
        latents, y, w, y_test = c
        return f1(nested(z[:, latents], y, w, l2, sizes=sizes)(z_test[:, latents]), y_test[:, None])

    return order, jax.lax.map(one_class, (order, y.T, w.T, y_test.T))
