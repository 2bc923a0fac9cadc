# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.neurons import (
    AGNOSTIC,
    RELATED,
    SPECIFIC,
    GroupStatistics,
    LabelledStream,
    discoveries,
    finer,
    four_stages,
    group_statistics,
    kth_smallest,
    lape,
    permuted_rates,
    selectivity,
)
from jaxneuro.stats import merged_blocks, permuted_labels


def random_rates(seed=0, shape=(4, 250, 5)):
    """Rates of counts over unequal numbers of tokens, with dead and always-on neurons among them."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20_000, 40_000, shape[-1])
    rate = rng.beta(0.4, 2.0, shape[:2])[..., None] * rng.uniform(0.2, 1.0, shape)
    rate[0, :20] = 0
    rate[1, :10] = 0.99
    rate[2, :4, 1:] *= 0.01
    return (rng.binomial(tokens, rate) / tokens).astype(np.float32)


def lape_reference(p, top_rate, filter_rate, bar):
    """A transcription of the steps in numpy, float64."""
    p = p.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        q = np.nan_to_num(p / p.sum(-1, keepdims=True))
        h = -np.nansum(np.where(q > 0, q * np.log(q), 0), -1)
    flat = np.sort(p.ravel())
    cut = flat[round(p.size * filter_rate) - 1]
    h[(p > cut).sum(-1) == 0] = np.inf
    index = np.argsort(h.ravel(), kind="stable")[: round(h.size * top_rate)]
    member = np.zeros(p.shape, bool)
    for i in index:
        at = np.unravel_index(i, h.shape)
        member[at] = p[at] > flat[round(p.size * bar) - 1]
    return h, set(index.tolist()), member, cut


@pytest.mark.parametrize(("top_rate", "filter_rate", "bar"), [(0.01, 0.95, 0.95), (0.05, 0.9, 0.97)])
def test_lape_equals_an_independent_transcription(top_rate, filter_rate, bar):
    p = random_rates()
    got = lape(jnp.asarray(p), top_rate=top_rate, filter_rate=filter_rate, bar=bar)
    h, index, member, cut = lape_reference(p, top_rate, filter_rate, bar)
    np.testing.assert_allclose(np.asarray(got.entropy), h, atol=3e-6)
    assert set(np.flatnonzero(np.asarray(got.selected)).tolist()) == index
    np.testing.assert_array_equal(np.asarray(got.member), member)
    assert float(got.threshold) == np.float32(cut)
    dead = p.sum(-1) == 0
    assert dead.sum() >= 20
    assert not np.asarray(got.selected)[dead].any()


def test_lape_golden_numbers():
    """By hand: p' = (0.9, 0.05, 0.05) has H = 0.9 ln(1/0.9) + 0.1 ln 20 = 0.39440 nats."""
    rate = jnp.full((1, 100, 3), 0.1).at[0, 4].set(jnp.array([0.9, 0.05, 0.05])).at[0, 5].set(0.0)
    got = lape(rate)
    assert float(got.entropy[0, 4]) == pytest.approx(0.39440, abs=1e-5)
    assert np.argwhere(np.asarray(got.member)).tolist() == [[0, 4, 0]]
    assert np.isinf(got.entropy[0, 5])


def test_kth_smallest_has_torchs_definition():
    x = jnp.arange(10, dtype=jnp.float32)[::-1].reshape(2, 5)
    assert [float(kth_smallest(x, r)) for r in (0.0, 0.1, 0.95, 1.0)] == [0, 0, 9, 9]  # round(9.5) = 10, the 10th


def finer_reference(p, score, weight, bar=0.95, filter_rate=0.95, top_rate=0.01):
    k = p.shape[-1]
    p = p.astype(np.float64)
    nu = sum(1 / m for m in range(1, k + 1)) / k
    s = p.sum(-1, keepdims=True)
    q = np.where(s > 0, p / np.where(s > 0, s, 1), 1 / k if score == "code" else 0)
    h = -np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0).sum(-1)
    total = h / np.log(k) - weight * p.max(-1) / nu if score == "code" else h - weight * p.max(-1)
    flat = np.sort(p.ravel())
    if filter_rate is not None:
        total[(p > flat[round(p.size * filter_rate) - 1]).sum(-1) == 0] = np.inf
    n = (p > flat[round(p.size * bar) - 1]).sum(-1)
    index = np.argsort(total.ravel(), kind="stable")[: round(total.size * top_rate)]
    return total, index, n


@pytest.mark.parametrize("score", ["code", "paper"])
@pytest.mark.parametrize("filter_rate", [None, 0.95])
def test_finer_equals_an_independent_transcription(score, filter_rate):
    p = random_rates(3)
    got = finer(jnp.asarray(p), score=score, filter_rate=filter_rate, top_rate=0.04)
    total, index, n = finer_reference(p, score, float(got.weight), filter_rate=filter_rate, top_rate=0.04)
    np.testing.assert_allclose(np.asarray(got.score), total, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(got.n_active), n)
    assert set(np.flatnonzero(np.asarray(got.selected))) == set(index)
    label, member = np.asarray(got.label), np.asarray(got.member)
    assert label.dtype == np.int8
    assert (label == AGNOSTIC).sum() == (n == p.shape[-1]).sum()
    assert member.sum(-1)[label == SPECIFIC].tolist() == [1] * (label == SPECIFIC).sum()
    assert (member.sum(-1)[label == RELATED] > 1).all()
    assert not member[label == AGNOSTIC].any()
    if (
        score == "code" or filter_rate is not None
    ):  # the paper's score alone would take dead neurons: their entropy is 0
        assert not np.asarray(got.selected)[p.sum(-1) == 0].any()


@pytest.mark.parametrize("score", ["code", "paper"])
def test_bisection_finds_the_largest_weight_without_a_neuron_of_all_groups(score):
    rng = np.random.default_rng(5)
    p = rng.uniform(0.02, 0.1, (3, 400, 4)).astype(np.float32)
    p[0, :8, 0] = rng.uniform(0.5, 0.9, 8)  # specific, low entropy
    p[1, :40] = rng.uniform(0.6, 1.0, (40, 4))  # high everywhere: attractive once lambda is large
    got = finer(jnp.asarray(p), score=score, top_rate=0.02, top_weight=2.0, width=1e-3)
    found = float(got.weight)
    assert 0 < found < 2.0
    assert int(got.n_full) == 0

    def full(w):
        _, index, n = finer_reference(p, score, w, top_rate=0.02)
        return (n.ravel()[index] == 4).sum()

    assert full(found) == 0
    assert full(found + 1.1e-3) > 0


def test_bisection_takes_the_end_if_it_qualifies_and_zero_if_nothing_does():
    p = np.full((1, 200, 3), 0.1, np.float32)
    p[0, 0] = [0.9, 0.0, 0.0]
    assert float(finer(jnp.asarray(p), top_rate=0.005).weight) == pytest.approx(0.2)
    p = np.full((1, 100, 2), 0.1, np.float32)
    p[0, :3] = 0.9
    got = finer(jnp.asarray(p), top_rate=0.03)
    assert float(got.weight) == 0
    assert int(got.n_full) == 3
    assert (np.asarray(got.label) == AGNOSTIC).sum() == 3


def test_one_group_is_refused():
    with pytest.raises(UserError, match="only one group"):
        lape(jnp.ones((1, 4, 1)))
    with pytest.raises(UserError, match=r"shape \(4, 2\)"):
        finer(jnp.ones((4, 2)))


def test_planted_neurons_are_recovered_with_precision_1(table, toy):
    """Five neurons were planted; asked for five, LAPE gives these five to their groups and nothing else."""
    n = sum(map(len, toy.planted.values()))
    got = selectivity(table.rates, top_rate=n / (toy.L * toy.F))
    np.testing.assert_allclose(got.entropy, np.asarray(lape(jnp.asarray(table.rate)).entropy), atol=1e-6)
    np.testing.assert_array_equal(got.lape_member.transpose(2, 0, 1), toy.chosen)
    np.testing.assert_array_equal(got.member.transpose(2, 0, 1), toy.chosen)
    assert (got.label == SPECIFIC).sum() == n
    assert got.significant[toy.chosen.any(0)].all()
    assert got.counts.lape.shape == got.counts.specific.shape == (toy.K, toy.L)
    np.testing.assert_array_equal(got.counts.specific, toy.chosen.sum(-1))
    np.testing.assert_array_equal(got.counts.significant, toy.chosen.sum(-1))


def test_nothing_is_significant_under_shuffled_labels(table, toy):
    got = selectivity(table.rates, top_rate=5 / (toy.L * toy.F))
    assert got.null.lape.shape == (40, toy.K, toy.L)
    assert (got.null.significant.sum((1, 2)) > 0).mean() <= 0.05
    shuffled = selectivity(table.rates[1:], top_rate=5 / (toy.L * toy.F))
    assert not shuffled.significant.any()
    assert not (shuffled.member.transpose(2, 0, 1) & toy.chosen).any()  # the planted ones fire for every shuffled group


def test_discoveries_hold_the_rate_asked_for():
    rng = np.random.default_rng(0)
    null = rng.normal(size=(60, 4, 500))
    entropy = rng.normal(size=(4, 500))
    entropy[0, :50] -= 8.0
    found = discoveries(entropy, null, 0.05)
    assert found[0, :50].all()
    assert found.sum() <= 50 + 6
    assert not discoveries(rng.normal(size=(4, 500)), null, 0.05).any()
    assert not discoveries(entropy, null[:0], 0.05).any()
    one = np.full((1, 9), 5.0)
    one[0, 0] = -100.0
    assert not discoveries(one, np.zeros((18, 1, 9)), 0.05).any()  # so few permutations cannot prove a single neuron
    assert discoveries(one, np.full((19, 1, 9), 5.0), 0.05)[0].nonzero()[0].tolist() == [0]
    counts = np.array([[3, 200, 200]], np.uint8)  # integers do not wrap around
    assert discoveries(counts, np.full((30, 1, 3), 200, np.uint8), 0.05).tolist() == [[True, False, False]]


@pytest.mark.parametrize("n", [4, 5, 9, 12])
def test_stage_borders_equal_brute_force(n):
    rng = np.random.default_rng(n)
    s, g = rng.integers(0, 50, n), rng.integers(0, 50, n)
    got = four_stages(s, g)
    y = np.stack([s / s.max(), g / g.max()], 1)
    cost = lambda a, b: ((y[a:b] - y[a:b].mean(0)) ** 2).sum()  # noqa: E731
    best = min(
        cost(0, a) + cost(a, b) + cost(b, c) + cost(c, n)
        for c in range(max(n - 2, 3), n)
        for b in range(2, c)
        for a in range(1, b)
    )
    assert got.error == pytest.approx(best, abs=1e-9)
    a, b, c = got.borders
    assert cost(0, a) + cost(a, b) + cost(b, c) + cost(c, n) == pytest.approx(best, abs=1e-9)
    assert got.error_undivided == pytest.approx(cost(0, n))


def test_three_layers_have_no_four_stages():
    with pytest.raises(UserError, match="at least 4"):
        four_stages(np.ones(3), np.ones(3))


def test_permuted_rates_are_those_of_permuted_labels(toy):
    """Counts per document give the rates under any labelling that moves whole documents, and under the true one."""
    document = np.cumsum(np.r_[0, np.diff(toy.group) != 0])  # runs of windows of one group
    number, of_block = merged_blocks(toy.group, document, 5)
    labels = permuted_labels(of_block, 3, 0)[number]
    method = group_statistics(toy.apply, toy.site, toy.K, bins=0, n_examples=0, n_blocks=len(of_block))
    state = None
    for b in LabelledStream(toy.batches, labels, number):
        b = {**b, "weights": toy.weights}
        state = method.init(jax.random.key(0), b) if state is None else state
        state, _ = method.step(state, b)
    table = method.finish(state)
    assert table.block_group.tolist() == of_block.tolist()
    assert table.block_fired.sum() == table.fired[0].sum()
    np.testing.assert_array_equal(table.block_tokens.sum(), table.tokens[0].sum())
    every = list(permuted_rates(table, 3, 0))
    np.testing.assert_allclose(every[0], table.rate, rtol=1e-6)
    np.testing.assert_allclose(np.stack(every), table.rates, rtol=1e-6)
    with pytest.raises(UserError, match="no counts per block"):
        next(permuted_rates(GroupStatistics(**{**vars(table), "block_tokens": np.zeros(0, np.int64)}), 1, 0))


def test_meaningless_groups_of_documents_are_rarely_significant():
    """Firing that follows documents, in groups that mean nothing: shuffled windows would have far higher entropies."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(20):
        of_block = rng.permutation(np.arange(18) % 3)
        level = rng.beta(2.0, 2.0, (18, 1, 300))
        rates = [
            np.stack([level[labels == k].mean(0) for k in range(3)], -1)
            for labels in permuted_labels(of_block, 60, 1).T
        ]
        hits += selectivity(rates, top_rate=0.1).significant.any()
    assert hits <= 4  # 20 at a level of 5 %: five or more have a probability of 0.3 %
