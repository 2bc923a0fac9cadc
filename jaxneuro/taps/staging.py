# SPDX-License-Identifier: Apache-2.0
"""From a function and its arguments to a program, and the sites in it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr

from ..errors import UserError, shown
from .names import parse
from .primitive import EVERYTHING, wanted
from .survey import Survey, survey


def is_array(x: Any) -> bool:
    """Whether an argument is an input of a staged program; anything else is part of the program."""
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


class Staged(NamedTuple):
    program: Jaxpr
    inputs: list[Any]
    unflatten: Callable[[Sequence[Any]], Any]


def stage(fn: Callable[..., Any], args: Any, kwargs: Any, names: frozenset[str]) -> Staged:
    """The program of fn. Arrays are its inputs; Python numbers, strings and other objects are constants, so that
    arguments a caller holds static stay static."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    is_input = [is_array(a) for a in leaves]

    def flat(*inputs):
        rest = iter(inputs)
        args, kwargs = jax.tree.unflatten(tree, [next(rest) if i else a for a, i in zip(leaves, is_input, strict=True)])
        return fn(*args, **kwargs)

    inputs = [a for a, i in zip(leaves, is_input, strict=True) if i]
    # Under disable_jit a scan would be staged as a Python loop.
    with wanted(wanted.value | names), jax.disable_jit(False):
        program, shape = jax.make_jaxpr(flat, return_shape=True)(*inputs)
    return Staged(program, inputs, functools.partial(jax.tree.unflatten, jax.tree.structure(shape)))


def check_callable(fn: Any) -> None:
    """What is transformed is a function.

    Raises:
      UserError: it is not.
    """
    if not callable(fn):
        raise UserError(f"{shown(fn)} is not a function: give a model's as model.apply, which takes (weights, tokens).")


def check_arguments(fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """What a function says of its arguments while their values can still be looked at: its attribute `check`, called
    with them, raises. Wrappers of the function keep it."""
    check_callable(fn)
    check = getattr(fn, "check", None)
    if callable(check):
        check(*args, **kwargs)


def look(fn: Callable[..., Any], args: Any, kwargs: Any, asked: Sequence[str]) -> tuple[Staged, Survey]:
    """Stage fn and find the sites. Sites on a path that the model takes only if something else is wanted count too."""
    check_arguments(fn, args, kwargs)
    if EVERYTHING in asked:
        staged = stage(fn, args, kwargs, frozenset({EVERYTHING}))
        return staged, survey(staged.program)
    names = [parse(site) for site in asked]
    staged = stage(fn, args, kwargs, frozenset(n.base for n in names))
    found = survey(staged.program)
    if not {n.name for n in names} <= set(found.names):
        staged = stage(fn, args, kwargs, frozenset({EVERYTHING}))
        found = survey(staged.program)
    return staged, found
