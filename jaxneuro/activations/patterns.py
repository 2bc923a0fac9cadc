# SPDX-License-Identifier: Apache-2.0
"""Patterns of sites: `*`, `blocks.*`, `blocks.*.mlp.*` stand for every site of the model that they match."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from ..console import say
from ..errors import UserError, quoted, unknown
from ..taps.listing import Site
from ..taps.names import parse

_WILD: Final = re.compile(r"[*?\[]")
_ROWS: Final = (("batch", "pos"), ("batch", "row"))
"""How the axes of a site begin that has a row for every token or patch."""


def pattern_of(site: str) -> str | None:
    """The pattern that names without their layer must match; None: the site is named, for some layers or for all.

    Example:
      >>> pattern_of("*"), pattern_of("blocks.*"), pattern_of("blocks.2.mlp.*"), pattern_of("blocks.*.mlp.post")
      ('*', 'blocks.*', 'blocks.mlp.*', None)
    """
    if not isinstance(site, str) or not _WILD.search(site):
        return None
    if site == "*":
        return site
    name = parse(site).name
    if site.startswith("*."):  # `parse` takes this star for that of the layers
        return f"*.{name}"
    if site.endswith(".*") and not name.endswith("*"):
        return f"{name}.*"
    return name if _WILD.search(name) else None


def no_pattern(sites: Iterable[str]) -> None:
    """Each site is named.

    Raises:
      UserError: one stands for several sites.
    Example:
      >>> no_pattern(["blocks.*.mlp.*"])
      Traceback (most recent call last):
      jaxneuro.errors.UserError: 'blocks.*.mlp.*' is a pattern of sites, and ... Name it: `jaxneuro sites` lists them.
    """
    for site in sites:
        if pattern_of(site) is not None:
            raise UserError(
                f"{quoted(site)} is a pattern of sites, and one site is meant here. Name it: `jaxneuro sites` lists "
                "them."
            )


def spelled_out(asked: Sequence[str], model: Any) -> tuple[str, ...]:
    """The sites asked for, with every pattern replaced by the sites that it matches, in the model's order.

    Sites of which the model has no row per token or patch (attention patterns) are in none; that is said.

    Args:
      model: has `sites(inputs)` and `example()`.
    Raises:
      UserError: a pattern that matches nothing.
    """
    if all(pattern_of(site) is None for site in asked):
        return tuple(asked)
    two = model.example().repeat(2, axis=0)  # a value that does not follow the batch keeps its 1
    table = list(model.sites(two))
    return tuple(name for site in asked for name in _matching(site, table))


def _matching(site: str, table: Sequence[Site]) -> list[str]:
    if (pattern := pattern_of(site)) is None:
        return [site]
    only = None if pattern == "*" else parse(site).layers
    found = [(s, _layers(s, only)) for s in table if fnmatchcase(s.name, pattern)]
    found = [(s, layers) for s, layers in found if layers]
    if not any(_has_rows(s) for s, _ in found):
        raise unknown("site", site, [s.name for s in table], hint="`jaxneuro sites` lists them.")
    if without := [s.name for s, _ in found if not _has_rows(s)]:
        say(f"{site} leaves out {', '.join(without)}: no row for each token")
    return [s.name.replace("blocks.", layer, 1) for s, layers in found if _has_rows(s) for layer in layers]


def _layers(site: Site, only: Sequence[int] | None) -> list[str]:
    """What replaces "blocks." in its name; none: the site has none of these layers."""
    if site.layers is None:
        return ["blocks."] if only is None else []
    if not site.layers:  # calculated when the program runs
        return [f"blocks.{'*' if only is None else ','.join(map(str, only))}."]
    return [f"blocks.{i}." for i in (site.layers if only is None else only) if i in site.layers]


def _has_rows(site: Site) -> bool:
    axes = site.axes or ()
    return site.shape[0] == 2 and (tuple(axes[:2]) in _ROWS or (len(axes) == 2 and axes[0] == "batch"))
