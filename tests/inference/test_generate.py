# SPDX-License-Identifier: Apache-2.0
"""Generation against a loop over the whole text without a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from jaxneuro.errors import UserError
from jaxneuro.inference import Sampler, generate
from jaxneuro.inference.generate import KEPT, _programs
from jaxneuro.models import Transformer, inputs
from jaxneuro.taps import add, clamp, patch, scale, set_to, zero

from .conftest import CFG, naive, random_weights

NEW = 9
COMPILED: list[str] = []


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


monitoring.register_event_duration_secs_listener(_count)
LEFT = np.array([[False] * 2 + [True] * 5, [True] * 7])
RIGHT = np.array([[True] * 4 + [False] * 3, [True] * 7])
PADDING = {"none": None, "left": LEFT, "right": RIGHT, "both": np.stack([LEFT[0], RIGHT[0]])}


def close_scores(found, logits, tokens):
    """The log-probabilities are those of the naive loop's logits."""
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, expected, atol=2e-5)  # rounding of the same sums in another order


@pytest.mark.parametrize("padding", PADDING)
def test_greedy_is_the_naive_loop(model, prompts, padding):
    mask = PADDING[padding]
    expected, logits = naive(model, prompts, NEW, mask)
    assert len(np.unique(expected)) > 4, "not a loop of one token"
    found = generate(model, prompts, mask=mask, max_new=NEW)
    np.testing.assert_array_equal(found.tokens, expected)
    close_scores(found.log_probs, logits, expected)
    assert found.lengths.tolist() == [NEW] * 2
    assert not found.finished.any()


def test_positions_that_count_real_tokens_only(prompts):
    """OPT's: learned, padding not counted."""
    learned = {"learned_positions": True, "masked_positions": True, "position_offset": 2}
    cfg = dataclasses.replace(CFG, rope=None, **learned)
    model = Transformer(cfg, random_weights(cfg))
    for mask in (PADDING["both"], None):
        found = generate(model, prompts, mask=mask, max_new=NEW)
        np.testing.assert_array_equal(found.tokens, naive(model, prompts, NEW, mask)[0])


VECTOR = np.random.default_rng(3).normal(0, 2, 16).astype(np.float32)
EDITS = {
    "everywhere": [add("blocks.1.resid_post", VECTOR)],
    "a position of the prompt": [set_to("blocks.0.resid_post", VECTOR, pos=3)],
    "a position that is generated": [set_to("blocks.2.resid_pre", VECTOR, pos=10)],
    "across both": [add("blocks.1.mlp_out", VECTOR, pos=range(5, 9)), zero("blocks.2.attn.z", head=1, pos=[2, 11])],
    "embedding and head": [scale("embed", 1.5, pos=8), add("logits", 4 * np.eye(40)[7], pos=9)],
    "inside attention": [zero("blocks.1.attn.pattern", key=2), scale("blocks.0.attn.scores", 2.0, query=9)],
    "every layer": [clamp("blocks.mlp.post", -0.1, 0.1, neuron=range(12))],
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_acts_when_its_position_is_run(model, prompts, name):
    """Row 0 is padded on the left, row 1 on the right: it goes on three positions earlier."""
    mask = PADDING["both"]
    plain = generate(model, prompts, mask=mask, max_new=NEW)
    found = generate(model, prompts, mask=mask, max_new=NEW, edits=EDITS[name])
    expected, logits = naive(model, prompts, NEW, mask, EDITS[name])
    np.testing.assert_array_equal(found.tokens, expected)
    close_scores(found.log_probs, logits, expected)
    assert not np.allclose(found.log_probs, plain.log_probs, atol=1e-3), "the edit does something"


def test_rows_steered_in_their_own_way_are_those_steered_one_by_one(model, prompts):
    rng = np.random.default_rng(1)
    vectors, bounds = rng.normal(0, 2, (2, 1, 16)).astype(np.float32), np.float32([0.0, 0.3]).reshape(2, 1, 1)
    text = np.repeat(prompts[:1], 2, axis=0)

    def edits(i):
        return [add("blocks.1.resid_post", vectors[i]), clamp("blocks.0.mlp.post", bounds[i], neuron=[1, 2])]

    together = generate(model, text, max_new=NEW, edits=edits(slice(None)))
    for i in range(2):
        alone = generate(model, text[:1], max_new=NEW, edits=edits(slice(i, i + 1)))
        np.testing.assert_array_equal(together.tokens[i], alone.tokens[0])
        np.testing.assert_allclose(together.log_probs[i], alone.log_probs[0], atol=2e-5)
    assert together.tokens[0].tolist() != together.tokens[1].tolist()


def test_prompt_edits_take_values_with_the_prompts_positions(model, prompts):
    values = np.random.default_rng(2).normal(size=(2, 7, 16)).astype(np.float32)
    found = generate(model, prompts, max_new=3, prompt_edits=[patch("blocks.1.resid_post", values)])
    wide = np.zeros((2, 24, 16), np.float32)
    wide[:, :7] = values
    expected = naive(model, prompts, 3, edits=[set_to("blocks.1.resid_post", wide, pos=range(7))])[0]
    np.testing.assert_array_equal(found.tokens, expected)
    with pytest.raises(UserError, match="does not broadcast"):
        generate(model, prompts, max_new=3, edits=[patch("blocks.1.resid_post", values)])


def test_rows_end_at_a_stop_token_and_the_loop_when_all_have(model, prompts):
    free = np.asarray(generate(model, prompts, max_new=NEW).tokens)
    stop = [int(free[0, 2]), int(free[1, 5])]
    ends = [1 + np.flatnonzero(np.isin(row, stop))[0] for row in free]
    steps = []
    look = lambda step, tokens, finished: steps.append((step, finished.tolist()))  # noqa: E731
    found = generate(model, prompts, max_new=NEW, stop=stop, fill=39, on_token=look)
    assert found.lengths.tolist() == ends
    assert found.finished.tolist() == [True, True]
    for row, end, tokens, scores in zip(free, ends, found.tokens, found.log_probs, strict=True):
        assert tokens.tolist() == [*row[:end], *[39] * (NEW - end)]
        assert not scores[end:].any()
    assert [s for s, _ in steps] == list(range(1, max(ends) + 1)), "not one step more"
    assert steps[-1][1] == [True, True]


def test_chunks_and_a_callback_change_nothing(model, prompts):
    sampler, key = Sampler(temperature=1.5, top_p=0.9), jax.random.key(3)
    whole = generate(model, prompts, mask=RIGHT, max_new=NEW, sampler=sampler, key=key)
    seen = []
    look = lambda step, tokens, finished: seen.append(tokens.copy())  # noqa: E731
    parts = generate(model, prompts, mask=RIGHT, max_new=NEW, sampler=sampler, key=key, on_token=look, every=4)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert [s.shape[1] for s in seen] == [1, 5, 9]
    np.testing.assert_array_equal(seen[1], whole.tokens[:, :5])


def test_a_callback_can_end_rows(model, prompts):
    def look(step, tokens, finished):
        return finished | np.array([step >= 2, step >= 4])

    found = generate(model, prompts, max_new=NEW, on_token=look)
    assert found.lengths.tolist() == [2, 4]
    np.testing.assert_array_equal(found.tokens[:, :2], generate(model, prompts, max_new=NEW).tokens[:, :2])


def test_seeds(model, prompts):
    def run(seed, rows=slice(None)):
        sampler = Sampler(temperature=2.0)
        return generate(model, prompts[rows], max_new=NEW, sampler=sampler, key=jax.random.key(seed)).tokens

    np.testing.assert_array_equal(run(0), run(0))
    assert run(0).tolist() != run(1).tolist()
    np.testing.assert_array_equal(run(0)[:1], run(0, slice(1)))  # a row does not depend on the others


def test_other_values_compile_nothing(model, prompts):
    def run(seed, t, dose, pos, stop):
        generate(
            model,
            prompts,
            max_new=NEW,
            sampler=Sampler(temperature=t),
            key=jax.random.key(seed),
            edits=[add("blocks.1.resid_post", dose * VECTOR, pos=pos)],
            stop=[stop],
        )

    run(0, 1.0, 1.0, 3, 1)
    before = len(COMPILED)
    for i in range(1, 4):
        run(i, 1.0 + i, 0.5 * i, 2 + i, i)
    assert len(COMPILED) == before


def test_programs_of_many_lengths_are_let_go_of(model):
    """Made and not run: as many pairs are kept as are allowed."""
    for n in range(1, KEPT + 5):
        _programs(model.cfg, 2, True, ((1, n),), None)
    assert _programs.cache_info().currsize <= KEPT
    first = _programs(model.cfg, 2, True, ((1, KEPT + 4),), None)
    assert first is _programs(model.cfg, 2, True, ((1, KEPT + 4),), None)
    assert first is not _programs(model.cfg, 2, True, ((1, 1),), None)


class Said:
    """What is refused, and how."""

    ids = np.ones((1, 7), np.int32)
    CASES = {  # noqa: RUF012
        "empty row": ({"mask": np.array([[False] * 7])}, "prompt 0 is empty"),
        "no tokens": ({"tokens": np.ones((1, 0), np.int32)}, "prompt 0 is empty"),
        "no rows": ({"tokens": np.ones((0, 3), np.int32)}, r"whole numbers \[batch, pos\]"),
        "one row": ({"tokens": np.ones(3, np.int32)}, r"whole numbers \[batch, pos\]"),
        "floats": ({"tokens": np.ones((1, 3))}, "type float64"),
        "vocabulary": ({"tokens": ids * 40}, "token 40 is not in the vocabulary of 40"),
        "nothing new": ({"max_new": 0}, "max_new=0"),
        "mask": ({"mask": np.ones((1, 6), bool)}, r"the mask of prompt \[1, 7\] is boolean .* this is bool \[1, 6\]"),
        "additive mask": ({"mask": np.array([[0.0] * 5 + [-1e9] * 2])}, r"is boolean .* this is float64 \[1, 7\]"),
        "a mask of NaN": ({"mask": np.full((1, 7), np.nan, np.float32)}, "is boolean .* this is float32"),
        "a mask of numbers": ({"mask": np.full((1, 7), 2)}, "is boolean .* this is int64"),
        "stop": ({"stop": [41]}, r"stop=\[41\]"),
        "position": ({"edits": [zero("blocks.0.resid_post", pos=10)]}, "at pos=10: .* 7 positions and 10 are run"),
        "early": ({"edits": [zero("blocks.0.resid_post", pos=-8)]}, "at pos=-8"),
        "query": ({"edits": [zero("blocks.0.attn.scores", query=[1, 12])]}, "at query=12"),
        "site": ({"edits": [zero("blocks.0.resid_pots")]}, "Did you mean 'blocks.resid_post'"),
        "layer": ({"edits": [zero("blocks.3.resid_post")]}, "no layer 3"),
        "shape": ({"edits": [add("blocks.0.resid_post", np.ones(5, np.float32))]}, "does not broadcast"),
        "order": ({"edits": [add("blocks.0.resid_post", np.ones(16), d_model=[3, 1])]}, r"d_model=\[3, 1\] does not"),
        "mask of rows": ({"edits": [zero("blocks.0.resid_post", pos=[[True] * 7])]}, "a mask has one axis"),
        "no mask": ({"edits": [zero("blocks.0.resid_post", pos=True)]}, "a mask has one axis"),
        "every": ({"every": 0}, "every=0"),
    }


@pytest.mark.parametrize("name", Said.CASES)
def test_what_cannot_be_is_said_before_any_compute(model, monkeypatch, name):
    change, message = Said.CASES[name]
    given = {"tokens": Said.ids, "max_new": 4, **change}
    broken = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), model.weights)
    monkeypatch.setattr(Transformer, "weights", broken)  # nothing could be computed with these
    with pytest.raises(UserError, match=message):
        generate(model, given.pop("tokens"), **given)


def test_a_table_of_learned_positions_ends():
    cfg = dataclasses.replace(CFG, rope=None, learned_positions=True)
    learned = Transformer(cfg, random_weights(cfg))
    for length, new, most in ((7, 27, 26), (40, 4, 0)):
        need = f"a prompt of {length} tokens and {new} new ones need {length + new - 1} positions"
        with pytest.raises(UserError, match=f"{need}, but this model has learned only 32.*at most {most}"):
            generate(learned, np.ones((1, length), np.int32), max_new=new)


def test_rotary_positions_go_on_and_it_is_said_once(model, prompts, capsys):
    """n_ctx is how long the texts of training were: it changes no number."""
    inputs._say_once.cache_clear()
    short = Transformer(dataclasses.replace(CFG, n_ctx=8), model.weights)
    for _ in range(2):
        found = generate(short, prompts, max_new=NEW)
    np.testing.assert_array_equal(found.tokens, generate(model, prompts, max_new=NEW).tokens)
    assert capsys.readouterr().err.count("trained on texts of 8 tokens at most") == 1


def test_encoders_and_headless_models_are_refused(prompts):
    for change, message in (({"causal": False}, "not causal"), ({"has_head": False}, "has no head")):
        cfg = dataclasses.replace(CFG, windows=(), **change)
        with pytest.raises(UserError, match=message):
            generate(Transformer(cfg, random_weights(cfg)), prompts, max_new=2)


def test_the_last_position_of_the_context_is_run(model):
    """The newest token need not be run, so a prompt of 7 may have 26 new tokens in a context of 32."""
    found = generate(model, jnp.ones((1, 7), jnp.int32), max_new=26)
    assert found.tokens.shape == (1, 26)
    assert bool(jnp.isfinite(found.log_probs).all())
