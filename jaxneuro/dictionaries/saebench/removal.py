# SPDX-License-Identifier: Apache-2.0
"""SCR and TPP: remove a concept by zeroing latents, and see what probes still find."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...errors import UserError
from ..linear import LinearDictionary, decoder
from .logistic import Probe, accuracy, logistics
from .pooling import Activations, Examples, balanced, one_against_rest, pooled, split
from .probing import mean_difference

NS = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of latents that are zeroed."""


class Chosen(NamedTuple):
    """Latents by falling effect, and which of them have one."""

    latents: Int[Array, " k"]
    on: Bool[Array, " k"]


def strongest(effects: Float[Array, " n_latents"], k: int) -> Chosen:
    """The k latents with the largest effects above 0.

    Example:
      >>> strongest(jnp.array([0.0, 3.0, -1.0, 2.0]), 3)[0][:2].tolist()
      [1, 3]
    """
    value, latents = jax.lax.top_k(effects, min(k, effects.shape[0]))
    return Chosen(latents.astype(jnp.int32), value > 0)


def logits_without(
    examples: Examples, probes: Probe, W_dec: Float[Array, "n_latents d"], chosen: Chosen, ns: tuple[int, ...]
) -> Float[Array, "n n_probes n_ns"]:
    """What probes of mean activations say after the first n of the chosen latents are zeroed, for each n.

        x - sum_i z_i W_dec_i   at every token, so that the mean activation loses sum_i mean(z_i) W_dec_i

    The error of the reconstruction stays, and as decoder and probe are linear nothing is encoded twice.
    """
    each = jnp.matmul(W_dec[chosen.latents], probes.w.T, precision="highest")
    each = jnp.where(chosen.on[:, None], each, 0)
    among = (jnp.arange(each.shape[0], dtype=jnp.int32)[:, None] < jnp.asarray(ns, jnp.int32)[None]).astype(jnp.float32)
    gone = jnp.einsum("ni,ip,ik->npk", examples.z[:, chosen.latents], each, among, precision="highest")
    return probes(examples.x)[..., None] - gone


# --- SCR --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpuriousRemoval:
    """Accuracies are on test examples whose four kinds (target x spurious) weigh the same; 0.5 is chance."""

    ns: tuple[int, ...]
    score: Float[np.ndarray, " n_ns"]
    """Of the direction in which the biased probe is worse: the benchmark's number."""
    score_target: Float[np.ndarray, " n_ns"]
    """Spurious latents zeroed, the biased probe judged on the target."""
    score_spurious: Float[np.ndarray, " n_ns"]
    """Target latents zeroed, the biased probe judged on the spurious concept."""
    biased: tuple[float, float]
    """Accuracy of the biased probe on (target, spurious)."""
    clean: tuple[float, float]
    """Accuracy of probes that were trained on (target, spurious) without the correlation."""


def removal_score(after: np.ndarray, biased: float, clean: float) -> np.ndarray:
    """(after - biased) / (clean - biased): 1, all of the damage is undone; nan where there is less than 0.001 of it.

    Example:
      >>> removal_score(np.array([0.6, 0.9]), 0.6, 0.9).tolist()
      [0.0, 1.0]
    """
    damage = clean - biased
    return (after - biased) / damage if damage >= 1e-3 else np.full_like(after, np.nan)


def spurious_effects(
    examples: Examples, y: Bool[Array, " n"], weight: Float[Array, " n"], probe: Probe, W_dec: Float[Array, "m d"]
) -> Float[Array, " m"]:
    """|difference of mean latents . (W_dec probe)| (SCR's choice of latents)."""
    return jnp.abs(mean_difference(examples.z, y, weight) * jnp.matmul(W_dec, probe.w, precision="highest"))


def scr(
    dictionary: LinearDictionary,
    x: Activations,
    target: Bool[Array, " n"],
    spurious: Bool[Array, " n"],
    *,
    mask: Bool[Array, "n pos"] | None = None,
    ns: Sequence[int] = NS,
    test_fraction: float = 0.2,
    seed: int = 0,
    l2: float = 1.0,
) -> SpuriousRemoval:
    """Spurious correlation removal (SHIFT): can latents repair a probe that learned two concepts as one?

    A biased probe is trained where target and spurious agree. Zeroing the n latents that a probe of the spurious
    concept depends on should leave the target:  score = (acc after - acc biased) / (acc clean - acc biased).

    **Validity.** An audit (arXiv:2605.18229) found that SCR does not pass validity checks: do not rank dictionaries by
    it alone. Read it beside sparse probing, against a dictionary of random directions and against shuffled labels, and
    look at the accuracies, not only at their ratio; where biased and clean are close the ratio is noise.

    Args:
      dictionary: an autoencoder of x with a linear decoder.
      x: activations [n, d], or [n, pos, d] with a mask.
      target, spurious: bool [n]; all four combinations must occur.
      ns: numbers of latents to zero; latents without effect are never zeroed.
    Returns:
      SpuriousRemoval.
    Raises:
      UserError: a combination with fewer than two examples, and as in `pooled`.
    Source: SAEBench, arXiv:2503.09532; arXiv:2411.18895. Probes here are fitted to their optimum on the training part
      (there: AdamW, the epoch chosen by test accuracy).
    """
    both = np.stack([np.asarray(target), np.asarray(spurious)], 1)
    if both.dtype != bool or both.ndim != 2:
        raise UserError(f"scr: target and spurious are bool [n]; these are {both.dtype}{both.shape}.")
    kinds = both @ np.array([2, 1])
    count = np.bincount(kinds, minlength=4)
    if count.min() < 2:
        raise UserError(
            f"scr: neither, only spurious, only target, both: {count.tolist()} examples; two of each needed."
        )
    examples = pooled(dictionary, x, mask)
    if len(both) != len(examples.x):
        raise UserError(f"scr: {len(both)} labels for {len(examples.x)} examples.")
    W_dec = decoder(dictionary, examples.x.shape[1], where="scr")
    train, test = split(kinds, test_fraction=test_fraction, seed=seed)
    fair = len(train) / (4 * count_of(kinds, train))  # the four kinds weigh the same: no correlation is left
    agree = (both[train, 0] == both[train, 1]) * fair * 2
    found = _scr(
        *(Examples(*(a[i] for a in examples)) for i in (train, test)),
        jnp.asarray(both[train]),
        jnp.asarray(both[test]),
        jnp.asarray(fair, jnp.float32),
        jnp.asarray(agree, jnp.float32),
        jnp.asarray(1 / count_of(kinds, test), jnp.float32),
        W_dec.astype(jnp.float32),
        l2,
        ns=_numbers("scr", ns),
    )
    biased, clean, after = (np.asarray(a, np.float64) for a in found)
    scores = [removal_score(after[i], float(biased[i]), float(clean[i])) for i in (0, 1)]
    return SpuriousRemoval(
        ns=tuple(ns),
        score=scores[0] if biased[0] <= biased[1] else scores[1],
        score_target=scores[0],
        score_spurious=scores[1],
        biased=(float(biased[0]), float(biased[1])),
        clean=(float(clean[0]), float(clean[1])),
    )


def count_of(kinds: np.ndarray, part: np.ndarray) -> np.ndarray:
    """For each example of a part, how many of its kind are in the part."""
    return np.bincount(kinds[part])[kinds[part]]


@partial(jax.jit, static_argnames="ns")
def _scr(
    train: Examples,
    test: Examples,
    y: Array,
    y_test: Array,
    fair: Array,
    agree: Array,
    fair_test: Array,
    W_dec: Array,
    l2: float,
    *,
    ns: tuple[int, ...],
) -> tuple[Array, Array, Array]:
    """Accuracies on (target, spurious): of the biased probe [2], clean probes [2], the biased probe after [2, ns]."""
    answers, weights = jnp.concatenate([y, y[:, :1]], 1), jnp.stack([fair, fair, agree], 1)
    probes = logistics(train.x, answers, weights, l2)
    biased = Probe(probes.w[2:], probes.b[2:])

    def after(removed: int, judged: int) -> Array:
        of_removed = Probe(probes.w[removed], probes.b[removed])
        chosen = strongest(spurious_effects(train, y[:, removed], fair, of_removed, W_dec), max(ns))
        return accuracy(
            logits_without(test, biased, W_dec, chosen, ns)[:, 0], y_test[:, judged, None], fair_test[:, None]
        )

    clean = accuracy(probes(test.x)[:, :2], y_test, fair_test[:, None])
    before = accuracy(biased(test.x), y_test, fair_test[:, None])
    return before, clean, jnp.stack([after(1, 0), after(0, 1)])


# --- TPP --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetedPerturbation:
    """Loss of accuracy when a class's latents are zeroed. Balanced accuracy: 0.5 is chance, so 0.5 is the most."""

    ns: tuple[int, ...]
    score: Float[np.ndarray, " n_ns"]
    """intended - unintended: the benchmark's number."""
    intended: Float[np.ndarray, " n_ns"]
    """Mean loss of a class's own probe."""
    unintended: Float[np.ndarray, " n_ns"]
    """Mean loss of the other classes' probes."""
    by_class: Float[np.ndarray, "n_classes n_ns"]
    clean: Float[np.ndarray, " n_classes"]
    """Accuracy before."""


def perturbation(
    clean: Float[np.ndarray, " n_classes"], after: Float[np.ndarray, "n_classes n_ns n_classes"]
) -> tuple[Float[np.ndarray, "n_classes n_ns"], Float[np.ndarray, "n_classes n_ns"]]:
    """(intended, unintended) losses, by class that was removed; the last axis of `after` is the probe.

    Example:
      >>> perturbation(np.array([1.0, 0.9]), np.array([[[0.6, 0.8]], [[1.0, 0.5]]]))[0].round(3).tolist()
      [[0.4], [0.4]]
    """
    loss = clean - after
    own = np.einsum("cnc->cn", loss)
    return own, (loss.sum(-1) - own) / (len(clean) - 1)


def targeted_effects(
    examples: Examples, y: Bool[Array, " n"], probe: Probe, W_dec: Float[Array, "m d"]
) -> Float[Array, " m"]:
    """relu(difference of mean latents) . (W_dec probe) (TPP's choice of latents)."""
    return jax.nn.relu(mean_difference(examples.z, y)) * jnp.matmul(W_dec, probe.w, precision="highest")


def tpp(
    dictionary: LinearDictionary,
    x: Activations,
    labels: Int[Array, " n"] | Bool[Array, "n n_classes"],
    *,
    mask: Bool[Array, "n pos"] | None = None,
    ns: Sequence[int] = NS,
    test_fraction: float = 0.2,
    seed: int = 0,
    l2: float = 1.0,
) -> TargetedPerturbation:
    """Targeted probe perturbation: do a class's latents carry that class and no other?

        score = mean_i (loss of probe i - mean_{j != i} loss of probe j), when the n latents of class i are zeroed

    **Validity.** An audit (arXiv:2605.18229) found that TPP does not pass validity checks: do not rank dictionaries by
    it alone. Read it beside sparse probing, against a dictionary of random directions and against shuffled labels; a
    dictionary that breaks every probe and one that breaks none both score 0, so look at `intended` and `unintended`.

    Args:
      dictionary: an autoencoder of x with a linear decoder.
      x: activations [n, d], or [n, pos, d] with a mask.
      labels: classes int [n] (at least two), or bool [n, n_classes].
      ns: numbers of latents to zero; only latents with an effect above 0 are.
    Returns:
      TargetedPerturbation.
    Raises:
      UserError: fewer than two classes, a class with too few examples, and as in `pooled`.
    Source: SAEBench, arXiv:2503.09532.
    """
    examples, table = pooled(dictionary, x, mask), one_against_rest(labels)
    if table.shape[1] < 2:
        raise UserError("tpp: there is one class; two are needed to see what else breaks.")
    if len(table) != len(examples.x):
        raise UserError(f"tpp: {len(table)} labels for {len(examples.x)} examples.")
    W_dec = decoder(dictionary, examples.x.shape[1], where="tpp").astype(jnp.float32)
    train, test = split(table, test_fraction=test_fraction, seed=seed)
    parts = (Examples(*(a[i] for a in examples)) for i in (train, test))
    answers = (jnp.asarray(a) for i in (train, test) for a in (table[i], balanced(table[i])))
    found = _tpp(*parts, *answers, W_dec, l2, ns=_numbers("tpp", ns))
    clean, after = (np.asarray(a, np.float64) for a in found)
    intended, unintended = perturbation(clean, after)
    return TargetedPerturbation(
        ns=tuple(ns),
        score=(intended - unintended).mean(0),
        intended=intended.mean(0),
        unintended=unintended.mean(0),
        by_class=intended - unintended,
        clean=clean,
    )


@partial(jax.jit, static_argnames="ns")
def _tpp(
    train: Examples, test: Examples, y: Array, w: Array, y_test: Array, w_test: Array, W_dec: Array, l2: float,
    *, ns: tuple[int, ...],
) -> tuple[Array, Array]:  # fmt: skip
    """Balanced accuracies: before [n_classes], and after [class removed, n, class judged]."""
    probes = logistics(train.x, y, w, l2)

    def without(removed: tuple[Probe, Array]) -> Array:
        probe, y_removed = removed
        chosen = strongest(targeted_effects(train, y_removed, probe, W_dec), max(ns))
        logits = logits_without(test, probes, W_dec, chosen, ns)
        return accuracy(logits, y_test[..., None], w_test[..., None]).T

    return accuracy(probes(test.x), y_test, w_test), jax.lax.map(without, (probes, y.T))


def _numbers(where: str, ns: Sequence[int]) -> tuple[int, ...]:
    if not ns or min(ns) < 1:
        raise UserError(f"{where}: ns = {tuple(ns)} are numbers of latents, at least 1.")
    return tuple(ns)
