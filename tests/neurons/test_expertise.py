# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.data import shuffled_labels
from jaxneuro.errors import UserError
from jaxneuro.neurons import (
    average_precision,
    chance_precision,
    expert_neurons,
    expertise,
    histogram_average_precision,
    response_histogram,
)
from jaxneuro.neurons.expertise import above_chance


def reference(score, true):
    """Every distinct score as a threshold, one after another."""
    ap = recall = 0.0
    for threshold in np.unique(score)[::-1]:
        chosen = score >= threshold
        new = (chosen & true).sum() / true.sum()
        ap += (new - recall) * (chosen & true).sum() / chosen.sum()
        recall = new
    return ap


@pytest.mark.parametrize("levels", [2, 5, 40, 10**6])
def test_equals_a_loop_over_thresholds_with_ties(levels):
    rng = np.random.default_rng(levels)
    score = rng.integers(0, levels, 120).astype(np.float32)
    true = rng.random(120) < 0.3
    assert float(average_precision(jnp.asarray(score), jnp.asarray(true))) == pytest.approx(
        reference(score, true), abs=1e-6
    )


def test_all_groups_both_signs_and_chunks():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 50).astype(np.int32)
    responses = rng.integers(0, 9, (50, 2, 7)).astype(np.float32)
    got = expertise(responses, label, 3, chunk=4)
    for layer in range(2):
        for f in range(7):
            for k in range(3):
                r = responses[:, layer, f]
                assert got.ap[layer, f, k] == pytest.approx(reference(r, label == k), abs=1e-6)
                assert got.ap_negative[layer, f, k] == pytest.approx(reference(-r, label == k), abs=1e-6)
    np.testing.assert_allclose(expertise(responses, label, 3, chunk=14).ap, got.ap, atol=1e-6)  # another order of sums


def test_chance_is_the_mean_over_permutations():
    rng = np.random.default_rng(1)
    true = np.arange(30) < 6
    values = [reference(rng.permutation(30), true) for _ in range(500)]
    assert float(chance_precision(6, 30)) == pytest.approx(np.mean(values), abs=3 * np.std(values) / 500**0.5)
    many = expertise(rng.normal(size=(300, 1, 200)).astype(np.float32), np.arange(300) % 3, 3)
    np.testing.assert_allclose(many.ap.mean((0, 1)), many.chance, atol=0.01)
    np.testing.assert_allclose(many.chance, 1 / 3, atol=0.02)


@pytest.mark.parametrize(("bins", "error"), [(64, 0.03), (256, 0.01), (1024, 0.003)])
def test_streaming_form_is_within_the_stated_error(bins, error):
    rng = np.random.default_rng(0)
    label = (np.arange(1500) < 300).astype(np.int32)
    responses = (rng.normal(size=(1500, 2, 50)) + label[:, None, None]).astype(np.float32)
    edges = jnp.linspace(responses.min(), responses.max(), bins + 1)
    histogram = jnp.zeros((2, 50, 2, bins), jnp.int32)
    for part in np.split(np.arange(1500), 5):
        histogram = response_histogram(histogram, responses[part], jnp.asarray(label[part]), edges)
    assert (np.asarray(histogram.sum(-1)) == [1200, 300]).all()
    difference = np.asarray(histogram_average_precision(histogram)) - expertise(responses, label, 2).ap
    assert np.abs(difference).max() < error
    assert difference.mean() < 0  # ties count as errors
    assert np.abs(difference).max() > 1e-6


def test_streaming_form_is_exact_when_bins_hold_equal_values():
    rng = np.random.default_rng(2)
    label = rng.integers(0, 3, 90).astype(np.int32)
    responses = rng.integers(0, 6, (90, 1, 4)).astype(np.float32)
    edges = jnp.arange(7, dtype=jnp.float32) - 0.5
    label[-1] = -1  # left out
    h = response_histogram(jnp.zeros((1, 4, 3, 6), jnp.int32), jnp.asarray(responses), jnp.asarray(label), edges)
    want = expertise(responses[:-1], label[:-1], 3).ap
    np.testing.assert_allclose(np.asarray(histogram_average_precision(h)), want, atol=1e-6)


def test_planted_neurons_are_experts_and_shuffled_labels_have_none(toy, table):
    got = expertise(table.responses, table.response_group, toy.K)
    for k, places in toy.planted.items():
        for layer, f in places:
            assert got.ap[layer, f, k] > 0.999
    shuffled = shuffled_labels(table.response_group, 1, seed=0)[:, 1]
    assert expertise(table.responses, shuffled, toy.K).ap.max() < 0.9


def test_a_group_without_windows_is_refused():
    with pytest.raises(UserError, match=r"\[2, 0\]"):
        expertise(np.zeros((2, 1, 1)), np.zeros(2), 2)


def planted(seed, n_groups=3, per_group=24, neurons=150):
    """Noise with three neurons per group that respond to it, in the second of two layers."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(n_groups), per_group)
    responses = rng.normal(size=(len(label), 2, neurons)).astype(np.float32)
    for k in range(n_groups):
        responses[label == k, 1, 5 * k : 5 * k + 5] += 6
    return responses, label


def test_experts_are_the_planted_neurons_and_no_others():
    responses, label = planted(0)
    found = expert_neurons(responses, label, 3, share=0.1)
    for k in range(3):
        want = [[1, n] for n in range(5 * k, 5 * k + 5)]
        assert [w for w in want if w not in np.argwhere(found.member[..., k]).tolist()] == []
        assert found.member[..., k].sum() <= 6, "at most one in twenty by chance"
    assert found.significant.sum(1).min() >= 5
    assert found.null_significant.mean(0).sum() < 2


def test_share_bounds_the_experts_and_takes_the_best():
    responses, label = planted(1)
    found = expert_neurons(responses, label, 3, share=0.01)
    assert found.member.sum((0, 1)).tolist() == [3, 3, 3]
    for k in range(3):
        assert found.found.ap[..., k][found.member[..., k]].min() >= np.sort(found.found.ap[..., k].ravel())[-3]


def test_no_experts_where_labels_mean_nothing():
    responses, label = planted(2)
    label = np.random.default_rng(5).permutation(label)
    responses[:, 1, :15] = np.random.default_rng(6).normal(size=(len(label), 15))
    assert expert_neurons(responses, label, 3, share=0.1).member.sum() <= 3


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint32", "bool"])
def test_integers_and_booleans_are_ordered_as_they_are(dtype):
    """-score wraps around in unsigned integers and at the lowest signed one, and is no operation on booleans."""
    info = np.iinfo(dtype) if dtype != "bool" else None
    score = np.array([info.min, 1, 2, info.max] if info else [0, 1, 1, 1], dtype)
    true = np.array([True, False, False, False])
    assert float(average_precision(jnp.asarray(score), jnp.asarray(true))) == 0.25
    got = expertise(score[:, None, None], true.astype(int), 2)
    assert (got.ap[0, 0, 1], got.ap_negative[0, 0, 1]) == (0.25, 1.0)


def test_nan_has_no_place_in_an_order():
    assert np.isnan(average_precision(jnp.array([0.0, jnp.nan, 1.0]), jnp.array([True, False, True])))
    assert float(average_precision(jnp.array([0.0, -jnp.inf, jnp.inf]), jnp.array([False, False, True]))) == 1.0
    responses = np.zeros((4, 1, 3), np.float32)
    responses[2, 0, 1] = np.nan
    with pytest.raises(UserError, match="1 of 3 neurons have NaN"):
        expertise(responses, np.array([0, 0, 1, 1]), 2)


def test_many_labellings_at_once_have_the_precision_of_each():
    rng = np.random.default_rng(3)
    responses = rng.integers(0, 6, (7, 40)).astype(np.float32)
    labels = np.stack([rng.permutation(np.arange(40) % 3) for _ in range(5)], 1)
    got = above_chance(responses, labels, 3, chunk=4)
    for f, s, k in np.ndindex(7, 5, 3):
        chance = chance_precision((labels[:, s] == k).sum(), 40)
        want = (reference(responses[f], labels[:, s] == k) - chance) / (1 - chance)
        assert got[f, s, k] == pytest.approx(want, abs=1e-6)


def documents(seed, topic, n=24, windows=20, neurons=600, effect=0.0):
    """n documents in three groups; every document has a level of its own in every neuron, of deviation `topic`."""
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(n), windows)
    responses = rng.normal(size=(len(block), 1, neurons)) + topic * rng.normal(size=(n, 1, neurons))[block]
    label = block % 3
    responses[label == 1, 0, :60] += effect
    return responses.astype(np.float32), label, block


def test_what_tells_documents_apart_is_no_knowledge_of_their_group():
    """Windows permuted one by one make experts of topics: here topics differ as much as the windows of one do."""
    counts = []
    for seed in range(4):
        responses, label, block = documents(seed, 1.0, neurons=200)
        counts.append(expert_neurons(responses, label, 3, share=1.0, block=block, n_shuffles=60).significant.sum(1))
    assert (np.sum(counts, 1) > 0).sum() <= 1  # of 4 studies at a level of 5 %: two or more have a probability of 1.4 %
    alone = expert_neurons(responses, label, 3, share=1.0, n_shuffles=60)
    assert alone.significant.sum(1).min() > 10, "the test can fail: windows taken for independent"


def test_what_is_planted_beside_topics_is_found():
    responses, label, block = documents(7, 1.0, effect=4.0)
    found = expert_neurons(responses, label, 3, share=1.0, block=block, n_shuffles=100)
    assert found.passed[0, :60, 1].mean() > 0.9
    assert found.passed[0, 60:].sum() <= 0.05 * found.passed[..., 1].sum()
    assert found.blocks.tolist() == [8, 8, 8]
    assert (found.null_significant.sum((1, 2)) > 0).mean() <= 0.05


def test_too_few_documents_have_no_experts_however_clear():
    responses, label, block = documents(8, 1.0, n=6, effect=50.0)
    found = expert_neurons(responses, label, 3, share=1.0, block=block, n_shuffles=100)
    assert found.smallest_p.tolist() == [1 / 15] * 3
    assert not found.passed.any()
    assert not found.member.any()


@pytest.mark.parametrize(("options", "said"), [({"n_shuffles": 1}, "n_shuffles=1"), ({"share": 0.0}, "share=0.0")])
def test_experts_refuse(options, said):
    with pytest.raises(UserError, match=said):
        expert_neurons(*planted(0), 3, **options)


@pytest.mark.parametrize(
    ("score", "true"),
    [
        (np.array([1, None], object), np.array([True, False])),
        (np.array(["a", "b"]), np.array([True, False])),
        (np.array([1j, 2]), np.array([True, False])),
        (np.array([1.0, 2]), np.array([True, None], object)),
        (np.array([1.0, 2]), np.array([1.0, np.nan])),
        (np.array([1.0, 2]), np.array([True])),
        (np.ones((2, 1)), np.ones((2, 1), bool)),
        (np.ones(0), np.ones(0, bool)),
    ],
    ids=str,
)
def test_scores_are_real_numbers_with_a_truth_each(score, true):
    with pytest.raises(UserError, match=r"takes real scores \[n\] and the truth, boolean \[n\]; these are"):
        average_precision(score, true)
    assert float(average_precision([3.0, 1.0], [True, False])) == 1.0
