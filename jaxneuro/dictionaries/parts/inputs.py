# SPDX-License-Identifier: Apache-2.0
"""Batches as methods see them: scaled float32, with zeros where a token does not count."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ...axes import aligned
from ...errors import UserError
from ...left_out import norms
from .start import deviation

NAMES: Final = ("x", "y", "mask")
"""What is read of a batch."""


class Inputs(NamedTuple):
    """One batch. y is x itself for an autoencoder."""

    x: Float[Array, "n d_in"]
    y: Float[Array, "n d_out"]
    valid: Bool[Array, "n"]
    broken: Int[Array, ""]
    """Tokens that should count and hold NaN or infinity; not valid."""

    @property
    def tokens(self) -> Int[Array, ""]:
        """Valid tokens."""
        return jnp.sum(self.valid, dtype=jnp.int32)

    @property
    def divisor(self) -> Float[Array, ""]:
        """Valid tokens, at least 1, to divide by."""
        return jnp.maximum(self.tokens, 1).astype(jnp.float32)


def read(batch: Any, scale_x: Array, scale_y: Array, limit: Array | None = None) -> Inputs:
    """Read {"x": [n, d_in], "y": [n, d_out] or absent, "mask": bool [n] or absent}.

    Args:
      batch: the batch.
      scale_x, scale_y: what x and y are multiplied by.
      limit: tokens whose x is longer do not count, as if masked.
    Raises:
      UserError: arrays missing, of wrong rank, type or length.
    """
    check(batch)
    x, y, mask = batch["x"], batch.get("y"), batch.get("mask")
    x = x.astype(jnp.float32)
    y = x if y is None else y.astype(jnp.float32)
    wanted = jnp.ones(x.shape[0], bool) if mask is None else mask
    finite = jnp.isfinite(x).all(-1) & jnp.isfinite(y).all(-1)
    if limit is not None:
        wanted &= ~(finite & (norms(x) > limit))
    valid = wanted & finite

    def clean(a, scale):
        return jnp.where(valid[:, None], a * aligned(scale, a), jnp.float32(0))

    x_clean = clean(x, scale_x)
    y_clean = x_clean if y is x else clean(y, scale_y)
    return Inputs(x_clean, y_clean, valid, jnp.sum(wanted & ~finite, dtype=jnp.int32))


def given(batch: Any) -> dict[str, Array]:
    """The arrays of a batch that count, without what else is in it.

    Raises:
      UserError: as `read`.
    """
    check(batch)
    return {name: batch[name] for name in NAMES if batch.get(name) is not None}


def check(batch: Any) -> None:
    """Raises: UserError: arrays missing, of wrong rank, type or length."""
    if not isinstance(batch, Mapping) or "x" not in batch:
        found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise UserError(f"a batch of a dictionary is {{'x': [n, d_in], ...}}; this one is {found}.")
    shapes = {name: batch[name] for name in NAMES if batch.get(name) is not None}
    fits = all(a.shape[:1] == batch["x"].shape[:1] for a in shapes.values())
    for name, a in shapes.items():
        if name == "mask":
            fits = fits and a.ndim == 1 and a.dtype == jnp.bool_
        else:
            fits = fits and a.ndim == 2 and jnp.issubdtype(a.dtype, jnp.floating)
    if not fits:
        shown = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in shapes.items())
        raise UserError(f"a batch has x [n, d_in] and y [n, d_out], floating, and mask bool [n]; this one: {shown}.")


def check_start(batch: Any) -> int | None:
    """Refuse a first batch from which nothing can start.

    Returns:
      Its valid tokens; None under jit, where values are not looked at.
    Raises:
      UserError: as `read`; no finite token, or all tokens equal.
    """
    tokens, broken, spread = _looked_at(given(batch))
    if isinstance(tokens, Tracer):
        return None
    if not int(tokens):
        raise UserError(
            f"the first batch has no finite, unmasked token ({int(broken)} hold NaN or infinity). "
            "Look at the site's values, or begin at another batch."
        )
    if not float(spread) > 0:
        raise UserError("all tokens of the first batch are equal: there is no variance to explain at this site.")
    return int(tokens)


@jax.jit
def _looked_at(arrays: dict[str, Array]) -> tuple[Array, Array, Array]:
    inputs = read(arrays, jnp.float32(1), jnp.float32(1))
    return inputs.tokens, inputs.broken, deviation(inputs.y, inputs.valid)
