# SPDX-License-Identifier: Apache-2.0
"""What PCA, k-means and semi-NMF owe alike as stream methods: one program, masks, resumption, seeds, devices, types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneuro.dictionaries.kmeans import kmeans
from jaxneuro.dictionaries.pca import pca
from jaxneuro.dictionaries.semi_nmf import semi_nmf
from jaxneuro.errors import UserError
from jaxneuro.protocols import Dictionary, Method

from .conftest import D_IN, planted, shaped, through

N, BATCH = 6, 64

METHODS = {
    "pca": lambda: pca(N),
    "pca, sketched": lambda: pca(N, sketch=2 * N),
    "kmeans": lambda: kmeans(N, dead_after_tokens=100),
    "kmeans, spherical": lambda: kmeans(N, spherical=True),
    "semi_nmf": lambda: semi_nmf(N, sparsity=1.0, coefficient_steps=20, dead_after_tokens=100),
}
SIGNED = {"pca", "pca, sketched"}
each_method = pytest.mark.parametrize("name", METHODS)


@functools.cache
def method(name: str) -> Method:
    return METHODS[name]()


@functools.cache
def stepper(name: str):
    return jax.jit(method(name).step)


@functools.cache
def starter(name: str):
    return jax.jit(method(name).init)


@functools.cache
def batches(n: int = 6) -> list[dict]:
    x = planted(1, n * BATCH)[0].reshape(n, BATCH, D_IN)
    return [{"x": a, "mask": np.ones(BATCH, bool)} for a in x]


def after(name: str, stream: list[dict], seed: int = 0):
    state = starter(name)(jax.random.key(seed), stream[0])
    infos = []
    for batch in stream:
        state, info = stepper(name)(state, batch)
        infos.append(jax.tree.map(np.asarray, info))
    return state, infos


@functools.cache
def learned(name: str):
    return method(name).finish(after(name, batches())[0])


def assert_close(a, b, tolerance=1e-4):
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = max(
            float(np.abs(np.asarray(two, np.float64)).max(initial=0)), 0.05
        )  # what rounding lost is kept: small numbers
        np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * scale)


@each_method
def test_is_one_program(name):
    one, _ = after(name, batches())
    size = stepper(name)._cache_size()
    again, _ = after(name, batches()[::-1], seed=1)
    assert stepper(name)._cache_size() == size
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, False)


@each_method
def test_a_step_keeps_shapes_and_types_of_the_state(name):
    batch = {"x": jax.ShapeDtypeStruct((BATCH, D_IN), jnp.bfloat16), "mask": jax.ShapeDtypeStruct((BATCH,), bool)}
    state = jax.eval_shape(method(name).init, jax.random.key(0), batch)
    again, info = jax.eval_shape(method(name).step, state, batch)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(lambda a: (a.shape, a.dtype), again)
    assert {a.dtype for a in jax.tree.leaves(state)} <= {jnp.dtype(t) for t in ("float32", "int32", "uint32")}
    assert all(a.shape == () for a in jax.tree.leaves(info))


@each_method
def test_resumed_equals_uninterrupted_bitwise(name):
    whole, infos = after(name, batches())
    half, first = after(name, batches()[:3])
    state = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), half)  # as if written and read
    for batch in batches()[3:]:
        state, info = stepper(name)(state, batch)
        first.append(jax.tree.map(np.asarray, info))
    for one, two in zip(jax.tree.leaves((whole, infos)), jax.tree.leaves((state, first)), strict=True):
        np.testing.assert_array_equal(one, two)


@each_method
def test_tokens_that_do_not_count_change_nothing(name):
    """Masked ones, whatever they hold, and broken ones: the result is that of the other tokens alone."""
    some = np.arange(BATCH) % 3 > 0
    half = [{"x": b["x"][some], "mask": b["mask"][some]} for b in batches()]
    alone, info = after(name, half)

    def spoiled(value, mask):
        return [{"x": np.where(some[:, None], b["x"], np.float32(value)), "mask": mask} for b in batches()]

    # k-means++ draws by position among all tokens: states of one start are compared
    for stream, broken in (
        (spoiled(np.nan, some), 0),
        (spoiled(1e30, some), 0),
        (spoiled(np.inf, np.ones(BATCH, bool)), int((~some).sum())),
    ):
        state = starter(name)(jax.random.key(0), half[0])
        for batch in stream:
            state, here = stepper(name)(state, batch)
        assert_close(state, alone, 1e-3)
        assert int(here["nonfinite_tokens"]) == broken
        assert int(here["tokens"]) == int(info[-1]["tokens"]) == some.sum()
        # the start reads no such token either
        begun = map(np.asarray, jax.tree.leaves(starter(name)(jax.random.key(0), stream[0])))
        assert all((np.abs(a) < 1e20).all() for a in begun if a.dtype == np.float32)  # nor nan


@each_method
def test_a_batch_without_a_token_changes_only_its_counter(name):
    state, _ = after(name, batches()[:2])
    new, info = stepper(name)(state, {**batches()[2], "mask": np.zeros(BATCH, bool)})
    assert int(info["skipped_batches"]) == 1
    kept = [k for k in state._fields if k not in ("skipped", "step")]
    for key in kept:
        for one, two in zip(*(jax.tree.leaves(getattr(s, key)) for s in (new, state)), strict=True):
            np.testing.assert_array_equal(one, two)


@each_method
def test_seeds_under_vmap_equal_their_own_runs(name):
    m, keys = method(name), jax.random.split(jax.random.key(3), 3)
    together = jax.vmap(m.init, (0, None))(keys, batches()[0])
    both = jax.jit(jax.vmap(m.step, (0, None)))
    alone = [starter(name)(k, batches()[0]) for k in keys]
    for batch in batches()[:3]:
        together, _ = both(together, batch)
        alone = [stepper(name)(s, batch)[0] for s in alone]
    assert_close(together, jax.tree.map(lambda *a: np.stack(a), *alone), 1e-3)


@each_method
def test_tokens_spread_over_four_devices_give_the_same(name):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    one, infos = after(name, batches()[:3])
    put = [jax.device_put(b, NamedSharding(mesh, P("data"))) for b in batches()[:3]]
    state = jax.device_put(starter(name)(jax.random.key(0), batches()[0]), NamedSharding(mesh, P()))
    for batch in put:
        state, info = stepper(name)(state, batch)
    assert len(jax.tree.leaves(state)[0].sharding.device_set) == 4
    assert_close((state, info), (one, infos[-1]), 1e-3)


@each_method
def test_what_it_learns_is_a_dictionary(name):
    dictionary, x = learned(name), planted(2, 12)[0]
    assert isinstance(dictionary, Dictionary)
    assert (dictionary.n_latents, dictionary.d_in, dictionary.d_out) == (N, D_IN, D_IN)
    z, decoded, x_hat = through(dictionary, x)
    assert z.shape == (12, N)
    assert (np.asarray(z) >= 0).all() or name in SIGNED
    np.testing.assert_allclose(decoded, x_hat, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dictionary(jnp.asarray(x)), x_hat, rtol=1e-5, atol=1e-5)  # not under jit


@each_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_kept(name, dtype):
    x = jax.ShapeDtypeStruct((12, D_IN), jnp.dtype(dtype))
    assert {a.dtype for a in jax.eval_shape(through, learned(name), x)} == {jnp.dtype(dtype)}


@each_method
def test_leading_axes(name):
    d, x = learned(name), planted(2, 12)[0]
    (deep, flat, *others), decoded = shaped(d, x)
    np.testing.assert_allclose(np.asarray(deep).reshape(flat.shape), flat, rtol=1e-5, atol=1e-5)
    assert [a.shape for a in decoded] == [(2, 1, 6, D_IN), (12, D_IN), (D_IN,), (0, D_IN)]
    assert jax.eval_shape(d, x.reshape(2, 1, 6, D_IN)).shape == (2, 1, 6, D_IN)
    assert [z.shape for z in others] == [(N,), (0, N)]


@each_method
def test_batches_it_cannot_learn_from(name):
    m, good = method(name), batches()[0]
    with pytest.raises(UserError, match="no map to y"):
        m.init(jax.random.key(0), {**good, "y": good["x"]})
    with pytest.raises(UserError, match=r"this one: x int32\[64, 16\]"):
        m.step(m.init(jax.random.key(0), good), {"x": good["x"].astype(jnp.int32)})
    with pytest.raises(UserError, match="no finite, unmasked token"):
        m.init(jax.random.key(0), {**good, "mask": np.zeros(BATCH, bool)})
