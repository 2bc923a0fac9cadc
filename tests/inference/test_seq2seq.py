# SPDX-License-Identifier: Apache-2.0
"""Answers to a context against the whole answer at once, without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.inference import Sampler, complete, generate, steer_sweep
from jaxneuro.models import encode
from jaxneuro.taps import add, intervene, scale, zero

from ..parity.conftest import open_case

NEW = 6
START = np.zeros((3, 1), np.int32)


@pytest.fixture(scope="module")
def umt5():
    return open_case("umt5")


@pytest.fixture(scope="module")
def answer(umt5):
    return functools.partial(generate, umt5.model, START, max_new=NEW, **umt5.types)


@pytest.fixture(scope="module")
def whole(umt5):
    """Log-probabilities of every next token, given the answer so far."""

    @jax.jit
    def run(tokens, edits):
        logits = intervene(umt5.model.apply, edits)(umt5.model.weights, tokens, **umt5.types)
        return jax.nn.log_softmax(logits)

    return lambda new, edits=(): np.asarray(run(np.concatenate([START, new[:, :-1]], axis=1), edits))


EDITS = {
    "none": [],
    "of both stacks and between them": [
        scale("encoder.blocks.1.mlp_out", 2.0, pos=[7, 8]),
        zero("blocks.0.cross_attn.z", head=1),
        zero("blocks.2.cross_attn.v", key=7),
        zero("blocks.1.cross_attn.pattern", key=9, query=2),
        add("blocks.1.resid_mid_cross", np.ones(10, np.float32), pos=3),
        scale("blocks.2.attn.scores", 1.5),
    ],
}


@pytest.mark.parametrize("name", EDITS)
def test_greedy_answers_are_the_likeliest_of_the_whole(answer, whole, name):
    found = answer(edits=EDITS[name])
    expected = whole(np.asarray(found.tokens), EDITS[name])
    assert len(np.unique(found.tokens)) > 4, "not a loop of one token"
    np.testing.assert_array_equal(found.tokens, expected.argmax(-1))
    # Rounding of the same sums in another order.
    np.testing.assert_allclose(found.log_probs, expected.max(-1), atol=2e-5)


def test_edits_change_the_answer(answer):
    plain, edited = answer(), answer(edits=EDITS["of both stacks and between them"])
    assert np.abs(plain.log_probs[:, 1:] - edited.log_probs[:, 1:]).max() > 1e-3


def test_an_encoded_context_is_answered_alike_and_draws_are_of_the_same_logits(umt5, whole):
    context, mask = umt5.types["context"], umt5.types["context_mask"]
    hidden = jax.jit(functools.partial(encode, cfg=umt5.model.cfg))(umt5.model.weights, context, mask=mask)
    given = {"context": hidden, "context_mask": mask, "max_new": NEW}
    found = generate(umt5.model, START, **given, sampler=Sampler(temperature=2.0), key=jax.random.key(3))
    new = np.asarray(found.tokens)
    np.testing.assert_allclose(found.log_probs, np.take_along_axis(whole(new), new[..., None], -1)[..., 0], atol=2e-5)
    assert (whole(new).argmax(-1) != new).any()


WRONG = {
    "no context": ({"context": None, "context_mask": None}, "give forward a context="),
    "an id that is not there": ({"context": jnp.full((3, 20), 40)}, "token 40 is not in the vocabulary of 40"),
    "a row of padding": ({"context_mask": np.zeros((3, 20), bool)}, "context 0 is empty"),
    "a position behind the context": (
        {"edits": zero("encoder.blocks.0.mlp_out", pos=20)},
        "the context has 20 positions",
    ),
    "a key behind the context": ({"edits": zero("blocks.0.cross_attn.v", key=20)}, "at key=20: the context has 20"),
    "a position behind the answer": (
        {"edits": zero("blocks.0.mlp_out", pos=6)},
        "at pos=6: the prompt has 1 positions",
    ),
    "a layer that the encoder has not": ({"edits": zero("encoder.blocks.2.mlp_out")}, "no layer 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_answered_is_said(answer, name):
    given, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        answer(**given)


def test_texts_and_sweeps_have_no_context(umt5):
    for run in (lambda: complete(umt5.model, None, ["a"]), lambda: steer_sweep(umt5.model, START, zero, np.ones(2))):
        with pytest.raises(
            UserError, match=r"answers what its encoder read: use .*generate\(model, start, context=ids\)"
        ):
            run()
