# SPDX-License-Identifier: Apache-2.0
"""SAEBench's measures: against SAEBench, by hand, at the truth, and at chance."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import SparseCoder
from jaxneuro.dictionaries.activations import Relu
from jaxneuro.dictionaries.saebench import (
    Probe,
    Thresholds,
    absorbed,
    absorption,
    logistic,
    pooled,
    removal,
    scr,
    sparse_logistics,
    sparse_probing,
    tpp,
)
from jaxneuro.dictionaries.saebench.absorption import split_latents
from jaxneuro.dictionaries.saebench.logistic import accuracy, f1, nested
from jaxneuro.dictionaries.saebench.pooling import Examples, balanced, one_against_rest, split
from jaxneuro.dictionaries.saebench.probing import by_mean_difference, mean_difference
from jaxneuro.errors import UserError

from .conftest import rows

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "saebench.json").read_text())


def arrays(golden, *names):
    return [jnp.asarray(golden[name]) for name in names]


def coder(w_dec, w_enc=None, b_enc=None, b_dec=None):
    """z = relu((x - b_dec) W_enc + b_enc)."""
    m, d = w_dec.shape
    zeros = jnp.zeros(m, jnp.float32), jnp.zeros(d, jnp.float32)
    w_enc = jnp.asarray(w_dec).T if w_enc is None else w_enc
    b_enc, b_dec = (z if b is None else b for b, z in zip((b_enc, b_dec), zeros, strict=True))
    return SparseCoder(W_enc=w_enc, W_dec=jnp.asarray(w_dec), b_enc=b_enc, b_dec=b_dec, activation=Relu())


@functools.cache
def original():
    """The dictionary of the golden file."""
    w_enc, w_dec, b_enc, b_dec = arrays(GOLDEN["dictionary"], "W_enc", "W_dec", "b_enc", "b_dec")
    return coder(w_dec, w_enc, b_enc, b_dec)


# --- against SAEBench -------------------------------------------------------------------------------------------------


def test_scr_is_that_of_the_original():
    golden = GOLDEN["scr"]
    x, target, spurious = arrays(golden, "x", "target", "spurious")
    examples, w_dec, ns = pooled(original(), x), original().W_dec, tuple(golden["ns"])
    even = jnp.ones(len(x))
    probes = {n: Probe(jnp.asarray(golden["probes"][n]), jnp.float32(golden["biases"][n])) for n in golden["probes"]}
    biased = jax.tree.map(lambda a: a[None], probes["biased"])
    truth = {"target": target, "spurious": spurious}
    scores = {}
    for removed, judged in (("spurious", "target"), ("target", "spurious")):
        effects = removal.spurious_effects(examples, truth[removed], even, probes[removed], w_dec)
        np.testing.assert_allclose(effects, golden["effects"][removed], atol=2e-5)
        chosen = removal.strongest(effects, max(ns))
        logits = removal.logits_without(examples, biased, w_dec, chosen, ns)[:, 0]
        after = np.asarray(accuracy(logits, truth[judged][:, None], even[:, None]))
        before, clean = (float(accuracy(probes[n](examples.x), truth[judged], even)) for n in ("biased", judged))
        scores[judged] = removal.removal_score(after, before, clean)
    np.testing.assert_allclose(scores["target"], golden["score_target"], atol=1e-5)
    np.testing.assert_allclose(scores["spurious"], golden["score_spurious"], atol=1e-5)
    assert golden["score"] in (golden["score_target"], golden["score_spurious"])


def test_tpp_is_that_of_the_original():
    golden = GOLDEN["tpp"]
    own, others = removal.perturbation(np.array(golden["clean"]), np.array(golden["after"]))
    np.testing.assert_allclose(own.mean(0), golden["intended"], atol=1e-6)
    np.testing.assert_allclose(others.mean(0), golden["unintended"], atol=1e-6)
    np.testing.assert_allclose((own - others).mean(0), golden["score"], atol=1e-6)


def test_probes_and_their_latents_are_those_of_the_original():
    golden = GOLDEN["probing"]
    z, y = arrays(golden, "z", "y")
    n = golden["train"]
    latents = np.sort(by_mean_difference(z[:n], y[:n], 3))
    np.testing.assert_array_equal(latents, golden["latents"])
    probe = logistic(z[:n, latents], y[:n], jnp.ones(n))
    np.testing.assert_allclose(probe.w, golden["w"], atol=2e-3)  # scikit-learn stops at a gradient of 1e-4
    assert float(probe.b) == pytest.approx(golden["b"], abs=2e-3)
    got = accuracy(probe(z[n:, latents]), y[n:], jnp.ones(len(y) - n))
    assert float(got) == pytest.approx(golden["accuracy"], abs=1e-6)


def test_absorption_is_that_of_the_original_example_by_example():
    golden = GOLDEN["absorption"]
    x, probe = arrays(golden, "x", "probe")
    main = jnp.zeros(original().n_latents, bool).at[jnp.asarray(golden["main"])].set(True)
    full, fraction = absorbed(x, original().encode(x), probe, original().W_dec, main)
    np.testing.assert_array_equal(full, golden["full"])
    np.testing.assert_allclose(fraction, golden["fraction"], atol=1e-5)
    assert 0 < np.mean(golden["full"]) < 1


def test_sparse_probes_are_those_of_the_original():
    """Theirs stops after 1,000 Adam steps: ours is lower, with the same first latent where theirs has arrived."""
    golden = GOLDEN["absorption"]
    z, y = original().encode(jnp.asarray(golden["words"])), jnp.asarray(one_against_rest(np.array(golden["labels"])))
    weight = jnp.where(y, 2.0, 1.0)  # no over yes
    theirs, ours = Probe(*arrays(golden, "sparse_w", "sparse_b")), sparse_logistics(z, y, weight)

    def objective(probe):
        loss = weight * jax.nn.softplus(jnp.where(y, -1.0, 1.0) * probe(z))
        return np.asarray(loss.mean(0) + 0.01 * jnp.abs(probe.w).sum(1))

    assert (objective(ours) < objective(theirs) + 1e-5).all()
    np.testing.assert_allclose(objective(ours), objective(theirs), rtol=0.05)  # 3 % of one is still left to Adam
    done = objective(theirs) < 1.01 * objective(ours)
    assert done.sum() == 2
    np.testing.assert_array_equal(ours.w.argmax(1)[done], theirs.w.argmax(1)[done])
    for c in range(3):
        latents = jnp.asarray(golden["latents"][c])
        probe = logistic(z[:, latents], y[:, c], jnp.asarray(balanced(np.asarray(y[:, c]))))
        np.testing.assert_allclose([*probe.w, probe.b], golden["probes_on_them"][c], atol=5e-3)


# --- probes -----------------------------------------------------------------------------------------------------------


def random_problem(seed=0, n=200, d=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.array([1, 30, 0.01, 1, 1]) + 3
    y = x[:, 0] + x[:, 1] / 30 + rng.normal(size=n) > 4
    return x.astype(np.float32), y, rng.uniform(0.2, 2, n).astype(np.float32)


def test_logistic_is_stationary_in_float64_with_columns_of_very_unequal_size():
    x, y, weight = random_problem()
    probe = logistic(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight), 0.5)
    w, b = np.asarray(probe.w, np.float64), float(probe.b)
    wrong = weight * (1 / (1 + np.exp(-(x @ w + b))) - y)
    scale = np.abs(x).mean(0) * weight.sum()
    assert np.abs(wrong @ x + 0.5 * w)[[0, 1, 3, 4]].max() < 1e-4 * scale.max()
    np.testing.assert_allclose((wrong @ x + 0.5 * w) / scale, 0, atol=1e-4)
    assert abs(wrong.sum()) < 1e-3


def test_logistic_of_separable_and_of_useless_inputs_is_finite():
    y = jnp.arange(40) % 2 == 0
    sure = logistic(jnp.where(y, 1000.0, -1000.0)[:, None], y, jnp.ones(40))
    assert jnp.isfinite(sure.w).all()
    assert float(accuracy(sure(jnp.where(y, 1000.0, -1000.0)[:, None]), y, jnp.ones(40))) == 1
    none = logistic(jnp.zeros((40, 3)), y, jnp.ones(40))
    np.testing.assert_allclose([*none.w, none.b], 0, atol=1e-6)


def test_sparse_probes_meet_the_conditions_of_their_optimum():
    x, y, weight = random_problem()
    l1 = 0.05
    probe = sparse_logistics(jnp.asarray(x), jnp.asarray(y)[:, None], jnp.asarray(weight)[:, None], l1)
    w, b = np.asarray(probe.w[0], np.float64), float(probe.b[0])
    slope = (weight * (1 / (1 + np.exp(-(x @ w + b))) - y)) @ x / len(x)
    size = np.sqrt(np.square(x).mean(0))
    np.testing.assert_allclose((slope / size)[w != 0], (-l1 * np.sign(w) / size)[w != 0], atol=2e-3)
    assert (np.abs(slope / size)[w == 0] <= l1 / size[w == 0] + 2e-3).all()
    assert (w != 0).any()
    assert (w == 0).any()


def test_nested_probes_read_only_the_first_columns():
    x, y, weight = (jnp.asarray(a) for a in random_problem())
    both = nested(x, y, weight, sizes=(1, 3))
    for probe, size in zip(both.w, (1, 3), strict=True):
        np.testing.assert_array_equal(probe[size:], 0)
        np.testing.assert_allclose(probe[:size], logistic(x[:, :size], y, weight).w, rtol=2e-3, atol=1e-4)


def test_accuracy_and_f1_by_hand():
    logits, y = jnp.array([1.0, 1, -1, -1, 1]), jnp.array([True, True, True, False, False])
    assert float(accuracy(logits, y, jnp.ones(5))) == pytest.approx(3 / 5)
    assert float(accuracy(logits, y, jnp.asarray(balanced(np.asarray(y))))) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert float(f1(logits, y)) == pytest.approx(2 * 2 / (3 + 3))
    assert float(f1(-jnp.ones(5), y)) == 0


# --- examples ---------------------------------------------------------------------------------------------------------


def test_means_are_over_tokens_in_the_mask_and_do_not_depend_on_the_chunk():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(10, 4, 8)).astype(np.float32), rng.random((10, 4)) < 0.6
    mask[:, 0] = True
    broken = np.where(mask[..., None], x, np.nan)
    found = pooled(original(), broken, jnp.asarray(mask), rows=3)
    z = np.asarray(original().encode(jnp.asarray(x)))
    for i in range(10):
        np.testing.assert_allclose(found.x[i], x[i, mask[i]].mean(0), atol=1e-6)
        np.testing.assert_allclose(found.z[i], z[i, mask[i]].mean(0), atol=1e-5)
    np.testing.assert_allclose(pooled(original(), x[:, 0]).z, z[:, 0], atol=1e-6)


def test_the_split_is_stratified_and_fixed_by_its_seed():
    labels = np.repeat(np.arange(3), [40, 20, 4])
    train, test = split(labels, test_fraction=0.25, seed=1)
    assert sorted([*train, *test]) == list(range(64))
    np.testing.assert_array_equal(np.bincount(labels[test]), [10, 5, 1])
    np.testing.assert_array_equal(test, split(labels, test_fraction=0.25, seed=1)[1])
    assert not np.array_equal(test, split(labels, test_fraction=0.25, seed=2)[1])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, y: sparse_probing(original(), x, y, ks=(1, 99)), r"each is from 1 to the 24 latents"),
        (lambda x, y: sparse_probing(original(), x, y[:-1]), "labels for"),
        (lambda x, y: sparse_probing(original(), x, y, ks=(1,), test_fraction=1.0), "test_fraction is between 0 and 1"),
        (lambda x, y: sparse_probing(original(), x, y.astype(float)), r"labels are classes int \[n\]"),
        (lambda x, y: sparse_probing(original(), x, np.where(np.arange(40) == 0, 2, y)), r"classes \[2\] have fewer"),
        (lambda x, y: sparse_probing(original(), x * np.nan, y), "not finite"),
        (lambda x, y: pooled(original(), x[:, None], np.zeros((40, 1), bool)), "40 of 40 examples have no token"),
        (lambda x, y: pooled(original(), x[:, None], np.zeros((40, 2), bool)), r"with a mask bool \[n, pos\]"),
        (lambda x, y: tpp(original(), x, y[:, None] == 0), "there is one class"),
        (lambda x, y: tpp(original(), x, y, ns=()), "numbers of latents, at least 1"),
        (lambda x, y: scr(original(), x, y == 0, y == 0), "only spurious, only target"),
        (lambda x, y: scr(original(), x, y, y), "are bool"),
        (lambda x, y: absorption(original(), x, y, max_split=1), "no class has a probe"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(call, text):
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    with pytest.raises(UserError, match=text):
        call(x, np.arange(40) % 2)


# --- the truth and chance ---------------------------------------------------------------------------------------------

N, CLASSES, WIDE = 800, 4, 16


@functools.cache
def classes():
    """(x, labels, directions): four classes, each a direction of its own, among twelve that mean nothing."""
    rng = np.random.default_rng(1)
    directions, labels = np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0].astype(np.float32), rng.integers(0, CLASSES, N)
    z = np.abs(rng.normal(size=(N, WIDE))) * (rng.random((N, WIDE)) < 0.5)
    z[:, :CLASSES] = (labels[:, None] == np.arange(CLASSES)) * rng.uniform(2, 3, (N, 1))
    return (z @ directions + 0.05 * rng.normal(size=(N, WIDE))).astype(np.float32), labels, directions


def oracle():
    """The true directions, silent below the noise."""
    return coder(classes()[2], b_enc=jnp.full(WIDE, -0.3))


def shuffled(labels):
    return np.random.default_rng(7).permutation(labels)


CHANCE = 0.12
"""Balanced accuracy of 160 test examples, a quarter of them yes: sd 0.046 by class, and four classes are averaged."""


def test_one_latent_of_the_truth_tells_its_class_and_shuffled_labels_are_chance():
    x, labels, _ = classes()
    found = sparse_probing(oracle(), x, labels, ks=(1, 2, 5))
    np.testing.assert_array_equal(found.latents[:, 0], np.arange(CLASSES))
    assert found.accuracy[:, 0].min() > 0.99
    assert found.dense.min() > 0.98
    assert found.n_test == pytest.approx(0.2 * N, abs=3)
    null = sparse_probing(oracle(), x, shuffled(labels), ks=(1, 2, 5))
    assert abs(null.accuracy.mean() - 0.5) < CHANCE / 2
    assert abs(null.dense.mean() - 0.5) < CHANCE / 2
    again = sparse_probing(oracle(), x, labels, ks=(1, 2, 5))
    np.testing.assert_array_equal(found.accuracy, again.accuracy)
    mixed = coder(rows(np.random.default_rng(3), WIDE, WIDE))
    assert sparse_probing(mixed, x, labels, ks=(1,)).mean[1] < found.mean[1] - 0.1


def test_tokens_and_rows_give_the_same_probes():
    x, labels, _ = classes()
    tokens = np.stack([x, x, 100 + x], 1)
    mask = np.array([True, True, False]) & np.ones((N, 1), bool)
    a, b = (sparse_probing(oracle(), v, labels, mask=m, ks=(1, 2)) for v, m in ((x, None), (tokens, mask)))
    np.testing.assert_allclose(a.accuracy, b.accuracy, atol=1e-6)


def test_removing_a_class_of_the_truth_removes_that_class_alone():
    x, labels, _ = classes()
    found = tpp(oracle(), x, labels, ns=(1, 2))
    assert found.clean.min() > 0.98
    assert found.intended[0] > 0.4
    assert abs(found.unintended[0]) < 0.1
    np.testing.assert_allclose(found.score, found.intended - found.unintended, atol=1e-6)
    null = tpp(oracle(), x, shuffled(labels), ns=(1, 2))
    assert np.abs(null.score).max() < CHANCE
    mixed = coder(rows(np.random.default_rng(3), WIDE, WIDE))
    assert tpp(mixed, x, labels, ns=(1,)).score[0] < found.score[0] - 0.2


@functools.cache
def correlated():
    """(x, target, spurious, directions): two concepts, independent in the data, the spurious one louder."""
    rng = np.random.default_rng(2)
    directions, both = np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0].astype(np.float32), rng.random((N, 2)) < 0.5
    z = 0.3 * rng.normal(size=(N, WIDE))
    z[:, 0], z[:, 1] = 2 * both[:, 0] - 1, 3 * (2 * both[:, 1] - 1)
    return (z @ directions).astype(np.float32), both[:, 0], both[:, 1], directions


def test_zeroing_the_spurious_latents_of_the_truth_frees_the_target():
    x, target, spurious, directions = correlated()
    truth = coder(np.concatenate([directions, -directions]))  # a latent for yes and one for no
    found = scr(truth, x, target, spurious, ns=(1, 2))
    assert found.biased[0] < 0.75 < 0.95 < min(found.clean)
    np.testing.assert_array_equal(found.score, found.score_target)
    assert found.score[1] > 0.9
    mixed = scr(coder(rows(np.random.default_rng(3), 2 * WIDE, WIDE)), x, target, spurious, ns=(1, 2))
    assert mixed.score[1] < found.score[1] - 0.2
    nothing = scr(truth, x, shuffled(target), shuffled(spurious)[::-1], ns=(1, 2))
    assert max(abs(a - 0.5) for a in (*nothing.clean, *nothing.biased)) < CHANCE


def test_latents_without_effect_are_not_zeroed():
    chosen = removal.strongest(jnp.array([0.0, 2.0, -1.0]), 3)
    examples = Examples(jnp.zeros((1, 2)), jnp.ones((1, 3)))
    probe = Probe(jnp.array([[1.0, 0.0]]), jnp.array([0.5]))
    w_dec = jnp.array([[10.0, 0], [3, 0], [100, 0]])
    np.testing.assert_allclose(removal.logits_without(examples, probe, w_dec, chosen, (1, 3)), [[[-2.5, -2.5]]])


def test_removal_scores_by_hand():
    np.testing.assert_allclose(removal.removal_score(np.array([0.5, 0.7, 0.9]), 0.6, 0.8), [-0.5, 0.5, 1.5])
    assert np.isnan(removal.removal_score(np.array([0.5]), 0.8, 0.8)).all()
    z = jnp.array([[1.0, 0], [3, 0], [0, 2], [0, 4]])
    y = jnp.array([True, True, False, False])
    np.testing.assert_allclose(mean_difference(z, y), [2, -3])
    np.testing.assert_allclose(mean_difference(z, y, jnp.array([3.0, 1, 1, 1])), [1.5, -3])


# --- absorption -------------------------------------------------------------------------------------------------------


def letters(absorbed_share, n=1200):
    """Class 0 has a latent of its own; for some of its examples a more special latent holds both meanings."""
    rng = np.random.default_rng(5)
    directions, labels = np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0].astype(np.float32), rng.integers(0, 3, n)
    special = (labels == 0) & (rng.random(n) < absorbed_share)
    letter = labels[:, None] == np.arange(3)
    x = (2 * letter) @ directions[:3] + np.outer(2 * special, directions[3]) + 0.05 * rng.normal(size=(n, WIDE))
    w_dec = directions.copy()
    w_dec[3] = (directions[0] + directions[3]) / np.sqrt(2)  # the special latent says "letter 0" as well
    w_enc = directions.T.copy()
    w_enc[:, 0] = directions[0] - directions[3]  # so that the letter's latent stays silent there
    w_enc[:, 3] = directions[3] * np.sqrt(2)
    return x.astype(np.float32), labels, coder(w_dec, jnp.asarray(w_enc), b_enc=jnp.full(WIDE, -0.2)), special


def test_as_much_absorption_is_found_as_was_planted():
    for share in (0.0, 0.1):
        x, labels, dictionary, special = letters(share)
        found = absorption(dictionary, x, labels, max_split=1)
        assert [int(m[0]) for m in found.main_latents] == [0, 1, 2]
        assert found.probe_f1.min() > 0.98
        planted = special[labels == 0].mean()
        assert found.full_by_class[0] == pytest.approx(planted, abs=0.06)  # 80 test examples: sd 0.034
        assert found.by_class[0] == pytest.approx(planted, abs=0.06)
        assert found.full_by_class[1:].max() < 0.01
        assert found.full == pytest.approx(found.full_by_class.mean())
    assert planted > 0.05


def test_a_split_class_is_not_absorbed():
    x, labels, dictionary, _ = letters(0.4)
    whole = absorption(dictionary, x, labels, max_split=1)
    two = absorption(dictionary, x, labels, max_split=4)
    assert sorted(two.main_latents[0].tolist()) == [0, 3]
    assert two.full_by_class[0] < 0.02 < 0.25 < whole.full_by_class[0]


def test_absorption_by_hand():
    """One direction u; latents: 0 main, 1 and 2 along u, 3 against it."""
    w = jnp.array([[1.0, 0], [0.6, 0.8], [0.2, 0.98], [-1, 0]])
    x = jnp.array([[2.0, 0], [2, 0], [2, 0], [-1, 0], [2, 0]])
    z = jnp.array([[0.0, 2, 1, 0], [1, 2, 1, 0], [3, 2, 0, 0], [0, 2, 0, 2], [0, 0, 0.5, 0]])
    main = jnp.array([True, False, False, False])
    full, fraction = absorbed(x, z, jnp.array([5.0, 0]), w, main)
    assert full.tolist() == [True, False, False, False, False]
    # row 1: absorbers 1.2 + 0.2 along u, main 1, missing 1 -> 1 / (1 + 1); row 2: the main latent holds everything
    np.testing.assert_allclose(fraction, [1, 0.5, 0, 0, 0], atol=1e-6)
    assert absorbed(x, z, jnp.array([5.0, 0]), w, main, absorbers=1)[1][1] == pytest.approx(0.5)
    assert absorbed(x, z, jnp.array([5.0, 0]), w, main, share=0.65, absorbers=1)[1][1] == 0


def test_splits_stop_at_the_first_latent_that_adds_little():
    latents = np.array([4, 2, 9])
    assert split_latents(latents, np.array([0.5, 0.52, 0.9])).tolist() == [4]
    assert split_latents(latents, np.array([0.5, 0.6, 0.9])).tolist() == [4, 2, 9]
    assert split_latents(latents[:1], np.array([0.5])).tolist() == [4]


def test_classes_without_a_good_probe_are_left_out():
    x, labels, dictionary, _ = letters(0.1)
    rng = np.random.default_rng(0)
    found = absorption(dictionary, x, np.stack([labels == 0, rng.random(len(x)) < 0.3], 1), max_split=1)
    assert np.isnan(found.by_class[1])
    assert found.fraction == found.by_class[0]
    with pytest.raises(UserError, match="no class has a probe"):
        absorption(dictionary, x, labels, max_split=1, thresholds=Thresholds(least_examples=10_000))
