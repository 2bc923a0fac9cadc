# SPDX-License-Identifier: Apache-2.0
import math
import re
import xml.etree.ElementTree as ET

import pytest

from jaxneuro.errors import UserError
from jaxneuro.reports import colour_bar, comparison, heat_map
from jaxneuro.reports.palette import diverging

NS = "{http://www.w3.org/2000/svg}"
ROWS, COLUMNS = ["de", "en"], ["de", "en", "<b>ru</b>"]
VALUES = [[0.4, -0.1, 0.0], [None, 0.2, math.nan]]


def draw(**style):
    return ET.fromstring(heat_map(VALUES, ROWS, COLUMNS, title="effect", **style))


def words(root):
    return [e.text for e in root.iter(f"{NS}text")]


def test_every_cell_is_drawn_and_prints_its_number():
    root = draw()
    cells = [r for r in root.iter(f"{NS}rect") if "cell" in r.get("class")]
    assert len(cells) == 4
    assert len([r for r in root.iter(f"{NS}rect") if r.get("class") == "empty"]) == 2
    for shown in ("0.400", "−0.100", "0.000", "0.200"):
        assert words(root).count(shown) == 1
    assert words(root).count("–") == 2


def test_names_and_tooltips_are_text_not_markup():
    root = draw()
    assert "<b>ru</b>" in words(root)
    assert "de, <b>ru</b>: 0.000" in [e.text for e in root.iter(f"{NS}title")]
    assert not list(root.iter(f"{NS}b"))


def test_colour_is_value_over_largest():
    fills = [r.get("fill") for r in draw().iter(f"{NS}rect") if "cell" in r.get("class")]
    assert fills == [diverging(1.0), diverging(-0.25), diverging(0.0), diverging(0.5)]
    fills = [r.get("fill") for r in draw(largest=0.8).iter(f"{NS}rect") if "cell" in r.get("class")]
    assert fills[0] == diverging(0.5), "two maps with one largest share their colours"


def test_second_numbers_and_outlines():
    root = draw(below=[[0.01] * 3] * 2, diagonal=True)
    assert words(root).count("± 0.010") == 4, "empty cells have no second number"
    assert len([p for p in root.iter(f"{NS}path") if p.get("class") == "outline"]) == 2


def test_long_names_are_turned_and_shortened_but_whole_in_the_tooltip():
    long = "a group with a very long name"
    root = ET.fromstring(heat_map([[1.0]], [long], [long], title="t"))
    shown = [e for e in root.iter(f"{NS}text") if e.text == "a group with a …"]
    assert len(shown) == 2
    assert any("rotate" in e.get("transform", "") for e in shown)
    assert f"{long}, {long}: 1.00" in [e.text for e in root.iter(f"{NS}title")]


def test_all_zero_and_empty_matrices_can_be_drawn():
    assert diverging(0.0) in heat_map([[0.0]], ["a"], ["a"], title="t")
    assert "<rect" not in heat_map([], [], [], title="t")


def test_wrong_shape_is_refused_with_both_shapes():
    with pytest.raises(UserError, match=r"heat map 't': values has 1 rows of 2 values, .* 1 rows of 3"):
        heat_map([[1.0, 2.0]], ["a"], ["a", "b", "c"], title="t")
    with pytest.raises(UserError, match="below has 2 rows"):
        heat_map([[1.0]], ["a"], ["a"], below=[[1.0], [2.0]], title="t")


def test_colour_bar_names_its_ends():
    both, upper = colour_bar(0.5, unit="nats"), colour_bar(0.5, unit="nats", negative=False)
    assert re.findall(r"<text[^>]*>([^<]*)<", both) == ["−0.500", "0.500", "0.000", "nats"]
    assert re.findall(r"<text[^>]*>([^<]*)<", upper) == ["0.000", "0.500", "nats"]
    assert diverging(-1.0) in both
    assert diverging(-1.0) not in upper


def test_comparison_places_things_on_one_scale():
    root = ET.fromstring(
        comparison(
            ["a", "b"], own=[1.0, None], mean=[0.0, 0.5], std=[0.25, None], others=[[0.5, math.nan], []],
            notes=["z 4", "none"], title="t",
        )
    )  # fmt: skip
    ring = [c for c in root.iter(f"{NS}circle") if "ring" in c.get("class")]
    diamond = [p for p in root.iter(f"{NS}path") if p.get("class") == "diamond"]
    whisker = [p for p in root.iter(f"{NS}path") if p.get("class") == "whisker"]
    ticks = [p for p in root.iter(f"{NS}path") if p.get("class") == "others"]
    assert [len(x) for x in (ring, diamond, whisker, ticks)] == [2, 1, 1, 1], "what is missing is left out"
    x = {"mean": float(ring[0].get("cx")), "half": float(ring[1].get("cx"))}
    own = float(re.match(r"M([\d.]+)", diamond[0].get("d"))[1])
    low, high = map(float, re.match(r"M([\d.]+) .*H([\d.]+)m", whisker[0].get("d")).groups())
    assert own - x["mean"] == pytest.approx(2 * (x["half"] - x["mean"]), abs=0.3)
    assert high - low == pytest.approx(own - x["mean"], abs=0.3), "± 2 x 0.25 is as long as 1"
    assert "z 4" in words(root)


@pytest.mark.parametrize(("own", "end"), [(0.29, "0.3"), (1.51, "2"), (0.2, "0.2")])
def test_no_mark_lies_beyond_the_last_number_of_the_axis(own, end):
    drawn = comparison(["a"], own=[own], mean=[0.05], std=[0.01], others=[[0.02]], notes=["z 9"], title="t")
    numbers = re.findall(r'<text x="([\d.]+)"[^>]*class="dim">([\d.]+)</text>', drawn)
    (diamond,) = re.findall(r'd="M([\d.]+) [\d.]+l6 6', drawn)
    assert numbers[-1][1] == end
    assert float(diamond) <= float(numbers[-1][0]) + 0.1
