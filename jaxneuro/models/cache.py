# SPDX-License-Identifier: Apache-2.0
"""What is kept of the text so far, keys and values or a state, so that a decoder runs each token once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..axes import aligned
from ..errors import UserError
from .config import Config
from .inputs import check_length
from .mixers import MixerState, empty_state
from .positions import behind_last, first_real

type Carried = Cache | MixerState
"""What a model carries from token to token: `forward` takes it as `cache=` and gives it back."""


class Kept(NamedTuple):
    """Keys and values that all layers of a decoder make of what its encoder read, for every new token to attend to."""

    k: Float[Array, "layer batch key kv_head d_head"]
    v: Float[Array, "layer batch key kv_head d_head"]
    real: Bool[Array, "batch key"]


class Cache(NamedTuple):
    """What `forward` remembers of the tokens before. Slot s holds column s of what was run, in every row.

    A pytree of arrays to be carried by a loop and donated: layers and steps write into it where it is.
    """

    k: Float[Array, "layer batch slot kv_head d_head"]
    v: Float[Array, "layer batch slot kv_head d_head"]
    real: Bool[Array, "batch slot"]
    """Slots that hold a real token; the others are seen by nobody."""
    at: int | Int[Array, ""] | Int[Array, "batch"]
    """Slot of the next token, of all rows or of each. While it is a Python int, nothing is computed for the slots
    that are still empty."""
    context: Kept | None = None
    """Of a model with an encoder: there once `forward` was given a context."""

    @property
    def first(self) -> Int[Array, "batch"]:
        """Slot of each row's first real token: its position 0."""
        return first_real(self.real)

    def positions(self, n: int) -> Int[Array, "n"] | Int[Array, "batch n"]:
        """Slots of the next n tokens."""
        first = jnp.asarray(self.at, jnp.int32)[..., None]
        return first + aligned(jnp.arange(n, dtype=jnp.int32), first)

    def write(self, layer: Array, k: Array, v: Array) -> "Cache":
        """With k and v [batch, n, kv_head, d_head] of the next n tokens in one layer."""
        return self._replace(k=_write(self.k, layer, k, self.at), v=_write(self.v, layer, v, self.at))

    def seen(self, n: int) -> int:
        """How many slots the next n tokens look at, as far as it is known when the program is made."""
        return self.at + n if isinstance(self.at, int) else self.k.shape[2]

    def read(self, layer: Array, n: int) -> tuple[Array, Array]:
        """(k, v) of one layer, up to the next n tokens where that is known when the program is made."""
        size = (1, self.k.shape[1], self.seen(n), *self.k.shape[3:])
        zero = jnp.int32(0)
        k, v = (jax.lax.dynamic_slice(a, (layer, *[zero] * 4), size)[0] for a in (self.k, self.v))
        return k, v

    def announced(self, mask: Bool[Array, "batch n"] | None, n: int) -> "Cache":
        """With the next n tokens among the real ones, as far as the mask says so."""
        new = jnp.ones((self.real.shape[0], n), bool) if mask is None else mask
        return self._replace(real=_write(self.real[None], jnp.int32(0), new, self.at)[0])

    def advanced(self, mask: Bool[Array, "batch n"] | None, n: int) -> "Cache":
        """Ready for what follows n tokens: behind the last real one of each row."""
        if mask is None:
            return self._replace(at=self.at + n)
        return self._replace(at=self.at + behind_last(mask))

    def rewound(self) -> "Cache":
        """For the same tokens again, in layers that have not seen them."""
        return self._replace(at=0)


def init_cache(cfg: Config, batch: int, slots: int, dtype: Any = jnp.float32, *, shortest: int = 1) -> Any:
    """Room for `slots` tokens per row, none filled: a `Cache`; of a model with a mixer a `MixerState`, without limit.

    Rope frequencies that depend on the length of a text (dynamic, longrope) are those of a text of `slots` tokens.

    Args:
      cfg: the model's.
      dtype: of keys and values: that of the weights.
      shortest: length of the shortest text that the cache will be asked about.
    Raises:
      UserError: a model that is not causal or learned fewer positions; a rope whose frequencies for texts of
        `shortest` and of `slots` tokens differ: keys that are turned once would not be those of the whole text.
    Example:
      >>> from jaxneuro.models import Config, forward, init
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> weights, tokens = init(cfg, jax.random.key(0)), jnp.zeros((1, 5), "int32")
      >>> _, cache = forward(weights, tokens[:, :4], cfg=cfg, cache=init_cache(cfg, 1, 5))
      >>> last, cache = forward(weights, tokens[:, 4:], cfg=cfg, cache=cache)
      >>> bool(jnp.allclose(last[:, 0], forward(weights, tokens, cfg=cfg)[:, -1], atol=1e-6)), int(cache.at)
      (True, 5)
    """
    if cfg.mixer is not None:
        return empty_state(cfg, batch, dtype)
    if not cfg.causal or cfg.image is not None:
        raise UserError(f"this {cfg.family} model sees both ways: later tokens change earlier ones, so none is kept.")
    check_length(cfg, slots, f"room for {slots} positions", "Ask for fewer slots.")
    for rope in (cfg.rope, cfg.local_rope):
        if rope is not None and not rope.same(cfg.d_head, shortest, slots):
            raise UserError(
                f"this model's rope turns texts of {shortest} and of {slots} tokens by different angles (rope type "
                f"{type(rope.scaling).__name__.lower()!r}), so keys cannot be kept from one to the other. Stay within "
                f"the length at which they change ({getattr(rope.scaling, 'original_max_position_embeddings', '?')})."
            )
    shape = (cfg.n_layers, batch, slots, cfg.n_kv_heads, cfg.d_head)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, slots), bool), 0)


def _write(buffer: Array, layer: Array, new: Array, at: Any) -> Array:
    """new [batch, n, ...] into buffer [layer, batch, slot, ...] from slot `at` on."""
    at = jnp.asarray(at, jnp.int32)
    if at.ndim == 0:
        rest = [jnp.int32(0)] * (buffer.ndim - 3)
        return jax.lax.dynamic_update_slice(buffer, new[None], (layer, jnp.int32(0), at, *rest))
    rows = jnp.arange(new.shape[0], dtype=jnp.int32)[:, None]
    slots = at[:, None] + jnp.arange(new.shape[1], dtype=jnp.int32)[None]
    return buffer.at[layer, rows, slots].set(new, mode="drop")
