# SPDX-License-Identifier: Apache-2.0
"""What the compiled programs look like: memory, traces, donation, export."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
import toy_decoder as toy
from jax import export, monitoring
from jax.experimental import pallas as pl

from jaxneuro.taps import add, apply_fn, capture, clamp, intervene, scale, tap, zero

LAYERS, ROWS, WIDTH = 16, 64, 128
VALUE = ROWS * WIDTH * 4  # bytes of one layer's value
COMPILED: list[str] = []


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


monitoring.register_event_duration_secs_listener(_count)


pytestmark = pytest.mark.usefixtures("optimised")


def wide(ws, x, *, scanned=True):
    """16 layers whose sites hold 32 kB each."""

    def layer(x, w, i):
        hidden = tap(jnp.tanh(x @ w), "blocks.hidden", layer=i, axes=toy.UNITS)
        return tap(hidden @ w.T, "blocks.out", layer=i, axes=toy.UNITS)

    if not scanned:
        for i in range(LAYERS):
            x = layer(x, ws[i], i)
        return x.sum()
    return jax.lax.scan(lambda x, p: (layer(x, *p), None), x, (ws, jnp.arange(LAYERS)))[0].sum()


ARGS = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)


def memory(fn):
    """(temporary, output) bytes."""
    analysis = jax.jit(fn).lower(*ARGS).compile().memory_analysis()
    return analysis.temp_size_in_bytes, analysis.output_size_in_bytes


@pytest.fixture(scope="module")
def idle():
    return {scanned: memory(partial(wide, scanned=scanned))[0] for scanned in (True, False)}


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.usefixtures("this_machine")
def test_a_subset_of_layers_is_all_that_is_kept(idle, scanned):
    """One or two layers out of 16: room for them, not for all."""
    f = partial(wide, scanned=scanned)
    for site, n in (("blocks.5.hidden", 1), ("blocks.2,11.hidden", 2)):
        temp, out = memory(capture(f, site))
        assert out < n * VALUE + 1024
        assert temp <= idle[scanned] + n * VALUE + 1024  # all layers would be 16 values


@pytest.mark.usefixtures("this_machine")
def test_all_layers_are_kept_once(idle):
    temp, out = memory(capture(wide, ["blocks.hidden", "blocks.3.hidden"]))
    assert LAYERS * VALUE <= out < (LAYERS + 1) * VALUE + 1024
    assert temp <= idle[True] + VALUE + 1024  # the stack is the output, not a copy of it


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.usefixtures("this_machine")
def test_a_reducer_never_holds_the_stack(idle, scanned):
    temp, out = memory(capture(partial(wide, scanned=scanned), {"blocks.hidden": lambda v: v.sum(0)}))
    assert out < LAYERS * WIDTH * 4 + 1024
    assert temp <= idle[scanned] + 3 * VALUE


@pytest.mark.usefixtures("this_machine")
def test_gradient_sites_keep_only_what_was_asked():
    grad = jax.grad(wide, 1)
    before = memory(grad)[0]
    temp, out = memory(capture(grad, "blocks.5.hidden@grad"))
    assert out < 2 * VALUE + 1024
    assert temp <= before + 1024


@pytest.mark.usefixtures("this_machine")
def test_attribution_of_every_neuron_gives_no_activations_out():
    """The gradient of a scale edit is [L, F]; it holds, as any gradient of it must, one value per layer in passing."""
    before = memory(jax.grad(wide, 1))[0]
    of_scale = lambda ws, x: jax.grad(  # noqa: E731
        lambda s: intervene(wide, scale("blocks.hidden", s, per_layer=True))(ws, x)
    )(jnp.ones((LAYERS, WIDTH)))
    temp, out = memory(of_scale)
    assert out == LAYERS * WIDTH * 4
    assert temp <= before + (LAYERS + 3) * VALUE


def test_new_values_do_not_compile_again(chain, ws, x):
    traced = []

    @jax.jit
    def step(edits, x):
        traced.append(1)
        return intervene(chain, edits)(ws, x)

    for value in (0.0, 1.0, 2.0):
        edits = [add("blocks.1.post", value), zero("blocks.post", layer=jnp.int32(value), unit=jnp.array([int(value)]))]
        got = step([*edits, clamp("out", -value - 1, None)], x)

        def edit(v, name, i, value=value):
            v = v + value if (name, i) == ("blocks.post", 1) else v
            v = v.at[:, int(value)].set(0) if (name, i) == ("blocks.post", int(value)) else v
            return v.clip(-value - 1) if name == "out" else v

        toy.close(got, toy.chain_reference(ws, x, edit)[0])
    assert len(traced) == 1


def test_a_rebuilt_jit_is_compiled_once_per_plan(ws, x):
    """Called without an outer jit: the inner program is found by its content, whatever the edit's values are. What the
    edit calls is asked each time, as it may have changed."""
    inner = jax.jit(toy.chain)
    outs, compilations = [], []
    for v in (1.0, 2.0, 3.0):
        before = len(COMPILED)
        edited = intervene(inner, apply_fn("blocks.1.post", lambda value, factor: value * factor, jnp.float32(v)))
        outs.append(edited(ws, x))
        compilations.append(len(COMPILED) - before)
    assert compilations[1:] == [0, 0]
    assert not jnp.allclose(outs[0], outs[1])


def test_donation_is_kept(ws, x):
    state = jnp.array(x)
    inner = jax.jit(lambda x, ws: toy.chain(ws, x), donate_argnums=0)
    _out, got = capture(inner, "blocks.1.post")(state, ws)
    assert state.is_deleted()
    assert not ws.is_deleted()
    toy.close(got["blocks.1.post"], toy.chain_reference(ws, x)[1]["blocks.post"][1])
    outer = jax.jit(intervene(toy.chain, zero("blocks.0.post")), donate_argnums=1)
    state = jnp.array(x)
    outer(ws, state)
    assert state.is_deleted()


def test_capturing_a_donated_argument(x):
    state = jnp.array(x)
    inner = jax.jit(lambda x: tap(x, "in") + 1, donate_argnums=0)
    out, got = capture(inner, "in")(state)
    toy.close((out, got["in"]), (x + 1, x))


def test_ahead_of_time_and_exported(ws, x):
    f = jax.jit(capture(toy.chain, "blocks.1.post"))
    compiled = f.lower(ws, x).compile()
    toy.close(compiled(ws, x), f(ws, x))
    for g in (jax.jit(toy.chain), f):  # taps leave nothing in the program that could not be exported
        toy.close(export.export(g)(ws, x).call(ws, x), g(ws, x))


def test_next_to_a_pallas_kernel(x):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    def f(x):
        y = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(tap(x, "in"))
        return tap(y, "out") + 1

    out, got = capture(intervene(f, add("in", 1.0)), ["in", "out"])(x)
    toy.close((out, got), ((x + 1) * 2 + 1, {"in": x + 1, "out": (x + 1) * 2}))
