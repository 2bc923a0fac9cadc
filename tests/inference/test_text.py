# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxneuro
from jaxneuro.errors import UserError
from jaxneuro.inference import complete, generate
from jaxneuro.inference.text import Running
from jaxneuro.models import Transformer
from jaxneuro.taps import add

from .conftest import CFG, begin_tokenizer, random_weights

TEXT = "Größe: 12 µm — „Übermaß“ 😀 und ещё 漢字, fin.\n"


@pytest.fixture(scope="module")
def bundled():
    return jaxneuro.load("bundled"), jaxneuro.load_tokenizer("bundled")


def running(tokenizer, text, stop, prompt="Eins"):
    row = Running(tokenizer, tokenizer.encode(prompt), stop, ())
    shown = []
    for token in tokenizer.encode(text):
        row.push(token)
        shown.append(row.news())
    row.close()
    return row, [*shown, row.news()]


def test_characters_split_between_tokens_come_whole(bundled):
    row, shown = running(bundled[1], TEXT, ())
    assert row.text == "".join(shown) == TEXT
    assert not any("\ufffd" in piece for piece in shown)
    assert len(row.tokens) == len(bundled[1].encode(TEXT)) > len([s for s in shown if s])


@pytest.mark.parametrize("stop", ["µm", "maß“ ", "😀", "und ещё", ".\n", "G", "漢"])
def test_a_stop_string_is_found_however_it_is_cut_into_tokens(bundled, stop):
    row, shown = running(bundled[1], TEXT, ["never", stop])
    assert row.stopped
    assert row.text == "".join(shown) == TEXT[: TEXT.index(stop)]
    used = bundled[1].decode(row.tokens)
    assert stop in used
    assert stop not in bundled[1].decode(row.tokens[:-1])


def test_the_first_of_several_stops_counts(bundled):
    assert running(bundled[1], TEXT, ["ещё", "Über", "maß"])[0].text == TEXT[: TEXT.index("Über")]


def test_what_may_begin_a_stop_string_is_not_shown_yet(bundled):
    row = Running(bundled[1], [], ["abcd"], ())
    for token in bundled[1].encode("xabc"):
        row.push(token)
    assert row.news() == "x"
    for token in bundled[1].encode("e"):
        row.push(token)
    assert row.news() == "abce"
    row = Running(bundled[1], [], ["abcd"], ())
    for token in bundled[1].encode("xab"):
        row.push(token)
    row.close()
    assert row.text == "xab"


def test_an_unfinished_character_at_the_end_is_shown_as_it_is(bundled):
    tokenizer = bundled[1]
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    row = Running(tokenizer, [], (), ())
    row.push(ids[0])
    assert row.text == ""
    row.close()
    assert row.text == tokenizer.decode(ids[:1])


PROMPTS = ["Die Datei ist nicht", "The file", "Le fichier « x » n'est pas une"]


@pytest.mark.parametrize("dtype", [np.float32, jax.numpy.bfloat16])
def test_each_text_goes_on_as_if_it_were_alone(bundled, dtype):
    model, tokenizer = bundled
    model = Transformer(model.cfg, jax.tree.map(lambda a: a.astype(dtype), model.weights))
    together = complete(model, tokenizer, PROMPTS, max_new=10)
    exact = dtype == np.float32
    # A batch adds up in another order. In bfloat16 that rounds some sums to the next number, and of logits in [8, 16)
    # that is 1/16: a log probability is a difference of two, and of two tokens as near as that either is chosen.
    atol = 2e-5 if exact else 2 / 16
    for prompt, found in zip(PROMPTS[:2], together, strict=False):
        ids = tokenizer.encode(prompt)
        alone = generate(model, np.array([ids]), max_new=10, stop=[tokenizer.eos_id])
        assert int(alone.lengths[0]) == len(found.tokens) == 10
        same = int((alone.tokens[0] == np.array(found.tokens)).cumprod().sum())
        assert same == 10 or not exact
        np.testing.assert_allclose(found.log_probs[: same + 1], alone.log_probs[0, : same + 1], rtol=0, atol=atol)
        assert found.prompt + found.text == tokenizer.decode([*ids, *found.tokens])
        assert found.reason == "length"


@pytest.mark.parametrize("every", [1, 7])
def test_stop_strings_and_streaming(bundled, every):
    model, tokenizer = bundled
    free = complete(model, tokenizer, PROMPTS, max_new=10)
    stop = [free[0].text[5:9], free[1].text[9:11]]
    pieces = ["", "", ""]

    def show(i, piece):
        pieces[i] += piece

    found = complete(model, tokenizer, PROMPTS, max_new=10, stop=stop, on_text=show, every=every)
    for a, b, shown in zip(found, free, pieces, strict=True):
        cut = min((at for s in stop if (at := b.text.find(s)) >= 0), default=None)
        assert a.text == shown == b.text[:cut]
        assert a.reason == ("length" if cut is None else "stop")
        assert a.tokens == b.tokens[: len(a.tokens)]
        assert len(a.log_probs) == len(a.tokens)
    assert found[0].reason == "stop"


def test_the_end_token_ends_a_text(bundled):
    model, tokenizer = bundled
    edits = [add("logits", 100.0 * np.eye(model.cfg.d_vocab, dtype=np.float32)[tokenizer.eos_id], pos=[6, 7, 8, 9])]
    found = complete(model, tokenizer, PROMPTS[:1], max_new=10, edits=edits)[0]
    assert found.reason == "stop"
    assert found.tokens[-1] == tokenizer.eos_id
    assert found.text == complete(model, tokenizer, PROMPTS[:1], max_new=len(found.tokens) - 1)[0].text


WRONG = {
    "no prompts": ({"prompts": []}, "at least one"),
    "a text": ({"prompts": "a"}, "a list of texts"),
    "empty": ({"prompts": ["a", ""]}, "prompt 1 is empty"),
    "stop": ({"stop": "a"}, "stop is a list of strings"),
    "empty stop": ({"stop": [""]}, "none of them empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_completed(bundled, name):
    change, message = WRONG[name]
    given = {"prompts": ["a"], "max_new": 2, **change}
    with pytest.raises(UserError, match=message):
        complete(*bundled, given.pop("prompts"), **given)


def test_a_token_without_a_row_is_refused_by_name(bundled):
    model, tokenizer = bundled
    small = dataclasses.replace(model.cfg, d_vocab=100)
    cut = jax.tree.map(lambda a: a, model.weights)
    cut["embed"]["tok"] = cut["embed"]["tok"][:100]
    with pytest.raises(
        UserError, match=r"token \d+ \('Die' of the tokenizer bundled\) has no row in the model's table of 100"
    ):
        complete(Transformer(small, cut), tokenizer, ["a", "Die"])
    assert complete(Transformer(small, cut), tokenizer, ["a"], max_new=1)[0].tokens


def random_model(d_vocab, **change):
    cfg = dataclasses.replace(CFG, d_vocab=d_vocab, **change)
    return Transformer(cfg, random_weights(cfg))


@pytest.mark.parametrize("extra", [(), ("<image_soft_token>",)])
def test_a_tokenizer_with_a_begin_token(extra):
    """A prompt that spells it out, its ids, and one that does not are the same; what stands in front is said."""
    model, tokenizer = random_model(40), begin_tokenizer(40, extra)
    wanted = generate(model, np.array([[1, 4, 5, 6]]), max_new=3)
    for prompt, prefix in (("w4 w5 w6", [1]), ("<bos>w4 w5 w6", []), ([1, 4, 5, 6], []), (np.array([1, 4, 5, 6]), [])):
        found = complete(model, tokenizer, [prompt], max_new=3)[0]
        assert (found.tokens, found.prefix) == (wanted.tokens[0].tolist(), prefix)
        np.testing.assert_allclose(found.log_probs, wanted.log_probs[0], atol=1e-5)
    bare = generate(model, np.array([[4, 5, 6]]), max_new=3)
    left = complete(model, tokenizer, ["w4 w5 w6"], max_new=3, bos=False)[0]
    np.testing.assert_allclose(left.log_probs, bare.log_probs[0], atol=1e-5)
    assert np.abs(np.array(left.log_probs) - wanted.log_probs[0]).max() > 1e-3
    alone = complete(model, tokenizer, [""], max_new=1)[0]
    np.testing.assert_allclose(alone.log_probs, generate(model, np.array([[1]]), max_new=1).log_probs[0], atol=1e-5)


def test_positions_of_edits_count_from_the_first_token_of_the_prefix():
    model, tokenizer = random_model(40), begin_tokenizer(40)
    edits = [add("blocks.1.resid_post", 3 * np.ones(16, np.float32), pos=1)]
    found = complete(model, tokenizer, ["w4 w5 w6", "w4"], max_new=3, edits=edits)
    for row, ids in zip(found, ([1, 4, 5, 6], [1, 4]), strict=True):
        alone = generate(model, np.array([ids]), max_new=3, edits=edits)
        np.testing.assert_allclose(row.log_probs, alone.log_probs[0], atol=1e-5)
        free = generate(model, np.array([ids]), max_new=3)
        assert np.abs(np.array(row.log_probs) - free.log_probs[0]).max() > 1e-3


def test_every_end_token_ends_a_text():
    tokenizer, model = begin_tokenizer(40), random_model(40)
    free = complete(model, tokenizer, ["w4 w5"], max_new=6)[0].tokens
    assert len(set(free)) > 1
    end = next(t for t in free if t != free[0])
    ways = (
        (dataclasses.replace(tokenizer, end_ids=(end, 7000)), model),
        (tokenizer, Transformer(model.cfg, model.weights, json.dumps({"eos_token_id": [end, 39]}))),
        (tokenizer, Transformer(model.cfg, model.weights, "{}", json.dumps({"eos_token_id": end}))),
    )
    for known, named in ways:
        found = complete(named, known, ["w4 w5"], max_new=6)[0]
        assert (found.tokens, found.reason) == (free[: free.index(end) + 1], "stop")


def test_ids_that_are_no_prompt():
    model, tokenizer = random_model(40), begin_tokenizer(40)
    for prompts, message in (([[1, 40]], "token 40"), ([[1.5]], "lists of token ids"), ([[]], "text 0 is empty")):
        with pytest.raises(UserError, match=message):
            complete(model, tokenizer, prompts)
