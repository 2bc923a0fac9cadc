# SPDX-License-Identifier: Apache-2.0
"""Patches of a picture that a model does not see: the vector that stood for hidden ones in training."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..errors import UserError
from .config import Config
from .layout import Weights


def check_hidden(hidden: Array, cfg: Config, batch: int, resid: Array | None) -> None:
    """Which patches are hidden is said of a model that has a vector for them, of every patch, where they are embedded.

    Raises:
      UserError: it is not.
    """
    if cfg.image is None or not cfg.image.mask_token:
        raise UserError(
            f"this {cfg.family} model has no mask token to put in the place of hidden patches (DINOv2 has one). "
            "Leave patches out of attention with mask=."
        )
    want = (batch, (cfg.image.size // cfg.image.patch) ** 2)
    if hidden.shape != want or hidden.dtype != jnp.bool_:
        raise UserError(
            f"hidden_patches is a bool for each patch, {list(want)}, in reading order and without the tokens before "
            f"them; this is {hidden.dtype} {list(hidden.shape)}."
        )
    if resid is not None:
        raise UserError("hidden_patches changes the embedding, which resid= replaces: give one of them.")


def hide(
    patches: Float[Array, "batch patch d_model"], w: Weights, hidden: Bool[Array, "batch patch"] | None
) -> Float[Array, "batch patch d_model"]:
    """The embedded patches, before positions, with the mask token in the place of hidden ones.

    Source: arXiv 2304.07193 (iBOT's objective, 2111.07832); transformers' bool_masked_pos, parity at 1e-5.
    Example:
      >>> hide(jnp.ones((1, 3, 1)), {"mask_token": jnp.zeros(1)}, jnp.array([[False, True, False]]))[0, :, 0].tolist()
      [1.0, 0.0, 1.0]
    """
    return patches if hidden is None else jnp.where(hidden[..., None], w["mask_token"].astype(patches.dtype), patches)
