# SPDX-License-Identifier: Apache-2.0
"""Sweeps against one generation per point, and what they compute once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxneuro.errors import UserError
from jaxneuro.inference import Sampler, generate, steer_sweep, sweeps
from jaxneuro.taps import add, clamp, scale, set_to, zero

from ..by_numpy import by_numpy
from .conftest import CFG, naive

NEW = 5
VECTOR = np.random.default_rng(3).normal(0, 1, 16).astype(np.float32)
DOSES = np.float32([-3, -1, 0, 0.5, 4])
RIGHT = np.array([[True] * 5 + [False] * 2, [True] * 7])
SWEEPS = {  # {name: (edits of a dose, the layer and the position that run again)}
    "a late layer and position": (lambda d: [add("blocks.2.resid_post", d * VECTOR, pos=4)], 2, 4),
    "from a position on": (lambda d: [add("blocks.1.mlp_out", d * VECTOR, pos=jnp.arange(3, 11))], 1, 3),
    "everywhere": (lambda d: [add("blocks.1.resid_pre", d * VECTOR)], 1, 0),
    "all layers": (lambda d: [scale("blocks.mlp.post", d, pos=5)], 0, 4),
    "generated only": (lambda d: [set_to("blocks.2.attn.z", d, head=1, pos=[8, 9])], 2, 4),
    "embedding": (lambda d: [scale("embed", d, pos=2)], -1, 2),
    "head": (lambda d: [add("logits", d * np.arange(40, dtype=np.float32), pos=-1)], 3, 4),
    "two sites": (lambda d: [zero("blocks.2.mlp_out", pos=4), clamp("blocks.1.resid_mid", -d, d, pos=3)], 1, 3),
    "patterns": (lambda d: [scale("blocks.1.attn.scores", d, query=4, key=1)], 1, 4),
}


def measured(logits):
    return jax.nn.log_softmax(logits).max(1)  # that of the greedy token


@pytest.mark.parametrize("name", SWEEPS)
def test_where_a_sweep_begins(model, prompts, name, monkeypatch):
    edits, *begins = SWEEPS[name]
    asked = {}
    monkeypatch.setattr(sweeps, "_swept", lambda *args, **kwargs: asked.update(kwargs))
    steer_sweep(model, prompts, edits, DOSES, mask=RIGHT, max_new=NEW)
    assert [asked["layer"], asked["pos"]] == begins


@pytest.fixture
def evaluated(monkeypatch):
    """A sweep's program by numpy instead of compiled."""
    swept = sweeps._program.__wrapped__  # without jit
    run = lambda *args, **fixed: by_numpy(functools.partial(swept, **fixed))(*args)  # noqa: E731
    monkeypatch.setattr(sweeps, "_swept", run)


@pytest.mark.parametrize("name", ["a late layer and position", "everywhere", "embedding"])
def test_a_sweep_is_a_loop_over_points(model, prompts, name, request):
    """The loop is over the whole text without a cache, by numpy (conftest.py)."""
    if name != "everywhere":  # which is compiled
        request.getfixturevalue("evaluated")
    edits = SWEEPS[name][0]
    found = steer_sweep(model, prompts, edits, DOSES, mask=RIGHT, max_new=NEW, measure=measured, chunk=2)
    assert found.generated.tokens.shape == (5, 2, NEW)
    for i, dose in enumerate(DOSES):
        tokens, logits = naive(model, prompts, NEW, RIGHT, edits(dose))
        np.testing.assert_array_equal(found.generated.tokens[i], tokens)
        np.testing.assert_allclose(found.generated.log_probs[i], log_softmax(logits, -1).max(-1), atol=3e-5)
    np.testing.assert_allclose(found.measured, found.generated.log_probs[..., 0], atol=1e-5)
    assert np.ptp(np.asarray(found.generated.log_probs), axis=0).max() > 1e-3, "doses differ"


def test_a_sweep_of_the_last_position_is_a_loop_over_generations(model, prompts, evaluated):
    edits = SWEEPS["head"][0]
    found = steer_sweep(model, prompts, edits, DOSES, mask=RIGHT, max_new=NEW)
    for i, dose in enumerate(DOSES):
        alone = generate(model, prompts, mask=RIGHT, max_new=NEW, edits=edits(dose))
        np.testing.assert_array_equal(found.generated.tokens[i], alone.tokens)
        np.testing.assert_allclose(found.generated.log_probs[i], alone.log_probs, atol=3e-5)


def test_positions_that_are_points(model, prompts, evaluated):
    """Where is a part of the point: the sweep begins at the first of them."""
    points = {"dose": DOSES[:2], "pos": np.array([3, 6])}
    edits = lambda p: [add("blocks.1.resid_post", p["dose"] * VECTOR, pos=p["pos"])]  # noqa: E731
    found = steer_sweep(model, prompts, edits, points, max_new=NEW)
    for i in range(2):
        alone = naive(model, prompts, NEW, edits=edits(jax.tree.map(lambda a, i=i: a[i], points)))[0]
        np.testing.assert_array_equal(found.generated.tokens[i], alone)


def test_points_draw_with_the_same_keys(model, prompts):
    key, sampler = jax.random.key(4), Sampler(temperature=2.0)
    edits = SWEEPS["a late layer and position"][0]
    found = steer_sweep(model, prompts, edits, np.float32([0, 0]), max_new=NEW, sampler=sampler, key=key)
    plain = generate(model, prompts, max_new=NEW, sampler=sampler, key=key)
    for tokens in found.generated.tokens:
        np.testing.assert_array_equal(tokens, plain.tokens)
    stop = int(plain.tokens[0, 1])
    ended = steer_sweep(model, prompts, edits, np.float32([0]), max_new=NEW, sampler=sampler, key=key, stop=[stop])
    assert int(ended.generated.lengths[0, 0]) <= 2
    assert bool(ended.generated.finished[0, 0])


def products(program):
    """Multiplications in the matrix products of a program, turns of its loops counted."""
    total = 0
    for eqn in program.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod([left[i] for i in contracted]))
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            total += turns * products(inner) if hasattr(inner, "eqns") else 0
    return total


def test_what_lies_before_the_first_edit_is_computed_once(model):
    """In multiplications of the program: the shared part once, and per point 1 of 3 layers at 2 of 20 positions."""
    tokens, doses = jnp.ones((1, 20), jnp.int32), jnp.arange(64.0)
    args = (model.weights, tokens, None)

    def cost(layer, pos, points):
        made = jax.vmap(lambda d: [add("blocks.2.resid_post", d * VECTOR, pos=18)])(points)
        rules = sweeps.Rules(sweeps.greedy, sweeps.row_keys(None, 1), jnp.zeros(0, jnp.int32), jnp.int32(0))
        fixed = {"cfg": CFG, "new": 1, "even": True, "shortest": 20, "measure": None, "chunk": 8}
        run = functools.partial(sweeps._program, **fixed, layer=layer, pos=pos)
        return products(jax.make_jaxpr(run)(*args, made, rules).jaxpr)

    reused, naive = cost(2, 18, doses), cost(-1, 0, doses)
    once = cost(-1, 0, doses[:1])
    assert naive > 60 * once
    assert reused < naive / 15  # 19 here: the shared part once is as much as 27 points
    per_point = (reused - cost(2, 18, doses[:8])) / 56
    assert 0 < per_point < once / 15


def test_what_cannot_be(model, prompts):
    edits = lambda d: [add("blocks.1.resid_post", d * VECTOR, pos=12)]  # noqa: E731
    with pytest.raises(UserError, match="at pos=12"):
        steer_sweep(model, prompts, edits, DOSES, max_new=NEW)
    with pytest.raises(UserError, match="Did you mean"):
        steer_sweep(model, prompts, lambda d: [scale("blocks.1.resid_pots", d)], DOSES)


ABSENT = {  # an edit of what is not there, as a function of a number that is right at 0
    "neuron": (lambda i: [zero("blocks.1.mlp.post", neuron=i * CFG.d_mlp)], "neuron=24 is out of range"),
    "head": (lambda i: [zero("blocks.*.attn.z", head=i * -5)], "head=-5 is out of range"),
    "layer": (lambda i: [zero("blocks.*.mlp.post", layer=i * 3)], "no layer 3 at 'blocks.mlp.post'"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_points_and_edits_of_what_is_not_there(name, model, prompts):
    """Although they are arguments of a compiled program, in which a number is not known."""
    edits, message = ABSENT[name]
    with pytest.raises(UserError, match=message):
        steer_sweep(model, prompts, edits, np.arange(2))
    with pytest.raises(UserError, match=message):
        generate(model, prompts, max_new=2, edits=edits(1))
