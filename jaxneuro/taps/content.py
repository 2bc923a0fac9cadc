# SPDX-License-Identifier: Apache-2.0
"""When two staged equations are the same program: nested tuples that are equal for equal content.

JAX compares the program inside an equation by identity, so one that is traced anew is new to its caches. Here it is
compared operation by operation. What cannot be looked into (a function, an array inside a program) is the same only if
it is the very same object.
"""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from . import reading

_DERIVATIVES = frozenset({"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees", "symbolic_zeros", "bwd_jaxpr"})
"""Parameters that matter only where the program is differentiated."""
_SMALL = 64
"""Numbers of an array that may be read back from its device to compare it."""


def content(eqn: JaxprEqn, rules: bool) -> Any:
    """An equation as nested tuples that are equal for equal ones, whatever the variables inside are called.

    rules: also the derivative rules of its custom_jvp and custom_vjp, by identity.
    """
    return _equation(eqn, rules), tuple(_literal(v) for v in eqn.invars if isinstance(v, Literal))


def _equation(eqn: JaxprEqn, rules: bool) -> Any:
    skipped = frozenset() if rules else _DERIVATIVES
    params = tuple((k, _value(v, rules)) for k, v in sorted(reading.params(eqn).items()) if k not in skipped)
    kinds = tuple((v.aval, isinstance(v, Literal)) for v in eqn.invars)
    return eqn.primitive, params, eqn.ctx, kinds, tuple(v.aval for v in eqn.outvars)


def _value(x: Any, rules: bool) -> Any:
    if isinstance(x, Jaxpr | ClosedJaxpr):  # constants of an inner program are part of it
        return _program(x, rules), tuple(map(_constant, reading.opened(x)[1]))
    if isinstance(x, tuple | list):
        return type(x), tuple(_value(v, rules) for v in x)
    if isinstance(x, dict):
        return type(x), tuple((k, _value(v, rules)) for k, v in x.items())
    if isinstance(x, np.ndarray | np.generic):
        return type(x), x.shape, x.dtype, x.tobytes()
    return type(x), repr(x) if isinstance(x, float | complex) else x  # 0.0 equals -0.0, and NaN nothing


def _constant(x: Any) -> Any:
    """Numpy's arrays by what is in them, for they may be written to; a device's by identity, unless it is small."""
    if isinstance(x, np.ndarray | np.generic):
        return _value(x, rules=False)
    plain = (
        isinstance(x, jax.Array)
        and not isinstance(x, Tracer)
        and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
    )
    if plain and x.size <= _SMALL and x.is_fully_addressable:
        return jax.typeof(x), x.sharding, np.asarray(x).tobytes()
    return _Same(x)


def _program(program: Any, rules: bool) -> Any:
    jaxpr, _ = reading.opened(program)
    numbers: dict[Any, int] = {}

    def atom(v: Any) -> Any:
        return _literal(v) if isinstance(v, Literal) else numbers.setdefault(v, len(numbers))

    names = tuple((atom(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
    rows = tuple((tuple(map(atom, e.invars)), _equation(e, rules), tuple(map(atom, e.outvars))) for e in jaxpr.eqns)
    return names, rows, tuple(map(atom, jaxpr.outvars))


def _literal(v: Literal) -> Any:
    value = np.asarray(v.val)
    return v.aval, type(v.val), value.dtype, value.tobytes() if value.dtype != object else _Same(v.val)


class _Same:
    """A value that equals itself only, kept alive so that it stays the only one at its address."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
