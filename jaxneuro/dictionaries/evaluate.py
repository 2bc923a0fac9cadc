# SPDX-License-Identifier: Apache-2.0
"""How good a dictionary is: reconstruction over a stream, and what the model loses when it reads the reconstruction."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..errors import UserError
from ..protocols import Dictionary
from ..taps import apply_fn, intervene
from ..taps.compiled import compiled
from ..taps.names import parse
from .dictionary import SparseCoder
from .judges import Judge, next_token_loss
from .parts.decoder import unit_rows
from .parts.inputs import given
from .shapes import of_width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Reconstruction over all valid tokens of a stream; sums in float64 on the host, merged exactly."""

    tokens: int
    """Valid tokens: the window in which a latent counts as dead if it never fired."""
    fvu: float
    """sum |x - x_hat|^2 / sum |x - mean(x)|^2, both over all tokens."""
    explained_variance: float
    """1 - fvu."""
    explained_variance_centred: float
    """1 - sum_j var(e_j) / sum_j var(x_j), e = x - x_hat: blind to a constant error (dictionary_learning's FVE)."""
    l0: float
    """Mean number of active latents per token: above 0, of signed latents (PCA) not 0."""
    dead_fraction: float
    """Latents that never fired in `tokens` tokens."""
    shrinkage: float
    """mean |x_hat| / mean |x|; below 1 the reconstruction is too short."""
    cosine: float
    """Mean cosine of x and x_hat."""
    density: np.ndarray
    """float64 [n_latents]: share of tokens on which each latent fires."""
    mean: np.ndarray
    """float64 [d_out]: mean of the targets, the baseline of FVU and of mean ablation."""


@jax.jit
def _sums(dictionary: Dictionary, batch: Mapping[str, Array]) -> dict[str, Array]:
    """One batch: its size, mean, squared deviations from its own mean, and sums of the errors."""
    x = batch["x"].astype(jnp.float32)
    y = batch.get("y", batch["x"]).astype(jnp.float32)
    valid = batch.get("mask", jnp.ones(x.shape[0], bool))
    on = valid[:, None]
    y_hat, fired = _reconstructed(dictionary, jnp.where(on, x, 0), on)
    y = of_width(y, y_hat.shape[-1], what="targets of this dictionary")
    n = jnp.sum(valid, dtype=jnp.int32)
    mean = jnp.sum(jnp.where(on, y, 0), 0) / jnp.maximum(n, 1).astype(jnp.float32)
    error = jnp.where(on, y - y_hat, 0)
    long, short = (jnp.linalg.norm(jnp.where(on, a, 0), axis=1) for a in (y, y_hat))
    cosine = jnp.sum(jnp.where(on, y * y_hat, 0), 1) / jnp.maximum(long * short, jnp.float32(1e-30))
    return {
        "n": n,
        "mean": mean,
        "deviation": jnp.sum(jnp.square(jnp.where(on, y - mean[None], 0))),
        "squared_error": jnp.sum(jnp.square(error)),
        "error": jnp.sum(error, 0),
        "fired": fired,
        "norm": jnp.sum(long),
        "norm_hat": jnp.sum(short),
        "cosine": jnp.sum(cosine),
    }


def _reconstructed(dictionary: Dictionary, x: Array, on: Array) -> tuple[Array, Array]:
    """x_hat, and at how many valid tokens each latent is active."""
    if not isinstance(dictionary, SparseCoder) or dictionary.k is None:
        return dictionary(x), jnp.sum((dictionary.encode(x) != 0) & on, axis=0, dtype=jnp.int32)
    vals, idx = dictionary.encode_sparse(x)
    fired = ((vals != 0) & on).astype(jnp.int32)
    return dictionary(x), jnp.zeros(dictionary.n_latents, jnp.int32).at[idx].add(fired, mode="drop")


def reconstruction(dictionary: Dictionary, batches: Iterable[Mapping[str, Any]]) -> Reconstruction:
    """Judge a dictionary on a stream of {"x": [n, d_in], optional "y": [n, d_out], optional "mask": bool [n]}.

    Batches are merged by the rule of Chan, Golub and LeVeque in float64, so the result does not depend on how the
    tokens are cut into batches, up to float32 rounding inside a batch.

    Raises:
      UserError: arrays missing, of wrong rank, type, length or width; no valid token, values that are not finite, or
        tokens that are all equal (FVU has no meaning).
    Source: arXiv:2406.04093 (normalised MSE) and the definitions in each field of `Reconstruction`.
    Example:
      >>> from jaxneuro.dictionaries import SparseCoder, TopK
      >>> arrays = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_enc": jnp.zeros(2), "b_dec": jnp.zeros(2)}
      >>> d = SparseCoder(**arrays, activation=TopK(2))
      >>> reconstruction(d, [{"x": jnp.array([[1.0, 2.0], [3.0, 1.0]])}]).fvu
      0.0
    """
    n, mean, deviation = 0, np.zeros(()), 0.0
    total: dict[str, Any] = {}
    for batch in batches:
        sums = jax.tree.map(lambda a: np.asarray(a, np.float64), _sums(dictionary, given(batch)))
        m = int(sums["n"])
        if not m:
            continue
        delta = sums["mean"] - mean
        deviation += float(sums["deviation"]) + float(delta @ delta) * n * m / (n + m)
        mean, n = mean + delta * (m / (n + m)), n + m
        rest = {k: v for k, v in sums.items() if k not in ("n", "mean", "deviation")}
        total = {k: total[k] + v for k, v in rest.items()} if total else rest
    if not n:
        raise UserError("reconstruction: the stream holds no valid token.")
    if not np.isfinite(deviation) or not np.isfinite(total["squared_error"]):
        raise UserError(
            "reconstruction: activations or reconstructions are not finite. Check the site's values (float16 ends at "
            "65,504)."
        )
    if deviation == 0:
        raise UserError(f"reconstruction: all {n} tokens are equal, so there is no variance to explain.")
    bias = total["error"] / n
    fvu = float(total["squared_error"] / deviation)
    return Reconstruction(
        tokens=n,
        fvu=fvu,
        explained_variance=1 - fvu,
        explained_variance_centred=float(1 - (total["squared_error"] - n * (bias @ bias)) / deviation),
        l0=float(total["fired"].sum() / n),
        dead_fraction=float((total["fired"] == 0).mean()),
        shrinkage=float(total["norm_hat"] / total["norm"]),
        cosine=float(total["cosine"] / n),
        density=total["fired"] / n,
        mean=mean,
    )


@compiled
def decoder_cosine(W_dec: Float[Array, "n_latents d_out"], *, rows: int = 1024) -> Float[Array, " n_latents"]:
    """Largest cosine of each decoder row with another: 1 where a latent has a duplicate.

    Args:
      W_dec: of at least two latents.
      rows: latents compared at a time; memory is rows x n_latents.
    Example:
      >>> decoder_cosine(jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])).tolist()
      [1.0, 1.0, 0.0]
    """
    unit = unit_rows(W_dec.astype(jnp.float32))
    every = jnp.arange(unit.shape[0], dtype=jnp.int32)

    def nearest(i: Array) -> Array:
        return jnp.max(jnp.where(every == i, -jnp.inf, unit @ unit[i]))

    return jax.lax.map(nearest, every, batch_size=rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovered:
    """Damage to the model when one site is replaced, and how much of it the dictionary avoids."""

    original: float
    """Measure of the unchanged model (cross entropy in nats per token by default)."""
    reconstructed: float
    zero: float
    """With the site set to 0."""
    mean: float
    """With the site set to its mean."""
    weight: int
    """Tokens (or windows) the measures are means over."""

    @property
    def recovered_zero(self) -> float:
        """(zero - reconstructed) / (zero - original): 1 perfect, 0 no better than zeros, nan without damage."""
        return self._share(self.zero)

    @property
    def recovered_mean(self) -> float:
        """(mean - reconstructed) / (mean - original): 1 perfect, 0 no better than the mean, nan without damage."""
        return self._share(self.mean)

    def _share(self, worst: float) -> float:
        damage = worst - self.original
        return (worst - self.reconstructed) / damage if damage else float("nan")


def _replaced(x: Array, dictionary: Dictionary, mean: Array, on: Bool[Array, "batch pos"], which: Array) -> Array:
    """The site's value at real tokens: 0 as it is, 1 reconstructed, 2 zero, 3 the mean."""
    flat = x.reshape(*x.shape[:2], -1)
    if mean.shape != flat.shape[-1:]:
        raise UserError(f"recovered: the mean has {mean.size} values, the site has {flat.shape[-1]} per token.")
    options = [flat, dictionary(flat), jnp.zeros_like(flat), jnp.broadcast_to(mean.astype(flat.dtype), flat.shape)]
    new = jax.lax.select_n(which, *options)
    return jnp.where(on[..., None], new, flat).reshape(x.shape)


@partial(jax.jit, static_argnames=("apply", "site", "judges"))
def _damage(
    weights: Any,
    dictionary: Dictionary,
    mean: Array,
    batch: Any,
    *,
    apply: Callable,
    site: str,
    judges: tuple[Judge, ...],
) -> list[tuple[Array, Array]]:
    """Of each judge, sums [4] of the measure, and of its weight: the site as it is, reconstructed, zero, mean."""
    layers = parse(site).layers
    assert layers is not None
    layer, args = layers[0], (weights, batch["tokens"], batch["mask"])
    below = apply(*args, stop_at=layer)  # once for all four

    def this_layer(weights: Any, tokens: Array, mask: Array, resid: Array) -> Array:
        return apply(weights, tokens, mask, start_at=layer, stop_at=layer + 1, resid=resid)

    def one(which: Array) -> Array:
        edit = apply_fn(site, _replaced, dictionary, mean, batch["counted"] & batch["mask"], which)
        resid = intervene(this_layer, [edit])(*args, below)
        return apply(*args, start_at=layer + 1, resid=resid)

    outputs = jax.lax.map(one, jnp.arange(4, dtype=jnp.int32))
    found = [jax.lax.map(lambda out, judge=judge: judge(out, outputs[0], batch), outputs) for judge in judges]
    return [(jnp.sum(value, 1), jnp.sum(weight[0])) for value, weight in found]


@overload
def recovered(
    apply: Callable,
    weights: Any,
    site: str,
    dictionary: Dictionary,
    mean: np.ndarray,
    batches: Iterable[Mapping[str, Any]],
    *,
    judge: Judge = ...,
) -> Recovered: ...


@overload
def recovered(
    apply: Callable,
    weights: Any,
    site: str,
    dictionary: Dictionary,
    mean: np.ndarray,
    batches: Iterable[Mapping[str, Any]],
    *,
    judge: Mapping[str, Judge],
) -> dict[str, Recovered]: ...


def recovered(
    apply: Callable,
    weights: Any,
    site: str,
    dictionary: Dictionary,
    mean: np.ndarray,
    batches: Iterable[Mapping[str, Any]],
    *,
    judge: Judge | Mapping[str, Judge] = next_token_loss,
) -> Recovered | dict[str, Recovered]:
    """Run the model with one site as it is, reconstructed, zero and at its mean, and measure each.

    Replaced at counted tokens only (special tokens and padding keep their value). The layers below the site run once,
    the site's layer and those above four times, in one compiled program.

    Args:
      apply: a model's pure function (weights, tokens, mask, *, stop_at, start_at, resid).
      site: one site of one layer, "blocks.3.resid_post".
      dictionary: an autoencoder of that site.
      mean: [d], or of heads [n_heads, d_head], the baseline of mean ablation (`Reconstruction.mean`).
      batches: dicts of `tokens`, `mask`, `counted` [B, T].
      judge: what is measured, the default needs logits; {name: judge} for several in one pass.
    Returns:
      Recovered, or {name: Recovered}.
    Raises:
      UserError: a site of no single layer, no batches, a measure that is not finite.
    Source: cross-entropy score as in SAELens and dictionary_learning, zero ablation; mean ablation beside it, because
      zero is far from anything the model has seen and flatters.
    """
    layers = parse(site).layers
    if layers is None or len(layers) != 1:
        raise UserError(f"recovered: {site!r} is not a site of one layer. Name one, such as 'blocks.3.resid_post'.")
    judges = dict(judge) if isinstance(judge, Mapping) else {"": judge}
    total, weight = {name: np.zeros(4) for name in judges}, dict.fromkeys(judges, 0)
    measure = partial(_damage, apply=apply, site=site, judges=tuple(judges.values()))
    baseline = jnp.asarray(mean, jnp.float32).reshape(-1)  # of heads: joined
    for batch in batches:
        rows = {k: batch[k] for k in ("tokens", "mask", "counted")}
        for name, (sums, n) in zip(judges, measure(weights, dictionary, baseline, rows), strict=True):
            total[name], weight[name] = total[name] + np.asarray(sums, np.float64), weight[name] + int(n)
    kept = {name: _recovered(site, total[name], weight[name]) for name in judges}
    return kept if isinstance(judge, Mapping) else kept[""]


def _recovered(site: str, total: np.ndarray, weight: int) -> Recovered:
    if not weight:
        raise UserError("recovered: no batch with anything to measure.")
    if not np.isfinite(total).all():
        raise UserError(
            f"recovered: the measure at {site!r} is not finite. Check the weights and the dictionary (or bfloat16)."
        )
    original, reconstructed, zero, mean = (total / weight).tolist()
    return Recovered(original=original, reconstructed=reconstructed, zero=zero, mean=mean, weight=weight)
