# SPDX-License-Identifier: Apache-2.0
"""Small problems for the kernels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array


class Problem(NamedTuple):
    """An encoder, a decoder, tokens, and a code with repeated indices."""

    x: Array
    w: Array
    b: Array
    w_dec: Array
    g: Array
    vals: Array
    idx: Array
    k: int


def normal(*shape, seed=0, dtype=jnp.float32):
    """Made by NumPy: nothing is compiled for test data."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(dtype))


def problem(tokens=24, d=16, n=640, k=5, dtype=jnp.float32, seed=0):
    idx = np.random.default_rng(seed).integers(0, n, (tokens, k)).astype(np.int32)
    idx[:, 1:3] = 3  # one latent everywhere, twice in a token
    return Problem(
        x=normal(tokens, d, seed=seed + 1, dtype=dtype),
        w=normal(n, d, seed=seed + 2, dtype=dtype),
        b=normal(n, seed=seed + 3),
        w_dec=normal(n, d, seed=seed + 4, dtype=dtype),
        g=normal(tokens, d, seed=seed + 5, dtype=dtype),
        vals=normal(tokens, k, seed=seed + 6),
        idx=jnp.asarray(idx),
        k=k,
    )


@pytest.fixture(scope="session")
def small():
    return problem()


@pytest.fixture(scope="session")
def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
