# SPDX-License-Identifier: Apache-2.0
"""What edits do to a value, against indexing by numpy and a loop without the library."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_decoder as toy
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from jaxneuro.errors import UserError
from jaxneuro.taps import add, apply_fn, capture, clamp, intervene, patch, scale, set_to, tap, zero
from jaxneuro.taps.spans import Span


def edited(ws, x, *edits):
    """The chain with edits given as {(name, layer): function}."""
    table = dict(edits)
    return toy.chain_reference(ws, x, lambda v, name, layer: table.get((name, layer), lambda v: v)(v))


VECTOR = np.linspace(-1, 1, toy.D, dtype=np.float32)
EACH = [
    (zero("blocks.1.post"), lambda v: v * 0),
    (zero("blocks.1.post", unit=3), lambda v: v.at[:, 3].set(0)),
    (zero("blocks.1.post", unit=[1, -1]), lambda v: v.at[:, jnp.array([1, -1])].set(0)),
    (zero("blocks.1.post", unit=range(2)), lambda v: v.at[:, :2].set(0)),
    (zero("blocks.1.post", unit=VECTOR > 0, batch=1), lambda v: v.at[1].set(jnp.where(VECTOR > 0, 0, v[1]))),
    (zero("blocks.1.post", where=np.eye(toy.B, toy.D) > 0), lambda v: jnp.where(jnp.eye(toy.B, toy.D) > 0, 0, v)),
    (set_to("blocks.1.post", 0.5), lambda v: v * 0 + 0.5),
    (set_to("blocks.1.post", VECTOR, batch=0), lambda v: v.at[0].set(VECTOR)),
    (add("blocks.1.post", VECTOR), lambda v: v + VECTOR[None]),
    (add("blocks.1.post", [0.5] * toy.D), lambda v: v + 0.5),
    (scale("blocks.1.post", -2), lambda v: v * -2),
    (scale("blocks.1.post", np.float32(3), unit=0), lambda v: v.at[:, 0].multiply(3)),
    (clamp("blocks.1.post", -0.1, 0.2), lambda v: v.clip(-0.1, 0.2)),
    (clamp("blocks.1.post", lo=0.1), lambda v: jnp.maximum(v, 0.1)),
    (clamp("blocks.1.post", hi=VECTOR), lambda v: jnp.minimum(v, VECTOR[None])),
    (apply_fn("blocks.1.post", jnp.square), jnp.square),
    (apply_fn("blocks.1.post", lambda v, a: v * a, 3.0, unit=2), lambda v: v.at[:, 2].multiply(3)),
    (apply_fn("blocks.1.post", Partial(jnp.subtract, 1.0)), lambda v: 1 - v),
    (apply_fn("blocks.1.post", lambda v: 0.25), lambda v: v * 0 + 0.25),
    (zero("blocks.1.hook_post"), lambda v: v * 0),
    (zero("blocks.post", layer=1), lambda v: v * 0),
    (zero("blocks.*.post", layer=-2), lambda v: v * 0),
    (zero("blocks.post", layer=np.array([False, True, False])), lambda v: v * 0),
]


@pytest.mark.parametrize("number", range(len(EACH)))
def test_each_edit_scanned_and_unrolled(number, ws, x):
    edit, expected = EACH[number]
    out = edited(ws, x, (("blocks.post", 1), expected))[0]

    @jax.jit
    def both(ws, x):
        return [intervene(partial(toy.chain, scanned=s), edit)(ws, x) for s in (True, False)]

    toy.close(both(ws, x), [out, out])


def each(fn, edits, *args):
    """fn with each of the edits, in one compiled program."""
    return jax.jit(lambda *args: [intervene(fn, e)(*args) for e in edits])(*args)


def test_many_layers_at_once(chain, ws, x):
    half = lambda v: v * 0.5  # noqa: E731
    two = edited(ws, x, (("blocks.post", 0), half), (("blocks.post", 2), half))[0]
    every = edited(ws, x, *((("blocks.post", i), half) for i in range(toy.L)))[0]
    edits = [scale(s, 0.5) for s in ("blocks.0,2.post", "blocks.*.post", "blocks.post")]
    edits.append(scale("blocks.post", 0.5, layer=[0, 2]))
    toy.close(each(chain, edits, ws, x), [two, every, every, two])


def test_one_row_per_layer(chain, ws, x):
    rows = jnp.arange(1.0, toy.L + 1)[:, None] * VECTOR[None]
    plus = lambda n: lambda v: v + rows[n, None]  # noqa: E731
    every = edited(ws, x, *((("blocks.post", i), plus(i)) for i in range(toy.L)))[0]
    two = edited(ws, x, (("blocks.post", 2), plus(0)), (("blocks.post", 0), plus(1)))[0]
    one = edited(ws, x, (("blocks.post", 1), plus(1)))[0]
    edits = [
        add("blocks.post", rows, per_layer=True),
        add("blocks.2,0.post", rows[:2], per_layer=True),
        add("blocks.post", rows, per_layer=True, layer=1),
        clamp("blocks.post", 0.0, rows * 0, per_layer=True),  # scalars are the same for all layers
    ]
    toy.close(each(chain, edits, ws, x), [every, two, one, 2 * x])


def test_edits_apply_in_order(chain, ws, x):
    plus, twice = add("blocks.1.post", 1.0), scale("blocks.1.post", 2.0)
    out = each(chain, ([plus, twice], {"b": twice, "a": plus}, [twice, plus]), ws, x)
    first = edited(ws, x, (("blocks.post", 1), lambda v: (v + 1) * 2))[0]
    last = edited(ws, x, (("blocks.post", 1), lambda v: v * 2 + 1))[0]
    toy.close(out, [first, first, last])  # a dict is flattened by its sorted keys


def test_inner_transformations_are_nearer_the_model(chain, ws, x, chain_acts):
    edit = add("blocks.1.post", 1.0)
    _, after = edited(ws, x, (("blocks.post", 1), lambda v: v + 1))
    out = edited(ws, x, (("blocks.post", 1), lambda v: v + 1))[0]
    got = capture(intervene(chain, edit), "blocks.post")(ws, x)
    toy.close(got, (out, {"blocks.post": after["blocks.post"]}))
    got = intervene(capture(chain, "blocks.post"), edit)(ws, x)
    toy.close(got[0], out)
    toy.close(got[1]["blocks.post"][:2], chain_acts["blocks.post"][:2])  # layer 1 as it was before this edit
    twice = intervene(intervene(chain, edit), scale("blocks.1.post", 2.0))(ws, x)
    toy.close(twice, edited(ws, x, (("blocks.post", 1), lambda v: (v + 1) * 2))[0])


def test_no_edits_is_the_function_itself(chain):
    assert intervene(chain, []) is chain


SITES = ["blocks.post", "blocks.2,0.post", "blocks.1.resid", "out"]


@pytest.mark.parametrize("site", SITES)
def test_patching_a_value_with_itself_is_the_identity(site, ws, x):
    """Bitwise op by op; a scan is always compiled, as another program with another order of roundings."""
    chain = partial(toy.chain, scanned=False)
    out, got = capture(chain, SITES)(ws, x)
    assert (np.asarray(intervene(chain, patch(site, got))(ws, x)) == np.asarray(out)).all()
    toy.close(intervene(toy.chain, patch(site, got))(ws, x), out, 1e-6)


def test_patching_from_another_run(chain, ws, x):
    other = x[::-1] * 2
    clean = capture(chain, ["blocks.*.post", "blocks.1.post"])(ws, other)[1]
    source = clean["blocks.*.post"]
    put = lambda n: lambda v: source[n]  # noqa: E731
    one = edited(ws, x, (("blocks.post", 1), put(1)))[0]
    two = edited(ws, x, (("blocks.post", 1), put(1)), (("blocks.post", 2), put(2)))[0]
    unit = edited(ws, x, (("blocks.post", 1), lambda v: v.at[:, 2].set(source[1][:, 2])))[0]
    edits = [
        patch("blocks.1.post", clean),  # no layer axis
        patch("blocks.1.post", source),  # all layers given, one taken
        patch("blocks.post", source, layer=1),
        patch("blocks.2,1.post", source[::-1][:2]),
        patch("blocks.1.post", clean, unit=2),
    ]
    toy.close(each(chain, edits, ws, x), [one, one, one, two, unit])


def test_patching_a_part_of_the_stack_by_layer_number(ws, x):
    """A run that enters at layer 1 takes rows of a full run, or its own."""

    def late(ws, x):
        return jax.lax.scan(lambda x, p: (toy.chain_layer(x, *p), None), x, (ws[1:], jnp.arange(1, toy.L)))[0]

    full = jnp.arange(float(toy.L))[:, None, None] * jnp.ones((1, toy.B, toy.D))
    expected = x + jnp.full_like(x, 1) + 2
    toy.close(intervene(late, patch("blocks.post", full))(ws, x), expected)
    toy.close(intervene(late, patch("blocks.post", full[1:]))(ws, x), expected)


def decode_step(x, pos):
    return tap(x, "v", pos=pos, axes=("batch", "pos")) * 1


@pytest.mark.parametrize(
    ("selected", "expected"), [(5, [0, 1, 0]), (-1, [0, 0, 1]), ([4, 9], [1, 0, 0]), (np.arange(8) == 6, [0, 0, 1])]
)
def test_positions_are_absolute(selected, expected):
    """Positions 4, 5 and 6 of a sequence that is being decoded."""
    out = jax.jit(intervene(decode_step, set_to("v", 1.0, pos=selected)))(jnp.zeros((2, 3)), jnp.int32(4))
    assert out[1].tolist() == expected
    assert intervene(decode_step, set_to("v", 1.0, pos=selected))(jnp.zeros((2, 3)), 4)[0].tolist() == expected


@pytest.mark.parametrize(("selected", "expected"), [(5, [[0, 1, 0], [1, 0, 0]]), (-1, [[0, 0, 1], [0, 0, 1]])])
def test_each_example_has_its_own_positions(selected, expected):
    """vmap over sequences of other lengths: positions are the example's, also under a second vmap around."""
    f = intervene(jax.vmap(decode_step), set_to("v", 1.0, pos=selected))
    x, pos = jnp.zeros((2, 1, 3)), jnp.array([4, 5])
    assert jax.jit(f)(x, pos)[:, 0].tolist() == expected
    twice = intervene(jax.vmap(jax.vmap(decode_step), (0, None)), set_to("v", 1.0, pos=selected))
    assert twice(jnp.stack([x, x, x]), pos)[2, :, 0].tolist() == expected
    inner = intervene(jax.vmap(jax.vmap(decode_step, (0, None))), set_to("v", 1.0, pos=selected))
    assert inner(jnp.stack([x, x, x], 1), pos)[:, 1, 0].tolist() == expected
    masked = intervene(jax.vmap(decode_step, (None, 0)), set_to("v", 1.0, pos=np.arange(7) == 6, batch=0))
    assert masked(x[0], pos)[:, 0].tolist() == [[0, 0, 1], [0, 1, 0]]


def rows_step(x, pos):
    """A batch whose rows are at positions of their own: values, and scores [batch, head, query, key]."""
    scores = jnp.broadcast_to(x[:, None, :, None], (2, 3, x.shape[1], 4))
    scores = tap(scores, "scores", pos=pos, axes=("batch", "head", "query", "key"))
    return tap(x, "v", pos=pos, axes=("batch", "pos")) * 1, scores[:, 1, :, 2] * 1


@pytest.mark.parametrize(("selected", "expected"), [(5, [[0, 1, 0], [1, 0, 0]]), (-1, [[0, 0, 1], [0, 0, 1]])])
def test_each_row_has_its_own_positions(selected, expected):
    """An offset with the site's first axis, [batch], alone and under vmap over values, offsets or both."""
    x, pos = jnp.zeros((2, 3)), jnp.array([4, 5])
    f = intervene(rows_step, [set_to("v", 1.0, pos=selected), set_to("scores", 1.0, query=selected)])
    for found in jax.jit(f)(x, pos):
        assert found.tolist() == expected
    for axes in ((0, None), (None, 0), (0, 0)):
        args = [a if axis is None else jnp.stack([a + 9, a]) for a, axis in zip((x, pos), axes, strict=True)]
        edits = [set_to("v", 1.0, pos=selected), set_to("scores", 1.0, query=selected)]
        for found in (jax.vmap(f, axes)(*args), intervene(jax.vmap(rows_step, axes), edits)(*args)):
            assert [part[1].tolist() for part in found] == [expected, expected]
    one = intervene(rows_step, set_to("v", 1.0, pos=np.arange(7) == 5, batch=1))
    assert one(x, pos)[0].tolist() == [[0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("value", [VECTOR, np.float32(1.0), 1.0, np.int32(1)])
def test_edits_keep_the_type(value, chain, ws, x):
    ws16, x16 = ws.astype(jnp.bfloat16), x.astype(jnp.bfloat16)
    for edit in (add("blocks.1.post", value), scale("blocks.post", value), set_to("out", value), clamp("out", value)):
        out = jax.eval_shape(intervene(chain, edit), ws16, x16)
        assert (out.shape, out.dtype) == (x.shape, jnp.bfloat16)


def test_integers_can_be_edited():
    f = lambda x: tap(x, "tokens", axes=("pos",)) * 2  # noqa: E731
    assert intervene(f, set_to("tokens", 7, pos=1))(jnp.arange(3)).tolist() == [0, 14, 4]


AXES = ("batch", "pos", "neuron")
SHAPE = (2, 4, 5)


def selector(n):
    index = st.integers(-n, n - 1)
    mask = st.lists(st.booleans(), min_size=n, max_size=n).map(lambda m: np.array(m, bool))
    return st.one_of(index, st.lists(index, max_size=3, unique=True).map(lambda i: np.array(i, np.int32)), mask)


@given(st.fixed_dictionaries({}, optional={a: selector(n) for a, n in zip(AXES, SHAPE, strict=True)}))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_selectors_are_those_of_numpy(at):
    expected = np.zeros(SHAPE)
    full = {a: np.arange(n) for a, n in zip(AXES, SHAPE, strict=True)}
    expected[np.ix_(*(full[a][np.atleast_1d(at.get(a, full[a]))] for a in AXES))] = 1
    f = lambda x: tap(x, "v", axes=AXES) + 0  # noqa: E731
    assert (np.asarray(intervene(f, set_to("v", 1.0, **at))(jnp.zeros(SHAPE))) == expected).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zero("v", neuron=2**40), "neuron=1099511627776 is out of range"),
        (lambda: zero("v", neuron=np.array([3, 2**40])), "neuron=1099511627776 is out of range"),
        (lambda: add("v", 1.0, neuron=[1, 3, 1]), "neuron= names 1 twice"),
        (lambda: zero("v", where=np.array([1.0, np.nan])), "where= is boolean, this is float64"),
        (lambda: clamp("v", 2.0, 1.0), "lo=2.0 is above hi=1.0"),
        (lambda: clamp("v", 0.0, np.nan), "above hi=nan, or one of them is NaN"),
        (lambda: clamp("v", np.zeros(3), np.array([1.0, -1.0, 1.0])), "nothing lies between"),
    ],
)
def test_edits_that_would_say_more_than_they_do(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_complex_value_does_not_lose_its_half():
    f = lambda x: tap(x, "v", axes=("pos", "neuron")) + 0  # noqa: E731
    with pytest.raises(UserError, match="holds float32; a complex value does not fit"):
        intervene(f, set_to("v", 1j))(jnp.ones((2, 3)))
    found = intervene(f, set_to("v", 1j))(jnp.ones((2, 3), jnp.complex64))
    np.testing.assert_array_equal(found, np.full((2, 3), 1j, np.complex64))


@pytest.mark.parametrize("axis", ["pos", "neuron"])
def test_a_list_is_a_set_and_says_so(axis):
    """In any order it selects the same; with a value of that axis the order must be the site's."""
    f = lambda x: tap(x, "v", axes=("pos", "neuron")) + 0  # noqa: E731
    x, value = jnp.zeros((3, 3)), np.arange(9.0, dtype=np.float32).reshape(3, 3) + 1
    flat = value[:1] if axis == "neuron" else value[:, :1]
    for order in ([0, 2], [0, -1], [-3, -1]):
        wanted = np.where(np.isin(np.arange(3), [0, 2])[:, None] if axis == "pos" else [True, False, True], value, 0)
        np.testing.assert_array_equal(intervene(f, set_to("v", value, **{axis: order}))(x), wanted)
    for order in ([2, 0], [-1, 0], [-1, -3]):
        np.testing.assert_array_equal(
            intervene(f, set_to("v", 5.0, **{axis: order}))(x), intervene(f, set_to("v", 5.0, **{axis: [0, 2]}))(x)
        )
        for has_it in (value, flat):
            with pytest.raises(UserError, match=rf"{axis}=\[.*\] does not ascend, and the value has this axis"):
                intervene(f, set_to("v", has_it, **{axis: order}))(x)


@pytest.mark.parametrize("order", [[2, 0, 1], [0, 2, 1], [-1, 0, 1], [2, 1, 0]])
def test_a_list_of_layers_is_a_set_too(order, chain, ws, x):
    """Rows of per-layer values belong to layers by number, whatever the order in which layer= names them."""
    rows = jnp.arange(3 * 8, dtype=jnp.float32).reshape(3, 1, 8)
    with pytest.raises(UserError, match=r"layer=\[.*\] does not ascend, and the value has this axis"):
        intervene(chain, add("blocks.post", rows, layer=order, per_layer=True))(ws, x)
    one = intervene(chain, add("blocks.post", rows[1], layer=order))(ws, x)  # the same for all: any order
    toy.close(one, intervene(chain, add("blocks.post", rows[1]))(ws, x))
    toy.close(
        intervene(chain, add("blocks.post", rows, layer=[0, 1, -1], per_layer=True))(ws, x),
        intervene(chain, add("blocks.post", rows, per_layer=True))(ws, x),
    )


def test_the_axis_of_layers_is_not_an_axis_of_the_site(chain, ws, x):
    """[layer, unit] values of a site [batch, unit]: the first axis is no batch, so batch= may come in any order."""
    rows = jnp.arange(3 * 8, dtype=jnp.float32).reshape(3, 8)
    found = [intervene(chain, add("blocks.post", rows, batch=at, per_layer=True))(ws, x) for at in ([1, 0], [0, 1])]
    toy.close(found[0], found[1])
    with pytest.raises(UserError, match=r"unit=\[3, 1\] does not ascend"):
        intervene(chain, add("blocks.post", rows, unit=[3, 1], per_layer=True))(ws, x)


def test_positions_from_both_ends_have_no_order_where_ends_differ():
    x, ends = jnp.zeros((2, 5)), jnp.array([5, 3])
    f = lambda x: tap(x, "v", axes=("batch", "pos"), pos=Span(0, ends, 5)) + 0  # noqa: E731
    for order in ([-1, 2], [2, -1]):
        with pytest.raises(UserError, match=r"does not ascend"):
            intervene(f, set_to("v", jnp.arange(5.0), pos=order))(x)
        assert (np.asarray(intervene(f, set_to("v", 1.0, pos=order))(x)).sum(1) == [2, 1]).all()


@pytest.mark.parametrize(
    "bounds", [(None, np.nan), (np.nan, None), (0, np.nan), (None, [1.0, np.nan]), (2, 1)], ids=str
)
def test_a_bound_is_a_number_that_leaves_something(bounds):
    with pytest.raises(UserError, match=r"clamp\(.*\): lo=.* is above hi=.*, or one of them is NaN"):
        clamp("blocks.0.resid_post", *bounds)


NO_NUMBERS = ["x", b"x", object(), {"a": 1}, ["a"], 1j, 10**400, jax.random.key(0)]


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_values_and_bounds_of_edits_are_numbers(wrong):
    site = "blocks.0.resid_post"
    edits = [lambda: clamp(site, wrong), lambda: clamp(site, None, wrong), lambda: clamp(site, 0, wrong)]
    if not isinstance(wrong, complex):  # a site of your own may hold them; they have no order
        edits += [lambda: set_to(site, wrong), lambda: add(site, wrong), lambda: scale(site, wrong)]
    for make in edits:
        with pytest.raises(UserError, match="is a number or an array of numbers"):
            make()
