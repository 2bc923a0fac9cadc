# SPDX-License-Identifier: Apache-2.0
"""BDH (Dragon Hatchling): many sparse positive neurons whose synapses are a state that learns while it reads."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...axes import aligned
from ...errors import UserError
from ...taps import wants
from ..causal import from_there_on
from ..quantised import matmul
from ..ranges import check_fields
from ..rope import rotate
from .parts import At, Axes, Start, check_counts, every_state, in_chunks

THETA: Final = 2.0**16
"""Slowest turn of a pair of neurons; the authors have no other."""

_NEURON: Final = ("batch", "pos", "head", "neuron")
_READ: Final = ("batch", "pos", "head", "d_model")


class BdhState(NamedTuple):
    """What a layer keeps between tokens."""

    synapses: Float[Array, "batch head neuron d_model"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bdh:
    """Sizes of a BDH layer; all layers have the same weights.

        s = act(x E)                            neurons: sparse, not negative (site x)
        r = s turned by its position, in pairs of neighbours
        S_t = S_{t-1} + r_t x_t^T;   a_t = S_{t-1}^T r_t              the synapses, read before they are written
        g = act(LN(a) E_v);   out = (s g) E_out                       (sites a, y, xy)

    with LN without gain and bias. Keys at padding are left out, so padding on the left changes nothing.

    Source: arXiv 2509.26507 and the authors' bdh.py.
    Example:
      >>> Bdh(n_heads=2, n_neurons=16).leaves()["enc"]
      ('heads', 'embed', 'neuron')
    """

    n_heads: int
    n_neurons: int
    """Of each head."""

    shared: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, str]] = {"norm_placement": "post", "norm": "plain"}
    residual_in_float32: ClassVar[bool] = False
    starts: ClassVar[Mapping[str, Start]] = {}

    def __post_init__(self):
        check_counts(self, "n_heads", "n_neurons")
        check_fields(self, "Bdh: ")
        if self.n_neurons % 2:
            raise UserError(f"Bdh: pairs of neurons are turned, so n_neurons={self.n_neurons} must be even.")

    def leaves(self) -> dict[str, Axes]:
        """{leaf: names of its axes}."""
        encoder = ("heads", "embed", "neuron")
        return {"enc": encoder, "enc_v": encoder, "dec": ("heads", "neuron", "embed")}

    def sizes(self) -> dict[str, int]:
        """Length of every axis that `leaves` names."""
        return {"heads": self.n_heads, "neuron": self.n_neurons}

    def empty(self, batch: int, d_model: int, dtype: jnp.dtype) -> BdhState:
        """The state before the first token."""
        return BdhState(jnp.zeros((batch, self.n_heads, self.n_neurons, d_model), jnp.float32))

    def mix(self, w: dict, x: Array, at: At, state: BdhState | None = None) -> tuple[Array, BdhState]:
        """[batch, pos, d_model] to the same, and the state after the last token."""
        rows, length, _ = x.shape
        neurons = at.act(jax.vmap(matmul, (None, 0), 2)(x, w["enc"]))
        neurons, values = at.real(at.site(neurons, "x", _NEURON)), at.real(x)
        turned = rotate(neurons, *self._angles(0 if at.start is None else at.start, length), interleaved=True)
        synapses, a = _read(turned, values, None if state is None else state.synapses, at)
        a = _layer_norm(at.site(a, "a", _READ), at.eps).astype(x.dtype)
        y = at.site(at.act(jax.vmap(matmul, (2, 0), 2)(a, w["enc_v"])), "y", _NEURON)
        both = at.site(neurons * y, "xy", _NEURON).reshape(rows, length, -1)
        return matmul(both, w["dec"], inputs=2), BdhState(synapses)

    def _angles(self, start: Any, length: int) -> tuple[Array, Array]:
        turns = THETA ** (-jnp.arange(0, self.n_neurons, 2, dtype=jnp.float32) / self.n_neurons) / (2 * math.pi)
        first = jnp.asarray(start, jnp.int32)[..., None]
        pos = first + aligned(jnp.arange(length, dtype=jnp.int32), first)
        # Whole turns first, as the authors do: large angles lose bits.
        angles = (pos.astype(jnp.float32)[..., None] * aligned(turns, pos[..., None])) % 1 * (2 * math.pi)
        return jnp.cos(angles), jnp.sin(angles)


def _read(r: Array, x: Array, before: Array | None, at: At) -> tuple[Array, Array]:
    """The last synapses and what each token reads; the only place where a form is chosen."""
    d_model, (rows, length, heads, neurons) = x.shape[-1], r.shape
    r, x = r.astype(jnp.float32), x.astype(jnp.float32)
    chunk = max(64, 2 * d_model)  # where the synapses become cheaper than pairs of tokens
    explicit = wants("blocks.mixer.state")
    if before is None and length <= chunk and not explicit:
        return _alone(r, x)
    before = jnp.zeros((rows, heads, neurons, d_model), jnp.float32) if before is None else before
    if not explicit:
        return in_chunks(_chunk, before, (r, x), chunk)
    states = every_state(jnp.ones((1, length, 1, 1, 1), jnp.float32), jnp.einsum("bthn,btd->bthnd", r, x), before)
    read = jnp.concatenate([before[:, None], states[:, :-1]], axis=1)
    read = at.site(read, "state", (*_NEURON, "d_model"))
    return states[:, -1], jnp.einsum("bthn,bthnd->bthd", r, read)


def _alone(r: Array, x: Array) -> tuple[Array, Array]:
    """What tokens write, and what they read of each other."""
    pairs = jnp.tril(jnp.einsum("bihn,bjhn->bhij", r, r), -1)
    read = from_there_on(lambda x: jnp.einsum("bhij,bjd->bihd", pairs, x), x)
    return jnp.einsum("bjhn,bjd->bhnd", r, x), read


def _chunk(before: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
    own, a = _alone(*part)
    return before + own, a + jnp.einsum("bihn,bhnd->bihd", part[0], before)


def _layer_norm(x: Array, eps: float) -> Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
