# SPDX-License-Identifier: Apache-2.0
"""What capture returns, against a loop without the library."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
import toy_decoder as toy
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import Partial

from jaxneuro.taps import capture, tap


def test_every_site_of_every_form_of_a_decoder(any_fwd, w, toks, plain):
    out, got = jax.jit(capture(any_fwd, toy.NAMES))(w, toks)
    toy.close((out, got), plain)


def test_jit_inside_outside_and_neither(chain, ws, x, chain_acts):
    for f in (
        capture(chain, "blocks.post"),
        jax.jit(capture(chain, "blocks.post")),
        capture(jax.jit(chain), "blocks.post"),
    ):
        out, got = f(ws, x)
        toy.close(out, toy.chain_reference(ws, x)[0])
        toy.close(got["blocks.post"], chain_acts["blocks.post"])


@pytest.mark.parametrize("capture_first", [True, False])
def test_warm_caches_in_either_order(ws, x, chain, chain_acts, capture_first):
    inner = jax.jit(chain)
    outer = capture(inner, "blocks.1.post")
    for f in (outer, inner, outer, inner) if capture_first else (inner, outer, inner, outer):
        got = f(ws, x)
        if f is outer:
            toy.close(got[1]["blocks.1.post"], chain_acts["blocks.post"][1])
        toy.close(got[0] if f is outer else got, toy.chain_reference(ws, x)[0])


def rows(acts, *layers):
    return acts[jnp.array(layers)]


def test_layers_and_several_requests_for_one_site(chain, ws, x, chain_acts):
    posts, resids = chain_acts["blocks.post"], chain_acts["blocks.resid"]
    expected = {
        "blocks.1.post": posts[1],
        "blocks.2,0.post": rows(posts, 2, 0),
        "blocks.0,2.post": rows(posts, 0, 2),
        "blocks.1,1.post": rows(posts, 1, 1),
        "blocks.0.hook_post": posts[0],
        "blocks.*.resid": resids,
        "blocks.resid": resids,
        "blocks.2.resid": resids[2],
        "out": toy.chain_reference(ws, x)[0],
    }
    alone = jax.jit(lambda ws, x: {s: capture(chain, s)(ws, x)[1][s] for s in expected})
    toy.close(jax.jit(capture(chain, list(expected)))(ws, x)[1], expected)
    toy.close(alone(ws, x), expected)


@given(requests=st.lists(st.lists(st.integers(0, toy.L - 1), min_size=1, max_size=3), min_size=1, max_size=3))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_layers_give_those_rows(requests, ws, x, chain_acts):
    sites = {f"blocks.{','.join(map(str, r))}.post": r for r in requests}
    got = capture(jax.jit(toy.chain), list(sites))(ws, x)[1]
    for site, r in sites.items():
        toy.close(got[site], chain_acts["blocks.post"][r[0]] if len(r) == 1 else rows(chain_acts["blocks.post"], *r))


def test_nothing_asked_is_the_function(chain, ws, x):
    """The same program; called outside of jit, one that may add up in another order than operation by operation."""

    def program(fn):
        return str(dce_jaxpr(jax.make_jaxpr(fn)(ws, x).jaxpr, [True])[0])

    assert program(lambda *a: capture(chain, [])(*a)[0]) == program(chain)
    out, got = capture(chain, [])(ws, x)
    toy.close(out, chain(ws, x))
    assert got == {}


def test_reducers_run_at_the_site(chain, ws, x, chain_acts):
    mean = lambda v: v.mean(0)  # noqa: E731
    got = jax.jit(capture(chain, {"blocks.post": mean, "blocks.1.post": jax.lax.stop_gradient, "out": None}))(ws, x)[1]
    toy.close(got["blocks.post"], chain_acts["blocks.post"].mean(1))
    toy.close(got["blocks.1.post"], chain_acts["blocks.post"][1])
    moments = capture(chain, {"blocks.2,0.post": lambda v: {"n": v.size, "sq": (v * v).sum()}})(ws, x)[1]
    toy.close(moments["blocks.2,0.post"]["sq"], (rows(chain_acts["blocks.post"], 2, 0) ** 2).sum((1, 2)))
    assert moments["blocks.2,0.post"]["n"].tolist() == [toy.B * toy.D] * 2


def masked_sum(mask, scale, value):
    return (value * mask[:, None]).sum(0) * scale


def test_reducer_arguments_are_dynamic(chain, ws, x, chain_acts):
    """Masks enter rebuilt jits as arguments: traced outside, vmapped, changed without compiling again."""
    inner, traced = jax.jit(chain), []

    @jax.jit
    def masked(mask):
        traced.append(mask)
        return capture(inner, {"blocks.post": Partial(masked_sum, mask, 2.0)})(ws, x)[1]["blocks.post"]

    masks = jnp.eye(toy.B)
    expected = [2 * chain_acts["blocks.post"][:, i] for i in range(toy.B)]
    toy.close([masked(m) for m in masks], expected)
    assert len(traced) == 1
    toy.close(jax.vmap(masked)(masks), jnp.stack(expected))


def test_changing_a_mask_never_reads_an_old_one(ws, x, chain_acts):
    """The rebuilt inner jit is cached; the mask is not baked in."""
    inner = jax.jit(toy.chain)
    for mask in jnp.eye(toy.B):
        got = capture(inner, {"blocks.1.post": Partial(masked_sum, mask, 1.0)})(ws, x)[1]
        toy.close(got["blocks.1.post"], (chain_acts["blocks.post"][1] * mask[:, None]).sum(0))


def test_two_reducers_of_one_site(ws, x, chain_acts):
    got = capture(toy.chain, {"blocks.post": jnp.max, "blocks.*.post": jnp.min, "blocks.1.post": None})(ws, x)[1]
    toy.close(got["blocks.post"], chain_acts["blocks.post"].max((1, 2)))
    toy.close(got["blocks.*.post"], chain_acts["blocks.post"].min((1, 2)))
    toy.close(got["blocks.1.post"], chain_acts["blocks.post"][1])


def test_some_layers_unrolled_before_a_scan():
    """Dense first layers, then a scan over the others: one stack of layers, in order."""

    def f(x):
        x = tap(x + 1, "blocks.x", layer=0)
        step = lambda x, i: (tap(x + 1, "blocks.x", layer=i), None)  # noqa: E731
        x, _ = jax.lax.scan(step, x, jnp.arange(1, 4))
        return tap(x + 1, "blocks.x", layer=4)

    got = capture(f, "blocks.x")(jnp.zeros(2))[1] | capture(f, ["blocks.3,0.x", "blocks.4.x"])(jnp.zeros(2))[1]
    assert got["blocks.x"][:, 0].tolist() == [1, 2, 3, 4, 5]
    assert got["blocks.3,0.x"][:, 0].tolist() == [4, 1]
    assert got["blocks.4.x"][0] == 5


def test_a_jitted_block_called_for_each_layer(ws, x, chain_acts):
    """The layer is an argument of the jitted block: told from where it is called."""
    block = jax.jit(toy.chain_layer)

    def f(ws, x):
        for i in range(toy.L):
            x = block(x, ws[i], i)
        return x

    got = capture(f, ["blocks.2.post", "blocks.post"])(ws, x)[1]
    toy.close(got["blocks.post"], chain_acts["blocks.post"])
    toy.close(got["blocks.2.post"], chain_acts["blocks.post"][2])


def test_a_scan_over_part_of_the_layers(ws, x):
    """Entering the stack at a layer: the numbers are the layers', not the turns'."""

    def from_layer(ws, x, start):
        return jax.lax.scan(lambda x, p: (toy.chain_layer(x, *p), None), x, (ws[start:], jnp.arange(start, toy.L)))[0]

    f = partial(from_layer, start=1)
    got = jax.jit(capture(f, ["blocks.2.post", "blocks.post"]))(ws, x)[1]
    first = jnp.tanh(x @ ws[1])
    toy.close(got["blocks.post"], jnp.stack([first, jnp.tanh((x + first) @ ws[2])]))
    toy.close(got["blocks.2.post"], got["blocks.post"][1])


def nested(x, n_outer=2, n_inner=3):
    """Layers in groups: an outer scan over groups, an inner one over the layers of a group."""

    def inner(x, layer):
        return tap(x + 1, "blocks.x", layer=layer), None

    def outer(x, group):
        return jax.lax.scan(inner, x, group * n_inner + jnp.arange(n_inner))[0], None

    return jax.lax.scan(outer, x, jnp.arange(n_outer))[0]


def test_layers_in_nested_scans():
    got = jax.jit(capture(nested, ["blocks.x", "blocks.2.x"]))(jnp.zeros(2))[1]
    got |= jax.jit(capture(nested, ["blocks.4,1.x", "blocks.3.x"]))(jnp.zeros(2))[1]  # alone: kept in buffers
    assert got["blocks.x"][:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert got["blocks.4,1.x"][:, 0].tolist() == [5, 2]
    assert got["blocks.3.x"].tolist() == [4, 4]
    assert got["blocks.2.x"].tolist() == [3, 3]


@pytest.mark.parametrize("carried", [True, False])
def test_a_loop_inside_a_layer(carried):
    """An inner loop that is handed the layer, as a constant or in its carry, is no loop over layers."""

    def layer(x, i):
        def chunk(c, k):
            x, j = c
            x = tap(x + k, "blocks.x", layer=j if carried else i)
            return (x, j), None

        (x, _), _ = jax.lax.scan(chunk, (x, i), jnp.arange(2))
        return x, None

    f = lambda x: jax.lax.scan(layer, x, jnp.arange(3))[0]  # noqa: E731
    got = capture(f, "blocks.x")(jnp.int32(0))[1] | capture(f, ["blocks.2,0.x", "blocks.1.x"])(jnp.int32(0))[1]
    assert got["blocks.x"].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert got["blocks.2,0.x"].tolist() == [[2, 3], [0, 1]]
    assert got["blocks.1.x"].tolist() == [1, 2]


def test_a_loop_that_runs_backwards_and_counts():
    """The last turn is at the first row; rows are put in the order of layers."""

    def turn(c, row):
        x, i = c
        return (tap(x * 2 + row, "blocks.x", layer=i), i + 1), None

    f = lambda: jax.lax.scan(turn, (jnp.int32(0), jnp.int32(0)), jnp.array([5, 6, 7]), reverse=True)[0]  # noqa: E731
    got = capture(f, ["blocks.x", "blocks.0.x"])()[1]
    assert got["blocks.x"].tolist() == [7, 20, 45]
    assert got["blocks.0.x"] == 7


def test_several_layers_in_one_turn():
    """A scan over periods of two layers."""

    def period(x, i):
        x = tap(x + 1, "blocks.x", layer=2 * i)
        return tap(x + 1, "blocks.x", layer=2 * i + 1), None

    f = lambda x: jax.lax.scan(period, x, jnp.arange(3))[0]  # noqa: E731
    got = capture(f, "blocks.x")(jnp.zeros(()))[1] | capture(f, ["blocks.5,2.x", "blocks.3.x"])(jnp.zeros(()))[1]
    assert got["blocks.x"].tolist() == [1, 2, 3, 4, 5, 6]
    assert got["blocks.5,2.x"].tolist() == [6, 3]
    assert got["blocks.3.x"] == 4


@pytest.mark.parametrize("scanned", [True, False])
def test_a_decoding_loop_adds_a_step_axis_behind_the_layers(ws, x, scanned):
    def decode(ws, x):
        return jax.lax.scan(lambda x, _: (toy.chain(ws, x, scanned=scanned), None), x, None, length=4)[0]

    got = jax.jit(capture(decode, ["blocks.post", "out"]))(ws, x)[1]
    got |= jax.jit(capture(decode, ["blocks.2,1.post", "blocks.1.post"]))(ws, x)[1]
    posts, outs = [], []
    for _ in range(4):
        x, acts = toy.chain_reference(ws, x)
        posts.append(acts["blocks.post"])
        outs.append(x)
    posts = jnp.stack(posts, 1)  # [L, step, B, D]
    toy.close(got["blocks.post"], posts)
    toy.close(got["blocks.2,1.post"], rows(posts, 2, 1))
    toy.close(got["blocks.1.post"], posts[1])
    toy.close(got["out"], jnp.stack(outs))


def test_one_layer_in_a_scan(ws, x):
    one = lambda ws, x: jax.lax.scan(lambda x, p: (toy.chain_layer(x, *p), None), x, (ws[:1], jnp.arange(1)))[0]  # noqa: E731
    got = capture(one, ["blocks.post", "blocks.0.post"])(ws, x)[1]
    assert got["blocks.post"].shape == (1, toy.B, toy.D)
    toy.close(got["blocks.0.post"], jnp.tanh(x @ ws[0]))


def test_bfloat16_values_keep_their_type(any_fwd, toks):
    w16 = toy.weights(jnp.bfloat16)
    got = jax.eval_shape(capture(any_fwd, ["blocks.1.mlp.post", "blocks.attn.z", "embed"]), w16, toks)[1]
    assert {v.dtype for v in got.values()} == {jnp.dtype(jnp.bfloat16)}
