# SPDX-License-Identifier: Apache-2.0
"""What the fields of configurations may hold: by their annotations, `Annotated[float, EPS]` where a type is not enough.

The same kinds are asked of what config.json says and of what is written in Python.
"""

import dataclasses
import functools
import types
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import UserError, quoted
from ..io.fields import FLAG, TEXT, Kind, choice, null_or, number, whole

SIZE: Final = whole(0)
"""Of an `int` that says nothing else; 0 stands for "none"."""
LAYERS: Final = whole(1, 10_000)
"""A config is read before the file is looked at, and makes an entry per layer."""
LONGEST_CONTEXT: Final = 2**24
"""Positions; the longest that is published has 10 million (Llama 4 Scout)."""
CONTEXT: Final = whole(0, LONGEST_CONTEXT)
EPS: Final = number(above=0, high=0.1)
"""What a norm adds to a variance: 1e-12 to 1e-5 in every model that is published."""
LONGEST_STEP: Final = 1e6
"""Of a state space, in tokens."""
SCALE: Final = number(above=0, high=1e6)
THETA: Final = number(low=1, high=1e15)
"""Base of rotary frequencies; below 1 the later waves would be the faster ones."""
STRETCH: Final = number(low=1, high=1e6)
"""By how much positions are stretched."""


@functools.cache
def kinds_of(cls: type) -> dict[str, Kind[Any]]:
    """{field: kind} of a dataclass; fields that are objects of their own are not in it."""
    hints = get_type_hints(cls, include_extras=True)
    found = {f.name: _of_annotation(hints[f.name]) for f in dataclasses.fields(cls)}
    return {name: kind for name, kind in found.items() if kind is not None}


def _of_annotation(hint: Any) -> Kind[Any] | None:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((a for a in args[1:] if isinstance(a, Kind)), None)
    if origin in (Union, types.UnionType) and types.NoneType in args and len(args) == 2:
        inner = _of_annotation(next(a for a in args if a is not types.NoneType))
        return None if inner is None else null_or(inner)
    if origin is Literal:
        return choice(args)
    return {bool: FLAG, int: SIZE, str: TEXT}.get(hint)


def check_fields(config: Any, prefix: str = "") -> None:
    """Every field of a configuration against its kind.

    Raises:
      UserError: all that do not fit.
    """
    kinds, values = kinds_of(type(config)), vars(config)
    wrong = [f"{prefix}{n}={quoted(values[n])} is not {k.wanted}" for n, k in kinds.items() if not k.fits(values[n])]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}.")


class Checked:
    """A dataclass whose fields are checked when it is made."""

    def __post_init__(self):
        check_fields(self)
