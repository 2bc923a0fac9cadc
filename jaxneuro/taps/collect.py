# SPDX-License-Identifier: Apache-2.0
"""From requests to what is read in the program, and back: the layers each request names, stacked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..errors import UserError
from .names import parse
from .rewrite import Entry, Frame, Want
from .survey import Survey


def merge(reducers: Mapping[str, Any]) -> tuple[list[Want], dict[str, int]]:
    """What to read for all requests together, and which of it each request takes: one thing per site or reducer."""
    wants: list[Want] = []
    index: dict[str, int] = {}
    for site, reducer in reducers.items():
        asked = parse(site)
        same = [i for i, w in enumerate(wants) if w.name == asked.name and w.reducer is None and reducer is None]
        index[site] = same[0] if same else len(wants)
        if same:
            wants[same[0]] = dataclasses.replace(wants[same[0]], layers=_union(wants[same[0]].layers, asked.layers))
        else:
            wants.append(Want(asked.name, _union(asked.layers, ()), _partial(site, reducer)))
    return wants, index


def _union(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if a is None or b is None else tuple(sorted({*a, *b}))


def _partial(site: str, reducer: Any) -> Partial | None:
    if reducer is None or isinstance(reducer, Partial):
        return reducer
    if not callable(reducer):
        raise UserError(f"capture({site!r}): a reducer is a function of the value, not {reducer!r}.")
    return Partial(reducer)


def assemble(site: str, i: int, want: Want, frame: Frame, found: Survey) -> Any:
    """The value of one request: the layers it names, from all places where the site was reached."""
    asked = parse(site)
    parts = [(found.captured[want.name, *key[1:]], entry) for key, entry in frame.items() if key[0] == i]
    if parts[0][0].layer is None or (len(parts) == 1 and parts[0][0].layers is None):
        return _flat(parts[0][1]).value
    rows: dict[int, tuple[Entry, int | None]] = {}
    for o, entry in parts:
        numbers = list(want.layers or ()) if entry.is_buffer else o.layers or []
        here = set(o.layers or ())
        flat = _flat(entry)
        rows |= {n: (flat, k if entry.layer_axes else None) for k, n in enumerate(numbers) if n in here}
    if asked.single and asked.layers:
        entry, k = rows[asked.layers[0]]
        return entry.value if k is None else jax.tree.map(lambda a: a[k], entry.value)
    return _stack([rows[n] for n in (sorted(rows) if asked.layers is None else asked.layers)])


def _flat(entry: Entry) -> Entry:
    """An entry with its layer axes made one."""
    n = entry.layer_axes
    return entry if n < 2 else entry.map(lambda a: a.reshape(-1, *a.shape[n:]), layer_axes=1)


def _stack(rows: list[tuple[Entry, int | None]]) -> Any:
    """The rows along a leading layer axis; without a copy where they are all of one array, in its order."""
    first = rows[0][0]
    if all(entry is first and k == n for n, (entry, k) in enumerate(rows)) and _length(first) == len(rows):
        return first.value
    if all(entry is first and k is not None for entry, k in rows):
        return jax.tree.map(lambda a: a[np.array([k for _, k in rows])], first.value)
    values = [entry.value if k is None else jax.tree.map(lambda a, k=k: a[k], entry.value) for entry, k in rows]
    return jax.tree.map(lambda *a: jnp.stack(a), *values)


def _length(entry: Entry) -> int | None:
    leaves = jax.tree.leaves(entry.value)
    return leaves[0].shape[0] if leaves and entry.layer_axes else None
