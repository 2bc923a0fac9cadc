# SPDX-License-Identifier: Apache-2.0
"""Mamba-2: a matrix state per head with one decay for all of it, so that chunks are matrix products (SSD)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...axes import aligned
from ...errors import UserError
from ...taps import wants
from ..causal import from_there_on
from ..ranges import LONGEST_STEP, check_fields
from .parts import (
    CHANNEL,
    HEADS,
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
"""Tokens that see each other by a matrix product; what is older they see through the state."""

_GROUPS: Final = ("batch", "pos", "group", "d_state")
_STATE: Final = (*HEADS, "d_state")


class Mamba2State(NamedTuple):
    """What a layer keeps between tokens."""

    conv: dict[str, Float[Array, "batch past channel"]]
    """Inputs of the three convolutions: x, B, C."""
    ssm: Float[Array, "batch group member d_head d_state"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2:
    """Sizes and switches of a Mamba-2 layer; its heads have nothing to do with attention's.

        z, x, B, C, dt = split(u W_in);   x, B, C = act(conv(x, B, C));   dt = clip(softplus(dt + b), *dt_limits)
        h_t = exp(-exp(A_log) dt_t) h_{t-1} + dt_t x_t B_t;   y_t = h_t C_t + D x_t        per head, B and C per group
        out = RMSNorm_by_group(y silu(z)) W_out

    transformers forgets dt_limits when it generates token by token; here a step is the same as the whole sequence.

    Source: arXiv 2405.21060.
    Example:
      >>> Mamba2(n_heads=4, d_head=8, n_groups=2, d_state=16).d_inner
      32
    """

    n_heads: int
    d_head: int
    n_groups: int = 1
    """Heads of a group share B and C, and the norm's scale is taken over them."""
    d_state: int = 128
    d_conv: int = 4
    dt_limits: tuple[float, float] = (0.0, math.inf)
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
        **{f"conv_{name}": uniform_by(-1) for name in "xBC"},
        "wo": uniform_by(-2),
    }

    def __post_init__(self):
        check_counts(self, "n_heads", "d_head", "n_groups", "d_state", "d_conv")
        check_fields(self, "Mamba2: ")
        if self.n_heads % self.n_groups:
            raise UserError(f"Mamba2: n_heads={self.n_heads} is not a multiple of n_groups={self.n_groups}.")
        low, high = self.dt_limits
        if not 0 <= low < high or not (high <= LONGEST_STEP or (high == math.inf and low <= LONGEST_STEP)):
            raise UserError(
                f"Mamba2: dt_limits={self.dt_limits} is no interval of time steps, 0 to {LONGEST_STEP:g} or infinity."
            )

    @property
    def d_inner(self) -> int:
        """Channels of all heads."""
        return self.n_heads * self.d_head

    def leaves(self) -> dict[str, Axes]:
        """{leaf: names of its axes}."""
        out = {"z": "inner", "x": "inner", "B": "group_state", "C": "group_state", "dt": "heads"}
        through = {name: out[name] for name in "xBC"}
        return {
            **{f"w{name}": ("embed", axis) for name, axis in out.items()},
            **({f"b{name}": (axis,) for name, axis in out.items()} if self.bias else {}),
            **{f"conv_{name}": (axis, "kernel") for name, axis in through.items()},
            **({f"conv_{name}_bias": (axis,) for name, axis in through.items()} if self.conv_bias else {}),
            "dt_bias": ("heads",),
            "A_log": ("heads",),
            "D": ("heads",),
            "norm.scale": ("inner",),
            "wo": ("inner", "embed"),
            **({"bo": ("embed",)} if self.bias else {}),
        }

    def sizes(self) -> dict[str, int]:
        """Length of every axis that `leaves` names."""
        group_state = self.n_groups * self.d_state
        return {"inner": self.d_inner, "group_state": group_state, "heads": self.n_heads, "kernel": self.d_conv}

    def empty(self, batch: int, d_model: int, dtype: jnp.dtype) -> Mamba2State:
        """The state before the first token."""
        width = {"x": self.d_inner, "B": self.n_groups * self.d_state, "C": self.n_groups * self.d_state}
        past = {name: jnp.zeros((batch, self.d_conv - 1, n), dtype) for name, n in width.items()}
        return Mamba2State(past, jnp.zeros((batch, *self._grouped(self.d_head), self.d_state), jnp.float32))

    def mix(self, w: dict, u: Array, at: At, state: Mamba2State | None = None) -> tuple[Array, Mamba2State]:
        """[batch, pos, d_model] to the same, and the state after the last token."""
        before = self.empty(u.shape[0], u.shape[2], u.dtype) if state is None else state
        u, (rows, length) = at.real(u), u.shape[:2]
        raw = {name: linear(u, w[f"w{name}"], w.get(f"b{name}")) for name in "zxBC"}
        raw["x"] = at.site(raw["x"], "x", CHANNEL)
        filtered, past = {}, {}
        for name in "xBC":
            kernel, bias = w[f"conv_{name}"], w.get(f"conv_{name}_bias")
            y, past[name] = conv(at.real(raw[name]), kernel, bias, before.conv[name], at.taken)
            filtered[name] = at.act(y)
        x = at.real(at.site(filtered["x"].reshape(rows, length, self.n_heads, self.d_head), "conv", HEADS))
        b, c = (at.real(at.site(filtered[n].reshape(rows, length, self.n_groups, -1), n, _GROUPS)) for n in "BC")
        dt = linear(u, w["wdt"], w.get("bdt")).astype(jnp.float32)
        dt = dt + aligned(w["dt_bias"].astype(jnp.float32), dt)
        dt = at.lasting(at.site(jnp.clip(jax.nn.softplus(dt), *self.dt_limits), "dt", HEADS[:3]))
        x, b, c = (a.astype(jnp.float32) for a in (x, b, c))
        last, y = self._scan(dt, x, b, c, -jnp.exp(w["A_log"].astype(jnp.float32)), before.ssm, at)
        y = at.site(y + w["D"].astype(jnp.float32)[None, None, :, None] * x, "y", HEADS)
        gate = at.site(jax.nn.silu(raw["z"].astype(jnp.float32)), "gate", CHANNEL)
        y = self._norm(y.reshape(gate.shape) * gate, w["norm"]["scale"], at.eps).astype(u.dtype)
        return linear(y, w["wo"], w.get("bo")), Mamba2State(past, last)

    def _grouped(self, *rest: int) -> tuple[int, ...]:
        return (self.n_groups, self.n_heads // self.n_groups, *rest)

    def _norm(self, y: Array, scale: Array, eps: float) -> Array:
        groups = y.reshape(*y.shape[:2], self.n_groups, -1)
        groups = groups / jnp.sqrt(jnp.square(groups).mean(-1, keepdims=True) + eps)
        return groups.reshape(y.shape) * aligned(scale.astype(jnp.float32), y)

    def _scan(self, dt: Array, x: Array, b: Array, c: Array, a: Array, before: Array, at: At) -> tuple[Array, Array]:
        """The last state and h_t C_t; the only place where a form is chosen. Heads are [group, member] inside."""
        rows, length = dt.shape[:2]
        x = (dt[..., None] * x).reshape(rows, length, *self._grouped(self.d_head))
        log_decay = (dt * aligned(a, dt)).reshape(rows, length, *self._grouped())
        if not wants("blocks.mixer.state"):
            last, y = in_chunks(_chunk, before, (log_decay, x, b, c), CHUNK)
            return last, y.reshape(rows, length, self.n_heads, self.d_head)
        states = every_state(jnp.exp(log_decay)[..., None, None], jnp.einsum("btgmp,btgs->btgmps", x, b), before)
        last = states[:, -1]
        states = at.site(states.reshape(rows, length, self.n_heads, self.d_head, self.d_state), "state", _STATE)
        c = jnp.repeat(c, self.n_heads // self.n_groups, axis=2)
        return last, jnp.einsum("btnps,btns->btnp", states, c)


def _chunk(before: Array, part: tuple[Array, ...]) -> tuple[Array, Array]:
    log_decay, x, b, c = part
    total = jnp.cumsum(log_decay, axis=1)
    older, seen = (jnp.tri(total.shape[1], k=k, dtype=bool)[:, :, None, None] for k in (-1, 0))
    # How far j has decayed at i: sums from j on, for differences of `total` would lose what it has gathered by then.
    since = jnp.cumsum(jnp.where(older, log_decay[:, :, None], 0), axis=1)
    decay = jnp.exp(jnp.where(seen, since, -jnp.inf))
    weights = decay * jnp.where(seen, jnp.einsum("bigs,bjgs->bijg", c, b)[..., None], 0)
    y = from_there_on(lambda x: jnp.einsum("bijgm,bjgmp->bigmp", weights, x), x)
    y = y + jnp.exp(total)[..., None] * jnp.einsum("bigs,bgmps->bigmp", c, before)
    left = jnp.exp(since[:, -1])[..., None] * x
    return jnp.exp(total[:, -1])[..., None, None] * before + jnp.einsum("bjgmp,bjgs->bgmps", left, b), y
