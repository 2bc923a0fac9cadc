# SPDX-License-Identifier: Apache-2.0
"""How many components a tensor has: do random starts agree, and do two halves of the data?"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from ..errors import UserError
from ..taps.compiled import compiled
from .cp import CP, cp_starts, nonnegative_cp
from .parts.decoder import unit_rows


@compiled
def similarity(a: CP, b: CP, *, modes: Sequence[int] | None = None) -> Float[Array, "rank"]:
    """Of each component of a, matched greedily with one of b: the product of the cosines over modes.

    Example:
      >>> cp = CP((jnp.eye(2), jnp.eye(2)), jnp.ones(2), jnp.float32(0), jnp.int32(1))
      >>> similarity(cp, cp._replace(factors=(jnp.eye(2)[:, ::-1], jnp.eye(2)[:, ::-1]))).tolist()
      [1.0, 1.0]
    """
    used = range(len(a.factors)) if modes is None else modes
    cosine = math.prod((unit_rows(a.factors[m].T) @ unit_rows(b.factors[m].T).T for m in used), start=jnp.float32(1))

    def match(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        left, found = carry
        i, j = jnp.unravel_index(jnp.argmax(left), left.shape)
        return left.at[i].set(-1).at[:, j].set(-1), found.at[i].set(left[i, j])

    rank = min(cosine.shape)
    return lax.fori_loop(0, rank, match, (cosine, jnp.zeros(cosine.shape[0], jnp.float32)))[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankScore:
    """How well and how reproducibly a tensor is described at one rank."""

    rank: int
    loss: float
    """Of the best start; see `CP.loss`."""
    seed_similarity: float
    """Mean `similarity` of the best start and another, median over the others: one stuck start does not decide."""
    split_similarity: float
    """Mean `similarity` of two halves of the split axis (alternating blocks of it), over the other modes."""


def rank_curve(
    tensor: Float[Array, "*sizes"],
    ranks: Sequence[int],
    *,
    key: Key[Array, ""],
    mask: Bool[Array, "*sizes_or_ones"] | None = None,
    split_axis: int = 1,
    split_block: int | None = None,
    **options,
) -> tuple[RankScore, ...]:
    """Loss, agreement of starts, and agreement of two halves of the data per rank.

    Each rank is compiled anew. **options are those of `nonnegative_cp`. Neither agreement proves a component: starts
    also agree on what traces without any synchrony have in common (`cp_null.rank_evidence` is the test).

    Args:
      split_axis: the axis that is halved: time, or subjects.
      split_block: entries of it that stay together; blocks go to the halves in turn. Neighbours on a smoothed axis are
        copies of each other, so a block must be longer than what smooths it: an eighth of the axis unless given.
    Raises:
      UserError: an axis that is not there, or too short to split so; what `nonnegative_cp` refuses.
    """
    if not 0 <= split_axis < tensor.ndim or tensor.shape[split_axis] < 2:
        raise UserError(f"rank_curve: axis {split_axis} of a tensor {list(tensor.shape)} cannot be split in two.")
    size = tensor.shape[split_axis]
    block = max(1, size // 8) if split_block is None else split_block
    if not 1 <= block <= size // 2:
        raise UserError(f"rank_curve: blocks of {block} entries do not make two halves of an axis of {size}.")
    mask = jnp.ones((1,) * tensor.ndim, bool) if mask is None else mask
    others = [m for m in range(tensor.ndim) if m != split_axis]
    whole = np.arange(size // (2 * block) * 2 * block)  # halves of one size share one program
    halves_of = [whole[whole // block % 2 == which] for which in range(2)]

    def half(a: Array, which: int) -> Array:
        return a if a.shape[split_axis] == 1 else jnp.take(a, halves_of[which], axis=split_axis)

    def score(rank: int) -> RankScore:
        all_starts = cp_starts(tensor, rank, key=key, mask=mask, **options)
        best = int(jnp.argmin(all_starts.loss))
        cps = [jax.tree.map(lambda a, i=i: a[i], all_starts) for i in range(all_starts.loss.shape[0])]
        agree = [float(jnp.mean(similarity(cps[best], cp))) for i, cp in enumerate(cps) if i != best]
        halves = [nonnegative_cp(half(tensor, i), rank, key=key, mask=half(mask, i), **options) for i in range(2)]
        return RankScore(
            rank=rank,
            loss=float(cps[best].loss),
            seed_similarity=float(np.median(agree)) if agree else float("nan"),
            split_similarity=float(jnp.mean(similarity(halves[0], halves[1], modes=others))),
        )

    return tuple(score(rank) for rank in ranks)


def chosen_rank(curve: Sequence[RankScore], *, least: float = 0.8) -> int | None:
    """The largest rank whose starts and halves both agree to `least` on average; None if there is none.

    An average forgives a spurious component beside several true ones, and non-negative vectors are never far apart:
    read the whole curve, where its loss has its elbow, and `cp_null.rank_evidence` for traces.

    Example:
      >>> score = RankScore(rank=2, loss=0.1, seed_similarity=0.99, split_similarity=0.9)
      >>> chosen_rank([score, dataclasses.replace(score, rank=3, split_similarity=0.5)])
      2
    """
    good = [s.rank for s in curve if min(s.seed_similarity, s.split_similarity) >= least]
    return max(good, default=None)
