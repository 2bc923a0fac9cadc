# SPDX-License-Identifier: Apache-2.0
import math

from jaxneuro.reports import cards
from jaxneuro.reports.report import plain


def make(**neuron):
    return cards.neurons({"groups": ["de", "en"], "neurons": [{"layer": 3, "neuron": 7, **neuron}]})[0]


def test_a_neuron_becomes_a_card(study):
    first = cards.neurons(plain(study))[0]
    neuron = study["neurons"][0]
    assert first["id"] == f"L{neuron['layer']}N{neuron['neuron']}"
    assert first["json"]["groups"] == neuron["groups"]
    assert first["json"]["keys"]["lape"] == neuron["lape"]
    assert first["json"]["keys"]["rate"] == max(neuron["rate"])
    assert first["json"]["examples"][0][1] == [t.replace("\n", "↵") for t in neuron["examples"][0]["tokens"]]
    assert first["dose"].svg.count('class="line') == 9
    assert first["activation"].svg.count('class="area') == 9


def test_the_bare_minimum_is_a_card_too():
    card = make()
    assert (card["id"], card["groups"], card["activation"], card["dose"]) == ("L3N7", [], None, None)
    assert [fact[:2] for fact in card["facts"]] == [("LAPE", "not ranked")]
    assert card["json"]["examples"] == []


def test_selectivity_is_a_size():
    uniform, one = make(rate=[0.99, 0.9], lape=0.692), make(rate=[0.5, 0.0], lape=0.0)
    assert [fact[:2] for fact in uniform["facts"]] == [
        ("Fires as if in", "2.0 of 2 groups"),
        ("LAPE", "0.69 of at most 0.69 nats"),
    ]
    assert [fact[:2] for fact in one["facts"]] == [
        ("Fires as if in", "1.0 of 2 groups"),
        ("LAPE", "0.00 of at most 0.69 nats"),
    ]
    assert [fact[:2] for fact in make(rate=[0.0, 0.0])["facts"]] == [("LAPE", "not ranked")]


def test_an_example_that_repeats_another_says_so():
    words = list("abcdefghij")
    texts = [words, list("klmnop"), [*words[1:], "z"], list("abcvwxyz")]
    examples = [{"group": "de", "tokens": t, "values": [0.0] * len(t), "peak": 0} for t in texts]
    assert [e[4] for e in make(examples=examples)["json"]["examples"]] == [0, 0, 1, 0]


def test_firing_rates_alone_are_drawn_as_bars_and_printed():
    card = make(rate=[0.25, None], groups=["de"])
    assert card["activation"].title == "Firing rate per group"
    assert ">25%<" in card["activation"].svg
    assert 'class="level key"' in card["activation"].svg


def test_spaces_of_tokens_are_visible_and_scores_printed():
    assert make(promoted=[[" der", 1.234], ["x", math.nan]])["promoted"] == [("␣der", "1.2"), ("x", "–")]


def test_values_are_rounded_for_the_page_and_missing_ones_stay_missing():
    example = {"group": "de", "tokens": ["a", "b", "c"], "values": [1.23456, None, -0.000123456], "peak": 0}
    assert make(examples=[example])["json"]["examples"] == [["de", ["a", "b", "c"], [1.23, None, -0.000123], 0, 0]]


def test_a_latent_becomes_a_card(study):
    data = plain(study)
    latents = cards.latents(data)
    assert len(latents) == len(study["dictionary"]["latents"])
    assert latents[1]["id"] == f"F{study['dictionary']['latents'][1]['latent']}"
    assert latents[0]["groups"] == [], "a latent without a group is for no group"
    assert latents[1]["activation"].title == "Firing rate per group"
    assert cards.latents({"groups": []}) == []
