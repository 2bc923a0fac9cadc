# SPDX-License-Identifier: Apache-2.0
import re

import pytest

from jaxneuro.reports import sections
from jaxneuro.reports.report import plain

GROUPS = ["a", "b"]


def test_what_was_run(study):
    run = sections.run(plain(study))
    facts = dict(run["facts"])
    assert facts["Parameters"] == "4.32 M (4,318,464)"
    assert facts["Took"] == "4 min 7 s"
    assert facts["Started"] == "2026-01-12 09:30:00 UTC"
    assert facts["Seed"] == "0", "a seed of zero is a seed"
    assert run["total"] == f"{sum(study['run']['tokens'].values()):,}"
    assert ["groups", "–"] in run["config"].rows
    assert sections.run({"run": {}, "groups": []})["facts"] == []


def test_counts_are_in_the_figure_and_in_the_table():
    shuffled = {"specific": {"a": 0.5}, "n_shuffles": 2}
    panel = sections.counts({"groups": GROUPS, "counts": {"specific": {"a": 3, "b": 7}, "shuffled": shuffled}})
    assert panel.table.head == ["Group", "Specific", "Specific, shuffled"]
    assert panel.table.rows == [["a", "3", "0.5"], ["b", "7", "–"]]
    assert panel.svg.count('class="bar solid"') == 2
    assert panel.svg.count('class="chance"') == 1
    assert sections.counts({"groups": GROUPS}) is None


def test_profile_panels_share_one_scale_and_the_average_chance():
    part = {"specific": [[2, 8], [1, 0]], "related": [[0, 2], [1, 1]], "shuffled_specific": [2.0, 4.0]}
    profile = sections.profile({"groups": GROUPS, "profile": part})
    assert [p.title for p in profile["panels"]] == GROUPS
    tips = re.findall(r">(\d), specific by chance: ([\d.]+)<", profile["panels"][0].svg)
    assert tips == [("0", "1"), ("1", "2")], "all groups together, divided by the number of groups"
    heights = [[float(h) for h in re.findall(r'height="([\d.]+)" class="bar solid"', p.svg)] for p in profile["panels"]]
    assert heights[0][0] == pytest.approx(2 * heights[1][0], abs=0.2), "2 here is twice the 1 there"
    assert ["b, related", "1", "1"] in profile["table"].rows


def test_both_heat_maps_have_one_colour_scale(study):
    data = plain(study)
    data["effect"]["random_mean"][0][0] = 5.0
    effect = sections.effect(data)
    strongest = re.findall(r"--t:([\d.]+)", effect["main"].svg)
    assert max(map(float, strongest)) < 0.2, "the random 5.0 sets the scale of the other map too"
    assert "--t:1.000" in effect["random"].svg
    assert effect["main"].svg.count('class="outline"') == 9


def test_effect_without_random_sets_still_has_its_matrix():
    effect = sections.effect({"groups": GROUPS, "effect": {"matrix": [[1.0, 0.0], [0.0, 1.0]]}})
    assert (effect["random"], effect["compare"]) == (None, None)
    assert effect["rows"].rows[0][:4] == ["a", "–", "–", "1.00"]


def test_a_group_without_neurons_was_not_tested():
    part = {"matrix": [[1.0, 0.5], [0.0, 0.0]], "random_mean": [[0.1, 0.1], [0.0, 0.0]], "set_size": [3, 0]}
    effect = sections.effect({"groups": GROUPS, "effect": part})
    assert effect["main"].table.rows == [["a", "1.00", "0.50"], ["b", "–", "–"]]
    assert effect["random"].svg.count('class="empty"') == 2
    assert [w for w in ("3 neurons", "0 neurons") if w in effect["main"].svg] == ["3 neurons", "0 neurons"]
    assert "nothing silenced" in effect["compare"].svg
    assert effect["compare"].svg.count('class="diamond"') == 1


def test_negative_colours_are_in_the_key_only_where_they_are_used():
    def key(low):
        return sections.effect({"groups": GROUPS, "effect": {"matrix": [[1.0, low], [0.0, 1.0]]}})["key"]

    assert "−1.00" in key(-0.5)
    assert "−1.00" not in key(-0.01)
