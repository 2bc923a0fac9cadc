# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest

from jaxneuro.reports.palette import SCALES, contrast, diverging, ink, oklab

STEPS = [i / 50 for i in range(51)]


def test_known_colours_in_oklab():
    # Ottosson's own check values: white is (1, 0, 0); sRGB red is (0.628, 0.225, 0.126).
    assert oklab("#ffffff") == pytest.approx((1, 0, 0), abs=1e-4)
    assert oklab("#ff0000") == pytest.approx((0.62796, 0.22486, 0.12585), abs=1e-4)


@pytest.mark.parametrize("theme", SCALES)
@pytest.mark.parametrize("sign", [1, -1])
def test_equal_steps_of_value_are_equal_steps_of_lightness(theme, sign):
    lightness = [oklab(diverging(sign * t, theme))[0] for t in STEPS]
    steps = [b - a for a, b in itertools.pairwise(lightness)]
    whole = lightness[-1] - lightness[0]
    assert abs(whole) > 0.5, "the scale spans most of the range from paper to ink"
    assert max(abs(s - whole / 50) for s in steps) < 0.004, "even, up to the rounding of 8-bit colours"


@pytest.mark.parametrize("theme", SCALES)
def test_numbers_are_readable_on_every_cell(theme):
    for t in (s * v for v in STEPS for s in (1, -1)):
        colour = diverging(t, theme)
        assert contrast(colour, "#000000" if ink(colour) == "#000" else "#ffffff") >= 4.5, (t, colour)


def test_the_poles_differ_in_more_than_lightness():
    for theme in SCALES:
        up, down = oklab(diverging(1, theme)), oklab(diverging(-1, theme))
        assert up[2] < -0.05 < 0.05 < down[2], "blue against orange: the axis that red-green blindness keeps"
