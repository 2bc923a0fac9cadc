# SPDX-License-Identifier: Apache-2.0
"""Which components do traces have that traces out of step with each other have not? Each rank beside rolled copies."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ..errors import UserError
from .connectome import affinity
from .cp import cp_starts


def rolled(
    traces: Float[Array, "subjects time neurons"], key: Key[Array, ""], *, least: int = 1
) -> Float[Array, "subjects time neurons"]:
    """Every trace shifted around in time by a lag of its own: each keeps its course, and no two keep their synchrony.

    Args:
      least: smallest lag, at either end.
    Raises:
      UserError: a smallest lag of half the time or more.
    """
    subjects, time, neurons = traces.shape
    if not 0 < 2 * least <= time:
        raise UserError(f"rolled: lags of {least} and more of {time} time steps. At most half of them.")
    lag = jax.random.randint(key, (subjects, neurons), least, time - least + 1, jnp.int32)
    at = (jnp.arange(time, dtype=jnp.int32)[None, :, None] - lag[:, None, :]) % time
    return jnp.take_along_axis(traces, at, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankEvidence:
    """What one more component explains, beside the same in rolled copies."""

    rank: int
    loss: float
    """Of the best start (`CP.loss`)."""
    drop: float
    """Loss at the rank before (1 at rank 0) less the loss here."""
    null: Float[np.ndarray, "copies"]
    """The same drops in the rolled copies."""
    p_value: float
    """Share of copies, the traces among them, in which any rank stands out so far; see `rank_evidence`."""


def rank_evidence(
    traces: Float[Array, "subjects time neurons"],
    most: int,
    *,
    key: Key[Array, ""],
    copies: int = 20,
    smooth: float = 1.0,
    window: float = 2.0,
    scale: str = "neuron",
    **options: int | float,
) -> tuple[RankEvidence, ...]:
    """Ranks 1 to `most` of the affinity tensor of traces, each beside the same rank of rolled copies.

    A component may describe joint loudness without synchrony, which rolled traces have too, and starts agree on it; so
    the question is not whether a rank is found again, but whether it explains more than in copies without synchrony.

        drop(R) = loss(R - 1) - loss(R)             ratio(R) = drop(R) / median of drop(R) over traces and copies
        p(R) = (1 + #{copies c: max_r ratio_c(r) >= ratio(R)}) / (1 + copies)

    The largest ratio over all ranks is what a copy is asked for, so p is of all ranks together: traces out of step,
    which are exchangeable with their copies, have a rank with p <= 0.05 in at most 5 % of the cases. Rank 1 is often
    below its copies: with little synchrony one flat component describes everything.

    One program per rank, one copy at a time.

    Args:
      most: highest rank.
      copies: rolled copies; at least 19 for p = 0.05.
      smooth, window, scale: as in `affinity`. Lags are longer than these windows.
      options: of `cp_starts`.
    Returns:
      One RankEvidence per rank.
    Raises:
      UserError: no rank, no copies, too little time for the windows; what `cp_starts` refuses.
    Source: ours.
    """
    if most < 1 or copies < 1:
        raise UserError(f"rank_evidence: most = {most}, copies = {copies}; both must be at least 1.")
    for_copies, for_fits = jax.random.split(key)
    least = int(max(1, 3 * smooth, 3 * window))
    together = {"smooth": smooth, "window": window, "scale": scale}

    def losses(rank: int) -> np.ndarray:
        """[1 + copies]: of the traces, then of each copy."""

        def one(which: Int[Array, ""]) -> Array:
            copy = rolled(traces, jax.random.fold_in(for_copies, which), least=least)
            tensor = affinity(jnp.where(which == 0, traces, copy), **together)  # type: ignore[arg-type]
            return jnp.min(cp_starts(tensor, rank, key=for_fits, **options).loss)  # type: ignore[arg-type]

        return np.asarray(jax.jit(lambda: lax.map(one, jnp.arange(1 + copies, dtype=jnp.int32)))())

    found = [np.ones(1 + copies, np.float32), *map(losses, range(1, most + 1))]
    drops = np.stack([before - after for before, after in itertools.pairwise(found)])  # [rank, 1 + copies]
    ratio = drops / np.maximum(np.median(drops, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    p = (1 + (ratio[:, 1:].max(0) >= ratio[:, :1]).sum(1)) / (1 + copies)
    return tuple(
        RankEvidence(rank=r + 1, loss=float(found[r + 1][0]), drop=float(d[0]), null=d[1:], p_value=float(p[r]))
        for r, d in enumerate(drops)
    )


def supported_rank(evidence: Sequence[RankEvidence], *, level: float = 0.05) -> int:
    """The highest rank that explains more than in rolled copies; 0: nothing that traces out of step have not.

    Example:
      >>> score = RankEvidence(rank=1, loss=0.5, drop=0.5, null=np.full(20, 0.1), p_value=1 / 21)
      >>> supported_rank([score, dataclasses.replace(score, rank=2, p_value=0.4)])
      1
    """
    return max((e.rank for e in evidence if e.p_value <= level), default=0)
