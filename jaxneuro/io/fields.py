# SPDX-License-Identifier: Apache-2.0
"""The one typed reader of JSON objects: every value by its kind and range, all problems in one message.

    with Fields(read_json(path), path) as fields:
        width = fields.read("d_in", whole())                       # must be there
        normed = fields.read("normalise", FLAG, False)             # True and False, not 0, 1, "true" or null
        eps = fields.read("eps", number(above=0, high=0.1), 1e-6)  # finite; 1 is a number, true is none
        fields.only("d_in", "normalise", "eps")                    # where an unknown key is an error

A wrong value is noted and reading goes on with a stand-in; the end of the `with` raises one UserError with all that was
noted. Nothing between may be kept when it raises.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, overload

from ..errors import UserError, quoted, shown, unknown

MISSING: Final = object()
"""The default of a key that must be there."""
LARGEST: Final = 2**31 - 1
"""Of a count that says nothing else: JAX's sizes are of 32 bits."""


@dataclasses.dataclass(frozen=True)
class Kind[T]:
    """What a value may be."""

    wanted: str
    """Completes "x = 3 is not ..."."""
    fits: Callable[[Any], bool]
    make: Callable[[Any], T]
    """The value that is handed on; only of one that fits."""
    instead: T
    """A stand-in of this kind, while other problems are looked for."""

    def of(self, value: Any, where: str) -> T:
        """One value by itself.

        Raises:
          UserError: it is of another kind.
        Example:
          >>> whole().of(3, "k")
          3
        """
        if not self.fits(value):
            raise UserError(f"{where} = {_written(value)} is not {self.wanted}.")
        return self.make(value)


def whole(low: int | None = 1, high: int | None = LARGEST) -> Kind[int]:
    """A whole number of a range, ends included; None: no end. True and 2.0 are none.

    Example:
      >>> whole(0).of(True, "k")
      Traceback (most recent call last):
      jaxneuro.errors.UserError: k = true is not a whole number from 0.
    """
    top = "" if high in (None, LARGEST) else f" to {high}"
    ranged = f"a whole number{'' if low is None else f' from {low}'}{top}"
    text = "a positive whole number" if (low, top) == (1, "") else ranged
    return Kind(text, lambda v: type(v) is int and _within(v, low, high), int, 1 if low is None else low)


def number(
    *, above: float | None = None, low: float | None = None, high: float | None = None, below: float | None = None
) -> Kind[float]:
    """A finite number, whole or not: > above, >= low, <= high, < below.

    Example:
      >>> number(above=0).of(2, "eps"), number(above=0).fits(float("nan")), number().fits(10**400)
      (2.0, False, False)
    """
    ends = [("above", above), ("at least", low), ("at most", high), ("below", below)]
    ranged = " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)

    def fits(v: Any) -> bool:
        if not isinstance(v, int | float) or type(v) is bool:
            return False
        if (isinstance(v, int) and v.bit_length() > 1000) or not math.isfinite(v):
            return False
        return _within(v, low, high) and (above is None or v > above) and (below is None or v < below)

    instead = low if low is not None else high if high is not None else (above or 0.0) + 1
    return Kind(f"a finite number {ranged}".rstrip(), fits, float, float(instead))


def _within(v: float, low: float | None, high: float | None) -> bool:
    return (low is None or v >= low) and (high is None or v <= high)


def check_counts(config: Any, most: Mapping[str, int] | None = None) -> None:
    """Every number of a command's configuration: finite, and if it is whole of 32 bits, unless the command says
    otherwise by its name.

    Raises:
      UserError: the first that is not.
    Example:
      >>> @dataclasses.dataclass
      ... class Job:
      ...     pos: int
      >>> check_counts(Job(2**40))
      Traceback (most recent call last):
      jaxneuro.errors.UserError: pos = 1099511627776 is above 2147483647.
    """
    for name, n in _numbers(config):
        if isinstance(n, float) and not math.isfinite(n):
            raise UserError(f"{name} = {n} is no finite number.")
        if isinstance(n, int) and abs(n) > (end := {"seed": 2**32 - 1, **(most or {})}.get(name, LARGEST)):
            raise UserError(f"{name} = {n} is {'above' if n > 0 else 'below'} {end if n > 0 else -end}.")


def _numbers(part: Any, path: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a configuration, and of its sweep, with its name."""
    if dataclasses.is_dataclass(part):
        for f in dataclasses.fields(part):
            yield from _numbers(getattr(part, f.name), f"{path}.{f.name}" if path else f.name)
    elif isinstance(part, Mapping):
        for name, values in part.items():
            yield from _numbers(values, name if path == "sweep" else f"{path}.{name}")
    elif isinstance(part, tuple):
        for value in part:
            yield from _numbers(value, path)
    elif isinstance(part, int | float):
        yield path, part


FLAG: Final = Kind[bool]("true or false", lambda v: type(v) is bool, bool, False)
TEXT: Final = Kind[str]("text", lambda v: isinstance(v, str), str, "")
ANY: Final = Kind[Any]("anything", lambda v: True, lambda v: v, None)
OBJECT: Final = Kind[dict[str, Any]]("an object", lambda v: isinstance(v, dict), dict, {})


def choice(names: Iterable[str]) -> Kind[str]:
    """One of some names; `Fields.read` says the nearest of them.

    Example:
      >>> choice(["relu", "gelu"]).of("relu", "act")
      'relu'
    """
    known = tuple(names)
    listed = ", ".join(map(shown, known[:40])) + (f" ... ({len(known)})" if len(known) > 40 else "")
    return _Choice(f"one of {listed}", lambda v: isinstance(v, str) and v in known, str, known[0], known)


@dataclasses.dataclass(frozen=True)
class _Choice(Kind[str]):
    names: tuple[str, ...]


def many[T](kind: Kind[T], *, least: int = 0, most: int | None = None) -> Kind[tuple[T, ...]]:
    """A list of one kind, as a tuple.

    Example:
      >>> many(whole(), least=1).of([1, 2], "depths")
      (1, 2)
    """
    ends = f" of {least}" if least == most else f" of {least} or more" if most is None else f" of {least} to {most}"
    ends = "" if (least, most) == (0, None) else ends

    def fits(v: Any) -> bool:
        sized = isinstance(v, list | tuple) and least <= len(v) and (most is None or len(v) <= most)
        return sized and all(map(kind.fits, v))

    stand_in = (kind.instead,) * least
    return Kind(f"a list{ends}, each {kind.wanted}", fits, lambda v: tuple(map(kind.make, v)), stand_in)


def null_or[T](kind: Kind[T]) -> Kind[T | None]:
    """The kind, or null.

    Example:
      >>> null_or(TEXT).of(None, "name") is None
      True
    """

    def make(v: Any) -> T | None:
        return None if v is None else kind.make(v)

    return Kind(f"{kind.wanted}, or null", lambda v: v is None or kind.fits(v), make, None)


def either[A, B](one: Kind[A], other: Kind[B]) -> Kind[A | B]:
    """The first kind, or else the second.

    Example:
      >>> either(whole(), choice(["auto"])).of("auto", "rank")
      'auto'
    """

    def make(v: Any) -> A | B:
        return one.make(v) if one.fits(v) else other.make(v)

    return Kind(f"{one.wanted}, or {other.wanted}", lambda v: one.fits(v) or other.fits(v), make, one.instead)


class Fields(Mapping[str, Any]):
    """A JSON object that is read by kinds; see the page of this module. As a mapping it holds what the file holds.

    Args:
      value: what JSON held.
      where: who speaks in messages, usually the path.
    Raises:
      UserError: at the end of the `with`, all that is wrong. At once where the value is no object.
    Example:
      >>> with Fields({"k": 8.0, "on": 1}, "f") as fields:
      ...     _ = fields.read("k", whole(None, None)), fields.read("on", FLAG, True), fields.read("act", TEXT)
      Traceback (most recent call last):
      jaxneuro.errors.UserError: f: k = 8.0 is not a whole number; on = 1 is not true or false; act is missing.
    """

    def __init__(self, value: Any, where: str | os.PathLike, *, inside: str = "", problems: list[str] | None = None):
        self.where, self._inside = where, inside
        self.problems: list[str] = [] if problems is None else problems
        if not isinstance(value, Mapping):
            raise UserError(f"{shown(where, 400)} is not a JSON object.")
        self._value = value

    def __getitem__(self, name: str) -> Any:
        return self._value[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def __len__(self) -> int:
        return len(self._value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What fails after a problem was noted may fail because of the stand-in, so only the problems are said.
        if self.problems and isinstance(error, Exception | None):
            raise self.error() from None

    def error(self) -> UserError:
        """All that is wrong so far."""
        more = [f"and {len(self.problems) - 20} more"] if len(self.problems) > 20 else []
        return UserError(f"{shown(self.where, 400)}: {'; '.join([*self.problems[:20], *more])}.")

    @overload
    def read[T](self, name: str, kind: Kind[T]) -> T: ...
    @overload
    def read[T, D](self, name: str, kind: Kind[T], default: D) -> T | D: ...
    def read(self, name: str, kind: Kind[Any], default: Any = MISSING) -> Any:
        """The value of a key, by its kind; of an absent one the default, which is handed on as it is."""
        if name not in self._value:
            if default is MISSING:
                self.note(f"{self.called(name)} is missing")
                return kind.instead
            return default
        value = self._value[name]
        if kind.fits(value):
            return kind.make(value)
        if isinstance(kind, _Choice) and isinstance(value, str):
            near = str(unknown(self.called(name), value, kind.names)).rstrip(".")
            self.note(near)
        else:
            self.note(f"{self.called(name)} = {_written(value)} is not {kind.wanted}")
        return kind.instead

    def group(self, name: str) -> "Fields":
        """The object under a key, which notes its problems here; an absent one and null are empty."""
        value = self.read(name, null_or(OBJECT), None)
        return Fields(value or {}, self.where, inside=f"{self.called(name)}.", problems=self.problems)

    def only(self, *known: str) -> None:
        """Note every key that is none of these."""
        for name in sorted(map(str, set(self._value) - set(known))):
            self.note(str(unknown("key", f"{self._inside}{name}", [f"{self._inside}{k}" for k in known])).rstrip("."))

    def note(self, problem: str) -> None:
        """One more thing that is wrong."""
        if problem not in self.problems:
            self.problems.append(problem)

    def called(self, name: str) -> str:
        """A key as messages name it."""
        return f"{self._inside}{shown(name)}"


def _written(value: Any) -> str:
    """A value as JSON writes it, text in quotes."""
    return {True: "true", False: "false"}[value] if type(value) is bool else "null" if value is None else quoted(value)
