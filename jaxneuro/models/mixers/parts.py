# SPDX-License-Identifier: Apache-2.0
"""What recurrent mixers share: a causal convolution, a recurrence told one token at a time, and one told in chunks."""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ...axes import aligned
from ...errors import UserError, shown
from ...taps import tap
from ...taps.spans import Span
from ..quantised import matmul

type Axes = tuple[str, ...]
type Start = Callable[[Key[Array, ""], tuple[int, ...]], Float[Array, "..."]]

CHANNEL: Final = ("batch", "pos", "channel")
HEADS: Final = ("batch", "pos", "head", "d_head")


class At(NamedTuple):
    """Where a mixer runs: what it is told beside its weights and its input."""

    layer: Int[Array, ""]
    mask: Bool[Array, "batch pos"] | None
    act: Callable[[Array], Array]
    eps: float
    start: Any = None
    """Column of the first of these tokens, of all rows or of each; None: 0."""
    taken: Int[Array, "batch"] | None = None
    """How many of these tokens a row's state takes in; None: all."""
    span: Span | None = None
    """Which positions these tokens have, for their sites."""

    def site(self, value: Array, name: str, axes: Axes) -> Array:
        """The value, under the name blocks.mixer.<name>."""
        return tap(value, f"blocks.mixer.{name}", layer=self.layer, pos=self.span, axes=axes)

    def real(self, value: Float[Array, "batch pos *rest"]) -> Float[Array, "batch pos *rest"]:
        """The value, with 0 at padding."""
        return value if self.mask is None else _where(self.mask, value)

    def lasting(self, dt: Float[Array, "batch pos *rest"]) -> Float[Array, "batch pos *rest"]:
        """Time steps, with 0 at padding and behind the tokens that are taken in: a state stays as it is when no time
        passes."""
        dt = self.real(dt)
        if self.taken is None:
            return dt
        return _where(jnp.arange(dt.shape[1], dtype=jnp.int32)[None] < self.taken[:, None], dt)


def _where(mask: Bool[Array, "batch pos"], value: Array) -> Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (value.ndim - 2)), value, jnp.zeros_like(value))


def check_counts(mixer: Any, *names: str) -> None:
    """Refuse a size that is no size.

    Raises:
      UserError: a field that is not a positive whole number.
    """
    for name in names:
        value = getattr(mixer, name)
        if type(value) is not int or value < 1:
            raise UserError(f"{type(mixer).__name__}: {name}={shown(value)} is not a positive whole number.")


def linear(x: Array, w: Any, b: Array | None = None) -> Array:
    """x @ w + b in the dtype of x, w quantised or not."""
    y = matmul(x, w)
    return y if b is None else y + aligned(b.astype(y.dtype), y)


def conv(
    x: Float[Array, "batch pos channel"],
    kernel: Float[Array, "channel kernel"],
    bias: Float[Array, "channel"] | None,
    before: Float[Array, "batch past channel"],
    taken: Int[Array, "batch"] | None = None,
) -> tuple[Float[Array, "batch pos channel"], Float[Array, "batch past channel"]]:
    """Causal convolution of each channel, y_t = b + sum_j kernel_j x_{t-k+1+j}, and the inputs that the next needs.

    Args:
      before: the k-1 inputs before the first.
      taken: how many of these tokens the next comes behind; None: all.
    """
    whole, kernel = jnp.concatenate([before.astype(x.dtype), x], axis=1), kernel.astype(x.dtype)
    y = sum(whole[:, j : j + x.shape[1]] * kernel[None, None, :, j] for j in range(1, kernel.shape[1]))
    y = y + whole[:, : x.shape[1]] * kernel[None, None, :, 0]
    y = y if bias is None else y + aligned(bias.astype(x.dtype), y)
    if taken is None:
        return y, whole[:, x.shape[1] :]
    past = taken[:, None] + jnp.arange(before.shape[1], dtype=jnp.int32)[None]
    return y, jnp.take_along_axis(whole, past[..., None], axis=1)


def every_state(
    decay: Float[Array, "batch pos *#state"],
    write: Float[Array, "batch pos *state"],
    before: Float[Array, "batch *state"],
) -> Float[Array, "batch pos *state"]:
    """All of h_t = decay_t h_{t-1} + write_t, one token after another: the definition, and large."""

    def one(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        h = at[0] * h + at[1]
        return h, h

    states = jax.lax.scan(one, before, (jnp.moveaxis(decay, 1, 0), jnp.moveaxis(write, 1, 0)))[1]
    return jnp.moveaxis(states, 0, 1)


def in_chunks[State](
    step: Callable[[State, Any], tuple[State, Array]], before: State, inputs: Any, length: int
) -> tuple[State, Float[Array, "batch pos *rest"]]:
    """Run `step(state, inputs of a chunk) -> (state, outputs)` along pos; the last chunk is filled up with zeros.

    Backward, a chunk is computed again from the state before it, so memory holds one chunk and a state per chunk.
    """
    pos = jax.tree.leaves(inputs)[0].shape[1]
    n = -(-pos // length)
    if n == 1:
        return step(before, inputs)

    def cut(a: Array) -> Array:
        a = jnp.pad(a, [(0, 0), (0, n * length - pos)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], n, length, *a.shape[2:]), 1, 0)

    last, out = jax.lax.scan(jax.checkpoint(step), before, jax.tree.map(cut, inputs))
    out = jnp.moveaxis(out, 0, 1)
    return last, out.reshape(out.shape[0], n * length, *out.shape[3:])[:, :pos]


def ones(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Start of a skip."""
    return jnp.ones(shape, jnp.float32)


def log_of_counts(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Start of A_log: A = -1, -2, ... along the last axis."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape)


def time_steps(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Start of a time step's bias: softplus of it is log-uniform between 0.001 and 0.1."""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high))
    return dt + jnp.log(-jnp.expm1(-dt))


def uniform_by(axis: int) -> Start:
    """Start of a matrix: uniform within n ** -0.5, n the length of an axis."""

    def start(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
        bound = shape[axis] ** -0.5
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    return start
