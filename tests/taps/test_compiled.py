# SPDX-License-Identifier: Apache-2.0
"""Outside of jit: equal programs compile once, memory maps stay, and no call ever answers with an old program."""

import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from jaxneuro.errors import UserError
from jaxneuro.taps import apply_fn, capture, compiled, intervene, scale, set_to, sweep, tap, wants, zero
from jaxneuro.taps.compiled import eagerly

SITE = "blocks.post"
COMPILED: list[str] = []


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


monitoring.register_event_duration_secs_listener(_count)


def maps() -> int:
    """Memory maps of this process, of which Linux gives it 65,530."""
    return len(Path("/proc/self/maps").read_text().splitlines()) if sys.platform == "linux" else 0


def model(w, x):
    def layer(x, at):
        i, w = at
        return tap(jnp.tanh(x @ w), SITE, layer=i, axes=("batch", "neuron")), None

    return jax.lax.scan(layer, x, (jnp.arange(3), w))[0]


@pytest.fixture
def w():
    return jax.random.normal(jax.random.key(0), (3, 4, 4))


@pytest.fixture
def x():
    return jnp.ones((2, 4))


def loss(w, x):
    return model(w, x).sum()


same = {
    "capture": capture(model, ["blocks.*.post", "blocks.1.post"]),
    "intervene": intervene(model, zero("blocks.1.post", neuron=2)),
    "capture of intervene": capture(intervene(model, zero(SITE)), SITE),
    "grad": jax.grad(intervene(loss, scale(SITE, 2.0))),
    "capture of grad": capture(jax.grad(loss), f"{SITE}@grad"),
    "vmap": jax.vmap(intervene(model, scale(SITE, 2.0)), (None, 0)),
}
anew = {
    "capture": lambda w, x, i: capture(lambda x: model(w, x), {SITE: lambda v: v.mean()})(x),
    "intervene": lambda w, x, i: intervene(lambda x: model(w, x), [zero(SITE, layer=i % 3, neuron=i % 4)])(x),
    "numbers of edits": lambda w, x, i: intervene(model, [scale(SITE, 0.1 * i), set_to(SITE, i, neuron=i % 4)])(w, x),
    "a function as an edit": lambda w, x, i: intervene(model, apply_fn(SITE, lambda v: v * v))(w, x),
    "grad": lambda w, x, i: jax.grad(lambda w: intervene(model, zero(SITE, neuron=i % 4))(w, x).sum())(w),
    "vmap": lambda w, x, i: jax.vmap(lambda c: intervene(model, scale(SITE, c))(w, x))(jnp.arange(3.0)),
    "sweep": lambda w, x, i: sweep(lambda c: intervene(model, scale(SITE, c))(w, x), jnp.arange(3.0), batch_size=2),
}


def flat(call, calls):
    """Compilations and maps of so many calls, after those that make what is kept."""
    for i in range(4):
        call(i)
    before, maps_before = len(COMPILED), maps()
    for i in range(calls):
        call(i)
    return len(COMPILED) - before, maps() - maps_before


@pytest.mark.parametrize("name", same)
def test_the_same_function_compiles_once(name, w, x):
    x = x[None] if name == "vmap" else x
    compilations, more_maps = flat(lambda i: same[name](w, x), 200 if name == "intervene" else 20)
    assert compilations == 0
    assert more_maps < 20


@pytest.mark.parametrize("name", anew)
def test_a_function_made_anew_at_each_call_finds_its_program(name, w, x):
    compilations, more_maps = flat(lambda i: anew[name](w, x, i), 200 if name == "capture" else 20)
    assert compilations == 0
    assert more_maps < 20


def test_what_cannot_be_found_again_is_let_go_of(monkeypatch, w, x):
    """A derivative rule made anew is another program at each call: it compiles, and the table stays as it is."""
    monkeypatch.setattr(compiled, "KEPT", 2)

    def call(i):
        def layer(x, w):
            return jax.nn.relu(x @ w), None

        return jax.grad(lambda w: eagerly(lambda w: jax.lax.scan(layer, x, w)[0].sum(), w))(w)

    _, more_maps = flat(call, 8)
    assert more_maps < 40
    assert len(compiled._kept) <= 2


def test_the_table_is_bounded(monkeypatch, w):
    monkeypatch.setattr(compiled, "KEPT", 4)
    for n in range(1, 9):
        same["capture"](w, jnp.ones((n, 4)))
    assert len(compiled._kept) == 4


def test_an_unrolled_program_may_hold_more_loops_than_are_kept(monkeypatch, w):
    monkeypatch.setattr(compiled, "KEPT", 2)
    many = [jnp.ones((n, 4)) for n in range(1, 6)]
    both = capture(lambda w: [model(w, x).sum() for x in many], [])(w)[0]
    np.testing.assert_allclose(both, [model(w, x).sum() for x in many], rtol=1e-5)


def test_nothing_is_stale(w, x):
    """Closures, globals, dicts, weights and functions of edits are what they are when the call is made."""
    held = {"c": 1.0, "w": w}

    def through(x):
        return model(held["w"], x) * held["c"]

    captured = capture(through, {SITE: lambda v: v * held["c"]})
    edited = intervene(model, apply_fn(SITE, lambda v: jnp.full_like(v, held["c"])))
    for c in (1.0, 2.0, 2.0, -0.0, 0.0, 3.0):
        held |= {"c": c, "w": w + c}
        out, acts = captured(x)
        np.testing.assert_allclose(out, model(w + c, x) * c, rtol=1e-5)
        np.testing.assert_allclose(acts[SITE][-1], model(w + c, x) * c, rtol=1e-5)
        np.testing.assert_array_equal(edited(w, x), np.full((2, 4), c))
        assert (np.signbit(edited(w, x)) == np.signbit(c)).all()


def test_a_function_inside_jit_inside_is_not_stale(w, x):
    held = {"c": 1.0}
    edited = intervene(jax.jit(model), apply_fn(SITE, lambda v: v * 0 + held["c"]))
    for c in (1.0, 2.0, 5.0):
        held["c"] = c
        np.testing.assert_array_equal(edited(w, x), np.full((2, 4), c))


def test_numbers_that_are_equal_and_not_the_same(x):
    def repeated(number):
        return eagerly(lambda x: jax.lax.scan(lambda c, _: (c, jnp.asarray(c[0, 0]) * number), x, length=2)[1], x)

    for number in (1, 1.0, True, 1.0000001, -0.0, 0.0, 0, 1j):
        with jax.numpy_dtype_promotion("standard"):
            expected, found = np.asarray(x[0, 0] * number), repeated(number)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, np.full(2, expected))
        assert (np.signbit(found.real) == np.signbit(expected.real)).all()


def test_derivative_rules_are_told_apart(x):
    def with_rule(factor):
        @jax.custom_vjp
        def square(x):
            return x * x

        square.defvjp(lambda x: (x * x, x), lambda x, ct: (factor * ct * x,))
        return lambda x: eagerly(lambda x: jax.lax.scan(lambda c, _: (square(c), None), x, length=1)[0].sum(), x)

    for factor in (2.0, 5.0, 2.0):
        np.testing.assert_array_equal(jax.grad(with_rule(factor))(x), factor * x)


def test_contexts_are_told_apart(w, x):
    paths = []

    def looked(x):
        paths.append(wants(SITE))
        return model(w, x)

    capture(looked, SITE)(x)
    intervene(looked, zero("blocks.post"))(x)
    assert paths[0]
    promoted = capture(lambda x: jax.lax.map(lambda v: v + np.int8(1), x), [])
    with jax.numpy_dtype_promotion("standard"):
        promoted(x)
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="promotion"):
        promoted(x)
    one, other = jax.devices()[0], jax.devices()[-1]
    for device in (one, other, one):
        with jax.default_device(device):
            out, _ = capture(lambda: model(jnp.ones((3, 4, 4)), jnp.ones((2, 4))), [])()
            assert out.devices() == {device}
    with jax.enable_x64(True):
        wide, _ = capture(lambda x: jax.lax.map(lambda v: v * 2, x), [])(np.ones(3))
        assert wide.dtype == jnp.float64
    assert capture(lambda x: jax.lax.map(lambda v: v * 2, x), [])(np.ones(3, np.float32))[0].dtype == jnp.float32


def test_precision_of_products_is_part_of_the_program(w):
    jaxprs = []
    for precision in ("float32", "bfloat16"):
        with jax.default_matmul_precision(precision):
            before = len(COMPILED)
            capture(model, [])(w, jnp.full((7, 4), 0.3))
            jaxprs.append(len(COMPILED) - before)
    assert jaxprs[1] > 0  # another program


def test_threads(w):
    wrong = []

    def work(k):
        for i in range(6):
            x = jnp.full((2, 4), 0.1 * (k + i))
            out, acts = capture(lambda x: intervene(model, scale(SITE, 1.0))(w, x), SITE)(x)
            wrong.extend([] if np.allclose(acts[SITE][-1], out, atol=1e-6) else [(k, i)])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert wrong == []


def test_errors_come_through(w, x):
    for _ in range(2):
        with pytest.raises(UserError, match="no layer 7"):
            capture(model, "blocks.7.post")(w, x)
    with jax.disable_jit():
        assert capture(model, SITE)(w, x)[1][SITE].shape == (3, 2, 4)
