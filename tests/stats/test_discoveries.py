# SPDX-License-Identifier: Apache-2.0
"""The rule of discoveries: how often it reports what is not there, what it finds of what is, and its algebra."""

import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.stats import check_rates, discoveries, envelope, keep_largest, ranks_needed


def null(rng, units=60, labellings=100, groups=2, common=0.9):
    """Statistics [unit, labelling, group] that rise and fall together within a labelling."""
    shared = rng.normal(size=(1, labellings, groups))
    return common * shared + (1 - common**2) ** 0.5 * rng.normal(size=(units, labellings, groups))


def reported(t, rate=0.05, level=0.05):
    """bool [unit, group], under labelling 0."""
    bound = envelope(keep_largest(None, t, ranks_needed(len(t), rate)), level=level).bound
    return discoveries(t[:, 0], bound, rate=rate)


@pytest.mark.parametrize("common", [0.0, 0.6, 0.95])
def test_where_nothing_is_something_is_reported_in_about_one_of_twenty_cases(common):
    rng = np.random.default_rng(0)
    found = np.mean([reported(null(rng, common=common)).any() for _ in range(600)])
    assert found < 0.05 + 2 * (0.05 * 0.95 / 600) ** 0.5
    assert found > 0.008  # and not because nothing is ever reported


@pytest.mark.parametrize("common", [0.0, 0.7])
def test_planted_units_are_found_with_few_others(common):
    rng = np.random.default_rng(1)
    found, false = [], []
    for _ in range(60):
        t = null(rng, units=400, labellings=200, common=common)
        t[:100, 0, 0] += 5
        good = reported(t)
        found.append(good[:100, 0].mean())
        false.append(max(good[100:, 0].sum() / max(good[:, 0].sum(), 1), good[:, 1].any()))
    assert np.mean(found) > 0.9
    assert np.mean(np.array(false) > 0.05) <= 0.1


def test_bounds_by_hand():
    """21 labellings, level 10 %: two may reach the bound. Of -10 .. 10 the median is 0 and the 90 % quantile 8."""
    t = np.arange(-10.0, 11.0)[None, :, None]
    got = envelope(t, level=0.1)
    assert got.bound.tolist() == [[9.0]]
    assert got.outside.nonzero()[0].tolist() == [19, 20]
    two = envelope(np.stack([t[0], t[0] / 2 - 7]), level=0.1)
    np.testing.assert_allclose(two.bound[:, 0], [9.0, 9 / 2 - 7])


def test_discoveries_by_hand():
    bound = np.array([[5.0], [3.0], [1.0]])
    t = np.full((80, 1), 4.0)  # above all bounds but the first: one of them may be false
    assert discoveries(t[:19], bound).sum() == 0
    assert discoveries(t[:20], bound).sum() == 20
    assert discoveries(t, bound, rate=0.01).sum() == 0
    t[7] = 5.0
    assert discoveries(t, bound, rate=0.01)[:, 0].nonzero()[0].tolist() == [7]
    t[:] = 0.5  # below all three: nothing is known
    assert discoveries(t, bound).sum() == 0
    assert discoveries(t, np.full((3, 1), np.inf)).sum() == 0


def test_too_few_labellings_or_too_many_equal_ones_find_nothing():
    with pytest.raises(UserError, match=r"n_shuffles=18.* level of 0.05; at least 19"):
        envelope(np.zeros((2, 19, 1)))
    rng = np.random.default_rng(0)
    few = rng.normal(size=(50, 6, 1))[:, rng.integers(0, 6, 200)]  # 6 labellings, each about 33 times
    few[:, few[0, :, 0] == few[0, 0, 0]] = 100.0
    assert not reported(few).any()
    assert not reported(np.zeros((50, 200, 2))).any()


def test_nan_is_refused():
    """NaN sorts above every number: one was a discovery, and moved the others up."""
    bound, t = np.array([[5.0], [3.0], [1.0]]), np.full((80, 1), 4.0)
    t[3] = np.nan
    for call in (
        lambda: discoveries(t, bound),
        lambda: keep_largest(None, t, 3),
        lambda: envelope(t[None].repeat(20, 1)),
    ):
        with pytest.raises(UserError, match=r"values of the statistic are NaN.*Leave those units out"):
            call()
    with pytest.raises(UserError, match="1 of 3 values of the bound are NaN"):
        discoveries(np.zeros((80, 1)), np.array([[np.nan], [3.0], [1.0]]))
    assert discoveries(np.delete(t, 3, 0), bound).sum() == 79


def test_rates_outside_0_and_1_are_refused():
    for options in ({"rate": 0.0, "level": 0.05}, {"rate": 0.05, "level": 1.0}):
        with pytest.raises(UserError, match="above 0 and below 1"):
            check_rates(100, **options)


def test_largest_are_kept_chunk_by_chunk():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(57, 4, 2))
    kept = None
    for part in np.split(t, [3, 20, 21, 50]):
        kept = keep_largest(kept, part, 10)
    np.testing.assert_array_equal(kept, -np.sort(-t, axis=0)[:10])
