# SPDX-License-Identifier: Apache-2.0
"""The scan over layers of a model with a mixer: norm, mixer, residual stream."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ...errors import UserError
from ...taps import tap
from ..remat import rematerialised
from ..scan import layer_of
from .parts import At, Axes

if TYPE_CHECKING:  # a configuration holds a mixer
    from ..config import Config

_RESIDUAL: Final = ("batch", "pos", "d_model")


def empty_state(cfg: "Config", batch: int, dtype: Any = jnp.float32) -> Any:
    """The state of all layers before the first token: a pytree whose leaves have a leading layer axis.

    Args:
      dtype: of the weights. Recurrent states are float32 whatever it is.
    Raises:
      UserError: the model has attention, not a mixer.
    """
    if cfg.mixer is None:
        raise UserError(f"this {cfg.family} model has attention, which has no state of a fixed size.")
    one = cfg.mixer.empty(batch, cfg.d_model, dtype)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (cfg.n_layers, *a.shape)), one)


def mix_layers(
    weights: dict[str, Any],
    x: Array,
    cfg: "Config",
    act: Callable[[Array], Array],
    norm: Callable[..., Array],
    *,
    mask: Bool[Array, "batch pos"] | None = None,
    layers: tuple[int, int] | None = None,
    state: Any = None,
    remat: str | None = None,
) -> tuple[Array, Any]:
    """The residual stream after some layers, and their states after the last token where they were given.

    Args:
      norm: (x, its leaves, cfg, site) -> x, the model's.
      layers: first, and one after the last; None: all.
      remat: what a layer keeps for the backward pass, a row of `remat.POLICIES`.
      state: as `empty_state` makes it; None: before the first token, and no state comes back.
    """
    mixer, dtype = cfg.mixer, weights["embed"]["tok"].dtype
    assert mixer is not None
    start, stop = layers or (0, cfg.n_layers)
    blocks, whole = weights.get("blocks", {}), (start, stop) == (0, cfg.n_layers)
    x = x.astype(jnp.float32) if mixer.residual_in_float32 else x
    if start == stop:
        return x, state

    def body(x: Array, each: tuple[Array, Any, Any]) -> tuple[Array, Any]:
        layer, w, before = each
        if w is None:  # a part of the stack
            w = layer_of(blocks, layer)

        def site(value: Array, name: str, axes: Axes = _RESIDUAL) -> Array:
            return tap(value, f"blocks.{name}", layer=layer, axes=axes)

        def normed(value: Array, name: str) -> Array:
            return norm(value, w.get(name, {}), cfg, lambda v, part, axes: site(v, f"{name}.{part}", axes))

        at = At(layer, mask, act, cfg.norm_eps)
        x = site(x, "resid_pre")
        if cfg.norm_placement == "pre":
            y, after = mixer.mix(w["mixer"], normed(x.astype(dtype), "ln1"), at, before)
            x = x + site(y, "mixer.out").astype(x.dtype)
        else:
            y, after = mixer.mix(weights["shared"], x, at, before)
            x = normed(x + site(normed(y, "ln1_post"), "mixer.out"), "ln1")
        return site(x, "resid_post"), None if state is None else after

    numbers = jnp.arange(start, stop, dtype=jnp.int32)
    return jax.lax.scan(rematerialised(body, remat), x, (numbers, blocks if whole else None, state))
