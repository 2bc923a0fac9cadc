# SPDX-License-Identifier: Apache-2.0
"""Batches of methods that reconstruct their input: a target "y" is refused, not ignored."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ...errors import UserError
from .inputs import Inputs, check_start, read


def read_x(batch: Any, method: str) -> Inputs:
    """`read` of {"x": [n, d], "mask": bool [n] or absent}, unscaled.

    Raises:
      UserError: as `read`; and a "y" in the batch, which `method` has no use for.
    """
    _refuse_y(batch, method)
    return read(batch, jnp.float32(1), jnp.float32(1))


def check_first(batch: Any, method: str, n_latents: int = 1) -> None:
    """Refuse a first batch from which not every latent can take a token (values are not looked at under jit).

    Raises:
      UserError: as `check_start`; a "y" in the batch; fewer valid tokens than latents.
    """
    _refuse_y(batch, method)
    tokens = check_start(batch)
    if tokens is not None and tokens < n_latents:
        raise UserError(
            f"{method}: the first batch has {tokens} valid tokens for {n_latents} latents, and each latent "
            "starts at one. Use larger batches or fewer latents."
        )


def _refuse_y(batch: Any, method: str) -> None:
    if isinstance(batch, Mapping) and batch.get("y") is not None:
        raise UserError(f"{method} reconstructs x and learns no map to y. Leave y out, or use topk for a transcoder.")
