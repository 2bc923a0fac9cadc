# SPDX-License-Identifier: Apache-2.0
"""The effect matrix: silence the neurons of one group, measure what it does to every group."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ..axes import unit_axes
from ..errors import UserError
from ..taps import apply_fn, intervene
from .measures import Measure, check_output, measure_named, per_group
from .sets import matched_random_sets


@dataclasses.dataclass(frozen=True, kw_only=True)
class EffectMatrix:
    """What silencing does. G silenced sets (rows), K measured groups (columns), R random sets per row."""

    matrix: np.ndarray
    """float64 [G, K]: measure with the set silenced minus measure without; NaN of a set without neurons."""
    random: np.ndarray
    """float64 [G, R, K]: the same for random sets matched in size per layer."""
    base: np.ndarray
    """float64 [K]: the measure without intervention."""
    weight: np.ndarray
    """int64 [K]: measured tokens (loss) or windows (embedding shift)."""
    set_size: np.ndarray
    """int64 [G, L]"""
    measure: str
    unit: str

    @property
    def random_mean(self) -> np.ndarray:
        """float64 [G, K]"""
        return self.random.mean(1)

    @property
    def random_std(self) -> np.ndarray:
        """float64 [G, K], sample standard deviation over the random sets."""
        return self.random.std(1, ddof=1)

    @property
    def z(self) -> np.ndarray:
        """(matrix - random_mean) / random_std; 0 where the random sets do not differ, NaN of an empty set."""
        spread = self.random_std
        same = np.where(np.isnan(spread), np.nan, 0.0)
        return np.where(spread > 0, (self.matrix - self.random_mean) / np.where(spread > 0, spread, 1), same)


def replace(x: Array, off: Bool[Array, " neuron"], fill: Array) -> Array:
    """Values [batch, pos, ...] with the neurons that are off set to `fill`; the others bitwise as they were."""
    off, fill = (a.reshape(unit_axes(x.shape, off.size)) for a in (off, fill))
    return jnp.where(off, fill.astype(x.dtype), x)


@partial(jax.jit, static_argnames=("apply", "site", "measure", "n_groups", "chunk"))
def _sums(
    weights: Any, silenced: Array, fill: Array, batch: Any, *, apply: Callable, site: str, measure: Measure,
    n_groups: int, chunk: int,
) -> tuple[Array, Array]:  # fmt: skip
    """[M, K] sums of the measure and [K] sums of its weight over one batch, for M silenced sets."""
    args = (weights, batch["tokens"], batch["mask"])
    reference = apply(*args)

    def one(off: Bool[Array, "layer neuron"]) -> tuple[Array, Array]:
        edit = apply_fn(site, replace, off, fill, per_layer=True)
        value, weight = measure.fn(intervene(apply, [edit])(*args), reference, batch)
        return per_group(value, batch["group"], n_groups), per_group(weight, batch["group"], n_groups)

    sums, weights_ = jax.lax.map(one, silenced, batch_size=chunk)
    return sums, weights_[0]


def silence(
    apply: Callable,
    weights: Any,
    site: str,
    sets: np.ndarray,
    batches: Iterable[Mapping[str, Any]],
    n_groups: int,
    *,
    measure: str | Measure = "loss",
    fill: np.ndarray | None = None,
    chunk: int = 4,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The measure of every group with each of M sets of neurons replaced by `fill`.

    The sets are an argument of one compiled program (where(off, fill, value) at the site, in every layer), mapped in
    chunks of `chunk` models at a time: other sets, another seed or another fill do not compile again, and memory is
    that of `chunk` forward passes however many sets there are.

    Args:
      apply, weights: pure function (weights, tokens, mask) and its weights.
      site: with all layers, such as "blocks.mlp.post".
      sets: bool [M, L, F], True: silenced.
      batches: dicts of `tokens`, `mask`, `counted` [B, T], `group` [B], of one shape. Padding rows do not count.
      n_groups: K.
      measure: name in `MEASURES` or a `Measure`.
      fill: float [L, F], what a silenced neuron gives instead (for example its mean). None: 0.
      progress: called with (sets x batches done, all of them if known else 0, what).
    Returns:
      float64 [M, K] means, and int64 [K] the tokens or windows they are over.
    Raises:
      UserError: no batches, a group that no window belongs to, a loss of a model without logits, a result that is not
        finite.
    """
    sets = np.asarray(sets, bool)
    measure, chunk = measure_named(measure), max(1, min(chunk, len(sets)))
    padded = np.concatenate([sets, np.zeros((-len(sets) % chunk, *sets.shape[1:]), bool)])
    silenced = jnp.asarray(padded)
    level = jnp.zeros(sets.shape[1:], jnp.float32) if fill is None else jnp.asarray(fill, jnp.float32)
    total, weight = np.zeros((len(padded), n_groups)), np.zeros(n_groups, np.int64)
    known = len(batches) if hasattr(batches, "__len__") else 0  # type: ignore[arg-type]
    waiting = None
    for done, batch in enumerate(batches, 1):
        batch = {k: batch[k] for k in ("tokens", "mask", "counted", "group")}
        if done == 1:
            check_output(apply, weights, batch, measure)
        sums = _sums(
            weights, silenced, level, batch, apply=apply, site=site, measure=measure, n_groups=n_groups, chunk=chunk
        )  # fmt: skip
        if waiting is not None:  # the batch before last, while this one runs
            total, weight = _plus(total, weight, waiting)
        waiting = sums
        if progress is not None:
            progress(done, known, f"silencing {len(sets)} sets")
    if waiting is None:
        raise UserError("silence: no batches to measure on.")
    total, weight = _plus(total, weight, waiting)
    if (weight == 0).any():
        raise UserError(f"silence: nothing to measure in group number {np.flatnonzero(weight == 0).tolist()}.")
    if not np.isfinite(total).all():
        raise UserError(
            f"silence: the measure {measure.name!r} is not finite. Check the weights, or run in float32 "
            "or bfloat16 (float16 ends at 65,504)."
        )
    return total[: len(sets)] / weight, weight


def _plus(total: np.ndarray, weight: np.ndarray, more: tuple[Array, Array]) -> tuple[np.ndarray, np.ndarray]:
    return total + np.asarray(more[0], np.float64), weight + np.asarray(more[1], np.int64)


def effect_matrix(
    apply: Callable,
    weights: Any,
    site: str,
    chosen: np.ndarray,
    batches: Iterable[Mapping[str, Any]],
    *,
    n_groups: int | None = None,
    n_random: int = 10,
    seed: int = 0,
    measure: str | Measure = "loss",
    fill: np.ndarray | None = None,
    chunk: int = 4,
    progress: Callable[[int, int, str], None] | None = None,
) -> EffectMatrix:
    """Silence each set of neurons and measure every group, beside random sets matched in size per layer.

        matrix[i, j] = measure_j(set i silenced) - measure_j(nothing silenced)

    1 + G (1 + R) runs over the batches, all in the one program of `silence`; a set without neurons is not run.

    Args:
      chosen: bool [G, L, F], the neurons of each group.
      n_groups: number of measured groups, if it is not G.
      n_random: R random sets per group (`matched_random_sets`, which says what they exclude).
      fill: silence to this value per neuron instead of 0 (mean ablation).
      others: see `silence`.
    Returns:
      EffectMatrix.
    Raises:
      UserError: as `silence` and `matched_random_sets`.
    Source: perplexity-change matrices of arXiv 2402.16438 and 2502.17355; random sets matched per layer are ours.
    """
    chosen = np.asarray(chosen, bool)
    if chosen.ndim != 3:
        raise UserError(f"effect_matrix: chosen has shape {chosen.shape}; [groups, layers, neurons] is needed.")
    random = matched_random_sets(chosen, n_random, seed)
    rows = np.concatenate([np.zeros((1, *chosen.shape[1:]), bool), chosen, random.reshape(-1, *chosen.shape[1:])])
    n_groups = n_groups or len(chosen)
    run = rows.any((1, 2)) | (np.arange(len(rows)) == 0)  # the first is the model as it is
    found, weight = silence(
        apply, weights, site, rows[run], batches, n_groups, measure=measure, fill=fill, chunk=chunk, progress=progress
    )
    mean = np.full((len(rows), n_groups), np.nan)
    mean[run] = found
    base, n = mean[0], len(chosen)
    named = measure_named(measure)
    return EffectMatrix(
        matrix=mean[1 : 1 + n] - base,
        random=(mean[1 + n :] - base).reshape(n, n_random, n_groups),
        base=base,
        weight=weight,
        set_size=chosen.sum(-1),
        measure=named.change,
        unit=named.unit,
    )
