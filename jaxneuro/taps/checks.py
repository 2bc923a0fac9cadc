# SPDX-License-Identifier: Apache-2.0
"""What is asked against what is there: every request that cannot be met raises before anything runs."""

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import UserError, unknown
from .definitions import OTHERS
from .edits import Edit
from .names import SiteName, parse
from .ranges import Ends, Have, check_index, marked, missing, ranges
from .spans import SPAN_OF
from .survey import Occurrence, Survey
from .views import broadcasts, describe

_HINT = "jaxneuro.taps.sites(fn, *args) lists them."
_REBUILT = ("jit", "call", "remat", "scan", "while", "cond", "custom_jvp", "custom_vjp", "shard_map")


def find(site: str, survey: Survey, where: str) -> list[Occurrence]:
    """The places where the program reaches a site; its name and the layers written in it must exist."""
    asked = parse(site)
    here = survey.of(asked.name)
    if not here:
        hint = _HINT
        if other := next((text for end, text in OTHERS.items() if asked.base.endswith(end)), None):
            hint = f"{other[0].upper()}{other[1:]}. {hint}"
        if asked.name.endswith("@grad") and asked.base in survey.names:
            hint = "Gradients are there in a differentiated function: capture(jax.grad(loss), ...). " + hint
        raise unknown("site", asked.name, survey.names, where=f"{where}({site!r})", hint=hint)
    for o in here:
        if bad := [k for k in o.around if k not in _REBUILT]:
            raise UserError(
                f"{where}({site!r}): the site is inside a `{bad[0]}`, which cannot be rebuilt. "
                "Move the tap outside of it, or take another path in the model with jaxneuro.taps.wants."
            )
    if asked.layers is not None:
        _check_layers(site, asked, here, where)
    return here


def known_layers(here: list[Occurrence]) -> list[int] | None:
    """Sorted layer numbers of a site; None if they are calculated when the program runs."""
    numbers = [o.layers for o in here if o.layer is not None]
    return None if any(n is None for n in numbers) else sorted({i for n in numbers for i in n or ()})


def _check_layers(site: str, asked: SiteName, here: list[Occurrence], who: str) -> None:
    """Layer numbers written in a site must exist, as far as they are known."""
    if all(o.layer is None for o in here):
        raise UserError(f"{who}({site!r}): site {asked.name!r} has no layers. Ask for {asked.name!r}.")
    if (have := known_layers(here)) is not None:
        check_index(np.asarray(asked.layers), site, "layer", tuple(have), who)


def check_capture(site: str, survey: Survey) -> None:
    """A site that is captured is reached once per layer, in a place from which a value can come out."""
    where = f"capture({site!r})"
    find(site, survey, "capture")
    asked = parse(site)
    here = [o for (name, _, _), o in survey.captured.items() if name == asked.name]
    if any("while" in o.around for o in here):
        raise UserError(
            f"{where}: the site is inside a lax.while_loop, whose number of turns is not known, so there is no "
            "shape to collect into. Use lax.scan, or lax.fori_loop with bounds that are Python integers."
        )
    has_layer = {o.layer is not None for o in here}
    if len(has_layer) == 2:
        raise UserError(f"{where}: the site is reached with a layer and without one. Give the two distinct names.")
    if has_layer == {False}:
        _once(len(here), "", where)
    elif known_layers(here) is not None:
        visits = Counter(n for o in here for n in o.layers or ())
        for n in visits if asked.layers is None else asked.layers:
            _once(visits[n], f" at layer {n}", where)
    elif asked.layers is not None or len(here) > 1:
        raise UserError(
            f"{where}: which layers the site stands for is calculated when the program runs, so single layers cannot "
            f"be told apart. Make the layer index with jnp.arange inside the function, or ask for all: {asked.name!r}."
        )


def _once(visits: int, place: str, where: str) -> None:
    if visits > 1:
        raise UserError(
            f"{where}: the site is reached {visits} times{place}, so it has no one value. Give the calls distinct "
            "names, capture a function that reaches it once, or run the model once on a larger batch."
        )


def bind_edit(edit: Edit, survey: Survey) -> Edit:
    """An edit with its layers counted from 0, after everything about it that can be checked was."""
    asked = parse(edit.site)
    where = f"intervene({edit.site!r})"
    here = find(edit.site, survey, "intervene")
    _check_editable(asked, here, where)
    at, outside = dict(edit.at), []
    lengths = {axis: _length(axis, index, here, where) for axis, index in edit.at.items()}
    per_layer = edit.per_layer
    if per_layer is None:
        per_layer = _has_layer_axis(np.shape(edit.args[0]), here[0], where)
    ends = _ends(edit, bool(per_layer), here)
    for axis, index in edit.at.items():
        at[axis] = _in_range(index, edit.site, axis, lengths[axis], ends.get(axis, ()), outside)
    layer = None if edit.layer is None else _layer(edit, here, where, ends.get("layer", ()), outside)
    rows = _rows(edit, asked, here, where) if per_layer else None
    wrong = functools.reduce(jnp.logical_or, outside) if outside else None
    return dataclasses.replace(edit, at=at, layer=layer, per_layer=per_layer, rows=rows, outside=wrong)


def _check_editable(asked: SiteName, here: list[Occurrence], where: str) -> None:
    for rule in {k for o in here for k in o.around} & {"custom_vjp", "custom_jvp"}:
        raise UserError(
            f"{where}: the site is inside a {rule}, whose derivative would not know of the edit. Edit a site around "
            "it, or let the model take a path without it: `if jaxneuro.taps.wants(site): ...`."
        )
    targets = [o for o in here if asked.layers is None or o.layers is None or set(o.layers) & set(asked.layers)]
    if not any(o.read for o in targets):
        raise UserError(
            f"{where}: nobody reads what comes out of this tap, so an edit would do nothing. "
            "Use what tap(x, ...) returns in the model."
        )


def _concrete(x: Any) -> np.ndarray | None:
    return None if isinstance(x, Tracer) else np.asarray(x)


def _in_range(index: Any, site: str, axis: str, have: Have | None, ends: Ends, outside: list[Any]) -> Any:
    """An index after its check: now if its numbers are known; else marked, and `outside` says when it is wrong."""
    ends = ends if np.ndim(index) == 1 else ()
    if (have is None and not ends) or jnp.asarray(index).dtype == bool:
        return index
    if (known := _concrete(index)) is not None:
        check_index(known, site, axis, have, ends=ends)
        return index
    index = marked(index, site, axis, have, ends)
    if have is not None:
        outside.append(missing(index, have))
    return index


def _layer(edit: Edit, here: list[Occurrence], where: str, ends: Ends, outside: list[Any]) -> Any:
    """Layer indices: masks turned into numbers (-1: none), negative ones counted from the end."""
    layer = edit.layer
    if all(o.layer is None for o in here):
        raise UserError(f"{where}: site {edit.name!r} has no layers, so layer= selects nothing.")
    numbers = known_layers(here)
    n = numbers[-1] + 1 if numbers else None
    if jnp.asarray(layer).dtype == bool:
        if np.ndim(layer) != 1 or (n is not None and len(layer) != n):
            raise UserError(f"{where}: the mask layer= has shape {np.shape(layer)}; the site has {n} layers.")
        return jnp.where(layer, np.arange(len(layer), dtype=np.int32), -1)
    layer = _in_range(layer, edit.site, "layer", None if n is None else tuple(numbers or ()), ends, outside)
    if n is None:
        return layer
    layer = jnp.asarray(layer, jnp.int32)
    return jnp.where(layer < 0, layer + n, layer)


def _length(axis: str, index: Any, here: list[Occurrence], where: str) -> int | None:
    """How many entries an axis has; None: how far positions go is known only when the program runs."""
    axes = here[0].axes or ()
    if axis not in axes:
        raise unknown("axis", axis, axes, where=where, hint=f"The site has shape {here[0].shape}.")
    mask = jnp.asarray(index).dtype == bool
    if mask and np.ndim(index) != 1:
        raise UserError(f"{where}: the mask {axis}= has shape {np.shape(index)}; a mask has one axis.")
    span = SPAN_OF.get(axis, "")
    if any(o.spans.get(span, 0) is None for o in here):
        return None
    sizes = {o.shape[axes.index(axis)] for o in here}  # the steps of a decoding loop see other sizes than the prompt
    n = max(sizes)
    if mask and np.shape(index)[0] not in sizes:
        raise UserError(f"{where}: the mask {axis}= has shape {np.shape(index)}; the axis has {n} entries.")
    return n


def _ends(edit: Edit, per_layer: bool, here: list[Occurrence]) -> dict[str, Ends]:
    """Of every axis that is selected along, whether its list must ascend: a list selects a set, so in another order a
    value with this axis would not be what it looks like."""
    if edit.fn is not None:
        return {}
    axes, sizes = here[0].axes or (), [np.shape(a) for a in jax.tree.leaves(edit.args)]
    found: dict[str, Ends] = {}
    for k, axis in ((k - len(axes), axis) for k, axis in enumerate(axes) if axis in edit.at):
        if any(len(own) >= -k and own[k] != 1 for own in (s[1:] if per_layer else s for s in sizes)):
            found[axis] = (here[0].shape[k] if SPAN_OF.get(axis, "") not in here[0].spans else None,)
    if per_layer and any(sizes):
        numbers = known_layers(here)
        found["layer"] = (numbers[-1] + 1 if numbers else None,)
    return found


def _has_layer_axis(shape: tuple[int, ...], o: Occurrence, where: str) -> bool:
    """Whether a captured value has a leading layer axis: told by its number of axes."""
    for target in (o.lead + o.shape, o.shape):
        if len(shape) == len(target) and broadcasts(shape, target):
            return False
        if o.layer is not None and len(shape) == len(target) + 1 and broadcasts(shape[1:], target):
            return True
    if shape == ():
        return False
    raise UserError(
        f"{where}: the source has shape {shape}, which with or without a leading layer axis does not broadcast to "
        f"{describe(o.lead + o.shape, o.axes)}."
    )


def _rows(edit: Edit, asked: SiteName, here: list[Occurrence], where: str) -> tuple[int, ...] | None:
    """Which layer each row of the per-layer arguments belongs to; None: rows are numbered as layers."""
    if all(o.layer is None for o in here):
        raise UserError(f"{where}: site {asked.name!r} has no layers, so its arguments have no layer axis.")
    numbers = known_layers(here)
    lengths = {np.shape(a)[0] for a in jax.tree.leaves(edit.args) if np.ndim(a) > 0}
    choices = [] if asked.layers is None else [asked.layers]
    choices += [tuple(numbers), tuple(range(numbers[-1] + 1))] if numbers else []
    for rows in choices:
        if lengths <= {len(rows)}:
            return rows
    if numbers is None:
        return None
    raise UserError(
        f"{where}: per-layer arguments have {' and '.join(map(str, sorted(lengths)))} rows; the site stands for "
        f"{len(choices[0])} layers ({ranges(list(choices[0]))})."
    )
