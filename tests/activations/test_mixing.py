# SPDX-License-Identifier: Apache-2.0
"""The measure of mixing, on batches whose pairs can be counted."""

import itertools

import jax
import numpy as np
import pytest

from jaxneuro.activations import run
from jaxneuro.activations.mixing import mixing
from jaxneuro.errors import UserError

KEY = jax.random.key(0)


def test_counts_the_pairs_of_unmasked_rows():
    rng = np.random.default_rng(0)
    batches = [{"window": rng.integers(0, 9, 40).astype(np.int32), "mask": rng.random(40) < 0.6} for _ in range(5)]

    def share(batch):
        pairs = list(itertools.combinations(batch["window"][batch["mask"]], 2))
        return np.mean([a == b for a, b in pairs])

    got = run(mixing(101, 11), batches, key=KEY)
    assert got == pytest.approx(np.mean([share(b) for b in batches]) / (10 / 100), rel=1e-5)


def test_a_uniform_sample_has_one():
    """200 batches of 500 rows from a buffer of 2,000 rows in sequences of 20: 240,000 equal pairs, so to a percent."""
    rng = np.random.default_rng(0)
    draws = [rng.choice(2000, 500, replace=False) // 20 for _ in range(200)]
    got = run(mixing(2000, 20, by="document"), [{"document": d.astype(np.int32)} for d in draws], key=KEY)
    assert got == pytest.approx(1, abs=0.01)


def test_batches_without_pairs_count_nowhere():
    full = {"window": np.zeros(4, np.int32), "mask": np.ones(4, bool)}
    lone = full | {"mask": np.arange(4) < 1}
    assert run(mixing(4, 4), [lone, full, lone], key=KEY) == 1.0
    with pytest.raises(UserError, match="no batch had two rows"):
        run(mixing(4, 4), [lone], key=KEY)


def test_requests_that_mean_nothing():
    with pytest.raises(UserError, match="2 or more"):
        mixing(100, 1)
    with pytest.raises(UserError, match=r"no array 'window'\. Known: x"):
        run(mixing(100, 10), [{"x": np.ones(3, np.float32)}], key=KEY)
