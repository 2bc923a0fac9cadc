# SPDX-License-Identifier: Apache-2.0
"""Every place where a staged program reaches a site, found before anything runs."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from . import reading
from .constants import Known, Scope
from .primitive import split_operands, tap_p

NO_LAYER = -1
type Key = tuple[str | int, int, int]
"""(which site or request, the layer if it is written in the program, the how many-th of these in its scope)."""


@dataclasses.dataclass(frozen=True)
class Occurrence:
    """One place where a program reaches a site."""

    name: str
    layer: Known | None
    """None if the site has no layer."""
    static_layer: int
    """The layer, where it is a Python int; else NO_LAYER."""
    shape: tuple[int, ...]
    """Of the site itself, whole where shard_map splits it along declared axes."""
    lead: tuple[int, ...]
    """Axes in front of it that vmap put there."""
    dtype: Any
    axes: tuple[str, ...] | None
    spans: dict[str, int | None]
    """Of the spans that its tap was given, how many positions a row has at most; None: known when the program runs."""
    around: tuple[str, ...]
    """Kinds of the equations around it, outermost first."""
    recomputed: bool
    """It is inside the recomputation of a rematerialised program."""
    read: bool
    """Something reads the tap's result."""

    @property
    def layers(self) -> list[int] | None:
        """Layer numbers in the order in which captures stack them; None: no layer, or not known before running."""
        if self.layer is None or self.layer.values is None:
            return None
        over = sorted(self.layer.loops)
        rest = [a for a in range(self.layer.values.ndim) if a not in over]
        return [int(n) for n in self.layer.values.transpose(over + rest).reshape(-1)]


@dataclasses.dataclass(frozen=True)
class _Place:
    around: tuple[str, ...] = ()
    mesh: tuple[tuple[str, int], ...] = ()  # manual mesh axes and their sizes
    recomputed: bool = False


@dataclasses.dataclass(frozen=True)
class Survey:
    """All occurrences, and those that a capture reports."""

    all: list[Occurrence]
    captured: dict[Key, Occurrence]
    outside: frozenset[tuple[str, int]]
    """(name, static layer) of the sites reached outside recomputations, which do not report them again."""

    def of(self, name: str) -> list[Occurrence]:
        """All occurrences of one site."""
        return [o for o in self.all if o.name == name]

    @property
    def names(self) -> list[str]:
        """Names of all sites, sorted."""
        return sorted({o.name for o in self.all})


def survey(program: Any) -> Survey:
    """Walk a closed program."""
    scope = Scope(program, [lambda: Known(None, frozenset())] * len(reading.opened(program)[0].invars))
    live = [True] * len(scope.jaxpr.outvars)
    place = _Place(mesh=manual_mesh())
    found = list(_walk(scope, live, place, frozenset()).values())
    outside = frozenset((o.name, o.static_layer) for o in found if not o.recomputed)
    if any(o.recomputed for o in found):
        return Survey(found, _walk(scope, live, place, outside), outside)
    return Survey(found, number(found), outside)


def number(found: list[Occurrence]) -> dict[Key, Occurrence]:
    """Key occurrences of one scope, in the order in which the program reaches them."""
    seen: Counter[tuple[str, int]] = Counter()
    keyed = {}
    for o in found:
        keyed[o.name, o.static_layer, seen[o.name, o.static_layer]] = o
        seen[o.name, o.static_layer] += 1
    return keyed


def manual_mesh() -> tuple[tuple[str, int], ...]:
    """Mesh axes (and sizes) over which the code now being traced sees only its own shard."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple((a, mesh.shape[a]) for a in mesh.manual_axes)


def layer_loops(eqn: JaxprEqn, recomputed: bool, outside: frozenset[tuple[str, int]]) -> dict[Key, bool]:
    """For each site that a capture finds in a scan: whether the scan runs over its layers."""
    scope = Scope.of_body(eqn)
    found = _walk(scope, [True] * len(scope.jaxpr.outvars), _Place(recomputed=recomputed), outside)
    return {key: o.layer is not None and 0 in o.layer.loops for key, o in found.items()}


def _walk(scope: Scope, live: list[bool], place: _Place, skip: frozenset[tuple[str, int]]) -> dict[Key, Occurrence]:
    found: list[Occurrence] = []
    for eqn, read in _reads(scope.jaxpr, live):
        if eqn.primitive is tap_p:
            here = _occurrence(scope, eqn, read[0], place)
            if not (here.recomputed and (here.name, here.static_layer) in skip):
                found.append(here)
        elif reading.holds_site(eqn):
            inside = [
                _walk(s, _live_inside(eqn, read, len(s.jaxpr.outvars)), _enter(place, eqn), skip)
                for s in scope.enter(eqn)
            ]
            found += _either(inside).values()
    return number(found)


def _occurrence(scope: Scope, eqn: JaxprEqn, read: bool, place: _Place) -> Occurrence:
    p = eqn.params
    layer, _ = split_operands(p, eqn.invars[1:])
    if layer is not None:
        layer = scope.known(layer) if p["traced_layer"] else scope.constant(layer)
    value: Any = eqn.invars[0].aval
    full = value.shape
    cut = len(full) - p["ndim"]
    shape = whole_shape(full[cut:], p["spec"], dict(place.mesh))
    static = NO_LAYER if p["static_layer"] is None else p["static_layer"]
    dtype = value.dtype
    return Occurrence(
        p["name"],
        layer,
        static,
        shape,
        full[:cut],
        dtype,
        p["axes"],
        {name: size for name, _, size in p["spans"]},
        place.around,
        place.recomputed,
        read,
    )


def whole_shape(shape: tuple[int, ...], spec: Any, mesh: dict[str, int]) -> tuple[int, ...]:
    """The shape of a value of which this is one shard."""
    return tuple(n * shards(entry, mesh) for n, entry in zip(shape, spec or (None,) * len(shape), strict=True))


def shards(entry: Any, mesh: dict[str, int]) -> int:
    """Into how many parts one entry of a partition spec splits its axis."""
    return int(np.prod([mesh.get(a, 1) for a in mesh_axes(entry)], dtype=np.int64))


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a partition spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _reads(jaxpr: Any, live: list[bool]) -> Iterator[tuple[JaxprEqn, list[bool]]]:
    """Each equation, with which of its outputs are read by something that matters."""
    used = {v for v, wanted in zip(jaxpr.outvars, live, strict=True) if wanted and not isinstance(v, Literal)}
    found = []
    for eqn in reversed(jaxpr.eqns):
        read = [v in used for v in eqn.outvars]
        if any(read) or eqn.effects:
            used |= {v for v in eqn.invars if not isinstance(v, Literal)}
        found.append((eqn, read))
    return reversed(found)


def _live_inside(eqn: JaxprEqn, read: list[bool], n_outputs: int) -> list[bool]:
    """Which outputs of a program inside an equation are read. A loop may read its own carry: then all are."""
    some = any(read) or bool(eqn.effects)
    if reading.kind(eqn) == "scan":
        n_carry = reading.scan(eqn).n_carry
        return [some] * n_carry + read[n_carry:]
    return read if reading.kind(eqn) != "while" and len(read) == n_outputs else [some] * n_outputs


def _enter(place: _Place, eqn: JaxprEqn) -> _Place:
    what = reading.kind(eqn)
    place = dataclasses.replace(place, around=(*place.around, what))
    if what == "remat":
        return dataclasses.replace(place, recomputed=place.recomputed or reading.remat(eqn).recomputes)
    if what == "shard_map":
        call = reading.shard_map(eqn)
        return dataclasses.replace(place, mesh=place.mesh + tuple((a, call.mesh.shape[a]) for a in sorted(call.axes)))
    return place


def _either(branches: list[dict[Key, Occurrence]]) -> dict[Key, Occurrence]:
    """One occurrence for the same site in several branches of a conditional; other equations have one branch."""
    merged: dict[Key, Occurrence] = {}
    for branch in branches:
        for key, o in branch.items():
            if key not in merged:
                merged[key] = o
                continue
            first = merged[key]
            layer, read = first.layer, first.read or o.read
            if layer is not None and first.layers != o.layers:
                layer = Known(None, layer.loops)
            merged[key] = dataclasses.replace(first, layer=layer, read=read)
    return merged
