# SPDX-License-Identifier: Apache-2.0
"""Which layers a scanned site stands for: its layer index, worked out from the program before it runs.

A layer index is integer arithmetic on iota, literals and loop counters. It is followed backwards from the tap, with
numpy, once for every iteration of the loops around it. What cannot be worked out is unknown, never guessed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Literal

from . import reading

_MAX_SIZE = 2**22
"""Entries. Tables of layers are short; the points of a sweep, whose indices are followed too, may be many."""


class Known(NamedTuple):
    """An integer value inside `depth` nested scans."""

    values: np.ndarray | None
    """[*loops, *shape]: one leading axis per enclosing scan, of size 1 where the value is the same in each turn."""
    loops: frozenset[int]
    """The enclosing scans, counted from the outermost, from turn to turn of which it may change."""


def unknown(depth: int) -> Known:
    """A value of which nothing is known: it may change with every loop."""
    return Known(None, frozenset(range(depth)))


def _divide(a, b):
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))  # XLA's integer division truncates


def _broadcast(p, a):
    shape = [1] * len(p["shape"])
    for axis, n in zip(p["broadcast_dimensions"], a.shape, strict=True):
        shape[axis] = n
    return np.broadcast_to(a.reshape(shape), p["shape"])


def _iota(p):
    shape = [1] * len(p["shape"])
    shape[p["dimension"]] = -1
    return np.broadcast_to(np.arange(p["shape"][p["dimension"]]).reshape(shape), p["shape"])


def _slice(p, a):
    steps = p["strides"] or (1,) * a.ndim
    return a[tuple(slice(*s) for s in zip(p["start_indices"], p["limit_indices"], steps, strict=True))]


def _dynamic_slice(p, a, *starts):
    sizes = p["slice_sizes"]
    starts = [int(np.clip(s, 0, n - k)) for s, n, k in zip(starts, a.shape, sizes, strict=True)]
    return a[tuple(slice(s, s + k) for s, k in zip(starts, sizes, strict=True))]


# primitive -> (its parameters, inputs) -> output; the arithmetic that layer indices are made of
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "iota": _iota,
    "add": lambda p, a, b: a + b,
    "sub": lambda p, a, b: a - b,
    "mul": lambda p, a, b: a * b,
    "div": lambda p, a, b: _divide(a, b),
    "rem": lambda p, a, b: np.fmod(a, b),
    "neg": lambda p, a: -a,
    "sign": lambda p, a: np.sign(a),
    "max": lambda p, a, b: np.maximum(a, b),
    "min": lambda p, a, b: np.minimum(a, b),
    "lt": lambda p, a, b: a < b,
    "le": lambda p, a, b: a <= b,
    "gt": lambda p, a, b: a > b,
    "ge": lambda p, a, b: a >= b,
    "eq": lambda p, a, b: a == b,
    "ne": lambda p, a, b: a != b,
    "and": lambda p, a, b: a & b,
    "or": lambda p, a, b: a | b,
    "not": lambda p, a: ~a,
    "select_n": lambda p, which, *cases: np.choose(which.astype(np.int64), cases),
    "convert_element_type": lambda p, a: a.astype(p["new_dtype"]),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda p, a: a.reshape(p["new_sizes"]),
    "squeeze": lambda p, a: np.squeeze(a, p["dimensions"]),
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "concatenate": lambda p, *a: np.concatenate(a, p["dimension"]),
    "rev": lambda p, a: np.flip(a, p["dimensions"]),
    "copy": lambda p, a: a,
    "stop_gradient": lambda p, a: a,
    "in_range": lambda p, a: a,
}
SAME_INPUTS = ("jit", "call", "remat", "custom_jvp", "custom_vjp", "shard_map")


class Scope:
    """A program with what is known of its inputs; answers for one variable at a time."""

    def __init__(self, program: Jaxpr, inputs: list[Callable[[], Known]], depth: int = 0):
        self.jaxpr, consts = reading.opened(program)
        self.depth = depth
        self._memo: dict[Any, Known] = {}
        self._consts = dict(zip(self.jaxpr.constvars, consts, strict=True))
        self._inputs = dict(zip(self.jaxpr.invars, inputs, strict=True))
        self._made = {v: eqn for eqn in self.jaxpr.eqns for v in eqn.outvars}

    def known(self, atom: Any) -> Known:
        """What is known of a variable or literal of this program."""
        if isinstance(atom, Literal):
            return self.constant(atom.val)
        if atom not in self._memo:
            known = self._find(atom)
            fits = known.values is not None and known.values.shape[self.depth :] == atom.aval.shape
            self._memo[atom] = known if fits else Known(None, known.loops)
        return self._memo[atom]

    def enter(self, eqn: Any) -> list["Scope"]:
        """The scopes of the programs inside an equation."""
        what = reading.kind(eqn)
        programs = reading.programs(eqn)
        if what == "scan":
            return [_body(eqn, self.known, self.depth)]
        if what == "cond" or what in SAME_INPUTS:
            inputs = [lambda v=v: self.known(v) for v in eqn.invars[1 if what == "cond" else 0 :]]
            return [Scope(p, inputs, self.depth) for p in programs]
        nothing = lambda: unknown(self.depth)  # noqa: E731
        return [Scope(p, [nothing] * len(reading.opened(p)[0].invars), self.depth) for p in programs]

    @staticmethod
    def of_body(eqn: Any) -> "Scope":
        """The body of a scan by itself, where nothing is known but what changes from turn to turn."""
        return _body(eqn, lambda _: Known(None, frozenset()), 0)

    def constant(self, value: Any) -> Known:
        """A value written in the program."""
        here = not isinstance(value, Tracer) and getattr(value, "is_fully_addressable", True)
        if not here or np.size(value) > _MAX_SIZE or not is_integer(value):
            return Known(None, frozenset())
        array = np.asarray(value)
        return Known(array.reshape((1,) * self.depth + array.shape), frozenset())

    def _find(self, var: Any) -> Known:
        if var in self._consts:
            return self.constant(self._consts[var])
        return self._inputs[var]() if var in self._inputs else self._follow(var)

    def _follow(self, var: Any) -> Known:
        eqn = self._made[var]
        what, k = reading.kind(eqn), eqn.outvars.index(var)
        if not is_integer(var.aval) or np.prod(var.aval.shape) > _MAX_SIZE:
            return unknown(self.depth)
        if what in SAME_INPUTS:
            (scope,) = self.enter(eqn)[:1]
            return scope.known(scope.jaxpr.outvars[k])
        if what == "scan" and k >= (loop := reading.scan(eqn)).n_carry:
            return self._stacked(eqn, loop, k)
        if what == "optimization_barrier":
            return self.known(eqn.invars[k])
        if what not in _ARITHMETIC:
            return unknown(self.depth)
        return self._calculate(_ARITHMETIC[what], eqn.params, [self.known(v) for v in eqn.invars])

    def _calculate(self, rule: Callable[..., Any], params: dict[str, Any], inputs: list[Known]) -> Known:
        """Apply one operation in each turn of the loops over which an input changes."""
        loops = frozenset().union(*(i.loops for i in inputs))
        if any(i.values is None for i in inputs):
            return Known(None, loops)
        arrays = [i.values for i in inputs if i.values is not None]
        turns = np.broadcast_shapes((1,) * self.depth, *(a.shape[: self.depth] for a in arrays))
        with np.errstate(all="ignore"):  # integers wrap
            rows = [np.asarray(rule(params, *(_in_turn(a, turn) for a in arrays))) for turn in np.ndindex(turns)]
        return Known(np.stack(rows).reshape(turns + rows[0].shape) if rows else None, loops)

    def _stacked(self, eqn: Any, loop: reading.Scan, k: int) -> Known:
        """An output that a scan stacks: the loop's axis becomes the value's first axis."""
        (body,) = self.enter(eqn)
        row = body.known(body.jaxpr.outvars[k])
        if row.values is None:
            return Known(None, row.loops - {self.depth})
        shape = list(row.values.shape)
        shape[self.depth] = loop.length
        return Known(np.broadcast_to(row.values, shape), row.loops - {self.depth})


def _body(eqn: Any, outside: Callable[[Any], Known], depth: int) -> Scope:
    """The scope of a scan's body, `outside` telling what is known of the scan's inputs."""
    loop = reading.scan(eqn)
    body = reading.opened(loop.body)[0]

    def const(v):
        return _insert_axis(outside(v), depth)

    def carry(v, inside, after):
        first = const(v)
        step = _step(body, inside, after)
        loops = first.loops | {depth}
        if step is None or first.values is None or inside.aval.shape:
            return Known(None, loops)
        turns = np.arange(loop.length)
        return Known(first.values + step * (turns[::-1] if loop.reverse else turns), loops)

    def row(v):  # the scanned axis is the first after those of the outer loops: where the new loop's axis belongs
        known = outside(v)
        return Known(known.values, known.loops | {depth})

    n, m = loop.n_consts, loop.n_consts + loop.n_carry
    inputs = [partial(const, v) for v in eqn.invars[:n]]
    inputs += [partial(carry, *vs) for vs in zip(eqn.invars[n:m], body.invars[n:m], body.outvars[: m - n], strict=True)]
    inputs += [partial(row, v) for v in eqn.invars[m:]]
    return Scope(loop.body, inputs, depth + 1)


def _in_turn(a: np.ndarray, turn: tuple[int, ...]) -> np.ndarray:
    return a[tuple(min(t, n - 1) for t, n in zip(turn, a.shape, strict=False))]


def is_integer(x: Any) -> bool:
    """Whether a value, or the type of one, is of whole numbers or booleans."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return isinstance(x, int)
    return not jax.dtypes.issubdtype(dtype, jax.dtypes.extended) and np.dtype(dtype).kind in "iub"


def _insert_axis(known: Known, axis: int) -> Known:
    return known if known.values is None else Known(np.expand_dims(known.values, axis), known.loops)


def _step(body: Jaxpr, inside: Any, outside: Any) -> int | None:
    """By how much a loop's carry grows each turn, if it is plain counting."""
    for eqn in body.eqns:
        if outside in eqn.outvars and eqn.primitive.name == "add":
            step = [a.val for a in eqn.invars if isinstance(a, Literal)]
            if len(step) == 1 and any(a is inside for a in eqn.invars):
                return int(step[0])
    return None
