# SPDX-License-Identifier: Apache-2.0
"""vmap, control flow, custom derivatives and what surrounds them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_decoder as toy
from flax import linen as nn
from flax import nnx

from jaxneuro.errors import UserError
from jaxneuro.taps import add, apply_fn, capture, intervene, patch, scale, set_to, sweep, tap, wants, zero

# --- vmap


POINTS = jnp.array([[i, n] for i in range(toy.L) for n in range(0, toy.F, 5)])


@pytest.fixture(scope="module")
def ablated(w, toks):
    """Logits with the neuron of each point off, by a loop that sets it to zero itself."""

    @jax.jit
    def one(point):
        def off(v, name, i):
            return jnp.where(i == point[0], v.at[..., point[1]].set(0), v) if name == "mlp.post" else v

        return toy.reference(w, toks, off)[0]

    return jnp.stack([one(p) for p in POINTS])


@pytest.mark.parametrize("mode", ["scan", "unrolled"])
def test_many_ablations_are_one_program(mode, w, toks, ablated):
    """Every (layer, neuron) by vmap and by chunks, the last of them smaller."""

    def one(point):
        edit = zero("blocks.mlp.post", layer=point[0], neuron=point[1])
        return intervene(partial(toy.forward, mode=mode), edit)(w, toks)

    toy.close(jax.jit(lambda: (jax.vmap(one)(POINTS), sweep(one, POINTS, batch_size=4)))(), (ablated, ablated))


def test_patching_sweep_over_layers_and_positions(w, toks):
    """The usual two nested vmaps: patch a clean residual into a corrupted run, one cell at a time."""
    clean = jax.jit(capture(toy.forward, "blocks.resid_pre"))(w, toks)[1]["blocks.resid_pre"]
    other = toks[:, ::-1]

    def one(layer, pos):
        return intervene(toy.forward, patch("blocks.resid_pre", clean, layer=layer, pos=pos))(w, other)[:, -1].sum()

    got = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.arange(toy.L), jnp.arange(toy.T))

    @jax.jit
    def by_hand(layer, pos):
        def put(v, name, i):
            return jnp.where(i == layer, v.at[:, pos].set(clean[i][:, pos]), v) if name == "resid_pre" else v

        return toy.reference(w, other, put)[0][:, -1].sum()

    toy.close(got, jnp.array([[by_hand(i, p) for p in range(toy.T)] for i in range(toy.L)]))


def test_vmap_inside_and_outside(chain, ws, x):
    """Axes of vmap lead the site's own; the layer axis leads them inside."""
    xs = jnp.stack([x, -x, 2 * x])
    expected = jnp.stack([toy.chain_reference(ws, v)[1]["blocks.post"] for v in xs])  # [vmap, L, B, D]
    inside = capture(jax.vmap(chain, (None, 0)), ["blocks.post", "blocks.2,0.post", "blocks.1.post"])(ws, xs)[1]
    toy.close(inside["blocks.post"], expected.swapaxes(0, 1))
    toy.close(inside["blocks.2,0.post"], expected.swapaxes(0, 1)[jnp.array([2, 0])])
    toy.close(inside["blocks.1.post"], expected[:, 1])
    outside = jax.vmap(capture(chain, "blocks.post"), (None, 0))(ws, xs)[1]
    toy.close(outside["blocks.post"], expected)


def test_edits_and_reducers_under_vmap_see_the_sites_own_axes(chain, ws, x):
    xs = jnp.stack([x, -x, 2 * x])
    model = jax.vmap(chain, (None, 0))
    center = lambda v: v - v.mean(0, keepdims=True)  # over the batch of one example, not over the vmapped axis  # noqa: E731
    edit = lambda v, name, i: center(v) if (name, i) == ("blocks.post", 1) else v  # noqa: E731
    expected = jnp.stack([toy.chain_reference(ws, v, edit)[0] for v in xs])
    toy.close(intervene(model, apply_fn("blocks.1.post", center))(ws, xs), expected)
    got = capture(model, {"blocks.1.post": lambda v: v[0]})(ws, xs)[1]["blocks.1.post"]
    toy.close(got, jnp.stack([toy.chain_reference(ws, v)[1]["blocks.post"][1][0] for v in xs]))
    source = capture(model, "blocks.post")(ws, xs)[1]["blocks.post"]  # [L, vmap, B, D]
    toy.close(intervene(model, patch("blocks.post", source))(ws, xs), model(ws, xs))
    batch = intervene(model, zero("blocks.1.post", batch=0))(ws, xs)
    first = lambda v, name, i: v.at[0].set(0) if (name, i) == ("blocks.post", 1) else v  # noqa: E731
    toy.close(batch, jnp.stack([toy.chain_reference(ws, v, first)[0] for v in xs]))


def test_other_batch_axes(ws, x):
    """vmap over the last axis: the site sees the rest."""
    f = lambda v: tap(v, "v", axes=("unit",)) * 1  # noqa: E731
    model = jax.vmap(f, in_axes=1, out_axes=1)
    assert capture(model, "v")(x)[1]["v"].shape == x.T.shape
    toy.close(intervene(model, zero("v", unit=0))(x), x.at[0].set(0))


# --- control flow


def choose(flag, x):
    """A site in one branch, a site in both."""

    def yes(x):
        return tap(tap(x + 1, "both") * 2, "one")

    return tap(jax.lax.cond(flag, yes, lambda x: tap(x - 1, "both"), x), "out")


@pytest.mark.parametrize("flag", [True, False])
def test_cond(flag):
    out, got = jax.jit(capture(choose, ["both", "one", "out"]))(flag, jnp.float32(3))
    assert got["both"] == (4 if flag else 2)
    assert got["one"] == (8 if flag else 0)  # zeros where the branch was not taken
    assert out == got["out"] == (8 if flag else 2)
    assert jax.jit(intervene(choose, add("both", 1.0)))(flag, 3.0) == (10 if flag else 3)
    grads = jax.grad(lambda z: intervene(choose, add("both", z))(flag, 3.0))(0.0)
    assert grads == (2 if flag else 1)
    both = jax.vmap(capture(choose, "both"), (0, None))(jnp.array([True, False]), jnp.float32(3))[1]["both"]
    assert both.tolist() == [4, 2]


def alternating(x):
    """Even layers take another branch, as with sliding and full attention; layer 1 has no "even" site."""

    def turn(x, i):
        even = lambda x: tap(tap(x + 1, "blocks.x", layer=i) + 0, "blocks.even", layer=i)  # noqa: E731
        odd = lambda x: tap(x + 10, "blocks.x", layer=i)  # noqa: E731
        return jax.lax.cond(i % 2 == 0, even, odd, x), None

    return jax.lax.scan(turn, x, jnp.arange(4))[0]


def test_branches_by_layer():
    got = {}
    for some in (["blocks.x", "blocks.even"], ["blocks.3,0.x", "blocks.2.x", "blocks.2,0.even"]):
        got |= jax.jit(capture(alternating, some))(jnp.float32(0))[1]
    assert got["blocks.x"].tolist() == [1, 11, 12, 22]
    assert got["blocks.3,0.x"].tolist() == [22, 1]
    assert got["blocks.2.x"] == 12
    assert got["blocks.2,0.even"].tolist() == [12, 1]  # layer 0 is not overwritten by layers without the site
    assert got["blocks.even"].tolist() == [1, 0, 12, 0]
    assert jax.jit(intervene(alternating, scale("blocks.1.x", 2.0)))(0.0) == 33


@pytest.mark.parametrize("flipped", [True, False])
def test_branches_are_taken_together(flipped):
    """A site counts as read if one branch reads it; its layer is unknown if the branches disagree."""

    def unread(x, i):
        tap(x, "blocks.x", layer=i)
        return x

    branches = [unread, lambda x, i: tap(x, "blocks.x", layer=i + 1) * 2]

    def f(x, which):
        turn = lambda x, i: (jax.lax.switch(which, branches[:: -1 if flipped else 1], x, i), None)  # noqa: E731
        return jax.lax.scan(turn, x, jnp.arange(2))[0]

    read = 0 if flipped else 1
    assert intervene(f, add("blocks.x", 1.0))(1.0, read) == 10  # ((1 + 1) * 2 + 1) * 2
    assert capture(f, "blocks.x")(1.0, read)[1]["blocks.x"].tolist() == [1, 2]
    with pytest.raises(UserError, match="calculated when the program runs"):
        capture(f, "blocks.1.x")(1.0, read)


def count_up(x, n):
    return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, tap(c[1] * 2, "step") + 1), (0, x))[1]


def test_while_loops_can_be_edited_and_not_captured():
    assert jax.jit(intervene(count_up, add("step", 1.0)))(1.0, 3) == 22
    with pytest.raises(UserError, match=r"inside a lax.while_loop.*lax.fori_loop with bounds that are Python integers"):
        capture(count_up, "step")(1.0, jnp.int32(3))


def test_a_site_in_the_condition_of_a_while_loop():
    def f(x):
        return jax.lax.while_loop(lambda v: tap(v, "seen") < 10, lambda v: v * 2, x)

    assert intervene(f, add("seen", 8.0))(1.0) == 2


def test_generation_with_steering(ws, x):
    """Prefill and a decoding loop with absolute positions: edits hold in both, at the chosen positions."""

    def generate(ws, x, start):
        x = tap(jnp.tanh(x @ ws[0]), "blocks.x", layer=0, pos=0, axes=("pos", "unit"))

        def step(last, t):
            new = tap(jnp.tanh(last @ ws[1])[None], "blocks.x", layer=0, pos=start + t, axes=("pos", "unit"))[0]
            return new, new

        return jax.lax.scan(step, x[-1], jnp.arange(3))[1]

    def by_hand(x, vector, positions):
        x = jnp.tanh(x @ ws[0])
        x = x + vector[None] * np.isin(np.arange(toy.B), positions)[:, None].astype(np.float32)
        last, out = x[-1], []
        for t in range(3):
            last = jnp.tanh(last @ ws[1]) + vector * float(toy.B + t in positions)
            out.append(last)
        return jnp.stack(out)

    vector = jnp.ones(toy.D)
    f = jax.jit(lambda pos: intervene(generate, add("blocks.0.x", vector, pos=pos))(ws, x, toy.B))
    for positions in ([0, 3], [1, 4], [2, 3]):
        toy.close(f(jnp.array(positions)), by_hand(x, vector, np.array(positions)))
    with pytest.raises(UserError, match="reached 2 times at layer 0"):
        capture(generate, "blocks.0.x")(ws, x, toy.B)


# --- custom derivatives


@jax.custom_vjp
def doubled(x):
    return tap(x, "inside") * 2


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (g * 7,))


@jax.custom_jvp
def tripled(x):
    return tap(x, "inside") * 3


tripled.defjvp(lambda primals, tangents: (tripled(*primals), tangents[0] * 7))


@pytest.mark.parametrize(("fn", "factor"), [(doubled, 2), (tripled, 3)])
def test_custom_derivatives_stay(fn, factor):
    around = lambda x: tap(fn(tap(x, "before")), "after")  # noqa: E731
    asked = ["before", "inside", "after"]
    _out, got = jax.jit(capture(around, asked))(jnp.float32(5))
    assert [float(got[s]) for s in asked] == [5, 5, factor * 5]
    assert jax.grad(lambda x: capture(around, "inside")(x)[0])(5.0) == 7
    assert jax.grad(intervene(around, scale("before", 2.0)))(5.0) == 14
    with pytest.raises(UserError, match=r"inside a custom_[vj]+p, whose derivative would not know .*taps.wants"):
        intervene(around, zero("inside"))(5.0)


def test_wants_takes_the_way_without_a_custom_derivative():
    f = lambda x: (tap(x, "inside") * 2) if wants("inside") else doubled(x)  # noqa: E731
    assert intervene(f, set_to("inside", 1.0))(5.0) == 2
    assert jax.grad(f)(5.0) == 7


def test_what_cannot_be_rebuilt_says_so():
    @jax.custom_batching.custom_vmap
    def f(x):
        return tap(x, "inside") * 2

    f.def_vmap(lambda size, batched, x: (x * 2, batched[0]))
    with pytest.raises(UserError, match="inside a `custom_vmap_call`, which cannot be rebuilt"):
        capture(f, "inside")(1.0)
    with pytest.raises(UserError, match="inside a `platform_dependent`"):
        capture(lambda x: jax.lax.platform_dependent(x, cpu=lambda x: tap(x, "c"), default=lambda x: x), "c")(1.0)


# --- modules, tracing contexts


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(toy.D, toy.D, rngs=rngs)

    def __call__(self, x):
        return tap(jax.nn.relu(self.dense(x)), "act", axes=toy.UNITS)


def test_a_flax_module_as_an_argument(x):
    layer = Layer(nnx.Rngs(0))
    expected = jax.nn.relu(x @ layer.dense.kernel[...] + layer.dense.bias[None])
    _out, got = jax.jit(capture(lambda m, x: m(x).sum(), "act"))(layer, x)
    toy.close(got["act"], expected)
    toy.close(intervene(lambda m, x: m(x), zero("act", unit=0))(layer, x), expected.at[:, 0].set(0))
    toy.close(capture(layer, "act")(x)[1]["act"], expected)  # the module itself is a function, too
    grads = nnx.grad(intervene(lambda m, x: m(x).sum(), zero("act")))(layer, x)
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, i):
        return tap(jax.nn.relu(nn.Dense(toy.D)(x)), "blocks.act", layer=i), None


def test_linen_scan_and_remat(x):
    layers = nn.scan(nn.remat(LinenLayer), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()
    params = layers.init(jax.random.key(0), x, jnp.arange(2))
    f = lambda p, x: layers.apply(p, x, jnp.arange(2))[0]  # noqa: E731
    out, got = jax.jit(capture(f, ["blocks.act", "blocks.1.act"]))(params, x)
    toy.close(got["blocks.1.act"], out)
    assert (intervene(f, zero("blocks.1.act"))(params, x) == 0).all()
    at_grad = capture(jax.grad(lambda p: f(p, x).sum()), "blocks.1.act@grad")(params)[1]
    assert (at_grad["blocks.1.act@grad"] == 1).all()


def test_no_tracer_leaks(chain, ws, x):
    with jax.checking_leaks():
        f = jax.jit(chain)
        jax.jit(capture(f, ["blocks.post", "blocks.1.post"]))(ws, x)
        jax.jit(jax.grad(lambda v: intervene(f, add("blocks.1.post", v))(ws, x).sum()))(x)
        jax.vmap(lambda n: intervene(f, zero("blocks.post", layer=n))(ws, x))(jnp.arange(2))
        jax.jit(capture(jax.grad(lambda ws: jax.checkpoint(f)(ws, x).sum()), "blocks.2,0.post@grad"))(ws)


def test_without_jit_at_all(chain, ws, x, chain_acts):
    with jax.disable_jit():
        _out, got = capture(chain, ["blocks.2,0.post", "blocks.post"])(ws, x)
        toy.close(got["blocks.post"], chain_acts["blocks.post"])
        toy.close(got["blocks.2,0.post"], chain_acts["blocks.post"][jnp.array([2, 0])])
        half = intervene(chain, scale("blocks.post", 0.5))(ws, x)
        assert intervene(count_up, add("step", 1.0))(jnp.float32(1), jnp.int32(3)) == 22
        assert intervene(choose, add("both", 1.0))(jnp.array(True), jnp.float32(3)) == 10
        layers = []
        traced = lambda x, i: (tap(x, "blocks.x", layer=layers.append(i) or i), None)  # noqa: E731
        capture(lambda x: jax.lax.scan(traced, x, jnp.arange(9))[0], "blocks.8.x")(x)
        assert len(layers) < 9  # staged as a loop, all the same
    toy.close(half, toy.chain_reference(ws, x, lambda v, name, i: v * 0.5 if name == "blocks.post" else v)[0])


def test_keyword_and_static_arguments(ws, x):
    """Python values stay Python values, as callers with static arguments expect."""

    def f(ws, x, *, stop, flavour):
        assert flavour == "plain"
        return partial(toy.chain, scanned=False)(ws[:stop], x) if stop > 5 else toy.chain_layer(x, ws[0], 0)

    outer = jax.jit(capture(f, "blocks.0.post"), static_argnames=("stop", "flavour"))
    toy.close(outer(ws, x, stop=1, flavour="plain")[1]["blocks.0.post"], jnp.tanh(x @ ws[0]))
    inner = capture(jax.jit(f, static_argnames=("stop", "flavour")), "blocks.0.post")
    toy.close(inner(ws, x, stop=1, flavour="plain")[1]["blocks.0.post"], jnp.tanh(x @ ws[0]))


def test_output_structure_and_closed_over_arrays(ws, x):
    """Dicts come back as dicts; arrays and tracers that fn closes over are part of the program."""

    def outer(x, ws):
        f = lambda x: {"a": [toy.chain(ws, x), None], "b": ()}  # noqa: E731
        return capture(f, "out")(x)

    out, got = jax.jit(outer)(x, ws)
    assert jax.tree.structure(out) == jax.tree.structure({"a": [0, None], "b": ()})
    toy.close(out["a"][0], got["out"])
