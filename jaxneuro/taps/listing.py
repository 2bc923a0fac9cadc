# SPDX-License-Identifier: Apache-2.0
"""A table of the sites of a function."""

import dataclasses
from collections.abc import Callable
from typing import Any

from . import checks
from .primitive import EVERYTHING
from .staging import stage
from .survey import Occurrence, survey


@dataclasses.dataclass(frozen=True)
class Site:
    """One named value of a function."""

    name: str
    layers: tuple[int, ...] | None
    """Layer numbers; None: the site has no layers; (): they are calculated when the program runs."""
    axes: tuple[str, ...] | None
    """Names of the axes; None if the model gives none."""
    shape: tuple[int, ...]
    """Of one layer."""
    dtype: str


class SiteTable(tuple[Site, ...]):
    """The sites of a function, in the order in which it reaches them. str() is a table."""

    def __str__(self) -> str:
        rows = [("site", "layers", "axes", "shape", "dtype"), *map(_cells, self)]
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def _cells(site: Site) -> tuple[str, str, str, str, str]:
    layers = "" if site.layers is None else checks.ranges(list(site.layers)) if site.layers else "?"
    axes = "?" if site.axes is None else " ".join(site.axes)
    return site.name, layers, axes, " ".join(map(str, site.shape)), site.dtype


def sites(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> SiteTable:
    """All sites of a function, as records; `print` shows a table. Nothing runs: arguments may be `ShapeDtypeStruct`s.

    Example:
      >>> from jaxneuro.taps import tap
      >>> print(sites(lambda x: tap(2 * x, "double", axes=("pos",)), jnp.arange(3)))
      site    layers  axes  shape  dtype
      double          pos   3      int32
    """
    found = survey(stage(fn, args, kwargs, frozenset({EVERYTHING})).program)
    by_name: dict[str, list[Occurrence]] = {}
    for o in found.all:
        by_name.setdefault(o.name, []).append(o)
    return SiteTable(_site(name, here) for name, here in by_name.items())


def _site(name: str, here: list[Occurrence]) -> Site:
    first = here[0]
    layers = None if all(o.layer is None for o in here) else tuple(checks.known_layers(here) or ())
    return Site(name, layers, first.axes, first.shape, str(first.dtype))
