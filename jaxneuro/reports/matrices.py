# SPDX-License-Identifier: Apache-2.0
"""Matrices as figures: heat_map with its colour_bar, and comparison of measured numbers with a random baseline."""

import math
from collections.abc import Sequence

from .palette import diverging, ink
from .svg import (
    Number,
    breadth,
    check_shape,
    escaped,
    extent,
    figure,
    finite,
    fixed,
    longest,
    point,
    rounded,
    scale,
    shortened,
    stroke,
    tag,
    text,
    x_axis,
)

type Matrix = Sequence[Sequence[Number]]


def heat_map(
    values: Matrix,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    desc: str = "",
    row_title: str = "",
    column_title: str = "",
    row_notes: Sequence[str] = (),
    below: Matrix | None = None,
    largest: float | None = None,
    cell: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> str:
    """A matrix as coloured cells, each with its number printed.

    Colour is value / largest on a diverging scale: 0 is neutral, so sign and size are seen at once.

    Args:
      values: [rows][columns]; None or NaN cells are drawn empty with "–".
      row_notes: [rows] small words under the name of each row.
      below: a second number per cell, printed small as "± x" (a standard deviation).
      largest: the |value| at full colour; give two maps the same one to compare them. Default: the largest here.
      cell: (width, height) of one in pixels; default: what its text needs.
      diagonal: outline the cells (i, i).
    Raises:
      UserError: values (or below) is not [len(rows)][len(columns)].
    Example:
      >>> heat_map([[1.0, 0.5]], ["a"], ["x", "y"], title="t").count("<rect")
      2
    """
    for name, table in (("values", values), ("below", below)):
        if table is not None:
            check_shape(f"heat map {title!r}: {name}", table, len(rows), len(columns))
    peak = largest or max((abs(v) for r in values for v in r if finite(v)), default=0.0)
    show = fixed(peak)
    w, h = cell or (cell_width(values, below, peak), 42 if below else 34)
    turned = max(map(len, columns), default=0) > 6
    left = 30 + max(longest(rows), longest(row_notes, size=10))
    top = 30 + (0.7 * longest(columns) if turned else 14)
    middle = top + h * len(rows) / 2
    parts = [
        text(left + w * len(columns) / 2, 12, column_title, text_anchor="middle", class_="dim"),
        text(12, middle, row_title, text_anchor="middle", class_="dim", transform=f"rotate(-90 12 {middle:.0f})"),
        *_headings(columns, left, top - 8, w, turned),
    ]
    for i, name in enumerate(rows):
        y = top + h * i
        line = y + h / 2 + (-2 if row_notes else 4)
        parts.append(text(left - 8, line, shortened(name), text_anchor="end", class_="name"))
        if row_notes:
            parts.append(text(left - 8, line + 13, row_notes[i], text_anchor="end", class_="small dim", font_size=10))
        for j, column in enumerate(columns):
            second = f"± {show(below[i][j])}" if below else ""
            words = f"{name}, {column}: {show(values[i][j])} {second}".rstrip()
            parts.append(_cell(values[i][j], peak, (left + w * j, y, w, h), (words, show(values[i][j]), second)))
            if diagonal and i == j:
                box = f"M{left + w * j + 1:.1f} {y + 1:.1f}h{w - 2}v{h - 2}h{2 - w}z"
                parts.append(stroke(box, "outline", stroke_width=2))
    wide = left + w * len(columns) + (0.6 * breadth(shortened(columns[-1])) if turned else 6)
    return figure(wide, top + h * len(rows) + 4, *parts, title=title, desc=desc, class_="heat")


def cell_width(values: Matrix, below: Matrix | None, largest: float) -> float:
    """Pixels that the longest number of a heat map needs."""
    show = fixed(largest)
    widest = longest([show(v) for r in values for v in r])
    return max(54, math.ceil(max(widest, longest([f"± {show(v)}" for r in below or [] for v in r], size=10))) + 6)


def _headings(columns: Sequence[str], left: float, y: float, w: float, turned: bool) -> list[str]:
    out = []
    for j, name in enumerate(columns):
        x = left + w * (j + 0.5)
        place = {"transform": f"rotate(-40 {x:.0f} {y:.0f})"} if turned else {"text_anchor": "middle"}
        out.append(text(x, y, shortened(name), class_="name", **place))
    return out


def _cell(value: Number, peak: float, box: tuple[float, float, float, float], words: tuple[str, str, str]) -> str:
    (x, y, w, h), (tip, shown, second) = box, words
    place = {"x": x + 1, "y": y + 1, "width": w - 2, "height": h - 2, "rx": 3}
    centre, title = x + w / 2, tag("title", escaped(tip))
    if not finite(value):
        empty = tag("rect", **place, class_="empty", fill="none", stroke="#888", stroke_dasharray="3 3")
        return tag("g", title, empty, text(centre, y + h / 2 + 4, "–", text_anchor="middle"))
    t = max(-1.0, min(1.0, value / peak)) if peak else 0.0
    light, dark = ink(diverging(t, "light")), ink(diverging(t, "dark"))
    paint = {"text_anchor": "middle", "fill": light}
    inks = f"ink-{_INKS[light]}{_INKS[dark]}"  # which ink on a light page, which on a dark one
    line = y + h / 2 + (-2 if second else 4)
    parts = [title, _shade("rect", t, **place), text(centre, line, shown, class_=inks, **paint)]
    if second:
        parts.append(text(centre, line + 14, second, class_=f"small {inks}", font_size=10, **paint))
    return tag("g", *parts)


_INKS = {"#000": "b", "#fff": "w"}


def _shade(name: str, t: float, **place: object) -> str:
    side = "neg" if t < 0 else "pos"
    return tag(name, **place, class_=f"cell {side}", fill=diverging(t), style=f"--t:{abs(t):.3f}")


def colour_bar(largest: float, *, unit: str, negative: bool = True) -> str:
    """The key of heat maps drawn with this `largest`: a strip from -largest (or 0) to +largest, its ends named.

    Example:
      >>> ">−0.5<" in colour_bar(0.5, unit="nats"), ">−0.5<" in colour_bar(0.5, unit="nats", negative=False)
      (False, False)
      >>> ">−0.500<" in colour_bar(0.5, unit="nats")
      True
    """
    steps, low, show = 24, -1.0 if negative else 0.0, fixed(largest)
    shades = [low + (1 - low) * i / (steps - 1) for i in range(steps)]
    strip = [_shade("rect", t, x=4 + 10 * i, y=2, width=11, height=12) for i, t in enumerate(shades)]
    marks = [(low * largest, 4, "start"), (largest, 4 + 10 * steps, "end")]
    marks += [(0.0, 4 + 5 * steps, "middle")] if negative else []
    words = [text(x, 29, show(v), text_anchor=anchor, class_="dim") for v, x, anchor in marks]
    words.append(text(12 + 10 * steps, 12, unit, class_="dim"))
    return figure(260 + breadth(unit), 34, *strip, *words, title=f"Colour scale, {unit}", class_="colours")


def comparison(
    names: Sequence[str],
    *,
    own: Sequence[Number],
    mean: Sequence[Number],
    std: Sequence[Number],
    others: Matrix,
    notes: Sequence[str],
    title: str,
    desc: str = "",
    x_label: str = "",
    width: float = 600,
) -> str:
    """One row per name: a filled diamond (own), a ring with a bar of ± 2 std (random), ticks (others), a note.

    Args:
      own, mean, std: [K] positions. others: [K][any] small ticks. notes: [K] text at the right end.
    Example:
      >>> figure = comparison(["a"], own=[1.0], mean=[0.1], std=[0.1], others=[[0.2]], notes=["z 9"], title="t")
      >>> figure.count('class="diamond"'), "z 9" in figure
      (1, True)
    """
    ranges = [_range(m, s) for m, s in zip(mean, std, strict=True)]
    domain = rounded(extent([*own, *mean, *(v for r in (*ranges, *others) for v in r)], 0.0))
    height, top, left = 30, 8, 14 + longest(names)
    right, bottom = left + width, top + height * len(names)
    x = scale(domain, (left + 12, right - 12))
    parts = x_axis(domain, x, bottom, label=x_label, centre=(left + right) / 2, rules_from=top)
    parts.append(stroke(f"M{x(0.0):.1f} {top}V{bottom}", "axis"))
    for i, name in enumerate(names):
        y = top + height * (i + 0.5)
        parts.append(text(left - 6, y + 4, shortened(name), text_anchor="end", class_="name"))
        parts += [stroke(f"M{x(v):.1f} {y - 5:.1f}v10", "others") for v in others[i] if finite(v)]
        if ranges[i]:
            a, b = map(x, ranges[i])
            parts.append(stroke(f"M{a:.1f} {y - 4:.1f}v8m0 -4H{b:.1f}m0 -4v8", "whisker"))
        if finite(m := mean[i]):
            parts.append(point("ring", x(m), y, "ring"))
        if finite(v := own[i]):
            parts.append(point("diamond", x(v), y, "diamond", 6))
        parts.append(text(right + 6, y + 4, notes[i]))
    wide = right + 10 + max(map(breadth, notes), default=0.0)
    return figure(wide, bottom + 40, *parts, title=title, desc=desc, class_="comparison")


def _range(mean: Number, std: Number) -> list[float]:
    return [mean - 2 * std, mean + 2 * std] if finite(mean) and finite(std) else []
