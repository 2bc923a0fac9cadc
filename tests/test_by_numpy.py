# SPDX-License-Identifier: Apache-2.0
"""What `by_numpy` says is what JAX compiles."""

import jax
import jax.numpy as jnp
import numpy as np

from .by_numpy import by_numpy


def elementwise(x, i):
    """Every row of one argument or two."""
    y = x + 0.5
    ones = (jnp.exp, jnp.sqrt, jnp.tanh, jnp.sin, jnp.cos, jnp.floor, jnp.ceil, jnp.square, jnp.sign, jnp.abs, jnp.cbrt)
    more = (jnp.log, jnp.log1p, jnp.expm1, jnp.exp2, jnp.negative, jnp.isfinite, jax.nn.sigmoid, jax.lax.rsqrt)
    special = (jax.lax.erf, jax.lax.erfc, jax.lax.stop_gradient, jnp.copy)
    twos = (jnp.add, jnp.subtract, jnp.multiply, jnp.divide, jnp.power, jnp.maximum, jnp.minimum, jnp.equal, jnp.less)
    whole = (jnp.bitwise_and, jnp.bitwise_or, jnp.bitwise_xor, jax.lax.div, jax.lax.rem, jnp.not_equal)
    found = [f(y) for f in (*ones, *more, *special)] + [f(x, y[::-1]) for f in twos] + [f(i - 4, i + 1) for f in whole]
    order = [x <= 1, x > 1, x >= 1, ~(x < 1), jnp.clip(x, 0.5, 1.5), x**3, jax.lax.select_n(i % 3, i, -i, 10 * i)]
    return found, order, jnp.where(x > 1, x, 0), x.astype(jnp.int32), x.astype(jnp.bfloat16) * 2


def shapes(x, i):
    """What moves values, sums them or finds them."""
    sums = [f(x, axis=(0, 1)) for f in (jnp.sum, jnp.prod, jnp.max, jnp.min)] + [x.argmax(1), x.argmin(0)]
    ways = [jnp.cumsum(x, 1), jax.lax.cummax(x, 1, reverse=True), jnp.cumprod(x, 0), (x > 1).all(0), (x > 1).any(1)]
    moved = [x.T, x.reshape(2, -1), x[::-1], x[1:, ::2], jnp.concatenate([x, x], 1), jnp.stack([x, -x], 1), x[:, None]]
    padded = jax.lax.pad(x, jnp.float32(7), [(-1, 2, 1), (1, -1, 0)])
    into = jax.lax.dynamic_update_slice(x, x[:2, :2], (i[0, 3], i[2, 3]))
    out_of = jax.lax.dynamic_slice(x, (i[0, 3], 9), (2, 2))
    ranked = jax.lax.top_k(x, 2), jnp.sort(x, 1), jnp.argsort(-x, 1), jnp.searchsorted(jnp.arange(5.0), x[0])
    return sums, ways, moved, padded, into, out_of, ranked, jnp.split(x, [1, 3], axis=1), jnp.arange(3)


def gathers(x, i):
    """Reading and writing by index, also outside."""
    far = i + 2
    taken = [x[i[0] % 3], x[i[0] % 3, i[1] % 4], x.at[far].get(mode="fill", fill_value=-1), x.at[far].get(mode="clip")]
    along = jnp.take_along_axis(x, i[:, :2] % 4, 1), x.at[far].get(mode="fill")
    put = [x.at[i[0] % 3].set(0.0), x.at[far[0], 1].add(2.0), x.at[:, i[1] % 4].add(1.0), x.at[-1, 1:3].set(9.0)]
    rows = jax.vmap(lambda row, at: (row[at], row.at[at].add(1.0)))(x, i % 4)
    return taken, along, put, rows


def loops(x, i):
    """Programs in programs, products of all kinds, and gradients of both."""

    def total(x):
        carry, ys = jax.lax.scan(lambda c, r: (jax.checkpoint(jnp.sin)(c) + r, c * r), x[0], x, reverse=True)
        one = jax.lax.cond(x.sum() > 0, lambda: carry, lambda: -carry)
        return (one @ ys.T * jax.nn.relu(x[:, 0])).sum() + jnp.linalg.norm(jnp.einsum("ab,ac->acb", x, x))

    count = jax.lax.while_loop(lambda c: c[0] < i[2, 3], lambda c: (c[0] + 1, c[1] * 2 + x.sum()), (0, 1.0))
    batched = jax.vmap(lambda a: a @ x.T)(jnp.stack([x, -x]))
    half = jnp.matmul(x.astype(jnp.bfloat16), x.T.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    return jax.value_and_grad(total)(x), jax.jvp(total, (x,), (x,)), count, batched, half, i @ i.T


def test_every_row_is_what_jax_compiles():
    x = np.random.default_rng(0).uniform(0.1, 2, (3, 4)).astype(np.float32)
    i = np.arange(12, dtype=np.int32).reshape(3, 4)

    def everything(x, i):
        with jax.numpy_dtype_promotion("standard"):
            return elementwise(x, i), shapes(x, i), gathers(x, i), loops(x, i)

    expected, found = jax.jit(everything)(x, i), by_numpy(everything)(x, i)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=2e-6, atol=1e-6)
