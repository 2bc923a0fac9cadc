# SPDX-License-Identifier: Apache-2.0
"""Calls outside of `jax.jit`: equal programs compile once, and what was compiled is let go of again.

JAX runs a `scan`, `cond` or `while` that is reached outside of jit through a table of 4,096 compiled programs, keyed
by the very object of the loop's body. A body that is traced anew never meets its entry, and the entry stays with its
memory maps, of which Linux gives a process 65,530. So what the library offers outside of jit goes through one of

    compiled(fn)        a pure function of the library: a jit of its own per function, types and Python values
    eagerly(fn, *args)  a function of the user's: staged in every call, so that no closure, global or weight can be an
                        old one, and run operation by operation, each loop by a program that is found by its content

which share a table of `KEPT` programs; the one used longest ago goes, and its derivatives with it. Under jit, scan and
make_jaxpr both are the function itself.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from . import ranges, reading
from .content import content
from .staging import is_array, stage

KEPT = 64
"""Programs. One of the bundled model takes about 80 memory maps, its gradient 300."""
_kept: "OrderedDict[Any, Callable[..., Any]]" = OrderedDict()
_lock = threading.Lock()
_LOOPS = frozenset(
    {"scan", "while", "cond", "platform_dependent", "remat", "shard_map", "reduce", "reduce_window", "linear_solve"}
)
"""What JAX compiles as one operation, by the identity of the programs in it."""
_IN_PIECES = frozenset({"call", "custom_jvp", "custom_vjp", "jit"})
"""What JAX runs operation by operation, loops included; and a jit, which may be traced anew in each call. Without loops
or sites in it, it runs as it is: there may be more small ones in a program than there is room."""


def staging() -> bool:
    """Whether a program is being made: a jit, scan, make_jaxpr, capture or intervene is around."""
    return isinstance(jax.lax.neg(np.float32(0)), Tracer)


def runs_now() -> bool:
    """Whether operations run as they are reached, compiled where they can be; grad or vmap may be around."""
    return not jax.config.jax_disable_jit and not staging()


def compiled[**P, T](fn: Callable[P, T], check: Callable[..., None] | None = None) -> Callable[P, T]:
    """A pure function that is compiled where it is called outside of jit; inside it is the function itself.

    As in `stage`, arrays are arguments and everything else is part of the program. Where that holds a function, which
    may close over anything, the call is one of `eagerly`.

    Args:
      check: called with the arguments before anything is traced, for checks of their values.
    Example:
      >>> @compiled
      ... def total(x):
      ...     return jax.lax.fori_loop(0, 3, lambda i, t: t + x[i], 0.0)
      >>> total(jax.numpy.arange(3.0))
      Array(3., dtype=float32)
    """

    anyhow: Callable[..., T] = fn

    def bound(args: Any, kwargs: Any) -> T:
        return anyhow(*args, **kwargs)

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if check is not None:
            check(*args, **kwargs)
        if not runs_now():
            return fn(*args, **kwargs)
        leaves, tree = jax.tree.flatten((args, kwargs))
        if any(callable(a) and not isinstance(a, Tracer) for a in leaves):
            return eagerly(bound, args, kwargs)
        arrays = [is_array(a) for a in leaves]
        fixed = [None if taken else a for a, taken in zip(leaves, arrays, strict=True)]

        def make():
            def run(*inputs):
                rest = iter(inputs)
                again = [next(rest) if taken else a for a, taken in zip(fixed, arrays, strict=True)]
                return bound(*jax.tree.unflatten(tree, again))

            return run

        try:
            program = _program((fn, tree, tuple(map(_typed, leaves))), make)
        except TypeError:  # a value that cannot be hashed
            return eagerly(bound, args, kwargs)
        return program(*(a for a, taken in zip(leaves, arrays, strict=True) if taken))

    if check is not None:
        call.__dict__["check"] = check  # `capture` and `intervene` call it too
    return call


def eagerly[T](fn: Callable[..., T], *args: Any) -> T:
    """fn(*args); outside of jit its loops run by programs that are kept.

    Example:
      >>> eagerly(lambda x: jax.lax.map(lambda y: y * y, x), jax.numpy.arange(3))
      Array([0, 1, 4], dtype=int32)
    """
    if not runs_now():
        return fn(*args)
    staged = stage(fn, args, {}, frozenset())
    ranges.check(staged.program, staged.inputs)
    return staged.unflatten(_evaluated(staged.program, staged.inputs))


def _evaluated(program: Jaxpr, inputs: Sequence[Any]) -> list[Any]:
    """What a program gives, operation by operation."""
    jaxpr, consts = reading.opened(program)
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    last = {v: n for n, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, Literal)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)}
    for n, eqn in enumerate(jaxpr.eqns):
        args = [reading.value_of(v, values) for v in eqn.invars]
        outs = (_once if _holds_loop(eqn) else reading.bind)(eqn, args)
        values.update(zip(eqn.outvars, outs, strict=True))
        for v in {v for v in (*eqn.invars, *eqn.outvars) if not isinstance(v, Literal) and last.get(v, n) == n}:
            values.pop(v, None)  # nobody reads it any more
    return [reading.value_of(v, values) for v in jaxpr.outvars]


def _holds_loop(eqn: JaxprEqn) -> bool:
    what = reading.kind(eqn)
    if what == "jit":
        if any(reading.params(eqn)["donated_invars"]):
            return False  # a jit around it would keep what it gives away
        if reading.holds_site(eqn):
            return True
    if what not in _IN_PIECES:
        return what in _LOOPS
    return any(_holds_loop(inner) for p in reading.programs(eqn) for inner in reading.opened(p)[0].eqns)


def _once(eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Run an equation by one compiled function for all that are equal down to the last operation."""
    fixed = [a if isinstance(v, Literal) else None for v, a in zip(eqn.invars, args, strict=True)]
    is_input = [not isinstance(v, Literal) for v in eqn.invars]

    def make():
        def run(*inputs):
            rest = iter(inputs)
            return reading.bind(eqn, [next(rest) if i else a for a, i in zip(fixed, is_input, strict=True)])

        return run

    inputs = [a for a, i in zip(args, is_input, strict=True) if i]
    key = _once, content(eqn, rules=any(isinstance(a, Tracer) for a in inputs))
    try:
        hash(key)
    except TypeError:
        key = object()  # equal to nothing: compiled, and let go of
    return _program(key, make)(*inputs)


def _program(key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """The compiled function of a key: a jit of its own, so that its programs go when it goes."""
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    made = jax.jit(make())
    with _lock:
        _kept[key] = made
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return made


def _typed(x: Any) -> Any:
    """What a program depends on of a value: all of a Python value, the type of an array."""
    if is_array(x):
        aval = jax.typeof(x)
        return "array", aval.shape, aval.dtype, getattr(aval, "weak_type", False)
    return type(x), repr(x) if isinstance(x, float | complex) else x
