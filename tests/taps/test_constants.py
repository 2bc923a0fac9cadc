# SPDX-License-Identifier: Apache-2.0
"""Layer numbers are worked out from the program, or said to be unknown; never guessed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.taps import sites, tap

TABLE = np.array([5, 3, 8, 1], np.int32)


def visit(index_of, xs, **kwargs):
    """Layers that a scan visits, the index calculated from each turn's x."""

    def f(x):
        turn = lambda x, i: (tap(x + 1, "blocks.x", layer=index_of(i)), None)  # noqa: E731
        return jax.lax.scan(turn, x, xs(), **kwargs)[0]

    return sites(f, jnp.float32(0))[0].layers


def ids(n=4):
    return lambda: jnp.arange(n)


@pytest.mark.parametrize(
    ("index_of", "xs", "expected"),
    [
        (lambda i: i, ids(), (0, 1, 2, 3)),
        (lambda i: i, lambda: jnp.arange(3, 7), (3, 4, 5, 6)),
        (lambda i: i, lambda: jnp.arange(4)[::-1], (0, 1, 2, 3)),
        (lambda i: i, lambda: jnp.arange(6)[1::2], (1, 3, 5)),
        (lambda i: i, lambda: jnp.concatenate([jnp.arange(2), jnp.array([9, 7])]), (0, 1, 7, 9)),
        (lambda i: i, lambda: jnp.asarray(TABLE), (1, 3, 5, 8)),
        (lambda i: TABLE.max() - i, ids(), (5, 6, 7, 8)),
        (lambda i: 2 * i + 1, ids(), (1, 3, 5, 7)),
        (lambda i: i // 2 + 10 * (i % 2), ids(), (0, 1, 10, 11)),
        (lambda i: -i + 3, ids(), (0, 1, 2, 3)),
        (lambda i: jnp.where(i < 2, i, i + 4), ids(), (0, 1, 6, 7)),
        (lambda i: jnp.clip(i, 1, 2) + i, ids(), (1, 2, 4, 5)),
        (lambda i: i.astype(jnp.uint8), ids(), (0, 1, 2, 3)),
        (lambda i: i[1] + i[0], lambda: (jnp.arange(3), jnp.arange(3) * 2), (0, 3, 6)),
        (lambda i: i[2], lambda: jnp.arange(12).reshape(4, 3), (2, 5, 8, 11)),
        (jax.jit(lambda i: i + 1), ids(), (1, 2, 3, 4)),
        # beyond integer arithmetic
        (lambda i: jnp.sin(i.astype(jnp.float32)).astype(jnp.int32), ids(), ()),
        (lambda i: i, lambda: jax.random.permutation(jax.random.key(0), 4), ()),
    ],
)
def test_what_a_scan_visits(index_of, xs, expected):
    assert visit(index_of, xs) == expected


def test_arguments_are_unknown():
    f = lambda layers, x: jax.lax.scan(lambda x, i: (tap(x, "blocks.x", layer=i), None), x, layers)[0]  # noqa: E731
    assert sites(f, jnp.arange(3), 1.0)[0].layers == ()


@pytest.mark.parametrize("step", [1, 2, -1])
def test_counters_in_the_carry(step):
    def f(x):
        turn = lambda c, _: ((tap(c[0], "blocks.x", layer=c[1]), c[1] + step), None)  # noqa: E731
        return jax.lax.scan(turn, (x, jnp.int32(4)), None, length=3)[0][0]

    assert sites(f, 1.0)[0].layers == tuple(sorted(4 + step * n for n in range(3)))


def test_a_carry_that_is_not_plain_counting_is_unknown():
    def f(x):
        turn = lambda c, _: ((tap(c[0], "blocks.x", layer=c[1]), c[1] * 2), None)  # noqa: E731
        return jax.lax.scan(turn, (x, jnp.int32(1)), None, length=3)[0][0]

    assert sites(f, 1.0)[0].layers == ()


def test_counting_through_a_fori_loop_and_its_gradient():
    """Backwards the loop runs in reverse; the numbers stay with their turns."""

    def f(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(tap(x, "blocks.x", layer=i + 1)), x)

    table = {s.name: s.layers for s in sites(jax.grad(f), 1.0)}
    assert table["blocks.x@grad"] == (1, 2, 3)


def test_numbers_that_an_earlier_loop_made():
    """A scan over what another scan stacked."""

    def f(x):
        made = jax.lax.scan(lambda c, i: (c, 2 * i), 0, jnp.arange(3))[1]
        return jax.lax.scan(lambda x, i: (tap(x, "blocks.x", layer=i), None), x, made)[0]

    assert sites(f, 1.0)[0].layers == (0, 2, 4)
