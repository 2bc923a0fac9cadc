# SPDX-License-Identifier: Apache-2.0
"""The numbers that a method is made with are of the type that its signature says."""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, get_args

import jax
import numpy as np
from jax.core import Tracer

from ...io.fields import Kind, number, whole

_INT: Final = whole(None)  # of 32 bits, as what counts latents, tokens and steps
_KINDS: Final[Mapping[Any, Kind]] = {int: _INT, int | None: _INT, float: number(), float | None: number()}


def numbers_checked[**P, R](make: Callable[P, R]) -> Callable[P, R]:
    """A maker of methods that refuses numbers of another type; which of them make sense is the maker's own to say.

    Looked at are the arguments annotated as int or float, with None or without. Numbers of numpy and JAX without axes
    are numbers too.

    Raises (of what is returned):
      UserError: text, a bool, NaN, a list, or a fraction where a whole number is needed.
    Example:
      >>> numbers_checked(lambda k: k)(2)  # nothing is annotated
      2
      >>> @numbers_checked
      ... def method(n_latents: int, l1: float = 0.1): ...
      >>> method(2.5)
      Traceback (most recent call last):
      jaxneuro.errors.UserError: method: n_latents = 2.5 is not a whole number.
    """
    annotations = {n: p.annotation for n, p in inspect.signature(make).parameters.items()}

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        _check(make.__name__, annotations, dict(zip(annotations, args, strict=False)) | kwargs)
        return make(*args, **kwargs)

    return made


def check_fields(settings: Any, optional: Sequence[str] = ()) -> None:
    """The same of a dataclass, in its `__post_init__`.

    Args:
      settings: the dataclass.
      optional: fields that hold numbers or None this time, whatever else their annotations allow.

    Raises:
      UserError: as above.
    Example:
      >>> @dataclasses.dataclass
      ... class Settings:
      ...   steps: int | None = None
      ...   __post_init__ = check_fields
      >>> Settings().steps, Settings(3).steps
      (None, 3)
      >>> Settings("3")
      Traceback (most recent call last):
      jaxneuro.errors.UserError: Settings: steps = '3' is not a whole number.
    """
    fields: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(settings)}
    fields |= dict.fromkeys(optional, float | None)
    _check(type(settings).__name__, fields, {name: getattr(settings, name) for name in fields})


def _check(where: str, annotations: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        kind = annotations.get(name)
        if kind in _KINDS and not isinstance(value, Tracer) and not (value is None and None in _parts(kind)):
            _KINDS[kind].of(_plain(value), f"{where}: {name}")


def _parts(kind: Any) -> tuple[Any, ...]:
    return tuple(None if part is types.NoneType else part for part in get_args(kind))


def _plain(value: Any) -> Any:
    """A number of numpy or JAX as Python's."""
    scalar = isinstance(value, np.generic | np.ndarray | jax.Array) and not value.ndim
    return value.item() if scalar else value
