# SPDX-License-Identifier: Apache-2.0
"""A tap by itself: an identity that no compiled program shows, and `wants`."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import toy_decoder as toy

from jaxneuro.errors import UserError
from jaxneuro.taps import capture, intervene, scope, tap, wants, zero


def opcodes(compiled):
    return Counter(re.findall(r" = \S+ ([a-z-]+)\(", compiled.as_text()))


def compiled_pair(fn, *args):
    return [jax.jit(partial(fn, taps=taps)).lower(*args).compile() for taps in (True, False)]


def test_tap_is_an_identity():
    x = jnp.arange(6.0).reshape(2, 3)
    assert (tap(x, "a") == x).all()
    assert (jax.vmap(lambda v: tap(v, "a", axes=("d",)))(x) == x).all()
    assert (jax.vmap(lambda v: tap(v, "a", layer=3), in_axes=1, out_axes=1)(x) == x).all()
    assert jax.grad(lambda v: tap(v, "a").sum())(x).tolist() == jnp.ones((2, 3)).tolist()
    assert tap(3, "a").dtype == jnp.int32
    assert tap(jnp.ones(2, jnp.bfloat16), "a").dtype == jnp.bfloat16


@pytest.mark.parametrize("mode", ["scan", "unrolled"])
@pytest.mark.usefixtures("this_machine")
def test_idle_taps_leave_the_compiled_forward_as_it_is(w, toks, mode):
    tapped, plain = compiled_pair(partial(toy.forward, mode=mode), w, toks)
    assert opcodes(tapped) == opcodes(plain)
    assert sum(opcodes(plain).values()) > 20  # the pattern finds instructions
    assert tapped.memory_analysis().temp_size_in_bytes == plain.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("mode", ["scan", "unrolled", "remat"])
@pytest.mark.usefixtures("this_machine")
def test_idle_taps_leave_the_compiled_gradient_as_it_is(w, toks, mode):
    def grad(w, toks, *, taps):
        return jax.grad(toy.loss)(w, toks, partial(toy.forward, mode=mode, taps=taps))

    tapped, plain = compiled_pair(grad, w, toks)
    assert opcodes(tapped) == opcodes(plain)
    assert tapped.memory_analysis().temp_size_in_bytes == plain.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"name": "blocks.*.x"}, "not the name of one site"),
        ({"name": "x@grad"}, "not the name of one site"),
        ({"name": "blocks.1,2.x"}, "not the name of one site"),
        ({"name": "blocks.1.x", "layer": 2}, "not the name of one site"),
        ({"name": "x", "axes": ("batch", "pos")}, r"'x' has shape \(3,\), which the axes \('batch', 'pos'\)"),
        ({"name": "x", "spec": (None, "d")}, "more axes"),
        ({"name": ""}, "named by a string"),
    ],
)
def test_a_tap_refuses_what_is_not_one_named_value(kwargs, match):
    with pytest.raises(UserError, match=match):
        tap(jnp.ones(3), **kwargs)


def test_a_layer_in_the_name_is_the_layer():
    _out, got = capture(lambda x: tap(x, "blocks.7.x") + 1, ["blocks.7.x", "blocks.x"])(jnp.ones(2))
    assert got["blocks.7.x"].shape == (2,)
    assert got["blocks.x"].shape == (1, 2)


def test_a_batched_layer_index_raises_with_a_way_out():
    with pytest.raises(UserError, match=r"'blocks.x': its layer index is batched by vmap.*lax.scan"):
        jax.vmap(lambda x, i: tap(x, "blocks.x", layer=i))(jnp.ones((3, 2)), jnp.arange(3))


def fused_or_not(x):
    if wants("pattern"):
        return tap(x * 2, "pattern") + 1
    return x * 2 + 1


def test_wants_follows_what_is_asked_with_warm_and_cold_caches():
    traced = []

    @jax.jit
    def f(x):
        traced.append(wants("pattern"))
        return fused_or_not(x)

    x = jnp.ones(3)
    assert not wants("pattern")
    for _ in range(2):  # cold, then warm
        f(x)
        _out, got = capture(f, "pattern")(x)
        assert got["pattern"].tolist() == [2, 2, 2]
        assert intervene(f, zero("pattern"))(x).tolist() == [1, 1, 1]
        capture(f, [])(x)
    assert traced.count(True) <= 2
    assert traced.count(False) == 1  # the fused path was compiled once and never thrown away
    assert "tap" not in str(jax.make_jaxpr(f)(x))


def test_wants_a_gradient_is_wanting_the_site():
    got = capture(jax.grad(lambda x: fused_or_not(x).sum()), "pattern@grad")(jnp.ones(3))[1]
    assert got["pattern@grad"].tolist() == [1, 1, 1]


def test_wants_understands_every_spelling_and_only_inside():
    def f(x):
        assert wants("blocks.3.mlp.hook_post", "other") == asked
        return tap(x, "blocks.mlp.post", layer=3)

    asked = True
    capture(f, "blocks.mlp.post")(jnp.ones(2))
    asked = False
    f(jnp.ones(2))


def test_a_site_that_shows_only_with_another_is_found():
    def f(x):
        return tap(tap(x, "scores") * 2, "pattern") if wants("pattern") else x * 2

    assert capture(f, "scores")(jnp.ones(2))[1]["scores"].tolist() == [1, 1]


def test_a_scope_keeps_two_models_apart_with_warm_and_cold_caches():
    model = jax.jit(fused_or_not)  # one function, one cache

    def both(x):
        with scope("encoder"):
            with scope("first"):
                x = model(x)
            x = model(x)
        return model(x)

    x = jnp.ones(())
    assert (int(model(x)), int(both(x))) == (3, 15)
    for name, value in {"encoder.first.pattern": 2, "encoder.pattern": 6, "pattern": 14}.items():
        assert int(capture(both, [name])(x)[1][name]) == value
    assert int(intervene(both, zero("encoder.pattern"))(x)) == 3
    with pytest.raises(UserError, match=r"encoder\.first\.pattern"):
        capture(both, ["first.pattern"])(x)
