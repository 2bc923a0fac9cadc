# SPDX-License-Identifier: Apache-2.0
import itertools
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxneuro.errors import UserError
from jaxneuro.reports import svg

NASTY = "</text><script>alert(1)</script>&\"'\x00\x1b\n\ud800\u2028"


def test_text_and_attributes_come_back_as_they_were():
    element = ET.fromstring(svg.text(1, 2, NASTY, class_=NASTY.replace("\x00", "").replace("\x1b", "")[:-3]))
    assert element.text == "</text><script>alert(1)</script>&\"'␀␛↵[U+D800]↵"
    assert len(element) == 0, "no child element: the markup stayed text"
    assert element.get("class").startswith("</text><script>")


def test_a_figure_names_and_describes_itself():
    root = ET.fromstring(svg.figure(10, 20.04, title="T", desc="D", class_="x"))
    ns = "{http://www.w3.org/2000/svg}"
    assert (root.find(f"{ns}title").text, root.find(f"{ns}desc").text) == ("T", "D")
    assert (root.get("role"), root.get("viewBox"), root.get("class")) == ("img", "0 0 10 20", "fig x")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (1.0, "1"), (0.5, "0.5"), (0.12345, "0.123"), (12.345, "12.3"), (123.4, "123"), (999.7, "1,000"),
        (1234567, "1,234,567"), (-0.25, "−0.25"), (3.2e-6, "3.2e−6"), (1e-12, "1.0e−12"),
        (None, "–"), (math.nan, "–"), (math.inf, "–"), (True, "–"), ("3", "–"), (np.float32(0.5), "0.5"),
    ],
)  # fmt: skip
def test_numbers_as_a_reader_wants_them(value, shown):
    assert svg.number(value) == shown


def test_one_format_for_a_table():
    assert [svg.fixed(0.0701)(v) for v in (0.0701, -0.01, 0.00001)] == ["0.0701", "−0.0100", "0.0000"]
    assert [svg.fixed(4321.0)(v) for v in (4321.0, -0.4)] == ["4,321", "0"]
    assert svg.fixed(0.0)(0.0) == "0"
    assert svg.fixed(math.nan)(2.0) == "2"


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_inside_even_and_few(low, length, count):
    high = low + length
    marks = svg.ticks(low, high, count)
    slack = 1e-6 * length + 1e-9 * abs(low)
    assert all(low - slack <= t <= high + slack for t in marks)
    assert len(marks) <= 2 * count + 1
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert not steps or max(steps) - min(steps) <= 1e-6 * max(steps) + 1e-9 * abs(low)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_spread_labels_keep_their_order_and_distance(wanted):
    placed = svg.spread(wanted, 10, -5, 120)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    ys = [placed[i] for i in order]
    assert all(b - a >= 10 - 1e-6 for a, b in itertools.pairwise(ys))
    assert ys[0] >= -5 - 1e-6
    assert ys[-1] <= 120 + 1e-6
    far = all(abs(a - b) >= 10 for i, a in enumerate(wanted) for b in wanted[:i])
    assert not far or placed == pytest.approx(wanted), "labels with room stay where they belong"


def test_extent_ignores_what_cannot_be_drawn():
    assert svg.extent([None, math.nan, 3.0, math.inf, -1]) == (-1.0, 3.0)
    assert svg.extent([]) == (0.0, 1.0)
    assert svg.extent([2.0, 2.0]) == (2.0, 4.0), "never of zero length"


def test_wide_characters_take_more_room():
    assert svg.breadth("行数") > 1.5 * svg.breadth("ab")


def test_a_table_of_the_wrong_shape_says_both_shapes():
    with pytest.raises(UserError, match=r"x has 2 rows of 2/3 values, but the names make it 2 rows of 3"):
        svg.check_shape("x", [[1, 2, 3], [1, 2]], 2, 3)
