# SPDX-License-Identifier: Apache-2.0
"""Indices out of range: one error wherever their numbers can be known, NaN where they cannot; never "no effect"."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_decoder as toy

from jaxneuro.errors import UserError
from jaxneuro.taps import capture, intervene, set_to, sweep, tap, zero
from jaxneuro.taps.ranges import within

N_LAYERS, N_UNITS = 3, 8
POINTS = {  # points of a sweep that are right but for one, and how the error begins
    "beyond": ([[0, 0], [1, N_UNITS]], r"unit=8 is out of range; the axis has 8 entries, -8 to 7"),
    "before": ([[0, 0], [2, 7], [1, -9]], r"unit=-9 is out of range; the axis has 8 entries, -8 to 7"),
    "layer": ([[2, 0], [3, 0]], r"no layer 3 at 'blocks.post'. It has layers 0 to 2"),
    "layer before": ([[-3, 0], [-4, 0]], r"no layer -4 at 'blocks.post'"),
}


def ablated(chain, ws, x):
    return lambda p: intervene(chain, zero("blocks.post", layer=p[0], unit=p[1]))(ws, x)


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_points_of_a_sweep_are_checked(name, chunk, chain, ws, x):
    points, message = POINTS[name]
    f = ablated(chain, ws, x)
    with pytest.raises(UserError, match=r"intervene\('blocks.post'\): " + message):
        sweep(f, np.array(points), batch_size=chunk)
    sweep(f, np.array(points[:-1]), batch_size=chunk)  # the others are there


@pytest.mark.parametrize("name", POINTS)
def test_where_points_are_not_known_the_site_is_nan(name, chain, ws, x):
    """The whole result is NaN for the point that is not there, and what it was for the others."""
    points, f = jnp.array(POINTS[name][0]), ablated(chain, ws, x)
    found = np.asarray(jax.jit(lambda p: sweep(f, p))(points))
    assert np.isnan(found[-1]).all()
    toy.close(found[:-1], sweep(f, points[:-1]))


FORMS = {  # how an index of one neuron reaches an edit of `f`
    "sweep of a jit": lambda f, i: sweep(jax.jit(f), jnp.array([0, i])),
    "sweep of a gradient": lambda f, i: sweep(lambda n: jax.grad(lambda s: s * f(n).sum())(1.0), jnp.array([0, i])),
    "sweep of a sweep": lambda f, i: sweep(lambda n: sweep(f, n + jnp.arange(2)), jnp.array([0, i - 1])),
    "sweep of calculated numbers": lambda f, i: sweep(lambda n: f(i - 3 * n), jnp.array([1, 0])),
    "sweep of a scan": lambda f, i: sweep(
        lambda n: jax.lax.scan(lambda c, k: (c + f(n + k), None), f(0), jnp.arange(2))[0], jnp.array([0, i - 1])
    ),
    "sweep of a tree": lambda f, i: sweep(lambda p: f(p["n"]), {"n": np.array([0, i], np.int16)}),
    "vmap": lambda f, i: jax.vmap(f)(jnp.array([0, i])),
    "capture": lambda f, i: capture(f, "v")(jnp.int32(i)),
    "an index array": lambda f, i: sweep(f, jnp.array([[0, 1], [2, i]])),
    "called": lambda f, i: f(i),
    "called with an array": lambda f, i: f(jnp.array([0, i])),
}


@pytest.mark.parametrize("form", FORMS)
def test_wherever_numbers_are_known(form):
    f = lambda n: intervene(lambda x: tap(x, "v", axes=("neuron",)) * 2, [zero("v", neuron=n)])(jnp.ones(6))  # noqa: E731
    with pytest.raises(UserError, match=r"intervene\('v'\): neuron=6 is out of range; the axis has 6 entries, -6 to 5"):
        FORMS[form](f, 6)
    assert np.isfinite(np.asarray(jax.tree.leaves(FORMS[form](f, 5))[0])).all()


@pytest.mark.parametrize("axis", ["batch", "pos", "head", "latent"])
def test_every_axis(axis):
    axes = ("batch", "pos", "head", "latent")
    f = lambda n: intervene(lambda x: tap(x, "acts", axes=axes) + 0, [zero("acts", **{axis: n})])(jnp.ones((2,) * 4))  # noqa: E731
    with pytest.raises(UserError, match=rf"intervene\('acts'\): {axis}=2 is out of range; the axis has 2 entries"):
        sweep(f, jnp.array([0, 2]))
    assert np.isnan(jax.jit(f)(2)).all()
    assert np.asarray(jax.jit(f)(-2) == 0).sum() == 8


def test_a_branch_that_does_not_run_is_not_held_against_it():
    f = lambda n: intervene(lambda x: tap(x, "v", axes=("neuron",)) * 2, [zero("v", neuron=n)])(jnp.ones(4))  # noqa: E731
    gated = lambda n: jax.lax.cond(n < 4, f, lambda n: jnp.zeros(4), n)  # noqa: E731
    np.testing.assert_array_equal(capture(lambda n: tap(gated(n), "out"), "out")(jnp.int32(9))[0], np.zeros(4))


def test_whole_numbers_cannot_be_nan_and_stay():
    f = lambda n: intervene(lambda x: tap(x, "v", axes=("pos",)) + 0, [zero("v", pos=n)])(jnp.arange(3))  # noqa: E731
    np.testing.assert_array_equal(jax.jit(f)(3), [0, 1, 2])


def test_a_mask_that_is_traced_has_no_range():
    f = lambda m: intervene(lambda x: tap(x, "v", axes=("pos",)) + 0, [zero("v", pos=m)])(jnp.ones(3))  # noqa: E731
    np.testing.assert_array_equal(jax.jit(f)(jnp.array([True, False, True])), [0, 1, 0])


def test_many_points_are_followed_too():
    """More of them than a table of layers has entries."""
    f = lambda p: intervene(lambda x: tap(x, "v", axes=("neuron",)) + 0, [zero("v", neuron=p[1])])(jnp.ones(3)).sum()  # noqa: E731
    points = np.tile(np.arange(2), (100_000, 1))
    points[-1, 1] = 3
    with pytest.raises(UserError, match="neuron=3 is out of range"):
        sweep(f, points)


def test_nothing_is_left_in_the_program():
    marked = jax.jit(lambda i: within(i, "v", "pos", 3)[0] + 1).lower(jnp.int32(0)).as_text()
    plain = jax.jit(lambda i: i + 1).lower(jnp.int32(0)).as_text()
    count = lambda text: sum("stablehlo." in line for line in text.splitlines())  # noqa: E731
    assert count(marked) == count(plain)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.uint32])
def test_an_index_of_any_integer_type_is_its_number(dtype):
    """300 and -300, the bounds of the axis, are no numbers of a byte: what is compared with them is widened first."""
    x = jnp.arange(300.0)

    def silenced(i):
        return intervene(lambda x: tap(x, "s", axes=("neuron",)) * 1, zero("s", neuron=i))(x)

    assert float(jax.jit(silenced)(dtype(50)).sum()) == float(x.sum()) - 50
    found = sweep(silenced, jnp.array([1, 2], dtype))
    np.testing.assert_array_equal(found.sum(1), float(x.sum()) - np.array([1, 2]))


def test_a_wide_index_does_not_wrap_into_the_axis():
    x = jnp.arange(300.0)
    f = jax.jit(lambda i: intervene(lambda x: tap(x, "s", axes=("neuron",)) * 1, zero("s", neuron=i))(x))
    assert np.isnan(f(np.uint32(2**32 - 1))).all()
    assert np.isnan(f(np.uint32(300))).all()


def test_traced_masks_and_lists_of_traced_indices_select(chain, ws, x):
    mask = np.arange(N_UNITS) < 2

    def edited(**at):
        return intervene(chain, zero("blocks.1.post", **at))(ws, x)

    toy.close(jax.jit(lambda m: edited(where=m))(mask), edited(where=mask))
    toy.close(sweep(lambda m: edited(where=m), jnp.array([mask, ~mask]))[0], edited(where=mask))
    toy.close(jax.jit(lambda i: edited(unit=[i, i + 1]))(2), edited(unit=[2, 3]))


def test_the_order_of_a_list_is_checked_where_its_numbers_can_be_known(chain, ws, x):
    v = jnp.arange(float(N_UNITS))

    def written(units):
        return intervene(chain, set_to("blocks.1.post", v, unit=units))(ws, x)

    toy.close(sweep(written, jnp.array([[1, 2], [3, 6]]))[1], written([3, 6]))
    sweep(written, jnp.array([2, 1]))  # single ones have no order
    with pytest.raises(UserError, match="does not ascend"):
        sweep(written, jnp.array([[1, 2], [6, 3]]))
