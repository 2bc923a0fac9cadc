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


def problem(tokens=24, d=16, n=640, k=5, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 7)

    def normal(key, *shape):
        return jax.random.normal(key, shape, jnp.float32).astype(dtype)

    idx = jax.random.randint(keys[5], (tokens, k), 0, n, jnp.int32).at[:, 1].set(3)  # one latent everywhere
    return Problem(
        x=normal(keys[0], tokens, d),
        w=normal(keys[1], n, d),
        b=normal(keys[2], n).astype(jnp.float32),
        w_dec=normal(keys[3], n, d),
        g=normal(keys[4], tokens, d),
        vals=jax.random.normal(keys[6], (tokens, k), jnp.float32),
        idx=idx.at[:, 2].set(3),  # and twice in a token
        k=k,
    )


@pytest.fixture(scope="session")
def small():
    return problem()


@pytest.fixture(scope="session")
def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
