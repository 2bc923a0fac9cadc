# SPDX-License-Identifier: Apache-2.0
"""shard_map, pmap and sharded arrays on four devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_decoder as toy
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from jaxneuro.errors import UserError
from jaxneuro.taps import add, capture, intervene, patch, set_to, sites, tap, zero

B, D = 8, 8


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


@pytest.fixture(scope="module")
def grid():
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def big(x):
    return jnp.concatenate([x, -x, 2 * x, x + 1])


@pytest.fixture(scope="module")
def expected(ws, big):
    return toy.chain_reference(ws, big)


def split_chain(mesh, spec, **kwargs):
    """The chain inside shard_map, the batch split over the mesh."""

    def layer(x, w, i):
        post = tap(jnp.tanh(x @ w), "blocks.post", layer=i, axes=toy.UNITS, spec=spec)
        return tap(x + post, "blocks.resid", layer=i, axes=toy.UNITS), None

    def local(ws, x):
        return jax.lax.scan(lambda x, p: layer(x, *p), x, (ws, jnp.arange(toy.L)))[0] * 2

    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), **kwargs)


SITES = ["blocks.post", "blocks.1.post", "blocks.2,0.post"]
CHECK = [{}, {"check_vma": False}]


@pytest.mark.parametrize("kwargs", CHECK)
def test_with_a_spec_captures_are_global(mesh, ws, big, expected, kwargs):
    f = split_chain(mesh, ("data", None), **kwargs)
    out, got = jax.jit(capture(f, SITES))(ws, big)
    posts = expected[1]["blocks.post"]
    toy.close(out, expected[0])
    toy.close(got, {"blocks.post": posts, "blocks.1.post": posts[1], "blocks.2,0.post": posts[jnp.array([2, 0])]})
    few = jax.jit(capture(f, SITES[2]))(ws, big)[1]  # alone: kept in buffers
    toy.close(few[SITES[2]], posts[jnp.array([2, 0])])


@pytest.mark.parametrize("kwargs", CHECK)
def test_without_a_spec_captures_have_a_mesh_axis(mesh, ws, big, expected, kwargs):
    f = split_chain(mesh, None, **kwargs)
    got = jax.jit(capture(f, SITES))(ws, big)[1]
    posts = expected[1]["blocks.post"].reshape(toy.L, 4, 2, D)
    toy.close(got, {"blocks.post": posts, "blocks.1.post": posts[1], "blocks.2,0.post": posts[jnp.array([2, 0])]})
    few = jax.jit(capture(f, SITES[1]))(ws, big)[1]
    toy.close(few[SITES[1]], posts[1])


def test_edits_count_globally_with_a_spec_and_locally_without(mesh, ws, big):
    def reference(rows):
        def edit(v, name, i):
            return v.at[rows].set(0) if (name, i) == ("blocks.post", 1) else v

        return toy.chain_reference(ws, big, edit)[0]

    whole, local = split_chain(mesh, ("data",)), split_chain(mesh, None)
    cases = [
        (whole, [3, -1], jnp.array([3, 7])),
        (whole, np.arange(B) == 5, jnp.array([5])),
        (local, 1, jnp.arange(1, B, 2)),
    ]
    run = jax.jit(lambda ws, x: [intervene(f, zero("blocks.1.post", batch=at))(ws, x) for f, at, _ in cases])
    toy.close(run(ws, big), [reference(rows) for *_, rows in cases])
    with pytest.raises(UserError, match="batch=3 is out of range; the axis has 2 entries"):
        intervene(local, zero("blocks.1.post", batch=3))(ws, big)
    with pytest.raises(UserError, match="batch=8 is out of range; the axis has 8 entries"):
        intervene(whole, zero("blocks.1.post", batch=8))(ws, big)


def test_edit_values_are_whole(mesh, ws, big, expected):
    """A patch with what was captured is the identity, in a list with values that are split and that are not."""
    f = split_chain(mesh, ("data",))
    out, got = jax.jit(capture(f, SITES))(ws, big)
    same = jax.jit(lambda ws, x: [intervene(f, patch(site, got))(ws, x) for site in SITES])(ws, big)
    toy.close(same, [out] * 3, 1e-6)
    shift = jnp.arange(float(B))[:, None]
    edits = [add("blocks.1.post", shift), add("blocks.1.post", jnp.ones(D), where=shift > 3)]

    def edit(v, name, i):
        return v + shift + (shift > 3).astype(v.dtype) if (name, i) == ("blocks.post", 1) else v

    toy.close(jax.jit(intervene(f, edits))(ws, big), toy.chain_reference(ws, big, edit)[0])


def test_transformations_inside_shard_map(mesh, ws, big, expected):
    """shard_map of a capture: the value is the shard's, like any other; an edit still counts globally."""

    def local(ws, x):
        f = lambda ws, x: tap(toy.chain(ws, x), "end", axes=toy.UNITS, spec=("data", None))  # noqa: E731
        _out, got = capture(f, ["blocks.2,0.post", "out"])(ws, x)
        return got["blocks.2,0.post"], got["out"], intervene(f, zero("end", batch=5))(ws, x)

    specs = (P(None, "data"), P("data"), P("data"))
    f = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=specs)
    want = expected[1]["blocks.post"][jnp.array([2, 0])], expected[0], expected[0].at[5].set(0)
    toy.close(jax.jit(f)(ws, big), want)


@pytest.mark.parametrize("spec", [(None, "model"), None])
def test_neurons_split_over_a_mesh_axis(grid, spec, x):
    """Tensor parallelism: a split hidden layer, summed over the mesh."""
    w1, w2 = jnp.eye(D) * 2, jnp.flip(jnp.eye(D), 0)

    def local(x, w1, w2):
        hidden = tap(x @ w1, "hidden", axes=("batch", "neuron"), spec=spec and ("data", *spec[1:]))
        return jax.lax.psum(hidden @ w2, "model")

    f = jax.shard_map(local, mesh=grid, in_specs=(P("data"), P(None, "model"), P("model")), out_specs=P("data"))
    _out, got = jax.jit(capture(f, "hidden"))(x, w1, w2)
    hidden = x @ w1
    assert sites(f, x, w1, w2)[0].shape == ((toy.B, D) if spec else (toy.B // 2, D // 2))
    if spec is None:
        blocks = hidden.reshape(2, toy.B // 2, 2, D // 2).transpose(0, 2, 1, 3)
        toy.close(got["hidden"], blocks)  # [data, model, batch, neuron]
        return
    toy.close(got["hidden"], hidden)
    edits = [zero("hidden", neuron=6), add("hidden", jnp.arange(float(D)), batch=0)]
    steered = jax.jit(intervene(f, edits))(x, w1, w2)
    toy.close(steered, (hidden.at[:, 6].set(0).at[0].add(jnp.arange(float(D)))) @ w2)


def test_reducers_are_local(mesh, ws, big, expected):
    f = capture(split_chain(mesh, ("data",)), {"blocks.post": Partial(lambda k, v: k * v.sum(0), 2.0)})
    got = jax.jit(f)(ws, big)[1]
    toy.close(got["blocks.post"], 2 * expected[1]["blocks.post"].reshape(toy.L, 4, 2, D).sum(2))


def test_gradients_at_sites_in_shard_map(mesh, ws, big):
    loss = lambda ws, x: (split_chain(mesh, ("data", None))(ws, x) ** 2).sum()  # noqa: E731
    grad, got = jax.jit(capture(jax.grad(loss), ["blocks.post@grad", "blocks.post", "blocks.1.post@grad"]))(ws, big)

    def plain(ws, z):
        shift = lambda v, name, i: v + z[i] if name == "blocks.post" else v  # noqa: E731
        return (toy.chain_reference(ws, big, shift)[0] ** 2).sum()

    expected = jax.jit(jax.grad(plain, (0, 1)))(ws, jnp.zeros((toy.L, B, D)))
    toy.close((grad, got["blocks.post@grad"]), expected, 1e-4)
    toy.close(got["blocks.1.post@grad"], expected[1][1], 1e-4)


def test_pmap_inside_and_outside(ws, big, expected):
    xs = big.reshape(4, 2, D)
    posts = expected[1]["blocks.post"].reshape(toy.L, 4, 2, D)
    inside = capture(jax.pmap(toy.chain, in_axes=(None, 0)), ["blocks.post", "blocks.1.post"])(ws, xs)[1]
    toy.close(inside["blocks.post"], posts)
    toy.close(inside["blocks.1.post"], posts[1])
    outside = jax.pmap(capture(toy.chain, "blocks.post"), in_axes=(None, 0))(ws, xs)[1]["blocks.post"]
    toy.close(outside, posts.swapaxes(0, 1))
    edit = set_to("blocks.1.post", 0.0, batch=1)
    off = lambda v, name, i: v.at[1::2].set(0) if (name, i) == ("blocks.post", 1) else v  # noqa: E731
    want = toy.chain_reference(ws, big, off)[0].reshape(4, 2, D)
    toy.close(intervene(jax.pmap(toy.chain, in_axes=(None, 0)), edit)(ws, xs), want)
    toy.close(jax.pmap(intervene(toy.chain, edit), in_axes=(None, 0))(ws, xs), want)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays(ws, big, expected, axis_type):
    """Automatic and explicit sharding: values as without, captures split like the value."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        xs = jax.device_put(big, NamedSharding(mesh, P("data")))
        out, got = jax.jit(capture(toy.chain, ["blocks.post", "blocks.2,0.post", "out"]))(ws, xs)
        toy.close(out, expected[0])
        toy.close(got["blocks.post"], expected[1]["blocks.post"])
        toy.close(got["blocks.2,0.post"], expected[1]["blocks.post"][jnp.array([2, 0])])
        assert got["out"].sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)
        few = jax.jit(capture(toy.chain, "blocks.2,0.post"))(ws, xs)[1]  # alone: kept in buffers
        toy.close(few["blocks.2,0.post"], got["blocks.2,0.post"])
        shift = add("blocks.1.post", jnp.arange(float(D)), batch=np.arange(B) == 3)
        off = jax.jit(intervene(toy.chain, [shift, zero("blocks.1.post", batch=5, unit=2)]))(ws, xs)

    def edit(v, name, i):
        return v.at[3].add(jnp.arange(float(D))).at[5, 2].set(0) if (name, i) == ("blocks.post", 1) else v

    toy.close(off, toy.chain_reference(ws, big, edit)[0])


def test_a_jit_with_shardings_keeps_them(mesh, ws, big, expected):
    rows, cols = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))
    inner = jax.jit(toy.chain, in_shardings=(None, rows), out_shardings=cols)
    out, got = capture(inner, "blocks.1.post")(ws, big)
    assert out.sharding.is_equivalent_to(cols, 2)
    toy.close((out, got["blocks.1.post"]), (expected[0], expected[1]["blocks.post"][1]))
    assert intervene(inner, zero("out"))(ws, big).sharding.is_equivalent_to(cols, 2)
    text = jax.jit(capture(inner, "blocks.1.post")).lower(ws, big).as_text()
    assert "jit(chain)" in text or "@chain" in text  # the name stays


def test_shard_map_in_a_scan(mesh, ws, big, expected):
    """The layer loop outside, the shards inside."""

    def body(x, w, i):
        return x + tap(jnp.tanh(x @ w), "blocks.post", layer=i, axes=toy.UNITS, spec=("data", None))

    one = jax.shard_map(body, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P("data"))
    f = lambda ws, x: jax.lax.scan(lambda x, p: (one(x, *p), None), x, (ws, jnp.arange(toy.L)))[0] * 2  # noqa: E731
    out, got = jax.jit(capture(f, SITES))(ws, big)
    posts = expected[1]["blocks.post"]
    toy.close(out, expected[0])
    toy.close(got, {"blocks.post": posts, "blocks.1.post": posts[1], "blocks.2,0.post": posts[jnp.array([2, 0])]})
