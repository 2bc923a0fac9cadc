# SPDX-License-Identifier: Apache-2.0
"""What cannot be done says so: what was asked, what exists, what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_decoder as toy

from jaxneuro.errors import UserError
from jaxneuro.taps import (
    add,
    apply_fn,
    capture,
    intervene,
    patch,
    scale,
    set_to,
    sites,
    tap,
    zero,
)

KNOWN = r"Known: blocks.post, blocks.resid, out"


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (["out", "blocks.1.pots"], rf"'blocks.1.pots'\): no site 'blocks.pots'. Did you mean 'blocks.post'.*{KNOWN}"),
        ("nothing_like_it", rf"no site 'nothing_like_it'. {KNOWN}.*sites\(fn, \*args\)"),
        (["out", "blocks.1,3.post"], r"no layer 3 at 'blocks.post'. It has layers 0 to 2"),
        ("out.1", r"site 'out' has no layers. Ask for 'out'"),
        ("blocks.post@gradient", r"unknown tag '@gradient'. A site's gradient is 'blocks.post@grad'"),
        ({"blocks.post": 3}, r"a reducer is a function of the value, not 3"),
    ],
)  # fmt: skip
def test_captures_that_cannot_be(asked, match, chain, ws, x):
    with pytest.raises(UserError, match=match):
        capture(chain, asked)(ws, x)


EDITS = [
    (zero("blocks.1.pots"), r"intervene\('blocks.1.pots'\): no site 'blocks.pots'. Did you mean 'blocks.post'"),
    (zero("blocks.7.post"), r"no layer 7 at 'blocks.post'. It has layers 0 to 2"),
    (zero("blocks.post", layer=3), r"no layer 3"),
    (zero("blocks.post", layer=[0, -4]), r"no layer -4"),
    (zero("blocks.post", layer=np.ones(2, bool)), r"the mask layer= has shape \(2,\); the site has 3 layers"),
    (zero("out", layer=0), r"site 'out' has no layers, so layer= selects nothing"),
    (zero("blocks.post", neuron=1), r"no axis 'neuron'. Known: batch, unit. The site has shape \(2, 8\)"),
    (zero("blocks.post", unti=1), r"no axis 'unti'. Did you mean 'unit'"),
    (zero("blocks.post", unit=8), r"unit=8 is out of range; the axis has 8 entries"),
    (zero("blocks.post", unit=[0, -9]), r"unit=-9 is out of range"),
    (zero("blocks.post", unit=np.ones(7, bool)), r"the mask unit= has shape \(7,\); the axis has 8 entries"),
    (zero("blocks.post", where=np.ones(3, bool)), r"a value for where has shape \(3,\).*\(batch=2, unit=8\)"),
    (add("blocks.post", jnp.ones(7)), r"'blocks.post': a value for add has shape \(7,\), .* \(batch=2, unit=8\)"),
    (set_to("blocks.1.post", jnp.ones((3, 2, 8))), r"a value for set_to has shape \(3, 2, 8\)"),
    (patch("blocks.1.post", jnp.ones((5, 8))), r"the source has shape \(5, 8\), which with or without"),
    (
        add("blocks.post", jnp.ones((2, 8)), per_layer=True),
        r"have 2 rows; the site stands for 3 layers \(layers 0 to 2\)",
    ),
    (patch("blocks.0,1.post", jnp.ones((4, 2, 8))), r"have 4 rows; the site stands for 2 layers"),
    (scale("out", jnp.ones((3, 8)), per_layer=True), r"site 'out' has no layers, so its arguments have no layer axis"),
    (apply_fn("blocks.1.post", jnp.sum, unit=0, layer=None), None),
    (apply_fn("blocks.1.post", lambda v: v[:, :3]), r"what <lambda> returned has shape \(2, 3\)"),
]


@pytest.mark.parametrize("number", range(len(EDITS)))
def test_edits_that_cannot_be(number, chain, ws, x):
    edit, match = EDITS[number]
    f = intervene(chain, [zero("out"), edit])
    if match is None:  # a scalar broadcasts
        assert jax.eval_shape(f, ws, x).shape == x.shape
        return
    with pytest.raises(UserError, match=match):
        jax.eval_shape(f, ws, x)


def test_edits_that_cannot_even_be_made():
    with pytest.raises(UserError, match="names its layer and layer= names another"):
        zero("blocks.1.post", layer=2)
    with pytest.raises(UserError, match=r"unit=0.5 selects nothing. Give an integer, an index array or a boolean mask"):
        zero("blocks.1.post", unit=0.5)
    with pytest.raises(UserError, match="unit=slice"):
        zero("blocks.1.post", unit=slice(2))
    with pytest.raises(UserError, match=r"patch: no captured site 'blocks.1.post'. Did you mean 'blocks.1.pots'"):
        patch("blocks.1.post", {"blocks.1.pots": 1})
    with pytest.raises(UserError, match="3 is not an edit"):
        intervene(toy.chain, [3])
    with pytest.raises(UserError, match="unknown tag"):
        zero("x@gard")


def test_a_site_reached_twice():
    f = lambda x: tap(tap(x, "a") * 2, "a")  # noqa: E731
    with pytest.raises(UserError, match=r"reached 2 times, so it has no one value. Give the calls distinct names"):
        capture(f, "a")(1.0)
    assert intervene(f, add("a", 1.0))(1.0) == 5  # an edit means both
    layered = lambda x: tap(tap(x, "blocks.a", layer=1), "blocks.a", layer=1)  # noqa: E731
    with pytest.raises(UserError, match="reached 2 times at layer 1"):
        capture(layered, "blocks.a")(1.0)
    shared = lambda x: jax.lax.scan(lambda x, i: (tap(x, "blocks.a", layer=i // 2), None), x, jnp.arange(4))[0]  # noqa: E731
    with pytest.raises(UserError, match="reached 2 times at layer 0"):
        capture(shared, "blocks.a")(1.0)


def test_a_site_with_and_without_a_layer():
    with pytest.raises(UserError, match="with a layer and without one"):
        capture(lambda x: tap(tap(x, "a", layer=0), "a"), "a")(1.0)


def test_other_layers_may_be_reached_twice():
    def f(x):
        return tap(tap(tap(x, "blocks.a", layer=1), "blocks.a", layer=1) + 1, "blocks.a", layer=2)

    assert capture(f, "blocks.2.a")(1.0)[1]["blocks.2.a"] == 2


def test_layers_that_are_calculated_when_the_program_runs():
    def f(ids, x):
        return jax.lax.scan(lambda x, i: (tap(x + 1, "blocks.a", layer=i), None), x, ids)[0]

    ids, x = jnp.array([4, 2]), jnp.float32(0)
    assert capture(f, "blocks.a")(ids, x)[1]["blocks.a"].tolist() == [1, 2]
    assert intervene(f, add("blocks.2.a", 1.0))(ids, x) == 3
    assert sites(f, ids, x)[0].layers == ()
    with pytest.raises(
        UserError, match=r"calculated when the program runs.*jnp.arange inside.*ask for all: 'blocks.a'"
    ):
        capture(f, "blocks.2.a")(ids, x)


def test_an_edit_that_nobody_reads():
    def f(x):
        tap(x, "forgotten")
        tap(x, "blocks.a", layer=0)
        return tap(x, "blocks.a", layer=1) * 2

    with pytest.raises(UserError, match=r"intervene\('forgotten'\): nobody reads what comes out of this tap"):
        intervene(f, zero("forgotten"))(1.0)
    with pytest.raises(UserError, match=r"'blocks.0.a'\): nobody reads"):
        intervene(f, zero("blocks.0.a"))(1.0)
    assert intervene(f, zero("blocks.1.a"))(1.0) == 0
    assert capture(f, "forgotten")(1.0)[1]["forgotten"] == 1  # it may be read from outside


def test_reading_is_followed_through_programs():
    """An output of a scan or a jit that nobody takes is not read."""
    scan = lambda x: jax.lax.scan(lambda c, _: (c + 1, tap(c, "row")), x, None, length=2)[0]  # noqa: E731
    inner = jax.jit(lambda x: (x, tap(x, "second")))
    for f, site in ((scan, "row"), (lambda x: inner(x)[0], "second")):
        with pytest.raises(UserError, match="nobody reads"):
            intervene(f, zero(site))(1.0)
    assert intervene(lambda x: inner(x)[1], zero("second"))(1.0) == 0


def test_sites_is_a_table(chain, ws, x):
    table = sites(chain, ws, x)
    assert [(s.name, s.layers, s.axes, s.shape, s.dtype) for s in table] == [
        ("blocks.post", (0, 1, 2), toy.UNITS, (2, 8), "float32"),
        ("blocks.resid", (0, 1, 2), toy.UNITS, (2, 8), "float32"),
        ("out", None, toy.UNITS, (2, 8), "float32"),
    ]
    lines = str(table).splitlines()
    assert re.split(r"\s\s+", lines[1]) == ["blocks.post", "layers 0 to 2", "batch unit", "2 8", "float32"]
    assert sites(chain, *jax.eval_shape(lambda: (ws, x))) == table  # nothing runs


def test_sites_of_a_gradient(chain, ws, x):
    names = [s.name for s in sites(jax.grad(lambda x: chain(ws, x).sum()), x)]
    assert {"blocks.post", "blocks.post@grad", "out@grad"} <= set(names)


def test_one_layer_is_called_one():
    one = sites(lambda x: tap(x, "stage.resid", layer=0), jnp.arange(3))
    assert "layer 0" in str(one)
    assert "the layers" not in str(one)
    with pytest.raises(UserError, match=r"no layer 4 at 'stage\.resid'\. It has layer 0\."):
        capture(lambda x: tap(x, "stage.resid", layer=0), ["stage.4.resid"])(jnp.arange(3))
