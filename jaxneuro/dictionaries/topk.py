# SPDX-License-Identifier: Apache-2.0
"""TopK sparse autoencoders and transcoders (Gao et al., arXiv:2406.04093), as a Method."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxneuro_kernels import Rows, add_auxk
from jaxneuro_kernels.dispatch import Implementation
from jaxtyping import Array, Bool, Float, Int, Key

from ..errors import UserError, unknown
from ..protocols import Method
from .activations import TopK
from .dictionary import SparseCoder
from .parts import start
from .parts.autoencode import Code, Kernel, autoencode
from .parts.decoder import along_the_sphere, unit_rows
from .parts.inputs import read
from .parts.optimise import Optimiser, Schedule, adam, scaled_rate, settled, warm_then_decay
from .parts.silence import fired, silent_tokens

CENTRES = {"median": start.geometric_median, "mean": start.masked_mean, "zeros": start.origin}
"""Where b_dec starts, from the first batch."""


class Parameters(NamedTuple):
    """Trained arrays, float32, one latent per row, in units of the scaled input."""

    w_enc: Float[Array, "n_latents d_in"]
    b_enc: Float[Array, "n_latents"]
    w_dec: Float[Array, "n_latents d_out"]
    b_dec: Float[Array, "d_out"]


class TopKState(NamedTuple):
    """What the next step needs."""

    parameters: Parameters
    optimiser: Any
    silent: Int[Array, "n_latents"]
    """Tokens since each latent fired."""
    step: Int[Array, ""]
    """Updates made; schedules read it."""
    skipped: Int[Array, ""]
    """Batches without an update: no valid token, or a loss or gradient that is not finite."""
    scale_x: Float[Array, ""]
    scale_y: Float[Array, ""]
    variance: Float[Array, ""]
    """Mean squared deviation of the first batch's scaled targets: the unit of the loss."""
    tied: Bool[Array, ""]
    """An autoencoder: b_dec is subtracted from the input."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TopK:
    """The resolved choices, and the three functions that read them."""

    k: int
    k_steps: int
    kernel: Kernel
    n_latents: int
    rate: Schedule
    optimiser: Optimiser
    aux_weight: float
    aux_k: int | None
    aux_cap: int
    dead_after_tokens: int
    normalise: bool
    centre: str

    def init(self, key: Key[Array, ""], batch: Any) -> TopKState:
        raw = read(batch, jnp.float32(1), jnp.float32(1), first=True)
        scale_x, scale_y = (start.norm_scale(a, raw.valid) if self.normalise else jnp.float32(1) for a in raw[:2])
        y, tied = raw.y * scale_y, "y" not in batch
        dec_key, enc_key = jax.random.split(key)
        w_dec = start.random_rows(dec_key, self.n_latents, y.shape[1])
        w_enc = jnp.array(w_dec) if tied else start.random_rows(enc_key, self.n_latents, raw.x.shape[1])
        b_dec = CENTRES[self.centre](y, raw.valid)
        parameters = Parameters(w_enc, jnp.zeros(self.n_latents, jnp.float32), w_dec, b_dec)
        return TopKState(
            parameters=parameters,
            optimiser=self.optimiser(self.rate).init(parameters),
            silent=jnp.zeros(self.n_latents, jnp.int32),
            step=jnp.int32(0),
            skipped=jnp.int32(0),
            scale_x=scale_x,
            scale_y=scale_y,
            variance=start.deviation(y, raw.valid),
            tied=jnp.array(tied),
        )

    def step(self, state: TopKState, batch: Any) -> tuple[TopKState, dict[str, Array]]:
        inputs = read(batch, state.scale_x, state.scale_y)
        tied, p = "y" not in batch, state.parameters
        centred = jnp.where(inputs.valid[:, None], inputs.x - p.b_dec, jnp.float32(0)) if tied else inputs.x
        on = inputs.valid[:, None] & (jnp.arange(self.kernel.k, dtype=jnp.int32) < self._k_now(state.step))

        def loss_of(p: Parameters) -> tuple[Array, tuple[Code, Array]]:
            code = autoencode(centred, p.w_enc, p.b_enc, p.w_dec, on, self.kernel)
            error = jnp.where(inputs.valid[:, None], inputs.y - (code.x_hat + p.b_dec), jnp.float32(0))
            return jnp.sum(jnp.square(error)) / (inputs.divisor * state.variance), (code, error)

        (loss, (code, error)), grad = jax.value_and_grad(loss_of, has_aux=True)(p)
        if tied:  # the gradient through the subtraction: one product with per-latent sums, no pass over the tokens
            grad = grad._replace(b_dec=grad.b_dec - grad.b_enc @ p.w_enc)
        dead = state.silent >= self.dead_after_tokens
        grad, auxk = self._with_auxk(grad, state, dead, centred, error, inputs.valid)
        total = loss + jnp.float32(self.aux_weight) * auxk
        new = self._updated(state, grad, jnp.isfinite(total) & jnp.any(inputs.valid))
        now = fired(code.vals, code.idx, self.n_latents)
        new = new._replace(silent=silent_tokens(state.silent, now, inputs.tokens))
        info = {
            "loss": total,
            "fvu": jnp.sum(jnp.square(error)) / (inputs.divisor * start.deviation(inputs.y, inputs.valid)),
            "l0": jnp.sum(code.vals > 0, dtype=jnp.int32).astype(jnp.float32) / inputs.divisor,
            "dead_fraction": jnp.mean(dead.astype(jnp.float32)),
            "auxk": auxk,
            "learning_rate": jnp.asarray(self.rate(state.step), jnp.float32),
            "tokens": inputs.tokens,
            "nonfinite_tokens": inputs.broken,
            "skipped_batches": new.skipped,
        }
        return new, info

    def finish(self, state: TopKState) -> SparseCoder:
        p, sx, sy = state.parameters, state.scale_x, state.scale_y
        return SparseCoder(
            W_enc=p.w_enc.T,
            W_dec=p.w_dec * (sx / sy),
            b_enc=p.b_enc / sx,
            b_dec=p.b_dec / sy,
            activation=TopK(self.k),
            apply_b_dec_to_input=bool(state.tied),
        )

    def _k_now(self, step: Array) -> Array:
        """k of this step: linear from the starting k to k."""
        if self.kernel.k == self.k:
            return jnp.int32(self.k)
        left = jnp.clip(1 - step.astype(jnp.float32) / self.k_steps, 0, 1)
        return jnp.int32(self.k) + jnp.round(left * (self.kernel.k - self.k)).astype(jnp.int32)

    def _with_auxk(
        self, grad: Parameters, state: TopKState, dead: Array, x: Array, error: Array, valid: Array
    ) -> tuple[Parameters, Array]:
        if not self.aux_weight:
            return grad, jnp.float32(0)
        rows, auxk = add_auxk(
            Rows(*grad[:3]),
            Rows(*state.parameters[:3]),
            *(dead, x, error, valid),
            k_aux=self.aux_k or max(1, error.shape[1] // 2),
            cap=self.aux_cap,
            weight=self.aux_weight,
            turn=state.step,
        )
        return Parameters(*rows, grad.b_dec), auxk

    def _updated(self, state: TopKState, grad: Parameters, ok: Array) -> TopKState:
        """One optimiser step with unit decoder rows; all as it was where not `ok`."""

        def move(old: tuple[Parameters, Any]) -> tuple[Parameters, Any]:
            p, optimiser = old
            ready = grad._replace(w_dec=along_the_sphere(grad.w_dec, p.w_dec))
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
                updates, optimiser = self.optimiser(self.rate).update(settled(ready), optimiser, p)
            moved: Any = settled(optax.apply_updates(p, updates))
            return moved._replace(w_dec=unit_rows(moved.w_dec)), optimiser

        parameters, optimiser = lax.cond(ok, move, lambda old: old, (state.parameters, state.optimiser))
        return state._replace(
            parameters=parameters,
            optimiser=optimiser,
            step=state.step + ok.astype(jnp.int32),
            skipped=state.skipped + (~ok).astype(jnp.int32),
        )


def topk(
    n_latents: int,
    k: int,
    *,
    learning_rate: float | Schedule | None = None,
    steps: int | None = None,
    warmup_steps: int | None = None,
    optimiser: Optimiser = adam,
    aux_weight: float = 1 / 32,
    aux_k: int | None = None,
    aux_cap: int | None = None,
    dead_after_tokens: int = 10_000_000,
    normalise: bool = True,
    b_dec_start: Literal["median", "mean", "zeros"] = "median",
    k_start: int | None = None,
    k_steps: int = 0,
    dtype: str = "float32",
    implementation: Implementation = None,
) -> Method:
    """A TopK dictionary: an autoencoder of batches {"x": [n, d_in]}, a transcoder of {"x": ..., "y": [n, d_out]}.

        z = relu(topk((x - b_dec) W_enc + b_enc, k)),  x_hat = z W_dec + b_dec,  e = y - x_hat       (y = x if absent)
        loss = mean_n |e_n|^2 / V + aux_weight * AuxK

    V is the mean squared deviation of the *first batch*, fixed: the loss is then a mean over tokens (batches can be
    split, sharded or accumulated), and near FVU. `info["fvu"]` uses the batch's own variance. AuxK:
    `jaxneuro_kernels.add_auxk`. A transcoder does not subtract b_dec. "mask" (bool [n]) in the batch says which tokens
    count; tokens with NaN or infinity are left out and counted in `info["nonfinite_tokens"]`; a batch with nothing
    left, or with a loss that is not finite, changes nothing but `info["skipped_batches"]`.

    Decoder rows stay at norm 1 (projected gradient, then normalised). Start: random directions, W_enc = W_dec^T, b_dec
    the geometric median of the first batch. A latent is dead when it has not fired (value > 0) for `dead_after_tokens`
    tokens. Inputs are scaled to mean norm sqrt(d), measured on the first batch; the scale is folded into what `finish`
    returns, so that dictionaries take raw activations, latents are in raw units and decoder rows of an autoencoder
    keep norm 1.

    Args:
      n_latents: latents.
      k: active latents per token.
      learning_rate: peak, or a whole schedule of the step. None: 2e-4 / sqrt(n_latents / 2^14).
      steps: length of the run, for the decay to 0 over its last fifth. None: no decay.
      warmup_steps: linear warm-up. None: 1,000, or a twentieth of `steps` if that is less.
      optimiser: from a schedule to an optax transformation, e.g. `optax.adamw`.
      aux_weight: of AuxK; 0 leaves it out of the program.
      aux_k: dead latents per token in AuxK. None: d_out / 2.
      aux_cap: most dead latents treated in a step. None: n_latents / 2.
      dead_after_tokens: see above.
      normalise: scale the inputs.
      b_dec_start: where b_dec starts.
      k_start, k_steps: begin with k_start >= k active latents and come down to k linearly over k_steps.
      dtype: of the matmul's inputs ("bfloat16" on accelerators); parameters and sums are float32.
      implementation: of the sparse products; see `jaxneuro_kernels`.
    Returns:
      A Method; info: loss, fvu, l0, dead_fraction, auxk, learning_rate, tokens, nonfinite_tokens, skipped_batches.
      `finish` gives a `SparseCoder`.
    Raises:
      UserError: k above n_latents and the like, at once; a first batch that is not finite, constant, or of wrong type,
        from `init`.
    Source: arXiv:2406.04093 (loss, AuxK, starts, rate); normalisation as in SAELens' expected_average_only_in.
    Example:
      >>> method = topk(n_latents=16, k=2)
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> state = method.init(jax.random.key(1), {"x": x})
      >>> state, info = jax.jit(method.step)(state, {"x": x})
      >>> method.finish(state).encode(x).shape, float(info["l0"]) <= 2
      ((64, 16), True)
    """
    k_first = k if k_start is None else k_start
    if not 1 <= k <= k_first <= n_latents:
        raise UserError(f"topk: k = {k}, k_start = {k_first}, n_latents = {n_latents}: 1 <= k <= k_start <= n_latents.")
    for name, value, least in (
        *(("steps", steps, 1), ("warmup_steps", warmup_steps, 0), ("aux_k", aux_k, 1), ("aux_cap", aux_cap, 1)),
        *(("dead_after_tokens", dead_after_tokens, 1), ("k_steps", k_steps, 1 if k_first > k else 0)),
        ("aux_weight", aux_weight, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"topk: {name} = {value} is below {least}.")
    if b_dec_start not in CENTRES:
        raise unknown("b_dec_start", b_dec_start, CENTRES, where="topk")
    if warmup_steps is None:
        warmup_steps = 1000 if steps is None else min(1000, steps // 20)
    peak = scaled_rate(n_latents) if learning_rate is None else learning_rate
    names = implementation if implementation is None or isinstance(implementation, str) else tuple(implementation)
    method = _TopK(
        k=k,
        k_steps=k_steps,
        kernel=Kernel(k_first, str(jnp.dtype(dtype)), names),
        n_latents=n_latents,
        rate=peak if callable(peak) else warm_then_decay(peak, warmup=warmup_steps, steps=steps),
        optimiser=optimiser,
        aux_weight=aux_weight,
        aux_k=aux_k,
        aux_cap=min(n_latents, aux_cap or max(1, n_latents // 2)),
        dead_after_tokens=dead_after_tokens,
        normalise=normalise,
        centre=b_dec_start,
    )
    return Method(init=method.init, step=method.step, finish=method.finish)
