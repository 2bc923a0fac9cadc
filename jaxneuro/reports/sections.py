# SPDX-License-Identifier: Apache-2.0
"""What each section of the page shows: figures, tables and facts, made from one part of the data. None: part absent.

The dictionary's is in coder.py, fixed words are in words.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import figures
from .findings import Row, effect_rows, too_few
from .matrices import cell_width
from .spread import in_groups, near_uniform, of_most
from .svg import brief, finite, fixed, number, percent
from .words import Matter, matter_of

type Data = Mapping[str, Any]
type Matrix = Sequence[Sequence[Any]]


class Table(NamedTuple):
    """A table; the first cell of a row is its heading."""

    head: Sequence[object]
    rows: Sequence[Sequence[object]]


class Panel(NamedTuple):
    """One figure with the words under it and the same numbers as a table."""

    title: str
    svg: str
    table: Table | None = None


def run(data: Data) -> dict[str, Any]:
    """Facts about the run, tokens per group, versions, config."""
    part, model, m = data["run"], data["run"].get("model") or {}, matter_of(data)
    size = model.get("n_parameters")
    facts = [
        ("Model", model.get("name")),
        ("Family", model.get("family")),
        ("Parameters", f"{brief(size)} ({number(size)})" if finite(size) else None),
        ("Layers", _known(model.get("n_layers"))),
        ("Width", _known(model.get("d_model"))),
        ("Neurons per layer", _known(model.get("d_mlp"))),
        ("Neuron site", model.get("site")),
        ("Text" if m.name == "text" else "Pictures", part.get("text")),
        ("Folder", part.get("folder")),
        ("Device", part.get("device")),
        ("Seed", str(part["seed"]) if part.get("seed") is not None else None),
        (
            "Started",
            re.sub(r"\+00:?00$", " UTC", str(part["started"]).replace("T", " ")) if part.get("started") else None,
        ),
        ("Took", duration(part.get("seconds"))),
    ]
    tokens = part.get("tokens") or {}
    return {
        "facts": [(k, v) for k, v in facts if v],
        "tokens": Table(["Group", m.tokens.capitalize()], [[g, number(n)] for g, n in tokens.items()])
        if tokens
        else None,
        "total": number(sum(n for n in tokens.values() if finite(n))),
        "versions": Table(["Package", "Version"], [[k, str(v)] for k, v in (part.get("versions") or {}).items()]),
        "config": Table(["Setting", "Value"], [[k, _said(v)] for k, v in (part.get("config") or {}).items()]),
        "notes": [str(n) for n in part.get("notes") or []],
    }


def duration(seconds: object) -> str | None:
    """Seconds as a person says them.

    Example:
      >>> duration(75), duration(3.21), duration(7300)
      ('1 min 15 s', '3.2 s', '2 h 1 min')
    """
    if not finite(seconds):
        return None
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def counts(
    data: Data, title: str = "Selectively firing neurons per group", kinds: Sequence[str] = ("specific", "related")
) -> Panel | None:
    """How many neurons per group, beside the number under shuffled labels."""
    part, groups = data.get("counts") or {}, data["groups"]
    series = {k: [part[k].get(g) for g in groups] for k in kinds if part.get(k)}
    if not series:
        return None
    shuffled = part.get("shuffled") or {}
    chance = {k: [shuffled[k].get(g) for g in groups] for k in series if shuffled.get(k)}
    columns = {**series, **{f"{k}, shuffled": v for k, v in chance.items()}}
    words = "; ".join(
        f"{g}: " + ", ".join(f"{number(v[i])} {k}" for k, v in columns.items()) for i, g in enumerate(groups)
    )
    svg = figures.bars(
        groups, series, baseline=chance, values=True, title=title, desc=words, size=(60 + 84 * max(len(groups), 3), 230)
    )
    rows = [[g, *(number(v[i]) for v in columns.values())] for i, g in enumerate(groups)]
    return Panel(title, svg, Table(["Group", *(k.capitalize() for k in columns)], rows))


def selectivity(data: Data) -> dict[str, Any] | None:
    """Sizes beside the rank: entropies of the ranked neurons, and whether the first of them fires about evenly."""
    part, k = data.get("selectivity") or {}, len(data["groups"])
    ends = {kind: part.get(kind) or (None, None) for kind in ("specific", "related")}
    rows = [
        [kind, *(of_most(v, k) for v in pair), *(in_groups(v, k) for v in pair)]
        for kind, pair in ends.items()
        if all(map(finite, pair))
    ]
    if not rows:
        return None
    head = ["Class", "Lowest entropy", "Highest entropy", "As if in, lowest", "As if in, highest"]
    even = near_uniform(part.get("lowest"), k)
    return {
        "table": Table(head, rows),
        "share": percent(part["share"]) if finite(part.get("share")) else "",
        "even": even,
    }


def profile(data: Data, kinds: Sequence[str] = ("specific", "related")) -> dict[str, Any] | None:
    """One small figure per group, all over layers, all groups on one scale; beside "specific" one for the agnostic."""
    part, groups, first = data.get("profile") or {}, data["groups"], kinds[0]
    table = {k: part[k] for k in kinds if part.get(k)}
    if not table:
        return None
    layers = list(range(len(next(iter(table.values()))[0])))
    total = part.get(f"shuffled_{first}")
    chance = [v / len(groups) if finite(v) else None for v in total] if total and first in table else None
    stacks = [sum(t[k][j] or 0 for t in table.values()) for k in range(len(groups)) for j in layers]
    top = max([*stacks, *(v for v in chance or [] if v), 1])
    panels = []
    for k, group in enumerate(groups):
        series = {name: rows[k] for name, rows in table.items()}
        words = "; ".join(f"{n} per layer: {', '.join(map(number, v))}" for n, v in series.items())
        base = {first: chance} if chance else None
        style = {"stacked": True, "top": top, "x_label": "layer", "size": (300, 150)}
        panels.append(Panel(group, figures.bars(layers, series, baseline=base, title=group, desc=words, **style)))
    other = {"agnostic": "agnostic"} if first == "specific" and part.get("agnostic") else {}
    if other:
        row = {"agnostic": part["agnostic"]}
        words = f"agnostic per layer: {', '.join(map(number, part['agnostic']))}"
        name = "agnostic (own scale)"
        panels.append(Panel(name, figures.bars(layers, row, title=name, desc=words, x_label="layer", size=(300, 150))))
    return {
        "panels": panels,
        "table": _profile_table(groups, table, part, layers, other),
        "shuffled": chance is not None,
    }


def _profile_table(groups: Sequence[str], table: Data, part: Data, layers: Sequence[int], other: Data) -> Table:
    rows = [[f"{g}, {n}", *map(number, r[k])] for n, r in table.items() for k, g in enumerate(groups)]
    for key, name in {**other, **{f"shuffled_{n}": f"{n}, shuffled, all groups" for n in table}}.items():
        if part.get(key):
            rows.append([name, *map(number, part[key])])
    return Table(["Neurons", *(f"layer {i}" for i in layers)], rows)


def effect(data: Data) -> dict[str, Any] | None:
    """The effect matrix, its random baseline on the same colour scale, and the diagonal against that baseline."""
    part, groups = data.get("effect"), data["groups"]
    if not part:
        return None
    if said := unchosen(data):
        return {"unchosen": said}
    unit, what = part.get("unit", ""), part.get("measure", "effect")
    lowest, largest = _range(part)
    rows = effect_rows(groups, part)
    matrix, mean, std = (_tested(rows, part.get(k)) for k in ("matrix", "random_mean", "random_std"))
    own, chance = (f"{what.capitalize()}, {sets} silenced" for sets in ("own neurons", "random sets"))
    return {
        "unchosen": "",
        "main": matrix and _matrix(part, groups, matrix, None, own),
        "random": mean and _matrix(part, groups, mean, std, chance),
        # The scale goes both ways; its negative half is shown where it is used.
        "key": figures.colour_bar(largest, unit=unit, negative=lowest < -0.05 * largest),
        "compare": matrix and mean and _comparison(rows, matrix, f"{what} on the group itself ({unit})"),
        "rows": _effect_table(rows, fixed(largest)),
        "unit": unit,
        "what": what,
        "worse": "loss" in what,
        "n_random": number(part.get("n_random")),
        "windows": _windows(part.get("windows"), matter_of(data)),
        "few": too_few(part, groups, matter_of(data).windows),
    }


def unchosen(data: Data) -> str:
    """A sentence with advice if no group has neurons to silence; else ""."""
    sizes, m = (data.get("effect") or {}).get("set_size"), matter_of(data)
    if not sizes or any(n != 0 for n in sizes):
        return ""
    more = "more and larger group texts" if m.name == "text" else "more pictures of each group"
    return (
        "No group has neurons that were chosen: only those that shuffled labels do not explain are. So none is "
        f"silenced or shown. More {m.documents} per group find more: give {more}."
    )


def _windows(each: Sequence[Any] | None, m: Matter) -> str:
    """On how much text the matrix was measured."""
    known = [n for n in each or [] if finite(n)]
    if not known:
        return ""
    low, high = min(known), max(known)
    of_each = number(low) if low == high else f"{number(low)} to {number(high)}"
    return f"Measured on {number(sum(known))} {m.window if sum(known) == 1 else m.windows}, {of_each} of each group."


def _tested(rows: Sequence[Row], table: Matrix | None) -> Matrix | None:
    """The table without the rows of groups that had no neurons: their zeros are no measurement."""
    return table and [row if r.size != 0 else [None] * len(row) for r, row in zip(rows, table, strict=True)]


def _range(part: Data) -> tuple[float, float]:
    """The lowest value and the largest |value| of both matrices: what they share a colour scale by."""
    known = [v for t in (part["matrix"], part.get("random_mean") or []) for r in t for v in r if finite(v)]
    return min(known, default=0.0), max(map(abs, known), default=0.0)


def _width(part: Data) -> float:
    """Of a cell, the same in both heat maps, so that they can be laid side by side."""
    tables = [t for t in (part["matrix"], part.get("random_mean")) if t]
    return max(cell_width(t, part.get("random_std"), _range(part)[1]) for t in tables)


def _matrix(part: Data, groups: Sequence[str], values: Matrix, std: Matrix | None, title: str) -> Panel:
    largest, sizes = _range(part)[1], part.get("set_size")
    show = fixed(largest)
    words = "Diagonal: " + ", ".join(f"{g} {show(values[i][i])}" for i, g in enumerate(groups)) + "."
    svg = figures.heat_map(
        values, groups, groups, title=f"{title} ({part.get('unit', '')})", desc=words, below=std,
        largest=largest or None, row_title="silenced", column_title="measured on", diagonal=True,
        cell=(_width(part), 40),
        row_notes=[f"{number(n)} neuron{'' if n == 1 else 's'}" for n in sizes] if sizes else (),
    )  # fmt: skip
    errors = [[f" ± {show(v)}" for v in row] for row in std] if std else [[""] * len(groups)] * len(groups)
    rows = [[g, *(show(v) + e for v, e in zip(values[i], errors[i], strict=True))] for i, g in enumerate(groups)]
    return Panel(title, svg, Table(["Silenced \\ measured", *groups], rows))


def _effect_table(rows: Sequence[Row], show: Any) -> Table:
    head = ["Group", "Neurons silenced", "Before silencing", "Own group", "Random mean", "Random std", "z", "Ratio"]
    head += ["Other groups, mean", "Hurt most"]
    cells = [
        [r.group, number(r.size), number(r.base), show(r.own), show(r.mean), show(r.std), number(r.z)] for r in rows
    ]
    return Table(head, [[*c, number(r.ratio), show(r.others), r.hit] for c, r in zip(cells, rows, strict=True)])


def _comparison(rows: Sequence[Row], matrix: Matrix, label: str) -> Panel:
    notes = [_against_chance(r) if r.tested else "nothing silenced" for r in rows]
    title = "The diagonal against its random baseline"
    words = "; ".join(f"{r.group}: {note}" for r, note in zip(rows, notes, strict=True))
    svg = figures.comparison(
        [r.group for r in rows], own=[r.own if r.tested else None for r in rows],
        mean=[r.mean if r.tested else None for r in rows], std=[r.std for r in rows],
        others=[[v for j, v in enumerate(row) if j != i] for i, row in enumerate(matrix)],
        notes=notes, title=title, desc=words, x_label=label,
    )  # fmt: skip
    return Panel(title, svg)


def _against_chance(row: Row) -> str:
    return f"z {number(row.z, 2)}" + (f", {number(row.ratio, 2)}×" if finite(row.ratio) else "")


def _known(value: object) -> str | None:
    return number(value) if finite(value) else None


def _said(value: object) -> str:
    return "–" if value is None else str(value)
