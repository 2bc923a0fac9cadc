# SPDX-License-Identifier: Apache-2.0
"""Batches of methods that reconstruct their input: a target "y" is refused, not ignored."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from ...errors import UserError
from .inputs import Inputs, read


def read_x(batch: Any, method: str, *, first: bool = False) -> Inputs:
    """`read` of {"x": [n, d], "mask": bool [n] or absent}, unscaled.

    Raises:
      UserError: as `read`; and a "y" in the batch, which `method` has no use for.
    """
    if isinstance(batch, Mapping) and batch.get("y") is not None:
        raise UserError(f"{method} reconstructs x and learns no map to y. Leave y out, or use topk for a transcoder.")
    return read(batch, jnp.float32(1), jnp.float32(1), first=first)


def starting_tokens(batch: Any, method: str, n_latents: int) -> Inputs:
    """`read_x` of a first batch from which every latent takes a token (the number is not checked under jit).

    Raises:
      UserError: fewer valid tokens than latents.
    """
    inputs = read_x(batch, method, first=True)
    if not isinstance(inputs.tokens, Tracer) and int(inputs.tokens) < n_latents:
        raise UserError(
            f"{method}: the first batch has {int(inputs.tokens)} valid tokens for {n_latents} latents, and each latent "
            "starts at one. Use larger batches or fewer latents."
        )
    return inputs
