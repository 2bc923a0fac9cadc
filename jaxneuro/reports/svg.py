# SPDX-License-Identifier: Apache-2.0
"""What every figure is made of: escaped SVG elements, printed numbers, ticks, linear scales."""

import html
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple, TypeGuard

from ..errors import UserError
from ..errors import pictures as visible

type Number = float | int | None

LABEL = 16
"""Most characters of a row, column or curve name; the whole name is in the tooltip and in the table."""
MINUS = "\u2212"


def tag(name: str, *children: str, **attributes: object) -> str:
    """One element. Attribute values are escaped, children are markup already; attributes that are None are left out.

    Example:
      >>> tag("rect", x=1.5, class_="a b", fill=None, stroke_width=2)
      '<rect x="1.5" class="a b" stroke-width="2"/>'
    """
    shown = "".join(
        f' {k.rstrip("_").replace("_", "-")}="{html.escape(_plain(v))}"' for k, v in attributes.items() if v is not None
    )
    return f"<{name}{shown}>{''.join(children)}</{name}>" if children else f"<{name}{shown}/>"


def text(x: float, y: float, words: object, **attributes: object) -> str:
    """A line of text, escaped."""
    return tag("text", escaped(words), x=x, y=y, **attributes)


def figure(width: float, height: float, *parts: str, title: str, desc: str = "", class_: str = "") -> str:
    """The <svg> element: its title names it and its description says in words what it shows."""
    words = [tag("title", escaped(title) or " ")]
    words += [tag("desc", escaped(desc))] if desc else []
    w, h = _plain(width), _plain(height)
    # xmlns is a name, not an address: nothing is fetched. It lets the string be saved as an .svg file.
    frame = {"xmlns": "http://www.w3.org/2000/svg", "width": w, "height": h, "viewBox": f"0 0 {w} {h}"}
    looks = {"class_": f"fig {class_}".strip(), "style": f"--w:{w}px", "font_size": 12}
    return tag("svg", *words, *parts, **frame, role="img", **looks)


def _plain(value: object) -> str:
    """Coordinates to a tenth of a pixel: files stay small and the eye sees no difference."""
    if isinstance(value, float):
        shown = f"{value if math.isfinite(value) else 0.0:.1f}".removesuffix(".0")
        return "0" if shown == "-0" else shown
    return str(value)


def finite(value: object) -> TypeGuard[float]:
    """Whether value is a number that can be drawn (bool, None, NaN and infinities are not)."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def number(value: object, digits: int = 3) -> str:
    """A number as a reader wants it: `digits` significant digits, thousands grouped, a real minus sign; "–" for none.

    Example:
      >>> number(12345.6), number(0.012345), number(-3), number(float("nan")), number(1.2e-7)
      ('12,346', '0.0123', '−3', '–', '1.2e−7')
    """
    if not finite(value):
        return "–"
    x = float(value)
    if x == int(x) and abs(x) < 1e15:
        shown = f"{int(x):,}"
    elif abs(x) >= 10**digits:
        shown = f"{x:,.0f}"
    elif abs(x) < 1e-4:
        shown = re.sub(r"e([+-])0*", r"e\1", f"{x:.{digits - 2}e}")
    else:
        shown = f"{x:,.{max(digits - 1 - math.floor(math.log10(abs(x))), 0)}f}"
        shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return shown.replace("-", MINUS)


def brief(value: float) -> str:
    """A tick of an axis of large counts.

    Example:
      >>> brief(2_500_000), brief(40_000), brief(0.5)
      ('2.5 M', '40 k', '0.5')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return number(value / (1e3 if unit == " k" else size)) + unit
    return number(value)


def percent(value: object) -> str:
    """A share as a percentage: two significant digits.

    Example:
      >>> percent(0.1234), percent(0.00056), percent(1.0), percent(None)
      ('12%', '0.056%', '100%', '–')
    """
    if not finite(value):
        return "–"
    return number(value * 100, 3 if abs(value) >= 0.9995 else 2) + "%"


def fixed(largest: float) -> Callable[[Number], str]:
    """One format for a whole table: as many decimals as give its largest number three digits.

    Example:
      >>> f = fixed(0.412)
      >>> f(0.412), f(-0.0001), f(None)
      ('0.412', '0.000', '–')
    """
    size = abs(largest)
    decimals = min(max(2 - math.floor(math.log10(size)), 0), 5) if size > 0 and finite(size) else 0

    def show(value: Number) -> str:
        if not finite(value):
            return "–"
        shown = f"{value:,.{decimals}f}"
        return shown.lstrip("-") if float(shown.replace(",", "")) == 0 else shown.replace("-", MINUS)

    return show


def breadth(words: object, size: float = 12) -> float:
    """About how many pixels a line of text takes, on the wide side: fonts differ from machine to machine."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in visible(words))
    return size * (0.61 * (len(visible(words)) - wide) + 1.02 * wide)


def shortened(words: object, most: int = LABEL) -> str:
    """At most `most` characters, the last an ellipsis if some had to go."""
    shown = visible(words)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def longest(names: Sequence[object], most: int = LABEL, size: float = 12) -> float:
    """The breadth of the longest name, shortened as it will be drawn; 0 for none."""
    return max((breadth(shortened(n, most), size) for n in names), default=0.0)


def extent(values: Sequence[Number], *also: float) -> tuple[float, float]:
    """(smallest, largest) of the finite values and `also`; (0, 1) when there is nothing, never of zero length."""
    known = [float(v) for v in (*values, *also) if finite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers inside [low, high].

    Example:
      >>> ticks(0, 0.43)
      [0.0, 0.1, 0.2, 0.3, 0.4]
    """
    step = _step(low, high, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _step(low: float, high: float, count: int) -> float:
    rough = (high - low) / max(count, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    return unit * next(s for s in (1, 2, 2.5, 5, 10) if s * unit >= rough * 0.8)


def rounded(domain: tuple[float, float], count: int = 4) -> tuple[float, float]:
    """The domain up to the next ticks, so that no mark lies beyond the last number of its axis.

    Example:
      >>> rounded((0.0, 0.29)), rounded((-0.02, 1.51))
      ((0.0, 0.3), (-0.5, 2.0))
    """
    step = _step(*domain, count)
    low, high = math.floor(domain[0] / step + 1e-9), math.ceil(domain[1] / step - 1e-9)
    return round(low * step, 12), round(high * step, 12)


def scale(domain: tuple[float, float], pixels: tuple[float, float]) -> Callable[[float], float]:
    """The straight line that takes `domain` to `pixels`."""
    (a, b), (p, q) = domain, pixels
    return lambda v: p + (v - a) / (b - a) * (q - p)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, in the same order, at least `gap` apart where [low, high] has the room.

    Example:
      >>> spread([10, 11, 50], 10, 0, 100)
      [5.5, 15.5, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[list[float]] = []  # [sum of wanted centres, members]: neighbours merge until none overlap
    for i in order:
        clusters.append([float(wanted[i]), 1])
        while len(clusters) > 1 and _too_near(clusters[-2], clusters[-1], gap):
            (s, n), (t, m) = clusters[-2], clusters.pop()
            clusters[-1] = [s + t, n + m]
    placed = [s / n + (j - (n - 1) / 2) * gap for s, n in clusters for j in range(int(n))]
    placed = _inside(placed, gap, low, high)
    out = [0.0] * len(wanted)
    for i, y in zip(order, placed, strict=True):
        out[i] = y
    return out


def _too_near(a: list[float], b: list[float], gap: float) -> bool:
    return b[0] / b[1] - a[0] / a[1] < gap * (a[1] + b[1]) / 2


def _inside(placed: list[float], gap: float, low: float, high: float) -> list[float]:
    for j in range(len(placed)):
        placed[j] = max(placed[j], low + j * gap)
    for j in reversed(range(len(placed))):
        placed[j] = min(placed[j], high - (len(placed) - 1 - j) * gap)
    return placed


def point(kind: str, x: float, y: float, class_: str, r: float = 4) -> str:
    """A marker: circle, ring, square, diamond, triangle or cross, about 2 r wide."""
    hollow = {"fill": "none", "stroke": "currentColor", "class_": f"{class_} open"}
    solid = {"fill": "currentColor", "class_": class_}
    if kind in ("circle", "ring"):
        return tag("circle", cx=x, cy=y, r=r, **(hollow if kind == "ring" else solid))
    shapes = {
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        "diamond": f"M{x:.1f} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}z",
        "triangle": f"M{x:.1f} {y - r:.1f}l{r} {2 * r}h{-2 * r}z",
        "cross": f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
    }
    return tag("path", d=shapes[kind], **(hollow if kind == "cross" else solid))


def stroke(d: str, class_: str, *, tip: str = "", **attributes: object) -> str:
    """A path that is drawn but not filled."""
    inside = [tag("title", escaped(tip))] if tip else []
    return tag("path", *inside, d=d, class_=class_, stroke="currentColor", fill="none", **attributes)


def x_axis(
    domain: tuple[float, float],
    x: Callable[[float], float],
    y: float,
    *,
    label: str = "",
    centre: float = 0.0,
    count: int = 4,
    rules_from: float | None = None,
) -> list[str]:
    """Numbers under y, the label under them, and on request hairlines up to `rules_from`."""
    marks = ticks(*domain, count)
    parts = [text(x(t), y + 15, brief(t), text_anchor="middle", class_="dim") for t in marks]
    parts += [text(centre, y + 32, label, text_anchor="middle", class_="dim")] if label else []
    if rules_from is not None:
        d = "".join(f"M{x(t):.1f} {y:.1f}V{rules_from:.1f}" for t in marks)
        parts.append(stroke(d, "grid", stroke_opacity=0.3))
    return parts


class Axis(NamedTuple):
    """Its elements, and the coordinate at which the plot may start."""

    parts: list[str]
    start: float


def y_axis(domain: tuple[float, float], y: Callable[[float], float], right: float, count: int = 4) -> Axis:
    """Numbers left of the plot with hairlines across it, and where the plot starts: as far in as the numbers need."""
    marks = ticks(*domain, count)
    left = 10 + max((breadth(number(t), 11) for t in marks), default=0.0)
    d = "".join(f"M{left:.1f} {y(t):.1f}H{right:.1f}" for t in marks)
    parts = [stroke(d, "grid", stroke_opacity=0.3)]
    parts += [text(left - 5, y(t) + 4, number(t), text_anchor="end", class_="dim") for t in marks]
    return Axis(parts, left)


def escaped(words: object) -> str:
    """Any text, safe inside an element."""
    return html.escape(visible(words))


def check_shape(what: str, table: Sequence[Sequence], n_rows: int, n_columns: int) -> None:
    """Raise UserError unless table is [n_rows][n_columns]."""
    lengths = sorted({len(r) for r in table})
    if len(table) != n_rows or (n_rows and lengths != [n_columns]):
        raise UserError(
            f"{what} has {len(table)} rows of {'/'.join(map(str, lengths)) or 'no'} values, "
            f"but the names make it {n_rows} rows of {n_columns}. Give one value per name."
        )
