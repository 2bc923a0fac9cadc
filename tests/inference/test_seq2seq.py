# SPDX-License-Identifier: Apache-2.0
"""Answers to a context against the whole answer at once, without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.activations.text import read_windows
from jaxneuro.data import Tokenizer
from jaxneuro.errors import UserError
from jaxneuro.inference import Sampler, complete, generate, steer_sweep, sweeps
from jaxneuro.models import Transformer, encode
from jaxneuro.taps import add, intervene, scale, zero

from ..parity.conftest import open_case
from .conftest import word_tokenizer
from .test_sweeps import products

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


def test_relative_positions_have_no_limit(umt5, answer, tmp_path):
    """T5 states how long the texts of training were; its bias is the same from max_distance on."""
    cfg = umt5.model.cfg
    encoder = dataclasses.replace(cfg.encoder, n_ctx=3)
    short = Transformer(dataclasses.replace(cfg, n_ctx=3, encoder=encoder), umt5.model.weights)
    found = generate(short, START, max_new=NEW, **umt5.types)
    np.testing.assert_array_equal(found.tokens, answer().tokens)
    (tmp_path / "a.txt").write_text("w2 w3 w4 w5 " * 8)
    words = Tokenizer.from_hf(word_tokenizer(cfg.d_vocab))
    rows = read_windows(short, words, str(tmp_path / "a.txt"), length=16)
    assert rows.length == 16


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


WORDS = np.random.default_rng(4).integers(2, 40, (3, 19))
LENGTHS = [19, 2, 7]  # and </s>: in shape what `umt5.types` has
TEXTS = [" ".join(f"w{i}" for i in row[:n]) for row, n in zip(WORDS, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_hf(word_tokenizer(40))


@pytest.fixture(scope="module")
def answers(umt5, tokenizer):
    """All of max_new, by the programs that `answer` compiled."""
    endless = dataclasses.replace(tokenizer, eos_id=None, end_ids=())
    model = Transformer(umt5.model.cfg, umt5.model.weights, '{"decoder_start_token_id": 0}')
    return functools.partial(complete, model, endless, TEXTS, max_new=NEW, edits=[])


def test_texts_are_answered_as_if_each_were_alone(umt5, answers):
    found = answers()
    assert [c.prompt for c in found] == TEXTS
    short, tokens = jnp.array([[*WORDS[1, :2], 1]]), jnp.array([[0, *found[1].tokens[:-1]]])  # without padding
    logits = jax.jit(umt5.model.apply)(umt5.model.weights, tokens, context=short)
    scores = np.asarray(jax.nn.log_softmax(logits))[0]
    assert found[1].tokens == scores.argmax(-1).tolist()
    np.testing.assert_allclose(found[1].log_probs, scores.max(-1), atol=2e-5)
    words = {0: "<pad>", 1: "</s>"}
    assert found[1].text == " ".join(words.get(token, f"w{token}") for token in found[1].tokens)
    ids, mask = np.zeros((3, 20), np.int32), np.arange(20) <= np.array(LENGTHS)[:, None]
    for row, words, n in zip(ids, WORDS, LENGTHS, strict=True):
        row[: n + 1] = [*words[:n], 1]
    plain = generate(umt5.model, START, context=ids, context_mask=mask, max_new=NEW, edits=[])
    assert [c.tokens for c in found] == plain.tokens.tolist()
    assert len({tuple(c.tokens) for c in found}) == 3, "answers to the texts"


def test_stop_strings_and_streaming_of_answers(answers):
    free, pieces = answers(), ["", "", ""]

    def show(i, piece):
        pieces[i] += piece

    stop = free[0].text[3:7]
    found = answers(stop=[stop], on_text=show)
    assert [c.text for c in found] == pieces == [c.text.partition(stop)[0] for c in free]
    assert found[0].reason == "stop"


def test_texts_to_answer_are_refused_like_others(umt5, tokenizer):
    with pytest.raises(UserError, match="prompt 1 is empty"):
        complete(umt5.model, tokenizer, ["w3", ""])
    silent = Transformer(umt5.model.cfg, umt5.model.weights, '{"bos_token_id": 3}')
    with pytest.raises(UserError, match="does not say what answers begin with: add decoder_start_token_id"):
        complete(silent, tokenizer, ["w3"])
    assert Transformer(umt5.model.cfg, umt5.model.weights, '{"pad_token_id": 3}').start_token == 3


DOSES = np.float32([-2, 0, 3])
VECTOR = jnp.asarray(np.random.default_rng(3).normal(0, 1, 10), jnp.float32)
PREFIX = np.array([[0, 5, 9]] * 3, np.int32)
SWEEPS = {  # {name: (edits of a dose, the layer of the encoder, the layer and the position that run again)}
    "decoder": (
        lambda d: [add("blocks.1.cross_attn_out", d * VECTOR, pos=2), scale("blocks.2.cross_attn.v", d, key=3)],
        (None, 1, 0),
    ),
    "decoder, one position": (lambda d: [add("blocks.2.cross_attn_out", d * VECTOR, pos=[2, 4])], (None, 2, 2)),
    "encoder": (lambda d: [add("encoder.blocks.1.mlp_out", d * VECTOR, pos=7)], (1, -1, 0)),
    "both": (
        lambda d: [scale("encoder.ln_final.normalized", d), add("blocks.1.resid_mid_cross", d * VECTOR, pos=2)],
        (2, -1, 0),
    ),
    "its embedding": (lambda d: [scale("encoder.embed", d)], (-1, -1, 0)),
}


@pytest.fixture(scope="module")
def sweep(umt5):
    return functools.partial(steer_sweep, umt5.model, PREFIX, max_new=3, **umt5.types)


@pytest.mark.parametrize("name", SWEEPS)
def test_where_a_sweep_of_two_stacks_begins(sweep, name, monkeypatch):
    edits, begins = SWEEPS[name]
    asked = {}
    monkeypatch.setattr(sweeps, "_swept", lambda *args, **kwargs: asked.update(kwargs))
    sweep(edits, DOSES)
    assert (asked["encoder"], asked["layer"], asked["pos"]) == begins


@pytest.mark.parametrize("name", ["decoder, one position", "both"])
def test_a_sweep_of_two_stacks_is_a_loop_over_points(umt5, sweep, name):
    edits = SWEEPS[name][0]
    found = sweep(edits, DOSES).generated
    run = jax.jit(
        lambda tokens, dose: intervene(umt5.model.apply, edits(dose))(umt5.model.weights, tokens, **umt5.types)
    )
    for tokens, scores, dose in zip(found.tokens, found.log_probs, DOSES, strict=True):
        text = np.concatenate([PREFIX, tokens[:, :-1]], axis=1)
        expected = np.asarray(jax.nn.log_softmax(run(text, dose)))[:, 2:]
        np.testing.assert_array_equal(tokens, expected.argmax(-1))
        np.testing.assert_allclose(scores, expected.max(-1), atol=2e-5)
    assert np.ptp(np.asarray(found.log_probs), axis=0).max() > 1e-3, "doses differ"


def each_turn(program, turns):
    """Multiplications in one turn of the loop that has so many."""
    for eqn in program.eqns:
        if (inner := eqn.params.get("jaxpr")) is not None:
            inner = getattr(inner, "jaxpr", inner)
            looped = eqn.primitive.name == "scan" and eqn.params["length"] == turns
            if found := products(inner) if looped else each_turn(inner, turns):
                return found
    return 0


def test_the_encoder_runs_once_and_below_its_first_edit(umt5):
    """In multiplications that each point costs: those of the decoder alone; its keys; and half of the encoder."""
    cfg, weights = umt5.model.cfg, umt5.model.weights
    rules = sweeps.Rules(sweeps.greedy, sweeps.row_keys(None, 3), jnp.zeros(0, jnp.int32), jnp.int32(0))
    source = (umt5.types["context"], umt5.types["context_mask"])

    def per_point(name, encoder):
        made = jax.vmap(SWEEPS[name][0])(jnp.ones(7))
        fixed = {"cfg": cfg, "new": 1, "even": True, "shortest": 3, "measure": None, "chunk": 1}
        run = functools.partial(sweeps._program, **fixed, encoder=encoder, layer=-1, pos=0)
        return each_turn(jax.make_jaxpr(run)(weights, jnp.asarray(PREFIX), None, made, rules, source).jaxpr, 7)

    reads = products(jax.make_jaxpr(functools.partial(encode, cfg=cfg))(weights, source[0], mask=source[1]).jaxpr)
    alone = per_point("decoder", None)
    keys = per_point("both", 2) - alone  # what the decoder's layers make of the context
    assert 0 < keys < reads
    assert per_point("encoder", 1) - alone == pytest.approx(keys + reads / 2)


def test_a_sweep_of_what_is_not_read(umt5, sweep):
    edits = SWEEPS["encoder"][0]
    with pytest.raises(UserError, match="give forward a context="):
        sweep(edits, DOSES, context=None, context_mask=None)
    hidden = jnp.zeros((3, 20, 10))
    with pytest.raises(UserError, match="no site 'encoder"):
        sweep(edits, DOSES, context=hidden)
    with pytest.raises(UserError, match="the context has 20 positions"):
        sweep(lambda d: [scale("encoder.embed", d, pos=20)], DOSES)
