# SPDX-License-Identifier: Apache-2.0
"""The recipe that all methods share which select k latents: they differ in how, and in what is reconstructed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxneuro_kernels import Rows, add_auxk
from jaxtyping import Array, Key

from ...axes import aligned
from ...errors import UserError
from ...protocols import Method
from ..activations import JumpReLU
from ..dictionary import SparseCoder
from . import start
from .autoencode import Parts, Select, autoencode
from .inputs import Inputs
from .learner import Now, Outcome, Parameters, Recipe, Scales, centred, learner
from .numbers import check_fields
from .optimise import ramp
from .silence import fired
from .training import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxK:
    """Dead latents learn to explain what the living leave over: weight * AuxK (arXiv:2406.04093, appendix A.2)."""

    weight: float = 1 / 32
    k: int | None = None
    """Dead latents per token. None: d_out / 2."""
    cap: int | None = None
    """Most dead latents treated in a step. None: n_latents / 2."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in (("weight", self.weight), ("k", self.k), ("cap", self.cap)):
            if value is not None and not value > 0:
                raise UserError(f"AuxK: {name} = {value} is not above 0. Give auxk=None to go without.")


def begin(n_latents: int, training: Training, skip: bool = False, scale: float = 1.0) -> Any:
    """Where parameters start: random unit decoder rows, W_enc = scale * W_dec^T in an autoencoder, b_dec a centre."""

    def parameters(key: Key[Array, ""], inputs: Inputs, tied: bool) -> Parameters:
        dec_key, enc_key = jax.random.split(key)
        w_dec = start.random_rows(dec_key, n_latents, inputs.y.shape[1])
        w_enc = jnp.array(w_dec) if tied else start.random_rows(enc_key, n_latents, inputs.x.shape[1])
        b_dec = start.CENTRES[training.b_dec_start](inputs.y, inputs.valid)
        extra = {"w_skip": jnp.zeros((inputs.y.shape[1], inputs.x.shape[1]), jnp.float32)} if skip else {}
        scaled = jnp.float32(scale) * w_enc
        return {"w_enc": scaled, "b_enc": jnp.zeros(n_latents, jnp.float32), "w_dec": w_dec, "b_dec": b_dec} | extra

    return parameters


def raw(p: Parameters, scales: Scales) -> dict[str, Any]:
    """Arrays of a `SparseCoder` that takes raw activations.

    Latents come out in raw units where one number scales all of x; with a scale per site they stay in scaled units.
    """
    sx, sy, unit = scales.x, scales.y, scales.unit
    arrays = {
        "W_enc": p["w_enc"].T if sx.ndim == 0 else sx[:, None] * p["w_enc"].T,
        "W_dec": p["w_dec"] * aligned(unit / sy, p["w_dec"]),
        "b_enc": p["b_enc"] / unit if "b_enc" in p else jnp.zeros(len(p["w_enc"]), jnp.float32),
        "b_dec": p["b_dec"] / sy,
        "apply_b_dec_to_input": scales.tied,
    }
    if "w_skip" in p:
        arrays["W_skip"] = p["w_skip"] * aligned(sx, p["w_skip"]) / (sy if sy.ndim == 0 else sy[:, None])
    return arrays


def _remembered(memory: dict[str, Array], threshold: Array) -> dict[str, Array]:
    """A running mean of the smallest pre-activation kept, over some ten batches; below 0: none yet.

    Not over a hundred as in SAELens: pre-activations still change by then, and L0 at inference is not k.
    """
    old, new = memory["threshold"], jnp.maximum(threshold, jnp.float32(0))
    mean = jnp.where(old < 0, new, old + jnp.float32(0.1) * (new - old))
    return memory | {"threshold": jnp.where(jnp.isfinite(new), mean, old)}


def inference_threshold(memory: dict[str, Array], scales: Scales) -> JumpReLU:
    """What stands for a choice over the batch when there is none: its remembered threshold, in raw units."""
    return JumpReLU(jnp.maximum(memory["threshold"], 0) / scales.unit)


def skipped(p: Parameters, x: Array) -> Array | float:
    """What a skip transcoder adds."""
    return x @ p["w_skip"].T if "w_skip" in p else jnp.float32(0)


def selecting(
    name: str,
    n_latents: int,
    k: int,
    *,
    rule: str,
    activation: Any,
    training: Training,
    auxk: AuxK | None,
    k_start: int | None = None,
    k_steps: int = 0,
    parts: Parts | None = None,
    level_weights: tuple[float, ...] = (1.0,),
    shown: int = -1,
    k_most: int | None = None,
    needs_y: bool = False,
    skip: bool = False,
) -> Method:
    """A method that keeps k latents per token and learns by their reconstruction.

        loss = sum_i weight_i mean_n |y_n - y_hat_n^(i)|^2 / V + auxk.weight * AuxK

    where y_hat^(i) is made of the first i parts of the code, and y_hat^(shown) is the one that counts.

    Args:
      rule: how latents are selected: a key of `autoencode.RULES`.
      activation: (memory, scales) -> the `Activation` of what is learned.
      parts, level_weights, shown: see above; one weight per part.
      k_most: entries of the code where more than k are selected in training.
    """
    k_first = k if k_start is None else k_start
    if not 1 <= k <= k_first <= n_latents:
        raise UserError(
            f"{name}: k = {k}, k_start = {k_first}, n_latents = {n_latents}: 1 <= k <= k_start <= n_latents."
        )
    if k_first > k and k_steps < 1:
        raise UserError(f"{name}: k_steps = {k_steps} steps from k_start = {k_first} to k = {k}: at least 1.")
    select = Select(k=k_most or k_first, rule=rule, **training.kernel)
    axes, at_batch = training.axes, rule == "batch_topk"
    k_of = ramp(k_first, k, k_steps)

    def loss(p: Parameters, inputs: Inputs, now: Now) -> tuple[Array, Outcome]:
        x, on = centred(inputs, p["b_dec"], now.tied), inputs.valid[:, None]
        k_now = jnp.int32(select.k) if k_most else jnp.round(k_of(now.step)).astype(jnp.int32)
        code = autoencode(x, p["w_enc"], p["b_enc"], p["w_dec"], inputs.valid, k_now, select, parts)
        target = inputs.y - (p["b_dec"][None] + skipped(p, inputs.x))
        errors = [jnp.where(on, target - y, jnp.float32(0)) for y in jnp.cumsum(code.x_hat, axis=0)]
        value = sum(jnp.float32(w) * jnp.sum(jnp.square(e)) for w, e in zip(level_weights, errors, strict=True))
        counted = code.vals if not k_most else jnp.where(jnp.arange(k_most) < k, code.vals, jnp.float32(0))
        memory = _remembered(now.memory, code.threshold) if at_batch else now.memory
        local = code.idx - (jax.lax.axis_index(axes.latent) * p["b_enc"].shape[0] if axes.latent else 0)
        return value / (now.divisor * now.variance), Outcome(
            error=errors[shown],
            fired=fired(counted, jnp.where(local < 0, p["b_enc"].shape[0], local), p["b_enc"].shape[0]),
            active=jnp.sum(counted > 0, dtype=jnp.int32),
            memory=memory,
            info={},
            code=x,
        )

    def more(grads: Parameters, p: Parameters, inputs: Inputs, now: Now, out: Outcome) -> Any:
        assert auxk is not None
        names = ("w_enc", "b_enc", "w_dec")
        share = axes.over_tokens(inputs.tokens).astype(jnp.float32) / now.divisor  # of a part of the batch
        weight = jnp.float32(auxk.weight) * share
        rows, value = add_auxk(
            Rows(*(grads[n] for n in names)),
            Rows(*(p[n] for n in names)),
            *(now.dead, out.code, out.error, inputs.valid),
            k_aux=auxk.k or max(1, out.error.shape[1] // 2),
            cap=auxk.cap or max(1, n_latents // 2),
            weight=weight,
            turn=now.step,
            axis_name=axes.data,
            latent_axis=axes.latent,
        )
        return grads | dict(zip(names, rows, strict=True)), weight * value, {"auxk": share * value}

    def finish(p: Parameters, memory: dict[str, Array], scales: Scales) -> SparseCoder:
        return SparseCoder(**raw(p, scales), activation=activation(memory, scales))

    recipe = Recipe(
        begin=begin(n_latents, training, skip),
        loss=loss,
        finish=finish,
        memory=(lambda: {"threshold": jnp.float32(-1)}) if at_batch else dict,
        more=more if auxk is not None else None,
        through_centre=lambda grads, p: grads["b_enc"],
        needs_y=needs_y,
    )
    return learner(recipe, n_latents, training)
