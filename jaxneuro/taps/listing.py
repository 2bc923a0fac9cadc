# SPDX-License-Identifier: Apache-2.0
"""A table of the sites of a function."""

import dataclasses
import html
from collections.abc import Callable
from typing import Any, Final

from ..errors import UserError, unknown
from . import checks
from .definitions import definition
from .names import parse
from .primitive import EVERYTHING
from .staging import check_callable, stage
from .survey import Occurrence, survey

_HEAD: Final = ("site", "layers", "axes", "shape", "dtype", "what", "TransformerLens")


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

    @property
    def what(self) -> str:
        """What it is in about eight words; "": no model of the library has a site of this name."""
        return found.what if (found := definition(self.name)) else ""

    @property
    def formula(self) -> str:
        """How it is calculated from other sites; `jaxneuro.taps.definitions` has the page."""
        return found.formula if (found := definition(self.name)) else ""

    @property
    def theirs(self) -> str:
        """TransformerLens' name of the same value, L for the layer."""
        return found.theirs if (found := definition(self.name)) else ""


class SiteTable(tuple[Site, ...]):
    """The sites of a function, in the order in which it reaches them. Shown as a table; `table["blocks.mlp.post"]` is
    one site, however it is spelled."""

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, str):
            return super().__getitem__(at)
        name = parse(at).name
        for site in self:
            if site.name == name:
                return site
        raise unknown("site", name, [s.name for s in self], where="sites")

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return "\n".join([*lines, *self._how()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        cells = [f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rows]
        how = "".join(f"<p>{html.escape(line)}</p>" for line in self._how() if line)
        names = "".join(f"<th>{name}</th>" for name in head)
        return f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(cells)}</tbody></table>{how}"

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [_HEAD, *map(_cells, self)]
        known = any(site.what for site in self)  # of a function of the user's there is nothing to say
        return rows if known else [row[:5] for row in rows]

    def _how(self) -> list[str]:
        """How one layer is named, below the table."""
        layered = next((s for s in self if s.layers and s.name.startswith("blocks.")), None)
        if layered is None or not layered.layers:
            return []
        first, rest = layered.layers[0], layered.name.removeprefix("blocks.")
        several = ",".join(map(str, layered.layers[:2]))
        return [
            "",
            f"One layer: blocks.{first}.{rest}; some: blocks.{several}.{rest}; all: blocks.*.{rest}; every site: *",
        ]


def _cells(site: Site) -> tuple[str, ...]:
    layers = "" if site.layers is None else checks.ranges(list(site.layers)) if site.layers else "?"
    axes = "?" if site.axes is None else " ".join(site.axes)
    return site.name, layers, axes, " ".join(map(str, site.shape)), site.dtype, site.what, site.theirs


def sites(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> SiteTable:
    """All sites of a function, as records; shown as a table. Nothing runs: arguments may be `ShapeDtypeStruct`s.

    Raises:
      UserError: fn is not a function, or a model without inputs.
    Example:
      >>> from jaxneuro.taps import tap
      >>> table = sites(lambda x: tap(2 * x, "double", axes=("pos",)), jnp.arange(3))
      >>> table
      site    layers  axes  shape  dtype
      double          pos   3      int32
      >>> table["double"].axes
      ('pos',)
    """
    check_callable(fn)
    if not args and not kwargs and callable(getattr(fn, "sites", None)):
        what = type(fn).__name__
        raise UserError(
            f"sites: a {what} without inputs. Write model.sites(), or sites(model.apply, model.weights, tokens)."
        )
    found = survey(stage(fn, args, kwargs, frozenset({EVERYTHING})).program)
    by_name: dict[str, list[Occurrence]] = {}
    for o in found.all:
        by_name.setdefault(o.name, []).append(o)
    return SiteTable(_site(name, here) for name, here in by_name.items())


def _site(name: str, here: list[Occurrence]) -> Site:
    first = here[0]
    layers = None if all(o.layer is None for o in here) else tuple(checks.known_layers(here) or ())
    return Site(name, layers, first.axes, first.shape, str(first.dtype))
