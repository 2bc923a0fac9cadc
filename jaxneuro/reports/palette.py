# SPDX-License-Identifier: Apache-2.0
"""Colours of the figures: a diverging scale that is even to the eye, once for light and once for dark pages.

Mixing in OKLab makes equal steps of the value equal steps of lightness, so the scale reads without colour vision (blue
and orange differ for every common kind of it as well) and prints in grey. Source of the space and its matrices:
Björn Ottosson, "A perceptual color space for image processing" (2020).
"""

from typing import Final

SCALES: Final[dict[str, dict[str, str]]] = {
    "light": {"zero": "#f4f6f8", "positive": "#00429d", "negative": "#8f2d00"},
    "dark": {"zero": "#262b33", "positive": "#92c9ff", "negative": "#ffb888"},
}
"""Per theme, the colours of 0, +1 and -1."""

type Triple = tuple[float, float, float]

# Rows: linear sRGB -> cone responses, cube-rooted cone responses -> (L, a, b), and the two inverses.
_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_FROM_LAB = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_FROM_CONES = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


def diverging(t: float, theme: str = "light") -> str:
    """The colour of `t` in [-1, 1] (values outside are clipped): 0 is the neutral, the ends are the poles.

    Example:
      >>> diverging(0.0), diverging(1.0), diverging(-5.0)
      ('#f4f6f8', '#00429d', '#8f2d00')
    """
    scale = SCALES[theme]
    zero, pole = oklab(scale["zero"]), oklab(scale["positive" if t >= 0 else "negative"])
    share = min(abs(t), 1.0)
    return _hex((1 - share) * a + share * b for a, b in zip(zero, pole, strict=True))


def ink(colour: str) -> str:
    """ "#000" or "#fff", whichever is easier to read on `colour` (the larger WCAG 2 contrast).

    Example:
      >>> ink("#ffffff"), ink("#00429d")
      ('#000', '#fff')
    """
    return "#000" if contrast(colour, "#000000") >= contrast(colour, "#ffffff") else "#fff"


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio of two colours, 1 to 21.

    Example:
      >>> round(contrast("#000000", "#ffffff"), 6)
      21.0
    """
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def oklab(colour: str) -> Triple:
    """(L, a, b) of "#rrggbb"; L is lightness, 0 black to 1 white."""
    l, m, s = (v ** (1 / 3) for v in _mix(_TO_CONES, _linear(colour)))  # noqa: E741
    return _mix(_TO_LAB, (l, m, s))


def _mix(rows: tuple[Triple, ...], v: Triple) -> Triple:
    a, b, c = (r[0] * v[0] + r[1] * v[1] + r[2] * v[2] for r in rows)
    return a, b, c


def _linear(colour: str) -> Triple:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return r, g, b


def _luminance(colour: str) -> float:
    r, g, b = _linear(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _hex(lab) -> str:
    l, m, s = (v**3 for v in _mix(_FROM_LAB, tuple(lab)))  # noqa: E741
    channels = (min(max(c, 0.0), 1.0) for c in _mix(_FROM_CONES, (l, m, s)))
    srgb = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in channels)
    return "#" + "".join(f"{round(255 * c):02x}" for c in srgb)
