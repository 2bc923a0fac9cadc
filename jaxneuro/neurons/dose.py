# SPDX-License-Identifier: Apache-2.0
"""Clamp a neuron to a value, see what the model says: dose-response curves."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..axes import aligned, unit_axes
from ..errors import UserError
from ..taps import apply_fn, intervene
from ..taps.ranges import traced, within
from .measures import Measure, check_output, measure_named, per_group


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoseResponse:
    """Curves of n neurons, J doses each, K groups of text."""

    values: np.ndarray
    """float32 [n, J]: what the activation was clamped to."""
    measured: np.ndarray
    """float64 [n, J, K]: the measure (loss: nats per token) under the clamp."""
    measured_base: np.ndarray
    """float64 [K]: without one."""
    probability: np.ndarray | None
    """float64 [n, J, K]: mean over counted positions of the summed probability of the neuron's own promoted tokens."""
    probability_base: np.ndarray | None
    """float64 [n, K]: without the clamp."""
    measure: str
    unit: str


def write_neuron(x: Array, neuron: Array, value: Array, on: Array, *, site: str = "") -> Array:
    """x [batch, pos, ...] with one neuron (counted through trailing axes) set to `value` where `on` [batch, pos].
    A traced neuron that x does not have makes it NaN."""
    n = x.size // on.size
    neuron, outside = within(neuron, site, "neuron", n)
    x = jnp.where(outside, jnp.full_like(x, jnp.nan), x)
    here = (jnp.arange(n, dtype=jnp.int32) == neuron).reshape(unit_axes(x.shape, n))
    on = on.reshape(*x.shape[: x.ndim - here.ndim], *([1] * here.ndim))
    return jnp.where(on & aligned(here, on), value.astype(x.dtype), x)


def token_mass(logits: Array, tokens: Array, on: Array) -> Float[Array, " batch"]:
    """Sum over the positions that are on of the summed softmax probability of the given token ids."""
    logits = logits.astype(jnp.float32)
    tokens, _ = within(tokens, "logits", "d_vocab", logits.shape[-1])
    norm = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    mass = jnp.sum(jnp.exp(logits[..., tokens] - norm), -1)
    return jnp.sum(jnp.where(on, mass, 0), 1)


@partial(jax.jit, static_argnames=("apply", "site", "measure", "positions", "n_groups", "chunk"))
def _sums(
    weights: Any, job: Any, promoted: Array | None, batch: Any, *, apply: Callable, site: str, measure: Measure,
    positions: str, n_groups: int, chunk: int,
) -> Any:  # fmt: skip
    args = (weights, batch["tokens"], batch["mask"])
    counted = batch["counted"] & batch["mask"]
    on = jnp.ones_like(counted) if positions == "all" else counted
    reference = apply(*args)

    def sums(output: Array, tokens: Array | None) -> Any:
        value, weight = measure.fn(output, reference, batch)
        mass = None if tokens is None else per_group(token_mass(output, tokens, counted), batch["group"], n_groups)
        return per_group(value, batch["group"], n_groups), per_group(weight, batch["group"], n_groups), mass

    def one(j: Any) -> Any:
        edit = apply_fn(site, partial(write_neuron, site=site), j["neuron"], j["value"], on, layer=j["layer"])
        tokens = None if promoted is None else promoted[j["which"]]
        return sums(intervene(apply, [edit])(*args), tokens)

    base = None if promoted is None else jax.vmap(lambda t: token_mass(reference, t, counted))(promoted)
    if base is not None:
        base = jax.vmap(lambda m: per_group(m, batch["group"], n_groups))(base)
    n_counted = per_group(jnp.sum(counted, 1, dtype=jnp.int32), batch["group"], n_groups)
    return jax.lax.map(one, job, batch_size=chunk), sums(reference, None)[:2], base, n_counted


def dose_response(
    apply: Callable,
    weights: Any,
    site: str,
    layers: np.ndarray,
    neurons: np.ndarray,
    values: np.ndarray,
    batches: Iterable[Mapping[str, Any]],
    n_groups: int,
    *,
    promoted: np.ndarray | None = None,
    positions: Literal["all", "counted"] = "all",
    measure: str | Measure = "loss",
    chunk: int = 4,
    progress: Callable[[int, int, str], None] | None = None,
) -> DoseResponse:
    """Clamp single neurons to single values and measure every group.

    Layer, neuron and value are arguments of one compiled program, mapped in chunks over all (neuron, dose) pairs.

    Args:
      apply, weights: pure function (weights, tokens, mask) and its weights.
      site: with all layers. In a gated MLP clamp "blocks.mlp.post": a clamp before the gate's product does nothing
        where the other factor is near 0.
      layers, neurons: int [n].
      values: float [J], the same for all, or [n, J] (`observed_doses`).
      batches: as in `silence`.
      n_groups: K.
      promoted: int [n, k], token ids per neuron (`Decoded.promoted`) whose probability is followed; None for encoders.
      positions: clamp everywhere, or only at counted positions (special tokens keep their activation).
      measure, chunk, progress: as in `silence`.
    Returns:
      DoseResponse.
    Raises:
      UserError: shapes that do not fit; a layer, neuron or token that is not there; no batches; a group without text;
        logits asked of a model without a head.
    Source: arXiv 2501.02688 (clamping a neuron, probability of its concept token).
    """
    layers, neurons = np.asarray(layers, np.int32), np.asarray(neurons, np.int32)
    values = np.broadcast_to(np.asarray(values, np.float32), (len(layers), np.shape(values)[-1]))
    if neurons.shape != layers.shape or layers.ndim != 1 or (promoted is not None and len(promoted) != len(layers)):
        raise UserError(
            f"dose_response: {layers.shape} layers, {neurons.shape} neurons"
            + ("" if promoted is None else f", {np.shape(promoted)} promoted tokens")
            + "; one layer, one neuron and one row of tokens are needed per curve."
        )
    measure, n, n_doses = measure_named(measure), *values.shape
    job = _jobs(layers, neurons, values, chunk)
    tokens = None if promoted is None else jnp.asarray(promoted, jnp.int32)
    known = len(batches) if hasattr(batches, "__len__") else 0  # type: ignore[arg-type]
    static: dict[str, Any] = {"apply": apply, "site": site, "measure": measure, "positions": positions}
    static |= {"n_groups": n_groups, "chunk": chunk}
    total = None
    for done, batch in enumerate(batches, 1):
        batch = {k: batch[k] for k in ("tokens", "mask", "counted", "group")}
        if done == 1:
            followed = measure._replace(needs_logits=measure.needs_logits or promoted is not None)
            check_output(apply, weights, batch, followed)
            traced(_sums, weights, job, tokens, batch, **static)
        sums = _sums(weights, job, tokens, batch, **static)
        sums = jax.tree.map(lambda a: np.asarray(a, np.float64), sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        if progress is not None:
            progress(done, known, f"clamping {n} neurons to {n_doses} values")
    if total is None:
        raise UserError("dose_response: no batches to measure on.")
    (value, _, mass), (base, weight), mass_base, counted = total
    if (weight == 0).any():
        raise UserError(f"dose_response: nothing to measure in group number {np.flatnonzero(weight == 0).tolist()}.")
    pairs = n * n_doses
    return DoseResponse(
        values=np.array(values),
        measured=(value[:pairs] / weight).reshape(n, n_doses, n_groups),
        measured_base=base / weight,
        probability=None if mass is None else (mass[:pairs] / counted).reshape(n, n_doses, n_groups),
        probability_base=None if mass_base is None else mass_base / counted,
        measure=measure.name,
        unit=measure.unit,
    )


def _jobs(layers: np.ndarray, neurons: np.ndarray, values: np.ndarray, chunk: int) -> dict[str, np.ndarray]:
    n, n_doses = values.shape
    job = {"layer": np.repeat(layers, n_doses), "neuron": np.repeat(neurons, n_doses)}
    job |= {"value": values.ravel(), "which": np.repeat(np.arange(n, dtype=np.int32), n_doses)}
    # a whole number of chunks: lax.map would compile the body once more for the rest
    return {k: np.pad(v, (0, -v.size % chunk), mode="edge") for k, v in job.items()}


def observed_doses(high: np.ndarray, low: np.ndarray, multiples: tuple[float, ...]) -> np.ndarray:
    """Doses in multiples of each neuron's largest observed absolute value.

    Args:
      high, low: [n, K], the neurons' rows of `GroupStatistics.high` and `.low`.
      multiples: for example (-4, -2, 0, 2, 4, 8).
    Returns:
      float32 [n, len(multiples)]
    """
    largest = np.maximum(np.abs(high), np.abs(low)).max(-1)
    return (largest[:, None] * np.asarray(multiples)).astype(np.float32)
