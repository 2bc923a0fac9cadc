# SPDX-License-Identifier: Apache-2.0
"""Which neurons fire for one group, for several, for all: LAPE and its finer-grained variant."""

from collections.abc import Callable
from functools import partial
from typing import Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..errors import UserError

NONE: Final = 0
SPECIFIC: Final = 1
RELATED: Final = 2
AGNOSTIC: Final = 3
CLASSES: Final = ("none", "specific", "related", "agnostic")


class Lape(NamedTuple):
    """What `lape` returns."""

    entropy: Float[Array, "layer neuron"]
    """In nats, +inf for neurons that were filtered out."""
    selected: Bool[Array, "layer neuron"]
    member: Bool[Array, "layer neuron group"]
    """Selected and above the bar in this group; every selected neuron is in at least one group (if bar <= filter)."""
    threshold: Float[Array, ""]
    """A neuron is kept if its rate in some group is above this."""


class Finer(NamedTuple):
    """What `finer` returns."""

    score: Float[Array, "layer neuron"]
    selected: Bool[Array, "layer neuron"]
    label: Int[Array, "layer neuron"]
    """int8: 0 none, 1 specific, 2 related, 3 agnostic (`CLASSES`)."""
    member: Bool[Array, "layer neuron group"]
    """The groups of specific and related neurons."""
    n_active: Int[Array, "layer neuron"]
    """N: groups in which the rate is above tau."""
    weight: Float[Array, ""]
    """lambda, found by bisection."""
    tau: Float[Array, ""]
    n_full: Int[Array, ""]
    """Selected neurons with N = K at this lambda: 0 unless even lambda = 0 leaves some."""


def kth_smallest(values: Array, ratio: float) -> Float[Array, ""]:
    """The k-th smallest of all values, k = round(ratio * n) but at least 1; no interpolation (as torch's kthvalue)."""
    k = min(max(round(ratio * values.size), 1), values.size)
    return jnp.sort(values.ravel())[k - 1]


def group_entropy(rate: Float[Array, "layer neuron group"]) -> Float[Array, "layer neuron"]:
    """H = -sum_k p' ln p' in nats with p' = p / sum_k p; 0 ln 0 = 0; a neuron that never fires has H = 0."""
    total = jnp.sum(rate, -1, keepdims=True)
    p = rate / jnp.where(total > 0, total, jnp.float32(1))
    log_p = jnp.log(jnp.where(p > 0, p, jnp.float32(1)))
    return 0 - jnp.sum(p * log_p, -1)  # 0 - x, so that nothing comes out as -0


def _lowest(score: Array, n: int) -> tuple[Array, Array]:
    """Indices of the n lowest scores (equal ones: the smaller index first) and the mask of those that are finite."""
    negative, index = jax.lax.top_k(-score.ravel(), n)
    mask = jnp.zeros(score.size, bool).at[index].set(jnp.isfinite(negative))
    return index, mask.reshape(score.shape)


def _check(rate: Array, where: str) -> None:
    if rate.ndim != 3:
        raise UserError(
            f"{where}: rate has shape {rate.shape}; [layers, neurons, groups] is needed. Use vmap for more axes."
        )
    if rate.shape[-1] < 2:
        raise UserError(f"{where}: only one group. Selectivity compares groups: give at least two.")


@partial(jax.jit, static_argnames=("top_rate", "filter_rate", "bar"))
def lape(
    rate: Float[Array, "layer neuron group"],
    *,
    top_rate: float = 0.01,
    filter_rate: float = 0.95,
    bar: float = 0.95,
) -> Lape:
    """Language activation probability entropy: the neurons whose firing is concentrated on few groups.

        H = -sum_k p' ln p',  p' = p / sum_k p

    1. q = k-th smallest of all L F K rates, k = round(filter_rate L F K). A neuron with no rate above q gets H = +inf.
       This removes dead neurons, whose H would be 0.
    2. The round(top_rate L F) neurons with the lowest H are selected; filtered ones never are.
    3. A selected neuron belongs to every group with p above the same kind of quantile at `bar`.

    Args:
      rate: firing probability per neuron and group (`GroupStatistics.rate`).
    Returns:
      Lape. H is not comparable between different sets of groups: its maximum is ln K. If more than a share
      1 - filter_rate of all rates equal the largest (neurons that always fire), no rate is above q and nothing is
      selected.
    Raises:
      UserError: fewer than two groups, or another number of axes.
    Source: RUCAIBox/Language-Specific-Neurons, identify.py (arXiv 2402.16438).
    Example:
      >>> rate = jnp.full((1, 200, 2), 0.1).at[0, 7].set(jnp.array([0.9, 0.0]))
      >>> jnp.argwhere(lape(rate).member).tolist()
      [[0, 7, 0]]
    """
    _check(rate, "lape")
    threshold = kth_smallest(rate, filter_rate)
    entropy = jnp.where(jnp.any(rate > threshold, -1), group_entropy(rate), jnp.float32(jnp.inf))
    _, selected = _lowest(entropy, round(top_rate * entropy.size))
    member = selected[..., None] & (rate > kth_smallest(rate, bar))
    return Lape(entropy, selected, member, threshold)


@partial(jax.jit, static_argnames=("score", "top_rate", "filter_rate", "bar", "top_weight", "width", "steps"))
def finer(
    rate: Float[Array, "layer neuron group"],
    *,
    score: Literal["code", "paper"] = "code",
    top_rate: float = 0.01,
    filter_rate: float | None = 0.95,
    bar: float = 0.95,
    top_weight: float = 0.2,
    width: float = 1e-3,
    steps: int = 64,
) -> Finer:
    """Group-specific, group-related and group-agnostic neurons.

        code:   S = H / ln K - lambda max_k p / nu,   nu = (1/K) sum_{m=1..K} 1/m
        paper:  S = H - lambda max_k p

    tau = k-th smallest of all rates, k = round(bar L F K); N = number of groups with p > tau. The round(top_rate L F)
    neurons with the lowest S are selected: N = 1 is specific, 1 < N < K related. N = K is agnostic, counted over all
    neurons. lambda is the largest value for which no selected neuron has N = K: `top_weight` if it qualifies, else by
    bisection of [0, top_weight] down to `width`; 0 if nothing qualifies (then `n_full` > 0).

    Args:
      rate: firing probability per neuron and group.
      score: the formula of the authors' code (scale-free in K; never-firing neurons get H = ln K) or of the paper
        (they get 0: keep the filter on).
      filter_rate: drop neurons with no rate above this quantile, as LAPE does. None: keep all, as the authors' code
        does; then rarely firing neurons with N = 0 take up selected places without belonging to a class.
    Returns:
      Finer. "Agnostic" says nothing about importance.
    Raises:
      UserError: fewer than two groups, or another number of axes.
    Source: arXiv 2505.21505; NJUNLP/Language-Neurons-Alignment, identify.py and autosweep.py (where K = 10 is written
      into one index, and a qualifying upper end is overwritten by the bisection's last value below it).
    Example:
      >>> rate = jnp.full((1, 300, 3), 0.1).at[0, 7].set(jnp.array([0.9, 0.0, 0.8]))
      >>> int(finer(rate).label[0, 7]) == RELATED
      True
    """
    _check(rate, "finer")
    n_groups = rate.shape[-1]
    nu = sum(1 / m for m in range(1, n_groups + 1)) / n_groups
    entropy, top = group_entropy(rate), jnp.max(rate, -1)
    if score == "code":
        uniform = jnp.sum(rate, -1) <= 0
        log_k = jnp.log(jnp.float32(n_groups))
        entropy, top = jnp.where(uniform, log_k, entropy) / log_k, top / jnp.float32(nu)
    if filter_rate is not None:
        kept = jnp.any(rate > kth_smallest(rate, filter_rate), -1)
        entropy = jnp.where(kept, entropy, jnp.float32(jnp.inf))
    tau = kth_smallest(rate, bar)
    n_active = jnp.sum(rate > tau, -1, dtype=jnp.int32)
    n_select = round(top_rate * entropy.size)

    def full(weight: Array) -> Array:
        _, mask = _lowest(entropy - weight * top, n_select)
        return jnp.sum(mask & (n_active == n_groups), dtype=jnp.int32)

    weight = _largest_without(full, jnp.float32(top_weight), width, steps)
    total = entropy - weight * top
    _, selected = _lowest(total, n_select)
    label = jnp.select(
        [n_active == n_groups, selected & (n_active == 1), selected & (n_active > 1)],
        [jnp.int8(AGNOSTIC), jnp.int8(SPECIFIC), jnp.int8(RELATED)],
        jnp.int8(NONE),
    )
    member = ((label == SPECIFIC) | (label == RELATED))[..., None] & (rate > tau)
    return Finer(total, selected, label, member, n_active, weight, tau, full(weight))


def _largest_without(count: Callable[[Array], Array], top: Array, width: float, steps: int) -> Float[Array, ""]:
    """Largest x in [0, top] with count(x) = 0, to within `width`, if count only grows; 0 if there is none."""

    def halve(state):
        low, high, i = state
        middle = (low + high) / 2
        good = count(middle) == 0
        return jnp.where(good, middle, low), jnp.where(good, high, middle), i + 1

    start = jnp.where(count(top) == 0, top, jnp.float32(0))
    low, _, _ = jax.lax.while_loop(lambda s: (s[1] - s[0] > width) & (s[2] < steps), halve, (start, top, jnp.int32(0)))
    return low
