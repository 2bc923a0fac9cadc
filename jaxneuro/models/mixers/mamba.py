# SPDX-License-Identifier: Apache-2.0
"""Mamba: a selective state space, one decaying state of `d_state` numbers per channel."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...axes import aligned
from ...taps import wants
from ..ranges import check_fields
from .parts import (
    CHANNEL,
    At,
    Axes,
    Start,
    check_counts,
    conv,
    every_state,
    in_chunks,
    linear,
    log_of_counts,
    ones,
    time_steps,
    uniform_by,
)

CHUNK: Final = 64
"""Tokens whose states [batch, chunk, d_inner, d_state] exist at a time."""

_STATE: Final = ("batch", "pos", "channel", "d_state")
_SHARED: Final = ("batch", "pos", "d_state")


class MambaState(NamedTuple):
    """What a layer keeps between tokens."""

    conv: Float[Array, "batch past channel"]
    ssm: Float[Array, "batch channel d_state"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba:
    """Sizes and switches of a Mamba layer.

        x, z = split(u W_in);   x = act(conv(x))
        dt = softplus(x W_down W_up + b);   B, C = x W_B, x W_C;   A = -exp(A_log)
        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t;   y_t = h_t C_t + D x_t
        out = (y silu(z)) W_out

    Padding is 0 before the projection, before and after the convolution, and no time passes at it: a row gets what it
    would get alone.

    Source: arXiv 2312.00752.
    Example:
      >>> Mamba(d_inner=16, d_state=4, dt_rank=1).leaves()["A_log"]
      ('inner', 'state')
    """

    d_inner: int
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int
    bias: bool = False
    """Of the projections in and out."""
    conv_bias: bool = True
    residual_in_float32: bool = True
    """The residual stream is float32 whatever the dtype of the weights."""

    shared: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, str]] = {"norm_placement": "pre"}
    starts: ClassVar[Mapping[str, Start]] = {
        "A_log": log_of_counts,
        "D": ones,
        "dt_bias": time_steps,
        "dt_up": uniform_by(-2),
        "conv": uniform_by(-1),
        "wo": uniform_by(-2),
    }

    def __post_init__(self):
        check_counts(self, "d_inner", "d_state", "d_conv", "dt_rank")
        check_fields(self, "Mamba: ")

    def leaves(self) -> dict[str, Axes]:
        """{leaf: names of its axes}."""
        biases: dict[str, Axes] = {"bx": ("inner",), "bz": ("inner",), "bo": ("embed",)}
        return {
            "wx": ("embed", "inner"),
            "wz": ("embed", "inner"),
            "conv": ("inner", "kernel"),
            **({"conv_bias": ("inner",)} if self.conv_bias else {}),
            "dt_down": ("inner", "dt_rank"),
            "wB": ("inner", "state"),
            "wC": ("inner", "state"),
            "dt_up": ("dt_rank", "inner"),
            "dt_bias": ("inner",),
            "A_log": ("inner", "state"),
            "D": ("inner",),
            "wo": ("inner", "embed"),
            **(biases if self.bias else {}),
        }

    def sizes(self) -> dict[str, int]:
        """Length of every axis that `leaves` names."""
        return {"inner": self.d_inner, "state": self.d_state, "kernel": self.d_conv, "dt_rank": self.dt_rank}

    def empty(self, batch: int, d_model: int, dtype: jnp.dtype) -> MambaState:
        """The state before the first token."""
        past = jnp.zeros((batch, self.d_conv - 1, self.d_inner), dtype)
        return MambaState(past, jnp.zeros((batch, self.d_inner, self.d_state), jnp.float32))

    def mix(self, w: dict, u: Array, at: At, state: MambaState | None = None) -> tuple[Array, MambaState]:
        """[batch, pos, d_model] to the same, and the state after the last token."""
        before = self.empty(u.shape[0], u.shape[2], u.dtype) if state is None else state
        u = at.real(u)
        x = at.real(at.site(linear(u, w["wx"], w.get("bx")), "x", CHANNEL))
        x, past = conv(x, w["conv"], w.get("conv_bias"), before.conv, at.taken)
        x = at.real(at.site(at.act(x), "conv", CHANNEL))
        rate = linear(linear(x, w["dt_down"]), w["dt_up"]).astype(jnp.float32)
        rate = rate + aligned(w["dt_bias"].astype(jnp.float32), rate)
        dt = at.lasting(at.site(jax.nn.softplus(rate), "dt", CHANNEL))
        b, c = (at.real(at.site(linear(x, w[f"w{name}"]), name, _SHARED)) for name in "BC")
        x32, b, c = (a.astype(jnp.float32) for a in (x, b, c))
        last, y = _scan(dt, x32, b, c, -jnp.exp(w["A_log"].astype(jnp.float32)), before.ssm, at)
        y = at.site(y + aligned(w["D"].astype(jnp.float32), x32) * x32, "y", CHANNEL)
        z = linear(u, w["wz"], w.get("bz"))
        gate = at.site(jax.nn.silu(z.astype(jnp.float32)), "gate", CHANNEL)
        return linear((y * gate).astype(u.dtype), w["wo"], w.get("bo")), MambaState(past, last)


def _scan(dt: Array, x: Array, b: Array, c: Array, a: Array, before: Array, at: At) -> tuple[Array, Array]:
    """The last state and h_t C_t; the only place where a form is chosen.

    On two CPU cores a token after the other takes 100 ms where the parallel form takes 292 (forward) and 858 where it
    takes 2326 (gradient), at batch 2, 512 positions, 768 channels of 16; elsewhere 64 small steps would wait for each
    other.
    """
    if not wants("blocks.mixer.state"):
        chunk = _in_turn if jax.default_backend() == "cpu" else _in_parallel
        return in_chunks(functools.partial(chunk, a), before, (dt, x, b, c), CHUNK)
    states = every_state(*_terms(dt, x, b, a), before)
    last, states = states[:, -1], at.site(states, "state", _STATE)
    return last, jnp.einsum("btes,bts->bte", states, c)


def _terms(dt: Array, x: Array, b: Array, a: Array) -> tuple[Array, Array]:
    """Decay and write of each token, [batch, pos, channel, d_state]."""
    return jnp.exp(dt[..., None] * aligned(a, dt[..., None])), (dt * x)[..., None] * b[:, :, None, :]


def _in_turn(a: Array, before: Array, part: tuple[Array, ...]) -> tuple[Array, Array]:
    def one(h: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
        dt, x, b, c = (v[:, None] for v in at)
        decay, write = _terms(dt, x, b, a)
        h = decay[:, 0] * h + write[:, 0]
        return h, jnp.einsum("bes,bs->be", h, c[:, 0])

    last, y = jax.lax.scan(one, before, tuple(jnp.moveaxis(v, 1, 0) for v in part))
    return last, jnp.moveaxis(y, 0, 1)


def _in_parallel(a: Array, before: Array, part: tuple[Array, ...]) -> tuple[Array, Array]:
    dt, x, b, c = part

    def then(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    decay, own = jax.lax.associative_scan(then, _terms(dt, x, b, a), axis=1)
    states = decay * before[:, None] + own
    return states[:, -1], jnp.einsum("btes,bts->bte", states, c)
