# SPDX-License-Identifier: Apache-2.0
"""Sums from a seed differ in their last digits, by no more than rounding allows, and only where they are rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from . import reordered
from .by_numpy import by_numpy

N = 64
"""Terms of each sum."""


def sums(x, w):
    """Every kind of sum that has a rule, of N terms or fewer: x [N, N] and w [N]."""
    pictures, kernel = x.reshape(1, N, N // 4, 4), x[:, :6].reshape(4, 4, 4, 6)
    return {
        "dot_general": x @ jnp.stack([w, w[::-1]], 1),
        "reduce_sum": (x * w[None]).sum(1),
        "conv_general_dilated": jax.lax.conv_general_dilated(
            pictures, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        "cumsum": jax.lax.cumsum(x * w[None], 1),
        "reduce_window_sum": jax.lax.reduce_window(
            x[None] * w[None, None], x.dtype.type(0), jax.lax.add, (1, 8, 8), (1, 1, 1), "VALID"
        ),
        "scatter-add": jnp.zeros((4, N), x.dtype).at[np.arange(N) % 4].add(x * w[None]),
    }


def compiled(fn, args, seed):
    with reordered.reordered(seed):
        return jax.jit(fn)(*args)


def numpys(fn, args, seed):
    with reordered.reordered(seed):  # kinds without a row of by_numpy are run by JAX
        return by_numpy(fn)(*args)


BY = {"compiled": compiled, "by numpy": numpys}


def plainly(fn, args):
    """Outside of any seed, also that of a whole run."""
    return numpys(fn, args, None)


@pytest.fixture(scope="module")
def terms():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, N)).astype(np.float32), rng.normal(size=N).astype(np.float32)


@pytest.mark.parametrize("by", BY)
def test_a_seed_changes_bits_and_no_more(by, terms):
    with jax.enable_x64(True):
        exact, size = (plainly(sums, [f(a.astype(np.float64)) for a in terms]) for f in (np.asarray, np.abs))
    first, again, second = (BY[by](sums, terms, seed) for seed in (1, 1, 2))
    for kind in reordered.RULES:
        # Any order of n terms is off by less than n eps times the sum of their sizes.
        for found in (first, second):
            assert (np.abs(found[kind] - exact[kind]) <= N * np.finfo(np.float32).eps * size[kind]).all(), kind
        np.testing.assert_array_equal(first[kind], again[kind])
        assert (np.asarray(first[kind]) != second[kind]).mean() > 0.3, kind


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_sum_that_is_not_rounded_stays(by, dtype, terms):
    counts = [np.round(3 * a).astype(dtype) for a in terms]
    plain = plainly(sums, counts)
    for kind, found in BY[by](sums, counts, 1).items():
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, plain[kind], err_msg=kind)


@pytest.mark.parametrize("kind", ["dot_general", "conv_general_dilated"])
def test_terms_that_cancel_are_off_by_ulps_of_the_terms(kind, terms):
    """As on another processor: not by an ulp of what is left of them."""
    plain, other = plainly(sums, terms)[kind], compiled(sums, terms, 1)[kind]
    off = np.abs(plain - other) / np.abs(plain)
    assert off.max() > 20 * np.finfo(np.float32).eps


@pytest.mark.parametrize("by", BY)
def test_narrow_types_are_rounded_once(by, terms):
    """Blocks are added in float32: a result is the bfloat16 nearest to a float32 sum, whatever its order."""
    half = [jnp.asarray(a, jnp.bfloat16) for a in terms]
    product = lambda x, w: x @ w[:, None]  # noqa: E731
    x, w = (np.asarray(a, np.float64) for a in half)
    exact, size = x @ w[:, None], np.abs(x) @ np.abs(w[:, None])
    ulp = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
    for seed in range(5):
        off = np.abs(np.asarray(BY[by](product, half, seed), np.float64) - exact)
        assert (off <= 0.5 * ulp + N * np.finfo(np.float32).eps * size).all()
