# SPDX-License-Identifier: Apache-2.0
"""Dynamic connectomes: components beside rolled traces, communities by description length, agreement beyond chance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries.block_model import block_model, communities_of
from jaxneuro.dictionaries.connectome import affinity, communities, component_communities, pair_index
from jaxneuro.dictionaries.cp import nonnegative_cp
from jaxneuro.dictionaries.cp_null import rank_evidence, rolled, supported_rank
from jaxneuro.dictionaries.cp_rank import rank_curve
from jaxneuro.errors import UserError
from jaxneuro.stats.agreement import adjusted_mutual_information

GROUPS = (range(5), range(5, 10), range(8, 12))
"""Neurons that are in step; 8 and 9 with two groups."""
LARGER = (range(8), range(8, 16), range(12, 24))
SUBJECTS = ({0, 1}, {1, 2}, {0, 2})
N, TIME = 12, 150
HOW = {"smooth": 1.0, "window": 6.0}


@functools.cache
def planted(groups=GROUPS, seed=0, gain=2):
    """float32 [subjects, time, neurons]: each group has a common signal in a third of the time, in two subjects."""
    rng = np.random.default_rng(seed)
    bell, third = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2), TIME // 3
    x = np.apply_along_axis(lambda v: np.convolve(v, bell, "same"), 1, rng.normal(size=(3, TIME, groups[-1].stop)))
    x *= 0.5 / x.std()
    for g, (neurons, subjects) in enumerate(zip(groups, SUBJECTS, strict=True)):
        common = np.convolve(rng.normal(size=third + 12), bell, "valid")
        for s in subjects:
            x[s, g * third : (g + 1) * third, list(neurons)] += gain * (common / common.std())
    return jnp.asarray(x, jnp.float32)


def evidence(traces):
    return rank_evidence(traces, 4, key=jax.random.key(0), copies=20, starts=2, sweeps=40, **HOW)


@pytest.fixture(scope="module")
def of_planted():
    return evidence(planted())


def test_planted_components_are_counted_beside_rolled_copies(of_planted):
    assert supported_rank(of_planted) == 3
    assert [e.p_value <= 0.05 for e in of_planted] == [False, True, True, False]  # one flat component explains less
    assert of_planted[1].drop > 2 * of_planted[1].null.max()
    losses = [e.loss for e in of_planted]
    assert losses == sorted(losses, reverse=True)


def test_rolled_traces_have_no_component():
    assert supported_rank(evidence(rolled(planted(), jax.random.key(7), least=18))) == 0


def test_components_are_the_planted_groups_and_a_neuron_may_be_in_two():
    cp = nonnegative_cp(affinity(planted(LARGER, gain=6), **HOW), 3, key=jax.random.key(1), starts=3, sweeps=100)
    found = component_communities(cp, 24)
    assert found.shape == (3, 24)
    sets = {frozenset(np.flatnonzero(row == 1).tolist()) for row in found}
    assert sets == {frozenset(group) for group in LARGER}
    assert (found[:, 12:16] > 0).sum(0).tolist() == [2] * 4


def test_every_trace_is_rolled_by_a_lag_of_its_own():
    x = planted()
    copy = np.asarray(rolled(x, jax.random.key(0), least=10))
    lags = set()
    for s in range(3):
        for n in range(N):
            lag = [k for k in range(TIME) if np.array_equal(np.roll(x[s, :, n], k), copy[s, :, n])]
            assert len(lag) == 1
            assert 10 <= lag[0] <= TIME - 10
            lags.add(lag[0])
    assert len(lags) > 20
    with pytest.raises(UserError, match=r"rolled: lags of 100 and more of 150 time steps"):
        rolled(x, jax.random.key(0), least=100)
    with pytest.raises(UserError, match=r"rank_evidence: most = 0"):
        rank_evidence(x, 0, key=jax.random.key(0))


def graph(seed, truth, inside=5.0, across=0.5, dense=(0.9, 0.4)):
    rng = np.random.default_rng(seed)
    same = truth[:, None] == truth
    weight = np.triu(rng.exponential(np.where(same, inside, across)), 1)
    there = np.triu(rng.random(same.shape) < np.where(same, *dense), 1)
    return (weight * there) + (weight * there).T


@pytest.mark.parametrize("n_blocks", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_partition_is_found_and_none_where_there_is_none(n_blocks, seed):
    truth = np.arange(8 * max(n_blocks, 3)) % n_blocks
    found = block_model(graph(seed, truth))
    assert adjusted_mutual_information(found.label, truth) == 1
    assert (found.description_length < found.one_block - 5) == (n_blocks > 1)


def test_weights_alone_tell_blocks_apart():
    truth = np.arange(24) % 2
    found = block_model(graph(0, truth, 4.0, 0.5, dense=(1.0, 1.0)))  # every edge is there
    assert adjusted_mutual_information(found.label, truth) == 1


def test_blocks_are_numbered_by_their_weight_and_empty_graphs_have_one():
    g = np.kron(np.diag([1.0, 5.0]), np.ones((6, 6))) + 0.01
    g -= np.diag(np.diag(g))
    assert block_model(g).label.tolist() == [1] * 6 + [0] * 6
    assert communities_of(g).max() >= 1
    assert block_model(np.zeros((5, 5))).label.tolist() == [0] * 5
    assert communities_of(np.zeros((5, 5))).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones((2, 3)), r"a graph of shape \(2, 3\)"),
        (np.eye(3), "0 on its diagonal"),
        (np.array([[0, 1.0], [2, 0]]), "symmetric"),
        (np.array([[0, -1.0], [-1, 0]]), "not negative"),
        (np.array([[0, np.nan], [np.nan, 0]]), "finite"),
        (np.zeros((401, 401)), "of 2 to 400 nodes"),
    ],
)
def test_what_is_no_graph_is_refused(bad, message):
    with pytest.raises(UserError, match=message):
        block_model(bad)


def test_the_number_of_communities_is_chosen_or_given():
    truth = np.arange(18) % 3
    i, j = pair_index(18).T
    loading = jnp.asarray(graph(0, truth)[i, j], jnp.float32)
    chosen = communities(loading, 18)
    assert adjusted_mutual_information(np.asarray(chosen), truth) == 1
    assert len(set(np.asarray(communities(loading, 18, 2, key=jax.random.key(0))).tolist())) == 2
    with pytest.raises(UserError, match="a number of communities needs a key"):
        communities(loading, 18, 2)


def test_a_global_scale_keeps_silent_neurons_silent():
    x = planted()
    quiet = x.at[:, :, 0].multiply(1e-2)
    own, shared = (affinity(quiet, **HOW, scale=scale) for scale in ("neuron", "global"))
    pair = 0  # of neurons 0 and 1
    np.testing.assert_allclose(own, affinity(x, **HOW), atol=1e-4)  # a loud copy of the noise
    assert float(shared[pair].mean()) < 0.2 * float(own[pair].mean())
    other = -1  # of neurons 10 and 11, which are as they were
    assert float(shared[other].mean()) == pytest.approx(float(own[other].mean()), rel=0.3)


def test_halves_of_a_smoothed_axis_are_split_by_blocks():
    """Even and odd entries of smoothed noise are copies of each other; blocks are not."""
    tensor = affinity(rolled(planted(), jax.random.key(3), least=18), **HOW)
    options = {"key": jax.random.key(0), "starts": 2, "sweeps": 40}
    (copies,), (blocks,) = (rank_curve(tensor, [4], split_block=b, **options) for b in (1, None))
    assert copies.split_similarity > 0.95
    assert blocks.split_similarity < copies.split_similarity - 0.1
    with pytest.raises(UserError, match=r"blocks of 76 entries do not make two halves of an axis of 150"):
        rank_curve(tensor, [1], split_block=76, **options)


# scikit-learn 1.9.1, adjusted_mutual_info_score, default options
PARTITIONS = [
    ([0, 0, 1, 1], [0, 0, 1, 2], 4 / 7),
    ([0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2, 2, 2], 0.31967265056964694),
    ([0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1], -1 / 9),
    ([0, 0, 0, 0], [0, 1, 2, 3], 0),
]


@pytest.mark.parametrize(("a", "b", "expected"), PARTITIONS)
def test_adjusted_mutual_information(a, b, expected):
    value = adjusted_mutual_information(np.array(a), np.array(b))
    assert value == pytest.approx(adjusted_mutual_information(np.array(b), np.array(a)), abs=1e-12)
    assert value == pytest.approx(expected, abs=1e-9)
    assert adjusted_mutual_information(np.array(a), np.array(a) + 7) == 1


def test_adjusted_mutual_information_of_chance_is_zero_on_average():
    rng = np.random.default_rng(0)
    values = [adjusted_mutual_information(rng.integers(0, 3, 30), rng.integers(0, 8, 30)) for _ in range(200)]
    assert abs(np.mean(values)) < 0.02
    with pytest.raises(UserError, match=r"partitions of shapes \(2,\) and \(3,\)"):
        adjusted_mutual_information(np.zeros(2), np.zeros(3))
