# SPDX-License-Identifier: Apache-2.0
"""What every dictionary method owes. A new method is one row of METHODS."""

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro import dictionaries as d
from jaxneuro.protocols import Dictionary, Method

from .conftest import ACTIVE, D_IN, TRUE, matched, planted, rows, shaped, through, train

N_LATENTS, STEPS, BATCH = 2 * TRUE, 300, 256

# As trained in these tests: a high rate for few steps, latents dead soon.
TRAINING = d.Training(learning_rate=1e-2, steps=STEPS, dead_after_tokens=20 * BATCH, warmup_steps=10)
SHORT = {"training": TRAINING}
JUMP = {"bandwidth": 0.1, "threshold_start": 0.05}


class Row(NamedTuple):
    """A method, and what the planted stream is too short or too plain for."""

    make: Callable[[], Method]
    symmetric: bool = True
    """Latents may change places."""
    fvu: float = 0.1
    cosine: float = 0.95


METHODS = {
    "topk": Row(lambda: d.topk(N_LATENTS, ACTIVE, **SHORT)),
    "batch_topk": Row(lambda: d.batch_topk(N_LATENTS, ACTIVE, **SHORT)),
    "multi_topk": Row(lambda: d.multi_topk(N_LATENTS, ACTIVE, **SHORT)),
    "group_max": Row(lambda: d.group_max(N_LATENTS, 2 * ACTIVE, **SHORT), False),
    "matryoshka": Row(lambda: d.matryoshka(N_LATENTS, ACTIVE, prefixes=(TRUE, N_LATENTS), **SHORT), False, cosine=0.93),
    "relu": Row(lambda: d.relu(N_LATENTS, 1.0, **SHORT)),
    "jumprelu": Row(lambda: d.jumprelu(N_LATENTS, target_l0=ACTIVE, **JUMP, **SHORT)),
    "gated": Row(lambda: d.gated(N_LATENTS, 3.0, **SHORT)),
    "matching_pursuit": Row(lambda: d.matching_pursuit(N_LATENTS, ACTIVE, **SHORT)),
    "atoms": Row(lambda: d.atoms(N_LATENTS, target_l0=ACTIVE, **JUMP, **SHORT)),
}


TRACED = collections.Counter()
"""How often the Python of each step ran."""


@functools.cache
def short(name: str) -> Method:
    method = METHODS[name].make()

    def step(state, batch):
        TRACED[name] += 1
        return method.step(state, batch)

    return method._replace(step=step)


@functools.cache
def stepper(name: str):
    return jax.jit(short(name).step)


each_method = pytest.mark.parametrize("name", METHODS)
each_recipe = pytest.mark.parametrize("name", ["topk", "jumprelu", "matching_pursuit"])
"""One method of each way to make a step (selected, dense, greedy); the others differ in what jax derives itself."""
each_rule = pytest.mark.parametrize("name", ["topk", "batch_topk", "group_max", "jumprelu", "matching_pursuit"])
"""Methods with derivatives and batching of this package's own, each once; the others' are made of these, or jax's."""


def stream(seed: int = 1, steps: int = STEPS) -> dict[str, np.ndarray]:
    return {"x": planted(seed, steps * BATCH)[0].reshape(steps, BATCH, D_IN)}


@pytest.fixture(scope="module")
def learned():
    """name -> (method, state, infos, dictionary) on the planted stream; trained once."""
    out = {}
    for name in METHODS:
        method = short(name)
        state, infos = train(method, stream())
        out[name] = method, state, infos, method.finish(state)
    return out


@each_method
def test_finds_a_planted_dictionary(name, learned):
    _, _, infos, dictionary = learned[name]
    x, truth = planted(99, 2000)  # tokens not seen
    cosine = matched(dictionary.W_dec, truth)
    row = METHODS[name]
    assert np.median(cosine) > row.cosine
    assert (cosine > 0.85).mean() > 0.8
    error = np.square(x - np.asarray(through(dictionary, x)[2])).sum()
    assert error / np.square(x - x.mean(0)).sum() < row.fvu
    assert infos["fvu"][-20:].mean() < row.fvu < infos["fvu"][0]


@each_method
def test_finds_nothing_in_noise(name):
    """Two seeds find the same directions in the planted stream, and no more agreement than chance in noise."""
    noise = {"x": np.random.default_rng(3).normal(size=(STEPS, BATCH, D_IN)).astype(np.float32)}
    method = short(name)
    a, b = (method.finish(train(method, noise, seed=s)[0]).W_dec for s in (0, 1))
    rng = np.random.default_rng(0)
    chance = np.mean([matched(rows(rng, N_LATENTS, D_IN), rows(rng, N_LATENTS, D_IN)).mean() for _ in range(20)])
    assert abs(matched(a, b).mean() - chance) < 0.06  # matching_pursuit .043 to .054: both seeds saw the same tokens


@each_method
def test_a_second_step_does_not_retrace(name):
    batch, step = {"x": planted(1, BATCH)[0]}, stepper(name)
    here, _ = step(short(name).init(jax.random.key(0), batch), batch)
    before = TRACED[name]
    step(here, batch)
    assert TRACED[name] == before


@each_recipe
def test_jit_equals_eager(name):
    method, batch = short(name), {"x": jnp.asarray(planted(1, BATCH)[0])}
    state = method.init(jax.random.key(0), batch)
    here, info = stepper(name)(state, batch)
    there, info_there = method.step(state, batch)
    for one, two in zip(jax.tree.leaves((here, info)), jax.tree.leaves((there, info_there)), strict=True):
        assert (one.shape, one.dtype, one.weak_type) == (two.shape, two.dtype, two.weak_type)
    moved = float(info["learning_rate"])
    for name, value in here._asdict().items():  # Adam makes a step of full size of a gradient of rounding errors
        atol = 1.1 * moved if name == "parameters" else 1e-5
        for one, two in zip(jax.tree.leaves(value), jax.tree.leaves(getattr(there, name)), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=atol, err_msg=name)
    assert {k: float(v) for k, v in info.items()} == pytest.approx(
        {k: float(v) for k, v in info_there.items()}, rel=1e-4
    )


@each_method
def test_a_step_keeps_shapes_and_types_of_the_state(name):
    method, batch = short(name), {"x": jax.ShapeDtypeStruct((BATCH, D_IN), jnp.float32)}
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    again, info = jax.eval_shape(method.step, state, batch)
    assert jax.tree.structure(state) == jax.tree.structure(again)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
    assert all(leaf.shape == () for leaf in jax.tree.leaves(info))


@each_method
def test_resumed_equals_uninterrupted_bitwise(name):
    method = short(name)
    batches = [{"x": jnp.asarray(b)} for b in stream(steps=6)["x"]]
    step = stepper(name)

    def run(state, part):
        infos = []
        for batch in part:
            state, info = step(state, batch)
            infos.append(jax.tree.map(np.asarray, info))
        return state, infos

    start = method.init(jax.random.key(0), batches[0])
    whole, infos = run(start, batches)
    half, first = run(start, batches[:3])
    saved = jax.tree.map(np.asarray, half)  # as if written and read
    end, second = run(jax.tree.map(jnp.asarray, saved), batches[3:])
    for one, two in zip(jax.tree.leaves((whole, infos)), jax.tree.leaves((end, first + second)), strict=True):
        np.testing.assert_array_equal(one, two)


@each_method
def test_what_it_learns_is_a_dictionary(name, learned):
    dictionary = learned[name][3]
    assert isinstance(dictionary, Dictionary)
    z, decoded, x_hat = through(dictionary, planted(2, 12)[0])
    assert z.shape == (12, N_LATENTS)
    assert (np.asarray(z) >= 0).all()
    np.testing.assert_allclose(decoded, x_hat, rtol=1e-5, atol=1e-5)


@each_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_kept(name, dtype, learned):
    dictionary = learned[name][3]
    x = jax.ShapeDtypeStruct((12, D_IN), jnp.dtype(dtype))
    assert {a.dtype for a in jax.eval_shape(through, dictionary, x)} == {jnp.dtype(dtype)}


@each_method
def test_leading_axes(name, learned):
    dictionary = learned[name][3]
    (deep, flat, *others), decoded = shaped(dictionary, planted(2, 12)[0])
    np.testing.assert_allclose(np.asarray(deep).reshape(flat.shape), flat, rtol=1e-6, atol=1e-6)
    assert [a.shape for a in decoded] == [(2, 1, 6, D_IN), (12, D_IN), (D_IN,), (0, D_IN)]
    assert [z.shape for z in others] == [(N_LATENTS,), (0, N_LATENTS)]


@each_method
def test_saved_and_loaded_is_identical(name, learned, tmp_path):
    dictionary = learned[name][3]
    d.save_native(dictionary, tmp_path / "dictionary")
    again = d.load_native(tmp_path / "dictionary")
    assert jax.tree.structure(again) == jax.tree.structure(dictionary)
    for one, two in zip(jax.tree.leaves(dictionary), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)


@each_method
def test_permuting_latents_changes_nothing(name, learned):
    if not METHODS[name].symmetric:
        pytest.skip("its latents have places")
    method, state, _, _ = learned[name]
    order = np.random.default_rng(0).permutation(N_LATENTS)

    def permuted(leaf):
        return np.asarray(leaf)[order] if leaf.ndim and leaf.shape[0] == N_LATENTS else leaf

    batch = {"x": jnp.asarray(planted(5, BATCH)[0])}
    step = stepper(name)
    one, info = step(state, batch)
    two, info_two = step(jax.tree.map(permuted, state), batch)
    for key, value in info.items():
        np.testing.assert_allclose(value, info_two[key], rtol=1e-4, atol=1e-6, err_msg=key)
    x = batch["x"]
    told = (through(method.finish(state), x)[2] for state in (one, two))
    np.testing.assert_allclose(*told, rtol=1e-3, atol=1e-4)
    for a, b in zip(jax.tree.leaves(jax.tree.map(permuted, one)), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@each_rule
@pytest.mark.usefixtures("this_machine")
def test_under_vmap_each_equals_its_own_run(name):
    """Two seeds trained together on one stream."""
    method, batch = short(name), {"x": jnp.asarray(planted(1, BATCH)[0])}
    states = [method.init(jax.random.key(s), batch) for s in range(2)]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    step, both = stepper(name), jax.jit(jax.vmap(method.step, (0, None)))
    for _ in range(2):
        together, _ = both(together, batch)
        states = [step(s, batch)[0] for s in states]
    for a, *alone in zip(jax.tree.leaves(together), *map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, np.stack(alone), rtol=1e-4, atol=1e-5)
