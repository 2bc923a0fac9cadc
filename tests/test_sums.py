# SPDX-License-Identifier: Apache-2.0
"""Counters past 32 bits, and float32 sums that lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.sums import pair, pair_add, pair_total, tally, tally_add, tally_float, tally_total


def test_counters_pass_2_to_the_31():
    t = tally((2,))
    add = jax.jit(tally_add)
    for _ in range(7):
        t = add(t, jnp.array([2**30 - 1, 5], jnp.int32))
    assert tally_total(t).tolist() == [7 * (2**30 - 1), 35]
    np.testing.assert_allclose(tally_float(t), [7 * 2**30, 35], rtol=1e-6)


def test_pairs_sum_what_float32_alone_loses():
    """A million times 0.1 onto 2^20: alone, float32 rounds each step to a sixteenth."""
    x, n = jnp.float32(0.1), 1_000_000
    sums = jax.jit(lambda s: jax.lax.fori_loop(0, n, lambda _, s: pair_add(s, x), s))(
        pair_add(pair(), jnp.float32(2**20))
    )
    assert float(pair_total(sums)) == pytest.approx(2**20 + n * float(x), rel=1e-9)
