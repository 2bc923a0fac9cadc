# SPDX-License-Identifier: Apache-2.0
"""Anchors: float64 over the whole set, whatever the batches, masks, offsets and lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneuro.activations import array_batches, moments, run
from jaxneuro.errors import UserError
from jaxneuro.left_out import within_norm

KEY = jax.random.key(0)
METHOD = moments()


def over(batches, **options):
    return run(METHOD, batches, key=KEY, **options)


def data(n=5000, d=7, offset=0.0, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, d)) * np.logspace(-3, 3, d) + offset).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_float64_over_the_whole_set(offset, masked):
    """With the offset, the first column's spread is one unit in the last place of its values."""
    x = data(offset=offset)
    m = over(array_batches(x, batch_size=100, seed=0, epochs=1) if masked else [{"x": b} for b in np.split(x, 50)])
    x64 = x.astype(np.float64)
    assert m.count == 5000
    assert (np.abs(m.mean - x64.mean(0)) < 1e-6 * x64.std(0)).all()
    np.testing.assert_allclose(m.variance, x64.var(0), rtol=2e-6)
    np.testing.assert_array_equal(m.min, x.min(0))
    np.testing.assert_array_equal(m.max, x.max(0))
    np.testing.assert_allclose(m.mean_squared_norm, (x64**2).sum(1).mean(), rtol=2e-6)
    np.testing.assert_allclose(m.std, x64.std(0), rtol=1e-6)


def test_many_batches_lose_no_digits():
    """20,000 merges: a plain float32 running mean and M2 are off by 1e-5 and more."""
    base = data(8, 3, offset=3.0, seed=1)
    step = jax.jit(lambda s, i: METHOD.step(s, {"x": jnp.asarray(base) * (1 + (i % 5).astype(jnp.float32))})[0])
    state = METHOD.init(KEY, {"x": base})
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 20_000, lambda i, s: step(s, i), s))(state)
    m = METHOD.finish(state)
    x = np.concatenate([(base * np.float32(k)).astype(np.float64) for k in range(1, 6)])
    assert m.count == 160_000
    np.testing.assert_allclose(m.mean, x.mean(0), rtol=2e-7)
    np.testing.assert_allclose(m.variance, x.var(0), rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_masked_rows_count_nowhere(seed, share):
    rng = np.random.default_rng(seed)
    x, mask = data(96, 3, seed=seed), rng.random(96) < share
    mask[0] = True
    dirty = np.where(mask[:, None], x, rng.choice([np.nan, np.inf, 1e30], (96, 1)).astype(np.float32))
    m = over([{"x": a, "mask": k} for a, k in zip(dirty.reshape(4, 24, 3), mask.reshape(4, 24), strict=True)])
    x64 = x[mask].astype(np.float64)
    assert m.count == mask.sum()
    np.testing.assert_allclose(m.mean, x64.mean(0), rtol=1e-6, atol=1e-6 * np.abs(x64).max())
    np.testing.assert_allclose(m.variance, x64.var(0), rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(m.max, x64.max(0))


def test_split_in_two_changes_nothing_and_more_axes_are_joined():
    x = data(64, 4)
    whole = over([{"x": x}])
    halves = over([{"x": x[:32]}, {"x": x[32:]}])
    folded = over([{"x": x.reshape(8, 8, 4), "mask": np.ones((8, 8), bool)}])
    for other in (halves, folded):
        np.testing.assert_allclose(other.variance, whole.variance, rtol=1e-6)
        assert (np.abs(other.mean - whole.mean) < 1e-6 * whole.std).all()
        assert other.count == 64


def test_bfloat16_is_accumulated_in_float32():
    x = jnp.asarray(data(512, 3, offset=1.0), jnp.bfloat16)
    m = over([{"x": x}])
    np.testing.assert_allclose(m.variance, np.asarray(x, np.float64).var(0), rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_single(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    x = data(400, 3, offset=10)
    batches = [{"x": b, "mask": np.arange(80) % 7 != 0} for b in x.reshape(5, 80, 3)]
    a, b = over(batches), over(batches, sharding=NamedSharding(mesh, P("data")))
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-7)
    np.testing.assert_allclose(a.variance, b.variance, rtol=1e-6)


def test_an_unmasked_nan_shows_and_nothing_counted_raises():
    bad = np.array([[1, np.nan], [2, 3]], np.float32)
    m = over([{"x": bad}])
    assert m.mean[0] == 1.5
    assert np.isnan(m.mean[1])
    with pytest.raises(UserError, match="no row was counted"):
        over([{"x": bad, "mask": np.zeros(2, bool)}])


def test_long_rows_are_left_out_by_the_first_batch_median():
    """A masked row takes no part in the median; a NaN behind the mask stays out of everything."""
    x = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    x[::20] *= 300
    mask = np.arange(200) % 7 != 0
    x[0] = np.nan
    batches = [{"x": x[:100], "mask": mask[:100]}, {"x": x[100:], "mask": mask[100:]}]
    m = run(within_norm(3.0, METHOD), batches, key=KEY)
    length = np.linalg.norm(x.astype(np.float64), axis=1)
    kept = mask & (length <= 3 * np.median(length[:100][mask[:100]]))
    assert m.count == kept.sum() < mask.sum()
    np.testing.assert_allclose(m.mean, x[kept].astype(np.float64).mean(0), atol=1e-6)
    assert m.max.max() < 10 < run(METHOD, batches, key=KEY).max.max()
    with pytest.raises(UserError, match="above 1"):
        within_norm(1.0, METHOD)


def test_a_norm_limit_waits_for_a_row_that_counts_and_hides_no_nan():
    x = np.array([[1.0], [2.0], [3.0], [1000.0]], np.float32)
    none, every = np.zeros(4, bool), np.ones(4, bool)
    m = run(within_norm(4.0, METHOD), [{"x": x, "mask": none}, {"x": x, "mask": every}], key=KEY)
    assert (m.count, m.max.tolist()) == (3, [3.0])
    bad = np.array([[np.nan], [2.0], [3.0], [1000.0]], np.float32)
    kept, plain = (run(method, [{"x": bad[:n]}], key=KEY) for method, n in ((within_norm(4.0, METHOD), 4), (METHOD, 3)))
    assert kept.count == plain.count == 3
    np.testing.assert_array_equal(kept.mean, plain.mean)
