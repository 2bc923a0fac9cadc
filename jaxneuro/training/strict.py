# SPDX-License-Identifier: Apache-2.0
"""Dataclasses as JSON and back, strictly: an unknown key, a missing one and a value of another type are errors."""

import contextlib
import dataclasses
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import UserError, quoted, unknown
from ..io.fields import FLAG, TEXT, number, whole

KIND: Final = "kind"
"""Says which class of a union an object is of: the class's attribute of this name."""


def plain(value: Any) -> Any:
    """A config as JSON.

    Example:
      >>> plain({"out": Path("a"), "k": (16, 32)})
      {'out': 'a', 'k': [16, 32]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {KIND: value.kind} if hasattr(value, KIND) else {}  # type: ignore[attr-defined]
        return named | {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


_PLAIN: Final = {bool: FLAG, int: whole(None, None), float: number(), str: TEXT}
"""A float is finite; a whole number is one too."""


def read(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as what the annotation says.

    Args:
      kind: a dataclass, a union (of dataclasses: told apart by "kind"), Literal, tuple[T, ...], Mapping, Path, Any or
        a plain type. A whole number is a float too, and nothing else is anything else.
      value: what JSON held.
      where: for messages, "config.training.steps".
    Raises:
      UserError: an unknown key (with the nearest that exist), a missing one, a value of another type.
    Example:
      >>> read(tuple[float, ...], [1, 2.5], "rates")
      (1.0, 2.5)
      >>> read(int, "many", "steps")
      Traceback (most recent call last):
      jaxneuro.errors.UserError: steps = 'many' is not a whole number.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return read(args[0], value, where)
    if origin in (Union, types.UnionType):
        return _one_of(args, value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(read(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {name: read(args[1], v, f"{where}.{name}") for name, v in value.items()}
    if isinstance(kind, type) and kind in _PLAIN:
        return _PLAIN[kind].of(value, where)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is Any or (origin is Literal and value in args):
        return value
    wanted = f"one of {', '.join(map(repr, args))}" if origin is Literal else getattr(kind, "__name__", str(kind))
    raise UserError(f"{where} = {quoted(value)} is not {wanted if origin is not tuple else 'a list'}.")


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{where} = {quoted(value)} is not a group of options.")
    hints, given = get_type_hints(kind, include_extras=True), {k: v for k, v in value.items() if k != KIND}
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in given.keys() - fields.keys():
        raise unknown("option", name, fields, where=where)
    needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING and n not in given]
    if needed:
        raise UserError(f"{where}: {', '.join(needed)} must be given.")
    return kind(**{name: read(hints[name], v, f"{where}.{name}") for name, v in given.items()})


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    kinds = tuple(get_args(k)[0] if get_origin(k) is Annotated else k for k in kinds)
    tagged = {k.kind: k for k in kinds if hasattr(k, KIND)}
    if tagged and isinstance(value, Mapping):
        if value.get(KIND) not in tagged:
            raise unknown(KIND, value.get(KIND), tagged, where=where)
        return _dataclass(tagged[value[KIND]], value, where)
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            return _dataclass(kind, value, where)
        with contextlib.suppress(UserError):
            return read(kind, value, where)
    names = ", ".join("null" if k is types.NoneType else getattr(k, "__name__", str(k)) for k in kinds)
    raise UserError(f"{where} = {quoted(value)} is none of {names}.")
