# SPDX-License-Identifier: Apache-2.0
"""The recipe that methods share whose latents come from all pre-activations: they differ in gate and penalty."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from ...protocols import Method
from ..dictionary import SparseCoder
from .inputs import Inputs
from .learner import Now, Outcome, Parameters, Recipe, Scales, centred, learner
from .selected import begin, raw, skipped
from .start import split_sites
from .training import Training


class Latents(NamedTuple):
    """What a method makes of pre-activations, on this device."""

    z: Float[Array, "n n_latents"]
    penalty: Array
    """Its part of a sum over valid tokens, in units of squared scaled input."""
    also: Float[Array, "n n_latents"] | None = None
    """Latents of a second reconstruction, whose decoder is a constant (Gated)."""
    info: dict[str, Array] = {}  # noqa: RUF012 - never written to


SIZES: Final = {"sqrt_d": lambda d: float(d) ** 0.5, "unit": lambda d: 1.0}
"""Norm of scaled inputs, by `Training.normalise`."""


def against(published: str, training: Training, d: int) -> float:
    """How much longer scaled inputs are than those a published coefficient is for; "none": it is taken as given.

    Example:
      >>> against("sqrt_d", Training(normalise="unit"), 16)
      0.25
    """
    return 1.0 if training.normalise == "none" else SIZES[training.normalise](d) / SIZES[published](d)


def dense(
    n_latents: int,
    latents: Callable[[Parameters, Array, Inputs, Now], Latents],
    activation: Callable[[Parameters, Array], Any],
    *,
    training: Training,
    start: Callable[[Key[Array, ""], Inputs, bool], Parameters] | None = None,
    through_centre: Callable[[Parameters, Parameters], Array] = lambda grads, p: grads["b_enc"],
    unit_decoder: bool = True,
) -> Method:
    """A method whose loss is mean_n |y_n - y_hat_n|^2 / V and a penalty of its latents.

    Args:
      latents: (parameters, pre [n, n_latents], inputs, now) -> `Latents`; pre = (x - b_dec) W_enc + b_enc, float32
        (b_enc: 0 where there is none).
      activation: (parameters in scaled units, unit) -> `Activation` in raw units: divide what adds to pre by unit.
      start: replaces `selected.begin`; adds further parameters.
      through_centre: see `Recipe`.
      unit_decoder: rows of W_dec are kept at norm 1; otherwise the norm is moved into the latents at the end.
    """
    axes, cast = training.axes, jnp.dtype(training.dtype)

    def product(a: Array, b: Array) -> Array:
        return jnp.dot(a.astype(cast), b.astype(cast), preferred_element_type=jnp.float32)

    def loss(p: Parameters, inputs: Inputs, now: Now) -> tuple[Array, Outcome]:
        on = inputs.valid[:, None]
        pre = product(centred(inputs, p["b_dec"], now.tied), p["w_enc"].T)
        pre = pre + p["b_enc"][None] if "b_enc" in p else pre
        out = latents(p, pre, inputs, now)
        z = jnp.where(on, out.z, jnp.float32(0))

        def error(z: Array, w: Array, b: Array) -> Array:
            y_hat = axes.over_latents(product(z, w)) + b[None] + skipped(p, inputs.x)
            return jnp.where(on, inputs.y - y_hat, jnp.float32(0))

        e = error(z, p["w_dec"], p["b_dec"])
        value = jnp.sum(jnp.square(e)) + axes.over_latents(out.penalty)
        if out.also is not None:
            frozen = (lax.stop_gradient(p[name]) for name in ("w_dec", "b_dec"))
            value += jnp.sum(jnp.square(error(jnp.where(on, out.also, jnp.float32(0)), *frozen)))
        return value / (now.divisor * now.variance), Outcome(
            error=e,
            fired=jnp.any(z > 0, axis=0),
            active=axes.over_latents(jnp.sum(z > 0, dtype=jnp.int32)),
            memory=now.memory,
            info=out.info,
        )

    def finish(p: Parameters, memory: dict[str, Array], scales: Scales) -> SparseCoder:
        if not unit_decoder:
            p = folded(p)
        return SparseCoder(**raw(p, scales), activation=activation(p, scales.unit))

    recipe = Recipe(
        begin=start or begin(n_latents, training),
        loss=loss,
        finish=finish,
        through_centre=through_centre,
        on_sphere=("w_dec",) if unit_decoder else (),
    )
    return learner(recipe, n_latents, training)


def site_norms(w_dec: Array, widths: tuple[int, ...]) -> Float[Array, "n_latents"]:
    """Norm of each decoder row; of a crosscoder's, the sum of its norms at every site."""
    return sum((jnp.sqrt(jnp.sum(jnp.square(a), axis=-1)) for a in split_sites(w_dec, widths)), jnp.float32(0))


def folded(p: Parameters) -> Parameters:
    """Decoder rows at norm 1, their norm in the encoder: the same reconstruction; a row of zeros stays."""
    norm = jnp.sqrt(jnp.sum(jnp.square(p["w_dec"]), axis=-1))
    norm = jnp.where(norm > 0, norm, jnp.float32(1))
    return p | {"w_enc": p["w_enc"] * norm[:, None], "b_enc": p["b_enc"] * norm, "w_dec": p["w_dec"] / norm[:, None]}
