# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.neurons import describe, neuron_examples, pmi, token_counts
from jaxneuro.taps import capture


class Words:
    def token_strings(self, ids):
        return [f"w{i}" for i in ids]


class Windows:
    group_names = ("a", "b", "c")

    def __init__(self, batches):
        self.rows = {int(w): (b, i) for b in batches for i, w in enumerate(b["window"])}

    def __getitem__(self, i):
        b, row = self.rows[i]
        return {k: b[k][row] for k in ("tokens", "mask", "counted")}


def test_examples_show_the_window_around_the_peak(toy, table):
    windows = Windows(toy.batches)
    layers, neurons = [2, 1, 0], [5, 7, 0]
    got = neuron_examples(
        toy.apply, toy.weights, table, windows, Words(), layers, neurons, n=3, context=6, batch_size=4
    )
    assert [len(rows) for rows in got] == [3, 3, 3]
    assert {e["group"] for e in got[0]} == {"a"}
    assert {e["group"] for e in got[1]} == {"b"}
    f, padded = jax.jit(capture(toy.apply, [toy.site])), 0
    for layer, neuron, rows in zip(layers, neurons, got, strict=True):
        for e, best in zip(rows, table.examples(layer, neuron, 3), strict=True):
            row = windows[best["window"]]
            x = np.asarray(f(toy.weights, row["tokens"][None], row["mask"][None])[1][toy.site])[layer, 0, :, neuron]
            at = np.arange(max(best["position"] - 6, 0), min(best["position"] + 7, toy.T))
            n_near, at = len(at), at[row["mask"][at]]
            padded += len(at) < n_near
            assert e["tokens"] == [f"w{t}" for t in row["tokens"][at]]
            np.testing.assert_allclose(e["values"], x[at], atol=1e-5)
            assert e["values"][e["peak"]] == pytest.approx(best["value"], abs=1e-5)
            assert len(e["tokens"]) == len(e["values"]) <= 10
    assert padded > 0  # or the padding would go untested


@pytest.mark.parametrize(("layer", "neuron", "axis"), [(0, 10_000, "neuron"), (7, 0, "layer"), (0, -10_000, "neuron")])
def test_examples_of_a_neuron_that_is_not_there(layer, neuron, axis, toy, table):
    with pytest.raises(UserError, match=rf"{axis}=-?\d+ is out of range|no layer 7"):
        neuron_examples(toy.apply, toy.weights, table, Windows(toy.batches), Words(), [layer], [neuron])


def test_smoothed_pmi_by_hand():
    got = pmi(np.array([3, 0]), np.array([30, 70]), weight=1.0)
    np.testing.assert_allclose(got, np.log([(3.5 / 4) / (30.5 / 101), (0.5 / 4) / (70.5 / 101)]))
    frequent = pmi(np.array([5, 4]), np.array([1000, 2]), weight=0.0)
    assert frequent[0] > frequent[1]
    rare = pmi(np.array([5, 4]), np.array([1000, 2]), weight=1.0)
    assert rare[1] > rare[0]


def test_descriptions_name_the_token_and_its_place():
    background = token_counts([{"tokens": np.arange(20) % 10, "counted": np.arange(20) < 15}], 10)
    assert background.sum() == 15
    peaks = [(np.array([4, 7, i % 3]), 2) for i in range(9)]  # always after 7, two tokens after 4
    got = describe(peaks, background, Words().token_strings, min_support=5)
    assert {(e["token"], e["offset"]) for e in got["evidence"]} == {("w7", -1), ("w4", -2)}
    assert got["evidence"][0]["support"] == 9
    assert "after 'w7' (9 of 9 examples)" in got["text"]


def test_without_support_nothing_is_claimed():
    peaks = [(np.array([i]), 0) for i in range(9)]
    got = describe(peaks, np.full(10, 5), Words().token_strings)
    assert got["evidence"] == []
    assert "no token is common to 5 of its 9" in got["text"]
    common = [(np.array([0]), 0)] * 6
    assert describe(common, np.array([100, 0]), Words().token_strings)["evidence"] == []  # as common everywhere else
