# SPDX-License-Identifier: Apache-2.0
"""Indices that are traced: checked where their numbers can be found all the same, NaN where they cannot.

`within` marks an index in the program with what it may be. Outside of jit the numbers exist although the program of
one point does not hold them: `check` follows them from the inputs to each mark, before anything runs.
"""

import weakref
from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Int

from ..errors import UserError
from . import reading
from .constants import SAME_INPUTS, Known, Scope, is_integer
from .names import parse

range_p: Final = Primitive("in_range")
"""Identity of an index. Its parameters are what `check_index` is told."""

type Have = int | tuple[int, ...]
type Ends = tuple[int | None, ...]
"""() where any order will do; (n,) where a list must ascend along n entries; (None,) where each row has its end."""


def within(index: Array, site: str, axis: str, have: Have) -> tuple[Int[Array, "..."], Array]:
    """(the index, marked; whether any of it is not there). `have`: an axis's length, or layer numbers."""
    index = marked(index, site, axis, have)
    return index, missing(index, have)


def marked(index: Array, site: str, axis: str, have: Have | None, ends: Ends = ()) -> Int[Array, "..."]:
    """The index, marked with what `check_index` asks of it."""
    return range_p.bind(jnp.asarray(index), site=site, axis=axis, have=have, ends=ends)


def missing(index: Array, have: Have) -> Array:
    """Whether any of an index is not there."""
    return jnp.any(_outside(index, have))


def check(program: Jaxpr, inputs: Sequence[Any]) -> None:
    """Every marked index whose numbers follow from these inputs is there.

    Branches and loops with an unknown number of turns are left out: they may never run.

    Raises:
      UserError: one is not.
    """
    if _marked(program):
        _check(Scope(program, [lambda x=x: _input(x) for x in inputs]))


def traced(program: Any, *args: Any, **static: Any) -> Any:
    """What a jitted function gives for these arguments, as shapes, after the `check` of its program: not run."""
    made = program.trace(*args, **static)
    check(made.jaxpr, jax.tree.leaves(args))
    return made.out_info


def check_index(
    index: np.ndarray, site: str, axis: str, have: Have | None, who: str = "intervene", ends: Ends = ()
) -> None:
    """Indices of an axis, or layers, that are known.

    Raises:
      UserError: one is not there, or they do not ascend where they must.
    """
    where = f"{who}({site!r})"
    if have is not None and (bad := index[np.asarray(_outside(index, have, np))]).size:
        raise _not_there(where, site, axis, have, bad)
    if not all(_ascends(index, n) for n in ends):
        raise UserError(
            f"{where}: {axis}={index.tolist()} does not ascend, and the value has this axis: entry i of the value "
            "belongs to entry i of the site, in whatever order they are named. Name them in ascending order, and the "
            "first ones and those counted from the end in edits of their own."
        )


def _not_there(where: str, site: str, axis: str, have: Have, bad: np.ndarray) -> UserError:
    if isinstance(have, int):
        return UserError(
            f"{where}: {axis}={bad.flat[0]} is out of range; the axis has {have} entries, {-have} to {have - 1}."
        )
    return UserError(f"{where}: no layer {bad.flat[0]} at {parse(site).name!r}. It has {ranges(list(have))}.")


def _ascends(index: np.ndarray, n: int | None) -> bool:
    """Whether a list, or each of several, is in the order of its axis of n entries."""
    if n is None and index.size and index.min() < 0 <= index.max():
        return False  # where rows end is not known, so negative positions may be below all others or above
    index = index.astype(np.int64)
    return bool(np.all(np.diff(index if n is None else np.where(index < 0, index + n, index)) > 0))


def ranges(numbers: list[int]) -> str:
    """Layer numbers in words."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"layers {numbers[0]} to {numbers[-1]}"
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    return f"the layers {', '.join(map(str, numbers))}" if numbers else "none"


def _outside(index: Any, have: Have, xp: Any = jnp) -> Any:
    if index.dtype.itemsize < 4:
        index = index.astype(np.int32)  # which holds what the axis has
    n = have if isinstance(have, int) else have[-1] + 1 if have else 0
    if np.issubdtype(index.dtype, np.signedinteger):
        index = xp.where(index < 0, index + np.asarray(n, index.dtype), index)
    if isinstance(have, int):
        return (index < 0) | (index >= np.asarray(n, index.dtype))
    return ~xp.isin(index, np.array(have, index.dtype))


def _input(x: Any) -> Known:
    if (
        isinstance(x, Tracer | jax.ShapeDtypeStruct)
        or not is_integer(x)
        or not getattr(x, "is_fully_addressable", True)
    ):
        return Known(None, frozenset())
    return Known(np.asarray(x), frozenset())


_marks: "weakref.WeakKeyDictionary[Jaxpr, bool]" = weakref.WeakKeyDictionary()


def _marked(program: Jaxpr) -> bool:
    jaxpr, _ = reading.opened(program)
    if jaxpr not in _marks:
        inner = (p for e in jaxpr.eqns for p in reading.programs(e))
        _marks[jaxpr] = any(e.primitive is range_p for e in jaxpr.eqns) or any(map(_marked, inner))
    return _marks[jaxpr]


def _check(scope: Scope) -> None:
    for eqn in scope.jaxpr.eqns:
        if eqn.primitive is range_p:
            known = scope.known(eqn.invars[0]).values
            if known is not None:
                check_index(known, **eqn.params)
        elif reading.kind(eqn) in ("scan", *SAME_INPUTS) and any(map(_marked, reading.programs(eqn))):
            for inner in scope.enter(eqn):
                _check(inner)


def _run(index: Any, **params: Any) -> Any:
    check_index(np.asarray(index), **params)
    return index


range_p.def_impl(_run)
ad.primitive_jvps[range_p] = lambda primals, tangents, **params: (range_p.bind(*primals, **params), tangents[0])
range_p.def_abstract_eval(lambda index, **_: index)
mlir.register_lowering(range_p, lambda ctx, index, **_: [index])
batching.primitive_batchers[range_p] = lambda args, dims, **params: (range_p.bind(*args, **params), dims[0])
