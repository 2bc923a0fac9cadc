# SPDX-License-Identifier: Apache-2.0
import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from jaxneuro.errors import UserError
from jaxneuro.reports import bars, histogram, levels, lines

NS = "{http://www.w3.org/2000/svg}"


def parts(svg: str, name: str, class_: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(svg).iter(NS + name) if (e.get("class") or "").split()[:1] == [class_]]


def words(svg: str) -> list[str]:
    return [e.text for e in ET.fromstring(svg).iter(f"{NS}text")]


# bars


def test_bars_are_as_high_as_their_values():
    svg = bars(["a", "b"], {"n": [2.0, 4.0]}, title="t")
    low, high = (float(e.get("height")) for e in parts(svg, "rect", "bar"))
    assert high == pytest.approx(2 * low, abs=0.1)


def test_series_differ_by_fill_not_by_hue():
    svg = bars(["a"], {"x": [1], "y": [1], "z": [1]}, title="t")
    assert [e.get("class") for e in parts(svg, "rect", "bar")] == ["bar solid", "bar hollow", "bar tinted"]
    with pytest.raises(UserError, match="4 series, but 3 fill styles exist"):
        bars(["a"], {c: [1] for c in "wxyz"}, title="t")


def test_stacked_bars_stand_on_each_other():
    svg = bars(["a"], {"x": [3], "y": [1]}, stacked=True, title="t")
    below, above = parts(svg, "rect", "bar")
    assert float(above.get("y")) + float(above.get("height")) == pytest.approx(float(below.get("y")), abs=1)


def test_chance_is_a_line_at_its_value_and_numbers_stay_clear_of_it():
    svg = bars(["a", "b"], {"n": [10, 10]}, baseline={"n": [5, 10.5]}, values=True, title="t")
    line = [float(re.match(r"M[\d.]+ ([\d.]+)", e.get("d"))[1]) for e in parts(svg, "path", "chance")]
    bar = parts(svg, "rect", "bar")[0]
    assert line[0] == pytest.approx(float(bar.get("y")) + float(bar.get("height")) / 2, abs=0.2)
    printed = [
        float(e.get("y")) for e in ET.fromstring(svg).iter(f"{NS}text") if e.text == "10" and e.get("class") == "small"
    ]
    assert printed[1] < line[1] < printed[0] + 4, "the second number moved above the line that would strike it"


def test_missing_bars_are_gaps_and_zero_is_a_bar():
    svg = bars(["a", "b", "c"], {"n": [0, None, math.nan]}, values=True, title="t")
    assert len(parts(svg, "rect", "bar")) == 1
    assert words(svg).count("–") == 2


def test_many_labels_are_thinned():
    shown = [w for w in words(bars(range(96), {"n": [1] * 96}, title="t", size=(300, 150))) if w.isdigit()]
    assert "0" in shown
    assert 5 < len(shown) < 25


def test_bars_refuse_series_of_other_lengths():
    with pytest.raises(UserError, match="n has 1 rows of 1 values"):
        bars(["a", "b"], {"n": [1]}, title="t")


# levels


def test_levels_draw_and_print_each_value():
    svg = levels(["de", "en", "ru"], [0.5, 0.25, None], notes=["50%", "25%", "–"], title="t", emphasis=["de"])
    de, en = parts(svg, "rect", "level")
    assert float(de.get("width")) == pytest.approx(2 * float(en.get("width")), abs=0.2)
    assert (de.get("class"), en.get("class")) == ("level key", "level")
    assert [w for w in words(svg) if w.endswith("%") or w == "–"] == ["50%", "25%", "–"]


# histogram


def heights(d: str) -> list[float]:
    base = float(re.match(r"M[\d.]+ ([\d.]+)", d)[1])
    return [base - float(y) for y in re.findall(r"V([\d.]+)H", d)]


def test_histogram_heights_are_logarithms_of_shares():
    svg = histogram([0, 1, 2, 3], {"de": [900, 90, 10], "en": [0, 0, 0]}, title="t")
    (area,) = parts(svg, "path", "area")
    h = heights(area.get("d"))
    floor = 0.01 / 2
    expected = [16 * math.log(s / floor) / math.log(1 / floor) for s in (0.9, 0.09, 0.01)]
    assert h == pytest.approx(expected, abs=0.11)
    assert "en" in words(svg), "a group without counts keeps its row"


def test_empty_bins_are_gaps():
    (area,) = parts(histogram([0, 1, 2, 3], {"de": [1, 0, 1]}, title="t"), "path", "area")
    assert area.get("d").count("M") == 2


def test_many_bins_are_added_up_not_dropped():
    n, svg = 128, histogram(list(range(129)), {"de": [0] * 127 + [5]}, title="t", most_bins=32)
    (area,) = parts(svg, "path", "area")
    assert len(heights(area.get("d"))) == 1, n
    svg = histogram(list(range(129)), {"de": [1] * 128}, title="t", most_bins=32)
    assert len(heights(parts(svg, "path", "area")[0].get("d"))) == 32


def test_open_bins_are_as_wide_as_their_neighbours():
    svg = histogram([-math.inf, 0, 1, math.inf], {"de": [1, 1, 1]}, title="t")
    (area,) = parts(svg, "path", "area")
    x = [float(v) for v in (re.match(r"M([\d.]+)", area.get("d"))[1], *re.findall(r"H([\d.]+)", area.get("d")))]
    widths = [b - a for a, b in itertools.pairwise(x)]
    assert widths == pytest.approx([widths[0]] * 3, abs=0.2)
    assert widths[0] > 20


def test_bins_of_very_different_width_are_drawn_equally_wide():
    edges = [math.sinh(v) for v in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
    svg = histogram(edges, {"de": [1] * 8}, title="t")
    (area,) = parts(svg, "path", "area")
    x = [float(v) for v in (re.match(r"M([\d.]+)", area.get("d"))[1], *re.findall(r"H([\d.]+)", area.get("d")))]
    widths = [b - a for a, b in itertools.pairwise(x)]
    assert widths == pytest.approx([widths[0]] * 8, abs=0.2)
    marks = {e.text: float(e.get("x")) for e in ET.fromstring(svg).iter(f"{NS}text") if e.get("class") == "dim"}
    assert marks["0"] == pytest.approx(x[4], abs=0.1), "the axis says where 0 is"
    assert {"−27", "27"} <= set(marks)
    places = sorted(marks.values())
    assert min(b - a for a, b in itertools.pairwise(places)) >= 38


def test_outer_bins_that_nobody_fills_are_left_out():
    svg = histogram(list(range(11)), {"de": [0, 0, 0, 1, 2, 1, 0, 0, 0, 0]}, title="t")
    marks = [e.text for e in ET.fromstring(svg).iter(f"{NS}text") if e.get("class") == "dim"]
    assert marks == ["3", "4", "5", "6"]


def test_bins_are_never_added_up_across_zero():
    edges = [float(v) for v in range(-3, 6)]
    svg = histogram(edges, {"de": [1] * 3 + [0] * 4 + [1]}, title="t", most_bins=4)
    (area,) = parts(svg, "path", "area")
    assert area.get("d").count("M") == 2, "what fired below 0 stays apart from the empty bins above"
    assert len(heights(area.get("d"))) == 3


def test_own_groups_are_marked_and_notes_printed():
    svg = histogram([0, 1], {"de": [1], "en": [1]}, title="t", emphasis=["de"], notes={"de": "41%"})
    assert [e.get("class") for e in parts(svg, "path", "area")] == ["area key", "area"]
    assert "41%" in words(svg)


def test_histogram_refuses_counts_that_do_not_fit():
    with pytest.raises(UserError, match="de has 1 rows of 3 values, but the names make it 1 rows of 1"):
        histogram([0, 1], {"de": [1, 2, 3]}, title="t")


# lines


def test_each_curve_has_its_own_dash_marker_and_name():
    curves = {name: [float(i), float(i) + 1] for i, name in enumerate(["de", "en", "fr"])}
    svg = lines([0, 1], curves, title="t")
    assert len({e.get("stroke-dasharray") for e in parts(svg, "path", "line")}) == 3
    assert [w for w in words(svg) if w in curves] == ["de", "en", "fr"]
    assert len(parts(svg, "circle", "mark")) == 2
    assert len(parts(svg, "path", "mark")) == 4


def test_missing_points_break_the_curve():
    svg = lines([0, 1, 2, 3], {"a": [1.0, None, 2.0, math.inf]}, title="t")
    assert parts(svg, "path", "line")[0].get("d").count("M") == 2
    svg = lines([0, 1], {"a": [None, math.nan], "b": [1.0, 2.0]}, title="t")
    assert len(parts(svg, "path", "line")) == 2
    assert "a" not in words(svg), "a curve without points has no end to name"


def test_higher_values_are_drawn_higher():
    (curve,) = parts(lines([0, 10], {"a": [1.0, 3.0]}, title="t"), "path", "line")
    (x0, y0), (x1, y1) = ((float(a), float(b)) for a, b in re.findall(r"[ML]([\d.]+) ([\d.]+)", curve.get("d")))
    assert x0 < x1
    assert y0 > y1


def test_end_names_do_not_overlap():
    svg = lines([0, 1], {f"g{i}": [0.0, 1.0] for i in range(9)}, title="t")
    ys = sorted(float(e.get("y")) for e in ET.fromstring(svg).iter(f"{NS}text") if re.fullmatch(r"g\d", e.text))
    assert min(b - a for a, b in itertools.pairwise(ys)) >= 11.9


def test_long_curves_are_thinned_and_keep_their_ends():
    n = 5000
    (curve,) = parts(lines(list(range(n)), {"a": [0.0] * (n - 1) + [1.0]}, title="t"), "path", "line")
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", curve.get("d"))
    assert len(points) == 200
    assert points[-1][1] != points[-2][1]


def test_emphasis_is_drawn_last_and_alone_has_markers():
    svg = lines([0, 1], {"de": [0.0, 1.0], "en": [1.0, 0.0]}, title="t", emphasis=["de"])
    assert [e.get("class") for e in parts(svg, "path", "line")] == ["line", "line key"]
    assert len(parts(svg, "circle", "mark")) == 2
    assert not parts(svg, "path", "mark")


def test_lines_without_points_are_an_empty_frame():
    assert words(lines([], {"a": []}, title="t"))


def test_a_name_under_a_bar_is_as_long_as_there_is_room():
    assert ">copyright<" in bars(["copyright", "b", "c"], {"n": [1, 2, 3]}, title="t", size=(312, 150))
    assert ">copyrig…<" in bars(["copyright", "b", "c"], {"n": [1, 2, 3]}, title="t", size=(210, 150))
