# SPDX-License-Identifier: Apache-2.0
import copy

import pytest

from jaxneuro.reports.findings import effect_rows, findings
from jaxneuro.reports.report import plain

GROUPS = ["a", "b"]


def effect(**changes):
    part = {
        "measure": "increase of loss", "unit": "nats per token", "matrix": [[0.4, 0.1], [0.0, 0.2]],
        "random_mean": [[0.1, 0.1], [0.1, 0.1]], "random_std": [[0.05, 0.1], [0.1, 0.02]], "n_random": 10,
        "set_size": [7, 9], "base": [2.0, 3.0],
    }  # fmt: skip
    return {"groups": GROUPS, "effect": part | changes}


def counts(specific, shuffled=None, **more):
    return {"groups": list(specific), "counts": {"specific": specific, **more} | (
        {"shuffled": {"specific": shuffled, "n_shuffles": 10}} if shuffled else {}
    )}  # fmt: skip


def only(data):
    (one,) = findings(data)
    return one


def test_z_ratio_and_neighbours_by_hand():
    a, b = effect_rows(GROUPS, effect()["effect"])
    assert (a.z, a.ratio, a.others, a.hit, a.size, a.base) == pytest.approx((6.0, 4.0, 0.1, "a", 7, 2.0), abs=1e-9)
    assert (b.z, b.ratio, b.others, b.hit) == pytest.approx((5.0, 2.0, 0.0, "b"), abs=1e-9)


@pytest.mark.parametrize(
    ("change", "z", "ratio"),
    [
        ({"random_std": [[0.0, 1], [1, 1]]}, None, 4.0),
        ({"random_mean": [[0.0, 1], [1, 1]]}, 8.0, None),
        ({"random_mean": [[-0.1, 1], [1, 1]]}, 10.0, None),
        ({"matrix": [[None, 0.1], [0.0, 0.2]]}, None, None),
        ({"random_mean": None, "random_std": None}, None, None),
    ],
)
def test_z_and_ratio_are_missing_rather_than_infinite(change, z, ratio):
    row = effect_rows(GROUPS, effect(**change)["effect"])[0]
    assert (row.z, row.ratio) == (pytest.approx(z) if z else None, pytest.approx(ratio) if ratio else None)


def test_a_clear_effect_is_said_with_its_numbers():
    f = only(effect())
    assert f.holds is True
    assert "mean increase of loss 0.3 nats per token" in f.claim
    assert "random sets of the same size per layer: 0.1 (3 times as much)" in f.claim
    assert "above the random sets in 2 of 2 groups (z from 5, b, to 6, a)" in f.detail
    assert "In 2 of 2 rows the silenced group is the one hurt most" in f.detail


def test_an_unclear_effect_is_said_as_well():
    f = only(effect(random_std=[[0.05, 1], [1, 0.06]], matrix=[[0.4, 0.5], [0.0, 0.2]]))
    assert f.holds is False
    assert "in 1 of 2 groups" in f.detail
    assert "In 1 of 2 rows" in f.detail
    assert f.detail.endswith("Not clear: b.")


def test_groups_without_neurons_are_not_counted():
    f = only(effect(set_size=[7, 0]))
    assert "1 of 1 groups" in f.detail
    assert "no group had neurons to silence" in only(effect(set_size=[0, 0])).claim


def test_without_random_sets_nothing_is_proved():
    f = only(effect(random_mean=None, random_std=None))
    assert f.holds is None
    assert "nothing is proved" in f.detail


def test_counts_against_shuffled_labels():
    f = only(counts({"a": 30, "b": 12}, {"a": 1.0, "b": 0.5}, related={"a": 3, "b": 4}, agnostic=99))
    assert f.claim == "42 neurons are specific to one group; under shuffled labels the same rule finds 1.5."
    assert f.holds is True
    assert "Per group: a 30, b 12." in f.detail
    assert "Group-related (a few groups): a 3, b 4. Agnostic: 99." in f.detail
    assert "mean of 10 shuffles" in f.detail


def test_counts_no_better_than_chance_are_called_so():
    f = only(counts({"a": 1, "b": 0}, {"a": 1.0, "b": 0.5}))
    assert f.holds is False
    assert f.claim.endswith("That is no more than chance.")
    f = only(counts({"a": 30, "b": 1}, {"a": 1.0, "b": 1.5}))
    assert f.holds is False
    assert f.detail.endswith("Not above chance: b.")


def with_points(found, each, in_all):
    data = counts({"a": 30, "b": 8}, {"a": 7.0, "b": 7.06})
    data["counts"]["specific"] = found
    data["counts"]["shuffled"]["point_95"] = {"specific": each, "specific_in_all": in_all}
    return data | {"profile": {"specific": [[9, 0, 0], [1, 0, 0]]}}


def test_chance_is_what_one_shuffle_in_twenty_exceeds():
    f, layers = findings(with_points({"a": 30, "b": 8}, {"a": 12, "b": 12}, 20))
    assert f.holds is False
    assert f.detail.endswith("Not above chance (95 % point): b.")
    assert "in layer 0" in layers.claim
    assert findings(with_points({"a": 30, "b": 13}, {"a": 12, "b": 12}, 20))[0].holds is True


def test_where_neurons_of_chance_lie_is_not_said():
    f = only(with_points({"a": 12, "b": 8}, {"a": 12, "b": 12}, 20))  # above the mean, 14, not above the point
    assert f.claim.endswith("That is no more than chance.")
    data = counts({"a": 1, "b": 0}, {"a": 1.0, "b": 0.5}) | {"profile": {"specific": [[1, 0, 0], [0, 0, 0]]}}
    assert len(findings(data)) == 1


def test_counts_without_a_baseline_claim_nothing():
    f = only(counts({"a": 30, "b": 1}))
    assert f.holds is None
    assert "No shuffled baseline" in f.detail


def test_layers_where_the_neurons_are():
    f = only({"groups": GROUPS, "profile": {"specific": [[4, 0, 1, 3], [2, 0, 0, 0]]}})
    assert f.claim == "90% of the group-specific neurons are in 2 of 4 layers: 0, 3."
    assert "spread evenly they would be 4 layers" in f.detail
    assert findings({"groups": GROUPS, "profile": {"specific": [[0, 0, 0], [0, 0, 0]]}}) == []


@pytest.mark.parametrize(
    ("layers", "claim"),
    [
        ([36, 0, 0, 0, 0, 1], "97% of the group-specific neurons are in layer 0."),
        ([5, 5, 5, 5, 5, 5], "100% of the group-specific neurons are in 6 of 6 layers: 0, 1, 2, 3, 4, 5."),
        ([0, 1, 9, 80], "99% of the group-specific neurons are in 2 of 4 layers: 2, 3."),
        ([0, 0, 9, 81], "90% of the group-specific neurons are in layer 3."),
    ],
)
def test_the_fewest_layers_that_hold_nine_tenths_are_named(layers, claim):
    assert only({"groups": ["a"], "profile": {"specific": [layers]}}).claim == claim


def sized(lowest, **part):
    data = counts({"a": 30, "b": 12, "c": 3}, {"a": 1.0, "b": 0.5, "c": 0.1})
    return only({**data, "selectivity": {"share": 0.02, "lowest": lowest, **part}})


def test_a_rank_is_called_one_and_its_size_is_said():
    f = sized(0.1, specific=[0.1, 0.55])
    assert f.holds is True
    assert "The class is a rank, the 2% of all neurons whose firing is least even, not a size." in f.detail
    assert "0.10 to 0.55 of at most 1.10 nats, as if they fired evenly in 1.1 to 1.7 of 3 groups." in f.detail


def test_nearly_even_firing_gets_no_verdict():
    assert sized(0.98).holds is True
    f = sized(1.09)
    assert f.holds is None
    assert f.claim.endswith(
        "Even the most selective neuron fires in all groups nearly alike (1.09 of at most 1.10 nats)."
    )


def test_too_few_windows_get_no_verdict():
    f = only(effect(windows=[2, 3]))
    assert f.holds is None
    assert f.detail.startswith("Too few windows to judge (a 2, b 3; at least 5 of each group are needed).")
    assert only(effect(windows=[5, 4])).detail.startswith("Too few windows to judge (b 4;")
    assert only(effect(windows=[5, 6])).holds is True
    assert (
        only(effect(random_std=[[0.05, 1], [1, 0.06]], matrix=[[0.4, 0.5], [0.0, 0.2]], windows=[5, 6])).holds is False
    )


def test_long_names_are_cut_in_sentences():
    f = only(counts({"n" * 200: 30, "b": 1}, {"n" * 200: 1.0, "b": 1.5}))
    assert "n" * 39 + "… 30" in f.detail


def test_dictionary_quality():
    metrics = {"fvu": 0.25, "l0": 32.0, "dead_fraction": 0.02, "ce_recovered_zero": 0.9, "ce_recovered_mean": None}
    f = only({"groups": [], "dictionary": {"site": "blocks.3.mlp.post", "n_latents": 4096, "metrics": metrics}})
    assert f.claim == "A dictionary of 4,096 latents explains 75% of the variance with 32 active per token."
    assert "2% of the latents are on at none of the judged tokens; 90% of the cross entropy is recovered" in f.detail
    assert "recovered (baseline: site set to zero)" in f.detail
    assert "mean" not in f.detail


def test_the_whole_study_gives_five_findings_and_an_empty_one_none(study):
    assert len(findings(plain(study))) == 5
    assert findings({"groups": GROUPS}) == []


def test_nothing_is_changed(study):
    data = plain(study)
    before = copy.deepcopy(data)
    findings(data)
    assert data == before


def test_too_few_documents_get_no_verdict():
    experts = {"expert": {"a": 700, "b": 500}, "shuffled": {"expert": {"a": 1.0, "b": 0.0}}}
    both = {"claim": {"a": "documents", "b": "documents"}}
    assert only({"groups": GROUPS, "counts": experts | {"null": both}}).holds is True
    f = only({"groups": GROUPS, "counts": experts | {"null": {"claim": {"a": "documents", "b": "windows"}}}})
    assert f.holds is None
    assert f.detail.startswith("Too few documents to say more than of windows of the same documents (b).")


def test_experts_against_shuffled_labels():
    experts = {"expert": {"a": 700, "b": 500}, "shuffled": {"expert": {"a": 1.0, "b": 0.0}}}
    f = only({"groups": GROUPS, "counts": experts})
    assert f.holds
    assert "500 to 700 neurons per group" in f.claim
    assert "with shuffled labels, 0.5 on average" in f.claim
    experts["expert"]["b"] = 0
    f = only({"groups": GROUPS, "counts": experts})
    assert not f.holds
    assert "Not above chance: b." in f.detail
