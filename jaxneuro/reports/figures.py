# SPDX-License-Identifier: Apache-2.0
"""Figures as SVG strings: bars, levels, histogram, lines here; heat_map, colour_bar and comparison from matrices.py.

Each is a pure function of plain numbers. What it shows never hangs on hue alone: values are printed, curves carry their
name, a dash and a marker, bars differ by fill style. Numbers that are missing, NaN or infinite leave a gap or a "–".
Presentation attributes make each string a complete .svg file; the report's style sheet overrides them by class, which
is how one figure follows light and dark.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence

from ..errors import UserError
from .matrices import colour_bar as colour_bar
from .matrices import comparison as comparison
from .matrices import heat_map as heat_map
from .svg import (
    LABEL,
    Number,
    breadth,
    check_shape,
    escaped,
    extent,
    figure,
    finite,
    longest,
    number,
    point,
    scale,
    shortened,
    spread,
    stroke,
    tag,
    text,
    ticks,
    x_axis,
    y_axis,
)

FILLS = ("solid", "hollow", "tinted")
DASHES = (None, "6 3", "2 3", "9 3 2 3", "4 2", "1 3", "12 4", "6 2 1 2 1 2")
MARKERS = ("circle", "square", "diamond", "triangle", "ring", "cross")

type Point = tuple[float, float]


def bars(
    labels: Sequence[object],
    series: Mapping[str, Sequence[Number]],
    *,
    title: str,
    desc: str = "",
    baseline: Mapping[str, Sequence[Number]] | None = None,
    stacked: bool = False,
    values: bool = False,
    top: float | None = None,
    x_label: str = "",
    size: tuple[float, float] = (300, 150),
) -> str:
    """Upright bars, one place per label; series differ by fill: solid, hollow, tinted with a dashed edge.

    Args:
      series: {name: [len(labels)]}, at most three, none negative; beside each other, or `stacked` in that order.
      baseline: {series name: [len(labels)]}, what chance gives: a dashed line across that series' bars, measured from
        zero (so in a stack only the first series has a meaningful one).
      values: print each number above its bar (beside each other only).
      top: the largest y, to give several figures one scale.
    Raises:
      UserError: more than three series, or lengths that differ.
    Example:
      >>> bars(["a", "b"], {"n": [1, 2]}, title="t").count('class="bar solid"')
      2
    """
    chance = baseline or {}
    if len(series) > len(FILLS):
        raise UserError(f"bars {title!r}: {len(series)} series, but {len(FILLS)} fill styles exist. Split the figure.")
    for name, row in (*series.items(), *chance.items()):
        check_shape(f"bars {title!r}: {name}", [row], 1, len(labels))
    stacks = [sum(v for v in c if finite(v)) for c in zip(*series.values(), strict=True)] if stacked else []
    highest = extent([v for row in (*series.values(), *chance.values(), stacks) for v in row], 0.0)[1]
    right, floor, domain = size[0] - 6, size[1] - (38 if x_label else 22), (0.0, top or highest)
    y = scale(domain, (floor, 20.0))
    parts, left = y_axis(domain, y, right, count=3)
    step = (right - left) / max(len(labels), 1)
    room = step * 0.8 / (1 if stacked else max(len(series), 1))
    start = {name: left + step * 0.1 + (0 if stacked else room * s) for s, name in enumerate(series)}
    under = [0.0] * len(labels)
    for style, (name, row) in zip(FILLS, series.items(), strict=False):
        for i, v in enumerate(row):
            x, base = start[name] + step * i, under[i]
            if finite(v):
                box = (x, y(base + max(v, 0.0)), room, y(base) - y(base + max(v, 0.0)))
                parts.append(_bar(box, style, f"{labels[i]}, {name}: {number(v)}"))
                under[i] += max(v, 0.0) if stacked else 0.0
            if values:
                parts.append(_value(v, (chance.get(name) or [None] * len(row))[i], x + room / 2, y))
    for name, row in chance.items():
        for i, v in enumerate(row):
            if finite(v):
                words = f"{labels[i]}, {name} by chance: {number(v)}"
                d = f"M{start[name] + step * i - 1:.1f} {y(min(v, domain[1])):.1f}h{room + 2:.1f}"
                parts.append(tag("path", d=d, class_="halo", stroke="#fff", stroke_width=4, fill="none"))
                parts.append(stroke(d, "chance", tip=words, stroke_width=2, stroke_dasharray="3 2"))
    parts.append(stroke(f"M{left:.1f} {floor}H{right}", "axis"))
    parts += _places(labels, left, step, floor + 15)
    parts.append(text((left + right) / 2, size[1] - 4, x_label, text_anchor="middle", class_="dim") if x_label else "")
    return figure(*size, *parts, title=title, desc=desc, class_="bars")


def _value(value: Number, chance: Number, x: float, y: Callable[[float], float]) -> str:
    """The number above a bar, or above the line of chance where that would strike it through."""
    at = y(max(value, 0.0)) if finite(value) else y(0.0)
    line = y(chance) if finite(chance) else at
    return text(x, (line if at - 15 < line < at else at) - 4, number(value), text_anchor="middle", class_="small")


def _bar(box: tuple[float, float, float, float], style: str, words: str) -> str:
    x, y, w, h = box
    inset = 0.0 if style == "solid" else 0.75  # half the stroke: hollow bars come out as wide as solid ones
    paint = {"fill": "currentColor"} if style == "solid" else {"fill": "none", "stroke": "currentColor"}
    place = {"x": x + inset, "y": y + inset, "width": max(w - 2 * inset, 0.5), "height": max(h - inset, 0.0)}
    return tag("rect", tag("title", escaped(words)), **place, class_=f"bar {style}", **paint)


def _places(labels: Sequence[object], left: float, step: float, y: float) -> list[str]:
    """Names under the bars, as long as there is room; every second, third ... one where they would run together."""
    most = min(LABEL, max(8, int((step - 4) / breadth("n"))))
    every = max(1, math.ceil((longest(labels, most) + 4) / step)) if labels else 1
    return [
        text(left + step * (i + 0.5), y, shortened(n, most), text_anchor="middle", class_="name")
        for i, n in enumerate(labels)
        if i % every == 0
    ]


def levels(
    names: Sequence[str],
    values: Sequence[Number],
    *,
    title: str,
    notes: Sequence[str],
    desc: str = "",
    emphasis: Collection[str] = (),
    width: float = 320,
) -> str:
    """Lying bars, one low row per name, from zero to the largest value, each with its note (the printed number).

    Example:
      >>> levels(["de", "en"], [0.5, None], title="t", notes=["50%", "–"]).count("<rect")
      1
    """
    check_shape(f"levels {title!r}", [values, notes], 2, len(names))
    left, right = 12 + longest(names), width - 12 - max((breadth(n, 11) for n in notes), default=0.0)
    x = scale((0.0, max((v for v in values if finite(v)), default=0.0) or 1.0), (left, right))
    parts = []
    for i, (name, v) in enumerate(zip(names, values, strict=True)):
        key, y = " key" if name in emphasis else "", 2 + 20 * i
        parts.append(text(left - 6, y + 14, shortened(name), text_anchor="end", class_=f"name{key}"))
        if finite(v):
            paint = {"class_": f"level{key}", "fill": "currentColor"}
            parts.append(tag("rect", x=left, y=y + 3, width=max(x(max(v, 0.0)) - left, 0.5), height=13, **paint))
        end = x(max(v, 0.0)) if finite(v) else left
        parts.append(text(end + 6, y + 14, notes[i], font_size=11, class_=f"note{key}"))
    parts.append(stroke(f"M{left:.1f} 2V{4 + 20 * len(names)}", "axis"))
    return figure(width, 6 + 20 * len(names), *parts, title=title, desc=desc, class_="levels")


def histogram(
    edges: Sequence[Number],
    counts: Mapping[str, Sequence[Number]],
    *,
    title: str,
    desc: str = "",
    emphasis: Collection[str] = (),
    notes: Mapping[str, str] | None = None,
    x_label: str = "",
    width: float = 320,
    most_bins: int = 40,
) -> str:
    """One low row per group, all over the same bins: height is the logarithm of the group's share of counts in a bin.

    A full row is a share of 1; the smallest share drawn anywhere just shows, and an empty bin leaves a gap. Logarithms
    because a neuron is near zero on most tokens, and its tail is what tells groups apart. Outer bins that are empty in
    every group are left out. Bins of very different widths (more than 3 times) are all drawn equally wide, so the axis
    is stretched where they are narrow; its numbers stand at edges of bins.

    Args:
      edges: [B+1], rising. An infinite first or last edge (an open bin) is drawn as wide as its neighbour.
      counts: {group: [B]}; neighbouring bins are added up until at most `most_bins` are left, never across 0.
      emphasis: groups drawn in the accent colour and bold. notes: {group: text at the right of its row}.
    Raises:
      UserError: a row does not have one count per bin.
    Example:
      >>> histogram([0, 1, 2], {"de": [3, 1], "en": [4, 0]}, title="t").count('class="area')
      2
    """
    for name, row in counts.items():
        check_shape(f"histogram {title!r}: {name}", [row], 1, max(len(edges) - 1, 0))
    bounds, rows = _merged(_closed(edges), counts, most_bins)
    shares = {g: [c / sum(row) if sum(row) else 0.0 for c in row] for g, row in rows.items()}
    floor = min((s for row in shares.values() for s in row if s > 0), default=0.1) / 2
    said, high = notes or {}, 20
    left, right = 12 + longest(list(rows)), width - 16 - max((breadth(n, 11) for n in said.values()), default=0.0)
    places, marks = _places_of(bounds, left, right)
    bottom = 2.0 + high * len(rows)
    parts = []
    for i, (group, row) in enumerate(shares.items()):
        base, key = 2.0 + high * (i + 1), " key" if group in emphasis else ""
        heights = [math.log(s / floor) / math.log(1 / floor) * (high - 4) if s > 0 else 0.0 for s in row]
        outline = _skyline(places, heights, base)
        parts.append(text(left - 6, base - 4, shortened(group), text_anchor="end", class_=f"name{key}"))
        parts.append(tag("path", d=outline, class_=f"area{key}", fill="currentColor") if outline else "")
        shown = said.get(group)
        place = {"text_anchor": "end", "font_size": 11, "class_": f"note{key}"}
        parts.append(text(width - 2, base - 4, shown, **place) if shown else "")
    floors = "".join(f"M{left:.1f} {2 + high * (i + 1)}H{right:.1f}" for i in range(len(rows)))
    parts.append(stroke(floors, "grid", stroke_opacity=0.3))
    parts += [text(x, bottom + 15, number(v, 2), text_anchor="middle", class_="dim") for x, v in marks]
    parts.append(text((left + right) / 2, bottom + 32, x_label, text_anchor="middle", class_="dim") if x_label else "")
    return figure(width, bottom + (36 if x_label else 20), *parts, title=title, desc=desc, class_="histogram")


def _closed(edges: Sequence[Number]) -> list[float]:
    known = [float(e) for e in edges if finite(e)]
    if len(known) < 2:
        return [float(i) for i in range(max(len(edges), 2))]
    first = [] if finite(edges[0]) else [2 * known[0] - known[1]]
    last = [2 * known[-1] - known[-2]] * (len(edges) - len(first) - len(known))
    return [*first, *known, *last]


def _merged(bounds: list[float], counts: Mapping[str, Sequence[Number]], most: int) -> tuple[list[float], dict]:
    """The bins that hold anything, neighbours added up until there are few enough; 0 stays an edge if it is one."""
    rows = {g: [float(v) if finite(v) else 0.0 for v in row] for g, row in counts.items()}
    n = len(bounds) - 1
    filled = [i for i in range(n) if any(row[i] for row in rows.values())] or [0, n - 1]
    first, last = filled[0], filled[-1] + 1
    step = math.ceil((last - first) / most)
    zero = bounds.index(0.0) if 0.0 in bounds else first
    starts = range(first - (first - zero) % step, last, step)
    kept = [bounds[max(i, 0)] for i in starts] + [bounds[min(starts[-1] + step, n)]]
    return kept, {g: [sum(r[max(i, 0) : i + step]) for i in starts] for g, r in rows.items()}


def _places_of(bounds: list[float], left: float, right: float) -> tuple[list[float], list[Point]]:
    """The pixel of every edge, and (pixel, value) of the numbers under the axis."""
    widths = [b - a for a, b in itertools.pairwise(bounds)]
    if max(widths) <= 3 * max(min(widths), 0.0):
        x = scale((bounds[0], bounds[-1]), (left, right))
        return [x(b) for b in bounds], [(x(t), t) for t in ticks(bounds[0], bounds[-1], 4)]
    x = scale((0, len(bounds) - 1), (left, right))
    n = len(bounds) - 1
    wanted = {0, n, *(round(n * q) for q in (0.25, 0.5, 0.75))} | ({bounds.index(0.0)} if 0.0 in bounds else set())
    marks: list[Point] = []
    for i in sorted(wanted, key=lambda i: (bounds[i] != 0, i not in (0, n), i)):  # 0 first, then the ends
        if all(abs(x(i) - other) >= 38 for other, _ in marks):
            marks.append((x(i), bounds[i]))
    return [x(i) for i in range(len(bounds))], marks


def _skyline(x: list[float], heights: list[float], base: float) -> str:
    """Steps of the given heights above base, one closed shape per run of filled bins."""
    path, down = "", True
    for i, h in enumerate(heights):
        if h > 0:
            path += (f"M{x[i]:.1f} {base:.1f}" if down else "") + f"V{base - h:.1f}H{x[i + 1]:.1f}"
        elif not down:
            path += f"V{base:.1f}"
        down = h <= 0
    return path if down else f"{path}V{base:.1f}"


def lines(
    x: Sequence[Number],
    curves: Mapping[str, Sequence[Number]],
    *,
    title: str,
    desc: str = "",
    x_label: str = "",
    y_label: str = "",
    emphasis: Collection[str] = (),
    from_zero: bool = False,
    size: tuple[float, float] = (320, 200),
    most_points: int = 200,
) -> str:
    """Curves over one x, each named at its right end; they differ by dash and marker, those in `emphasis` are heavier.

    Markers are drawn where points are few; with an `emphasis`, on its curves only.

    Args:
      x: [n]. curves: {name: [n]}. A point with a missing coordinate breaks its curve.
      from_zero: let y start at 0. most_points: longer curves are thinned evenly; first and last points stay.
    Raises:
      UserError: a curve does not have one value per x.
    Example:
      >>> lines([0, 1], {"loss": [2.0, 1.0]}, title="t").count('class="line')
      1
    """
    for name, row in curves.items():
        check_shape(f"lines {title!r}: {name}", [row], 1, len(x))
    kept = _thinned(len(x), most_points)
    points = {name: [_pair(x[i], row[i]) for i in kept] for name, row in curves.items()}
    ys = extent([p[1] for row in points.values() for p in row if p], *([0.0] if from_zero else []))
    xs, named = extent(x), len(curves) > 1
    floor, roof = size[1] - (38 if x_label else 22), 26.0 if y_label else 8.0
    py = scale(ys, (floor, roof))
    right = size[0] - (20 + longest(list(curves), size=11) if named else 16)
    axis, left = y_axis(ys, py, right)
    px = scale(xs, (left + 4, right))
    parts = axis + x_axis(
        xs, px, floor, label=x_label, centre=(left + right) / 2, count=max(2, int((right - left) / 70))
    )
    parts.append(text(2, 12, y_label, class_="dim") if y_label else "")
    drawn = {n: [p and (px(p[0]), py(p[1])) for p in row] for n, row in points.items()}
    style = {name: i for i, name in enumerate(curves)}
    for name in sorted(drawn, key=lambda n: n in emphasis):  # what matters is drawn last, on top
        key = " key" if name in emphasis or not named else ""
        marked = len(kept) <= 16 and bool(key or not emphasis)  # beside a heavy curve the others stay quiet
        parts.append(_curve(drawn[name], style[name], key, name, marked))
    parts.append(stroke(f"M{left:.1f} {floor}H{right:.1f}", "axis"))
    parts += _end_names(drawn, right, (roof, floor), emphasis) if named else []
    return figure(*size, *parts, title=title, desc=desc, class_="lines")


def _pair(x: Number, y: Number) -> Point | None:
    return (float(x), float(y)) if finite(x) and finite(y) else None


def _curve(points: list[Point | None], style: int, key: str, name: str, marked: bool) -> str:
    path, pen_up = "", True
    for p in points:
        path += f"{'M' if pen_up else 'L'}{p[0]:.1f} {p[1]:.1f}" if p else ""
        pen_up = p is None
    dash = DASHES[style % len(DASHES)]
    line = stroke(path or "M0 0", f"line{key}", tip=name, stroke_width=2 if key else 1.2, stroke_dasharray=dash)
    marker = MARKERS[style % len(MARKERS)]
    return line + "".join(point(marker, *p, f"mark{key}", 3) for p in points if p and marked)


def _end_names(
    drawn: Mapping[str, list[Point | None]], right: float, box: Point, emphasis: Collection[str]
) -> list[str]:
    ends = {n: next(p for p in reversed(row) if p) for n, row in drawn.items() if any(row)}
    out = []
    for (name, (x, y)), place in zip(ends.items(), spread([p[1] for p in ends.values()], 12, *box), strict=True):
        key = " key" if name in emphasis else ""
        out.append(stroke(f"M{x + 4:.1f} {y:.1f}L{right + 11:.1f} {place:.1f}", "leader", stroke_width=0.7))
        out.append(text(right + 14, place + 4, shortened(name), class_=f"name{key}", font_size=11))
    return out


def _thinned(n: int, most: int) -> list[int]:
    return list(range(n)) if n <= most else sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})
