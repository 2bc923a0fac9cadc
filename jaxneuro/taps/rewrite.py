# SPDX-License-Identifier: Apache-2.0
"""Running a staged program with its sites read and edited.

Equations without a wanted site run as they are. One that holds a wanted site is built again through JAX's public
transforms by a rule of `rules.RULES`; so the new program is an ordinary JAX program, to be compiled, differentiated and
vmapped like any other.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array

from . import reading
from .edits import Edit
from .primitive import split_operands, tap_p
from .survey import NO_LAYER, Key

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Want:
    """One thing to read: a site, some or all (None) of its layers, and a function of its value."""

    name: str = dataclasses.field(metadata=_STATIC)
    layers: tuple[int, ...] | None = dataclasses.field(metadata=_STATIC)
    reducer: Partial | None = None


class Jits:
    """Rebuilt jits by the program they were made from and their options."""

    def __init__(self) -> None:
        self.made: weakref.WeakKeyDictionary[Jaxpr, dict[Any, Any]] = weakref.WeakKeyDictionary()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a transformation does to a program. A pytree: its arrays enter rebuilt programs as arguments."""

    wants: tuple[Want, ...] = ()
    edits: tuple[Edit, ...] = ()
    outside: frozenset[tuple[str, int]] = dataclasses.field(metadata=_STATIC, default=frozenset())
    recomputed: bool = dataclasses.field(metadata=_STATIC, default=False)
    """Inside a recomputation: sites that are reached outside of it too have been read there."""
    names: frozenset[str] = dataclasses.field(metadata=_STATIC, default=frozenset())
    """Of all sites that are read or edited."""
    jits: "Jits | None" = dataclasses.field(metadata=_STATIC, default=None)
    """Where rebuilt jits are kept if the plan calls a user's function, which may be another one in the next call."""

    @classmethod
    def make(cls, wants: Sequence[Want] = (), edits: Sequence[Edit] = (), outside: Any = frozenset()) -> "Plan":
        """The plan of one transformation."""
        names = frozenset(w.name for w in wants) | frozenset(e.name for e in edits)
        calls = any(w.reducer is not None for w in wants) or any(e.fn is not None for e in edits)
        return cls(tuple(wants), tuple(edits), outside, names=names, jits=Jits() if calls else None)

    def touches(self, eqn: JaxprEqn) -> bool:
        """Whether an equation has a wanted site inside."""
        return any(not self.names.isdisjoint(reading.site_names(p)) for p in reading.programs(eqn))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A value that was read, on its way out of the program."""

    value: Any
    layer: Any
    """The layer it belongs to while that is one; for a buffer of wanted layers, which of them are filled."""
    layer_axes: int = dataclasses.field(metadata=_STATIC, default=0)
    """How many leading axes run over layers."""

    @property
    def is_buffer(self) -> bool:
        """It holds the wanted layers only."""
        return self.layer is not None and self.layer_axes > 0

    def map(self, fn: Callable[[Array], Array], **changes: Any) -> "Entry":
        """The entry with every array of its value changed."""
        return dataclasses.replace(self, value=jax.tree.map(fn, self.value), **changes)


type Frame = dict[Key, Entry]
type Rule = Callable[[JaxprEqn, list[Any], Plan], tuple[Sequence[Any], Frame]]


def put(frame: Frame, entries: Frame) -> None:
    """Add entries of an inner scope, counting the visits to each site on."""
    for key in sorted(entries):
        visits = sum(k[:2] == key[:2] for k in frame)
        frame[key[0], key[1], visits] = entries[key]


def run(program: Jaxpr, plan: Plan, inputs: Sequence[Any]) -> tuple[list[Any], Frame]:
    """Run a program. Returns its outputs and what was read in it."""
    from .rules import RULES

    jaxpr, consts = reading.opened(program)
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    frame: Frame = {}
    for eqn in jaxpr.eqns:
        args = [reading.value_of(v, values) for v in eqn.invars]
        if eqn.primitive is tap_p and eqn.params["name"] in plan.names:
            outs = [_tap(eqn, args, plan, frame)]
        elif plan.touches(eqn):
            with eqn.ctx.manager:
                outs, entries = RULES[reading.kind(eqn)](eqn, args, plan)
            put(frame, entries)
        else:
            outs = reading.bind(eqn, args)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [reading.value_of(v, values) for v in jaxpr.outvars], frame


def _tap(eqn: JaxprEqn, args: list[Any], plan: Plan, frame: Frame) -> Array:
    """Read the value before this transformation's edits, edit it, and leave the tap for transformations outside."""
    x, *operands = args
    x = jnp.asarray(x)  # it may be a literal
    p = eqn.params
    layer, spans = split_operands(p, operands)
    static = p["static_layer"]
    key = NO_LAYER if static is None else static
    if not (plan.recomputed and (p["name"], key) in plan.outside):
        for i, want in enumerate(plan.wants):
            if want.name == p["name"] and (want.layers is None or static is None or static in want.layers):
                entry = Entry(_reduced(want, x, p["ndim"]), layer if p["traced_layer"] else None)
                put(frame, {(i, key, 0): entry})
    for edit in plan.edits:
        if edit.name == p["name"]:
            x = edit.apply(x, layer, spans, p)
    return tap_p.bind(x, *operands, **p)


def _reduced(want: Want, x: Array, ndim: int) -> Any:
    if want.reducer is None:
        return x
    reduce: Callable[[Array], Any] = want.reducer
    for _ in range(x.ndim - ndim):
        reduce = jax.vmap(reduce)
    return reduce(x)


def empty_buffer(like: Entry, n: int) -> Entry:
    """Room for n layers of an entry, none filled. An inner loop's buffer has the room already."""
    lead = () if like.is_buffer else (n,)
    return Entry(jax.tree.map(lambda a: zeros_like(a, *lead), like.value), jnp.zeros(n, bool), 1)


def zeros_like(aval: Any, *lead: int) -> Array:
    """Zeros with the type of a traced value, how it is split and varies over mesh axes, and more axes in front."""
    zeros = jnp.zeros((*lead, *aval.shape), aval.dtype)
    if (split := reading.type_sharding(aval)) is not None:
        zeros = jax.reshard(zeros, NamedSharding(split.mesh, PartitionSpec(*[None] * len(lead), *split.spec)))
    varies = tuple(reading.varies_over(aval))
    return jax.lax.pcast(zeros, varies, to="varying") if varies else zeros


def fill(buffer: Entry, entry: Entry, layers: tuple[int, ...]) -> Entry:
    """Write what one turn of a loop over layers has read into a buffer: only the rows of the layers it was at."""
    turn, filled = entry.layer, buffer.layer
    if entry.is_buffer:  # from a loop over layers inside this one

        def merge(old, new):
            return jnp.where(turn.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

        return Entry(jax.tree.map(merge, buffer.value, entry.value), filled | turn, 1)
    match = np.array(layers, np.int32) == turn
    row, hit = jnp.argmax(match), jnp.any(match)

    def write(old, new):
        kept = jax.lax.dynamic_index_in_dim(old, row, 0, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(old, jnp.where(hit, new, kept), row, 0)

    return Entry(jax.tree.map(write, buffer.value, entry.value), filled | match, 1)
