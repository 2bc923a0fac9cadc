# SPDX-License-Identifier: Apache-2.0
"""What turns pre-activations into latents. Each is a small pytree: what was learned is a leaf, k is static."""

import dataclasses
from typing import Any, Protocol, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxneuro_kernels import encode_group_max, encode_topk, group_max, topk
from jaxtyping import Array, Float, Int

from ..axes import aligned
from ..errors import UserError, quoted
from ..taps import reprs

type Code = tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]
"""(values, indices): a latent whose value is 0, or that is not named, is off."""


class Activation(Protocol):
    """From pre-activations to latents, which are at least 0 (`AbsTopK`: of either sign)."""

    def __call__(self, pre: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch n_latents"]:
        """The latents, in pre's dtype."""
        ...


@runtime_checkable
class Bounded(Activation, Protocol):
    """An activation with at most k latents per token, which therefore never needs all pre-activations at once."""

    k: int

    def encode(self, x: Float[Array, "*batch d"], w: Float[Array, "n_latents d"], b: Float[Array, "n_latents"]) -> Code:
        """The code of x w^T + b, float32, one block of tokens at a time."""
        ...


@dataclass_transform(frozen_default=True)
def _leaf[T](cls: type[T]) -> type[T]:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


def check_k(activation: "TopK | AbsTopK | GroupMax", n_latents: int | None = None) -> None:
    """Whether so many latents can be active of so many, None: of any number.

    Raises:
      UserError: k is no whole number, below 1, or above n_latents; for group-max, no divisor of it.
    Example:
      >>> check_k(TopK(4), 3)
      Traceback (most recent call last):
      jaxneuro.errors.UserError: TopK: k = 4 of 3 latents. Choose k from 1 to 3.
    """
    k, name = activation.k, type(activation).__name__
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"{name}: k = {quoted(k)} is not a whole number of at least 1.")
    if n_latents is not None and k > n_latents:
        raise UserError(f"{name}: k = {k} of {n_latents} latents. Choose k from 1 to {n_latents}.")
    if n_latents is not None and isinstance(activation, GroupMax) and n_latents % k:
        raise UserError(f"{name}: k = {k} runs do not divide {n_latents} latents.")


@_leaf
class Relu:
    """z = max(pre, 0).

    Example:
      >>> Relu()(jnp.array([-1.0, 2.0])).tolist()
      [0.0, 2.0]
    """

    def __repr__(self) -> str:
        return reprs.fields(self)

    def __call__(self, pre: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch n_latents"]:
        """The latents."""
        return jax.nn.relu(pre)


@_leaf
class TopK:
    """z = max(pre, 0) at the k largest, else 0 (arXiv:2406.04093).

    Example:
      >>> TopK(1)(jnp.array([3.0, 2.0, -1.0])).tolist()
      [3.0, 0.0, 0.0]
    """

    k: int = _static()

    def __post_init__(self) -> None:
        check_k(self)

    def __repr__(self) -> str:
        return reprs.fields(self)

    def __call__(self, pre: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch n_latents"]:
        """The latents."""
        check_k(self, pre.shape[-1])
        vals, idx = topk(pre, self.k)
        return dense(jax.nn.relu(vals), idx, pre.shape[-1])

    def encode(self, x: Array, w: Array, b: Array) -> Code:
        """See `Bounded`; values descend."""
        check_k(self, w.shape[0])
        return encode_topk(x, w, b, self.k)


@_leaf
class AbsTopK:
    """z = pre, with its sign, at the k largest |pre|, else 0 (arXiv:2510.00404).

    Example:
      >>> AbsTopK(1)(jnp.array([2.0, -3.0, 1.0])).tolist()
      [0.0, -3.0, 0.0]
    """

    k: int = _static()

    def __post_init__(self) -> None:
        check_k(self)

    def __repr__(self) -> str:
        return reprs.fields(self)

    def __call__(self, pre: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch n_latents"]:
        """The latents."""
        check_k(self, pre.shape[-1])
        _, idx = topk(jnp.abs(pre), self.k)
        return dense(jnp.take_along_axis(pre, idx, axis=-1), idx, pre.shape[-1])

    def encode(self, x: Array, w: Array, b: Array) -> Code:
        """See `Bounded`; magnitudes descend. Of w and -w, a latent's two signs, at most one gives more than 0."""
        check_k(self, w.shape[0])
        vals, idx = encode_topk(x, jnp.concatenate([w, -w]), jnp.concatenate([b, -b]), self.k)
        n = jnp.int32(w.shape[0])
        return jnp.where(idx < n, vals, -vals), idx % n


@_leaf
class GroupMax:
    """z = max(pre, 0) at the largest of each of k runs of n_latents / k neighbours, else 0 (sparsify).

    Example:
      >>> GroupMax(2)(jnp.array([3.0, 2.0, -1.0, 1.0])).tolist()
      [3.0, 0.0, 0.0, 1.0]
    """

    k: int = _static()

    def __post_init__(self) -> None:
        check_k(self)

    def __repr__(self) -> str:
        return reprs.fields(self)

    def __call__(self, pre: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch n_latents"]:
        """The latents."""
        check_k(self, pre.shape[-1])
        vals, idx = group_max(pre, self.k)
        return dense(jax.nn.relu(vals), idx, pre.shape[-1])

    def encode(self, x: Array, w: Array, b: Array) -> Code:
        """See `Bounded`; one latent of each run, in their order."""
        check_k(self, w.shape[0])
        return encode_group_max(x, w, b, self.k)


@_leaf
class JumpReLU:
    """z = max(pre, 0) where pre > threshold, else 0 (arXiv:2407.14435); BatchTopK at inference, with one threshold.

    Example:
      >>> JumpReLU(jnp.array([1.0, 1.0, 2.0]))(jnp.array([0.5, 1.5, 2.0])).tolist()
      [0.0, 1.5, 0.0]
    """

    threshold: Float[Array, "*n_latents"]
    """One per latent, or a scalar for all."""

    def __repr__(self) -> str:
        return reprs.fields(self)

    def __call__(self, pre: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch n_latents"]:
        """The latents."""
        return jnp.where(
            pre > aligned(self.threshold.astype(pre.dtype), pre), jax.nn.relu(pre), jnp.zeros((), pre.dtype)
        )


@_leaf
class Gated:
    """z = max(pre exp(r_mag) + b_mag, 0) where pre + b_gate > 0, else 0 (arXiv:2404.16014).

    The gate and the magnitude have biases of their own, so the b_enc of a gated dictionary is 0.

    Example:
      >>> gated = Gated(r_mag=jnp.zeros(3), b_mag=jnp.array([0.5, -9.0, 0.5]), b_gate=jnp.zeros(3))
      >>> gated(jnp.array([1.0, 1.0, -1.0])).tolist()
      [1.5, 0.0, 0.0]
    """

    r_mag: Float[Array, "n_latents"]
    b_mag: Float[Array, "n_latents"]
    b_gate: Float[Array, "n_latents"]

    def __repr__(self) -> str:
        return reprs.fields(self)

    def __call__(self, pre: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch n_latents"]:
        """The latents."""
        parts = jnp.exp(self.r_mag), self.b_mag, self.b_gate
        scale, b_mag, b_gate = (aligned(a.astype(pre.dtype), pre) for a in parts)
        return jnp.where(pre + b_gate > 0, jax.nn.relu(pre * scale + b_mag), jnp.zeros((), pre.dtype))


def dense(vals: Float[Array, "*batch k"], idx: Int[Array, "*batch k"], n_latents: int) -> Array:
    """The latents that a code stands for, [*batch, n_latents]; one that is named twice is the sum.

    Example:
      >>> dense(jnp.array([2.0, 1.0]), jnp.array([2, 0]), 3).tolist()
      [1.0, 0.0, 2.0]
    """
    flat = idx.reshape(-1, idx.shape[-1])
    tokens = jnp.arange(flat.shape[0], dtype=jnp.int32)[:, None]
    z = jnp.zeros((flat.shape[0], n_latents), vals.dtype).at[tokens, flat].add(vals.reshape(flat.shape))
    return z.reshape(*vals.shape[:-1], n_latents)
