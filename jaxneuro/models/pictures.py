# SPDX-License-Identifier: Apache-2.0
"""Pictures of another size than the model learned: its position table is stretched once, as transformers does."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..errors import UserError
from .module import Transformer


def resized(model: Transformer, size: int) -> Transformer:
    """The model for square pictures of `size` pixels: positions of patches interpolated bicubically, the rest shared.

    What transformers computes with interpolate_pos_encoding=True (DINOv2: always).

    Args:
      size: pixels of each side, a multiple of the patch.
    Raises:
      UserError: the model does not read pictures, or patches of its size do not divide the pictures.
    Source: torch's bicubic interpolation, align_corners=False; parity with transformers at 1e-5.
    Example:
      >>> cfg = Config(n_layers=1, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=8, d_vocab=0, n_ctx=5,
      ...              image=Image(size=4, patch=2), has_head=False, learned_positions=True)
      >>> resized(Transformer(cfg, init(cfg, jax.random.key(0))), 6).cfg.n_ctx
      10
    """
    cfg = model.cfg
    if cfg.image is None:
        raise UserError(f"this {cfg.family} model reads tokens; resized is for models of pictures.")
    image = dataclasses.replace(cfg.image, size=size)
    n_first, old, new = len(image.prefix), cfg.image.size // image.patch, size // image.patch
    table = np.asarray(model.weights["embed"]["pos"])
    first, grid = table[:n_first], table[n_first:].reshape(old, old, -1).astype(np.float64)
    stretch = bicubic(old, new, antialias=image.antialias)
    patches = np.einsum("ai,bj,ijd->abd", stretch, stretch, grid).reshape(new * new, -1)
    pos = jnp.asarray(np.concatenate([first, patches.astype(table.dtype)]))
    weights = {**model.weights, "embed": {**model.weights["embed"], "pos": pos}}
    return Transformer(dataclasses.replace(cfg, image=image, n_ctx=image.positions), weights, model.hf_config)


def bicubic(n_in: int, n_out: int, *, antialias: bool) -> Float[np.ndarray, "n_out n_in"]:
    """The matrix of torch's one-dimensional bicubic interpolation.

    Sample i lies at (i + 0.5) n_in / n_out - 0.5. Plain: the cubic kernel with a = -0.75 over four neighbours, those
    beyond the border are the border. With antialias, as Pillow: a = -0.5, the kernel as wide as a step when shrinking,
    rows divided by their sum.

    Example:
      >>> bicubic(4, 2, antialias=False)[0].tolist()
      [0.5, 0.59375, -0.09375, 0.0]
    """
    at = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    if antialias:
        width = max(n_in / n_out, 1.0)
        weights = _cubic((np.arange(n_in) - at[:, None]) / width, -0.5)
        return weights / weights.sum(1, keepdims=True)
    out = np.zeros((n_out, n_in))
    for step in (-1, 0, 1, 2):
        neighbour = np.floor(at).astype(int) + step
        np.add.at(out, (np.arange(n_out), neighbour.clip(0, n_in - 1)), _cubic(neighbour - at, -0.75))
    return out


def _cubic(x: Float[np.ndarray, "..."], a: float) -> Float[np.ndarray, "..."]:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
