# SPDX-License-Identifier: Apache-2.0
"""The numbers that a method is made with are of the type that its signature says."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

import jax
import numpy as np

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
    signature = inspect.signature(make)
    kinds = {n: _KINDS[p.annotation] for n, p in signature.parameters.items() if p.annotation in _KINDS}
    optional = {n for n in kinds if type(None) in get_args(signature.parameters[n].annotation)}

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in (dict(zip(signature.parameters, args, strict=False)) | kwargs).items():
            if name in kinds and not (value is None and name in optional):
                kinds[name].of(_plain(value), f"{make.__name__}: {name}")
        return make(*args, **kwargs)

    return made


def _plain(value: Any) -> Any:
    """A number of numpy or JAX as Python's."""
    scalar = isinstance(value, np.generic | np.ndarray | jax.Array) and not value.ndim
    return value.item() if scalar else value
