# SPDX-License-Identifier: Apache-2.0
"""Numbers that half precision cannot hold: float16 ends at 65,504, and many models were trained where nothing ends.

T5's residual stream, and that of most models trained in bfloat16, passes it; what comes out then is NaN. It is looked
for where a model is loaded in float16, in every output that is concrete, and in the scores of what `generate` drew.
Statistics, effects and losses refuse what is not finite in any type. Inside `jit` nothing looks: NaN comes out.
"""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ..errors import UserError
from .config import Config
from .layout import Weights

_TOKENS: Final = 32
"""Of the probe: as many different ones, over the whole vocabulary."""


def in_half(weights: Weights) -> bool:
    """Whether a model computes in float16."""
    return any(a.dtype == jnp.float16 for a in jax.tree.leaves(weights))


def check_half(apply: Any, weights: Weights, cfg: Config, where: str) -> None:
    """Run a model in float16 once, on tokens of its whole vocabulary (or a picture of noise).

    Raises:
      UserError: what comes out is not finite although every weight is.
    """
    if cfg.image is not None:
        check_half_pictures(apply, weights, cfg.image.size, cfg.image.channels, where)
        return
    n = min(_TOKENS, cfg.longest or _TOKENS)
    inputs = jnp.asarray(np.linspace(0, cfg.d_vocab - 1, n).astype(np.int32)[None])
    given = {"context": inputs} if cfg.encoder is not None else {}
    check_finite(jax.jit(apply)(weights, inputs, **given), where)


def check_half_pictures(apply: Any, weights: Weights, size: int, channels: int, where: str) -> None:
    """The same of a model of pictures, on one of noise.

    Raises:
      UserError: as `check_half`.
    """
    noise = np.random.default_rng(0).normal(size=(1, size, size, channels))
    check_finite(jax.jit(apply)(weights, jnp.asarray(noise, jnp.float16)), where)


def check_finite(out: Array, where: str) -> None:
    """Refuse a concrete output of half precision that is not finite.

    Raises:
      UserError: it is not; bfloat16 is named.
    """
    if isinstance(out, Tracer) or bool(jnp.isfinite(out).all()):
        return
    raise UserError(
        f"{where} overflows in float16, which ends at 65,504: what comes out is NaN or infinite although its weights "
        "are finite. Load it with dtype='bfloat16' or 'float32'."
    )
