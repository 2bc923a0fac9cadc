# SPDX-License-Identifier: Apache-2.0
"""The scan over layers of a model with a mixer, norm, mixer, residual stream, and the state that it may go on from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ...errors import UserError
from ...taps import tap
from ..positions import EVEN, Columns, behind_last, first_real
from ..remat import rematerialised
from ..scan import layer_of
from .parts import At, Axes

if TYPE_CHECKING:  # a configuration holds a mixer
    from ..config import Config

_RESIDUAL: Final = ("batch", "pos", "d_model")


class MixerState(NamedTuple):
    """What `forward` remembers of the tokens before in a model with a mixer; of one size however many they are.

    A pytree of arrays to be carried by a loop and donated. Padding before a row's first real token is read as in a
    whole text, what is behind its last one is not: the row goes on from there.
    """

    layers: Any
    """What the mixer's layers keep, with a leading layer axis."""
    begun: Bool[Array, "batch"]
    """Rows that had a real token."""
    at: int | Int[Array, ""] | Int[Array, "batch"]
    """Column of the next token, of all rows or of each."""
    first: Int[Array, "batch"] | int = 0
    """Column of the first real token of the rows that have begun."""

    def announced(self, mask: Bool[Array, "batch n"] | None, n: int) -> "MixerState":
        """With those rows begun that have a real token among the next n."""
        if mask is None:
            begun, first = jnp.ones_like(self.begun), jnp.zeros_like(self.begun, jnp.int32)
        else:
            begun, first = self.begun | mask.any(1), first_real(mask)
        return self._replace(begun=begun, first=jnp.where(self.begun, self.first, self.at + first))

    def taken(self, mask: Bool[Array, "batch n"] | None) -> Int[Array, "batch"] | None:
        """How many of the next n tokens each row takes in; None: all."""
        return None if mask is None else jnp.where(self.begun, behind_last(mask), mask.shape[1])

    def advanced(self, mask: Bool[Array, "batch n"] | None, n: int) -> "MixerState":
        """Ready for what follows n tokens: behind the last real one of each row."""
        taken = self.taken(mask)
        return self._replace(at=self.at + (n if taken is None else taken))

    def rewound(self) -> "MixerState":
        """For the same tokens again, in layers that have not seen them."""
        return self._replace(begun=jnp.zeros_like(self.begun), at=0)


def empty_state(cfg: "Config", batch: int, dtype: Any = jnp.float32) -> MixerState:
    """The state of all layers before the first token.

    Args:
      dtype: of the weights. Recurrent states are float32 whatever it is.
    Raises:
      UserError: the model has attention, not a mixer.
    """
    if cfg.mixer is None:
        raise UserError(f"this {cfg.family} model has attention, which has no state of a fixed size.")
    one = cfg.mixer.empty(batch, cfg.d_model, dtype)
    layers = jax.tree.map(lambda a: jnp.broadcast_to(a, (cfg.n_layers, *a.shape)), one)
    return MixerState(layers, jnp.zeros(batch, bool), 0, jnp.zeros(batch, jnp.int32))


def mix_layers(
    weights: dict[str, Any],
    x: Array,
    cfg: "Config",
    act: Callable[[Array], Array],
    norm: Callable[..., Array],
    *,
    mask: Bool[Array, "batch pos"] | None = None,
    layers: tuple[int, int] | None = None,
    state: MixerState | None = None,
    remat: str | None = None,
    where: Columns = EVEN,
) -> tuple[Array, MixerState | None]:
    """The residual stream after some layers, and the state with theirs after these tokens where it was given.

    Args:
      norm: (x, its leaves, cfg, site) -> x, the model's.
      layers: first, and one after the last; None: all.
      remat: what a layer keeps for the backward pass, a row of `remat.POLICIES`.
      where: which positions these tokens have.
      state: `announced` these tokens; None: before the first token, and no state comes back.
    """
    mixer, dtype = cfg.mixer, weights["embed"]["tok"].dtype
    assert mixer is not None
    start, stop = layers or (0, cfg.n_layers)
    blocks, whole = weights.get("blocks", {}), (start, stop) == (0, cfg.n_layers)
    x = x.astype(jnp.float32) if mixer.residual_in_float32 else x
    if start == stop:
        return x, state
    pos, taken = (None, None) if state is None else (state.at, state.taken(mask))

    def body(carry: tuple[Array, Any], of: tuple[Array, Any]) -> tuple[tuple[Array, Any], None]:
        (x, states), (layer, w) = carry, of
        if w is None:  # a part of the stack
            w = layer_of(blocks, layer)

        def site(value: Array, name: str, axes: Axes = _RESIDUAL) -> Array:
            return tap(value, f"blocks.{name}", layer=layer, pos=where.pos, axes=axes)

        def normed(value: Array, name: str) -> Array:
            return norm(value, w.get(name, {}), cfg, lambda v, part, axes: site(v, f"{name}.{part}", axes))

        at, before = At(layer, mask, act, cfg.norm_eps, pos, taken, where.pos), layer_of(states, layer)
        x = site(x, "resid_pre")
        if cfg.norm_placement == "pre":
            y, after = mixer.mix(w["mixer"], site(normed(x.astype(dtype), "ln1"), "mixer.in"), at, before)
            x = x + site(y, "mixer.out").astype(x.dtype)
        else:
            y, after = mixer.mix(weights["shared"], site(x, "mixer.in"), at, before)
            x = normed(x + site(normed(y, "ln1_post"), "mixer.out"), "ln1")
        if states is not None:
            states = jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, layer, 0), states, after)
        return (site(x, "resid_post"), states), None

    first = (x, None if state is None else state.layers)
    numbers = jnp.arange(start, stop, dtype=jnp.int32)
    (x, states), _ = jax.lax.scan(rematerialised(body, remat), first, (numbers, blocks if whole else None))
    return x, None if state is None else state._replace(layers=states)
