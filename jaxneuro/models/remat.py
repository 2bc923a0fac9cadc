# SPDX-License-Identifier: Apache-2.0
"""What a layer keeps for the backward pass: less memory for more arithmetic, never other numbers."""

from collections.abc import Callable
from typing import Final

import jax

from ..errors import unknown

POLICIES: Final[dict[str, Callable[..., bool]]] = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""block: the residual stream that enters each layer and nothing else; the backward pass runs every layer again (a third
more arithmetic). dots: also what its matrices of weights gave; only attention, norms and activations run again."""


def rematerialised[**P, T](body: Callable[P, T], remat: str | None) -> Callable[P, T]:
    """The body of a scan over layers, of which the backward pass keeps what a row of `POLICIES` says; None: everything.

    Raises:
      UserError: no policy of that name.
    """
    if remat is None:
        return body
    if remat not in POLICIES:
        raise unknown("remat policy", remat, POLICIES, where="forward", hint="Or None to keep everything.")
    # Inside a scan XLA cannot undo it by merging equal expressions, so the barriers against that are left out.
    return jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=False)
