# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneuro.data import Tokenizer, load_tokenizer
from jaxneuro.errors import UserError
from jaxneuro.io.sources import MINILM_MODULE

texts = st.text(st.characters(codec="utf-8"), max_size=30)


def test_ids_match_transformers(bpe, wordpiece, sentencepiece):
    text = "The lazy größte лиса hi unbelievable zebra"
    for tokenizer in (bpe, wordpiece, sentencepiece):
        plain = tokenizer.hf(text, add_special_tokens=False, truncation=False)["input_ids"]
        assert tokenizer.encode(text) == plain
        assert len(plain) > 6  # more than the truncation stored in tokenizer.json
        assert tokenizer.wrap(plain) == tokenizer.hf(text, truncation=False)["input_ids"]
        assert tokenizer.encode_batch([text, "hi"]) == [plain, tokenizer.encode("hi")]


def test_settings_left_by_a_call_of_hf_do_no_harm(wordpiece_folder):
    tokenizer = load_tokenizer(wordpiece_folder)
    ids = tokenizer.encode("the lazy dog jumps")
    tokenizer.hf("the lazy dog jumps", truncation=True, max_length=3, padding="max_length")
    assert tokenizer.encode("the lazy dog jumps") == ids


def test_special_tokens(bpe, wordpiece, sentencepiece):
    assert (bpe.prefix, bpe.suffix) == ((1,), ())
    assert (bpe.pad_id, bpe.bos_id, bpe.eos_id, bpe.cls_id, bpe.sep_id, bpe.mask_id) == (0, 1, 2, None, None, None)
    assert (wordpiece.prefix, wordpiece.suffix) == ((2,), (3,))
    assert (wordpiece.pad_id, wordpiece.cls_id, wordpiece.sep_id, wordpiece.mask_id, wordpiece.bos_id) == (
        0,
        2,
        3,
        4,
        None,
    )
    assert (sentencepiece.prefix, sentencepiece.suffix) == ((), ())
    assert bpe.special_ids == {0, 1, 2}
    assert wordpiece.special_ids == {0, 1, 2, 3, 4}
    assert (bpe.separator_id, wordpiece.separator_id, sentencepiece.separator_id) == (2, 3, 1)
    assert (bpe.fill_id, wordpiece.fill_id, sentencepiece.fill_id) == (0, 0, 1)
    ids = np.array([[0, 5], [2, 300]], np.int32)
    np.testing.assert_array_equal(bpe.is_special(ids), [[True, False], [True, False]])
    assert bpe.n_vocab == len(bpe.hf) == 320


def test_a_special_token_in_the_text_is_read_as_one(bpe):
    assert bpe.encode("fox</s>")[-1] == bpe.eos_id


def test_byte_level_strings(bpe):
    ids = bpe.encode("The fox\n")
    assert bpe.token_strings(ids)[0].startswith("T")
    assert any(s.startswith(" ") for s in bpe.token_strings(ids))
    assert "".join(bpe.token_strings(ids)) == "The fox\n"
    pieces = bpe.encode("€")  # three bytes, never merged in training
    assert bpe.token_strings(pieces) == ["\\xe2", "\\x82", "\\xac"]
    assert bpe.text_pieces(pieces) == ["", "", "€"]
    assert bpe.text_pieces(pieces[:2]) == ["", "\ufffd"]
    assert bpe.token_strings([2, 320, -1]) == ["</s>", "[id 320]", "[id -1]"]
    assert bpe.text_pieces([]) == []


@pytest.mark.parametrize("text", ["€", "😀", "👍🏽", "👩\u200d💻", "❤️\u200d🔥", "🇩🇪"])
def test_tokens_of_one_character_are_one_string(bpe, text):
    ids = bpe.encode(f"a{text}b")
    assert bpe.joined_strings(ids) == [("a", 1), (text, len(ids) - 2), ("b", 1)]
    assert "\\x" in "".join(bpe.token_strings(ids)), "or nothing was joined"


def test_a_character_that_is_cut_stays_in_its_bytes(bpe):
    face = bpe.encode("😀")
    assert bpe.joined_strings(face[:3]) == [("\\xf0", 1), ("\\x9f", 1), ("\\x98", 1)]
    assert bpe.joined_strings([*face[2:], *bpe.encode("fox")])[:2] == [("\\x98", 1), ("\\x80", 1)]
    assert bpe.joined_strings([*face[:2], *bpe.encode("x")]) == [("\\xf0", 1), ("\\x9f", 1), ("x", 1)]
    assert bpe.joined_strings(bpe.encode("🇩🇪🇫🇷"))[0][0] == "🇩🇪", "a flag is two letters, not four"
    assert bpe.joined_strings([]) == []


@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_joined_strings_are_the_text_and_count_every_token(bpe, text):
    ids = bpe.encode(text)
    joined = bpe.joined_strings(ids)
    assert "".join(s for s, _ in joined) == text
    assert sum(n for _, n in joined) == len(ids)


@settings(max_examples=40, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(3, 319), max_size=12))
def test_byte_level_pieces_join_to_the_text(bpe, text, cuts):
    ids = bpe.encode(text)
    assert "".join(bpe.text_pieces(ids)) == bpe.decode(ids) == text
    assert "".join(bpe.text_pieces(cuts)) == bpe.decode(cuts)  # any ids, whole characters or not
    assert len(bpe.text_pieces(cuts)) == len(bpe.token_strings(cuts)) == len(cuts)


def test_wordpiece_strings(wordpiece):
    ids = wordpiece.encode("the foxes")
    shown = wordpiece.token_strings(ids)
    assert shown[0] == "the"
    assert all(s.startswith("##") for s in shown[2:])
    assert "".join(wordpiece.text_pieces(ids)) == " the foxes"
    assert wordpiece.token_strings([2, 1]) == wordpiece.text_pieces([2, 1]) == ["[CLS]", "[UNK]"]


def test_sentencepiece_strings(sentencepiece):
    ids = sentencepiece.encode("hi a€")
    assert sentencepiece.token_strings(ids) == [" hi", " ", "a", "\\xe2", "\\x82", "\\xac"]
    assert sentencepiece.text_pieces(ids) == [" hi", " ", "a", "", "", "€"]
    assert sentencepiece.decode(ids) == "hi a€"
    assert sentencepiece.token_strings([1]) == ["</s>"]


def test_word_level_strings():
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fast = Fast(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer.from_hf(PreTrainedTokenizerFast(tokenizer_object=fast))
    assert tokenizer.separator_id is None
    assert tokenizer.fill_id == 0
    assert tokenizer.special_ids == frozenset()
    assert tokenizer.text_pieces(tokenizer.encode("a b")) == [" a", " b"]


def test_specials_inside_a_text_are_refused():
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, processors
    from transformers import PreTrainedTokenizerFast

    fast = Fast(models.BPE({"a": 0, "|": 1}, []))
    fast.post_processor = processors.TemplateProcessing(single="| |", special_tokens=[("|", 1)])
    with pytest.raises(UserError, match="Special tokens inside a text are not supported"):
        Tokenizer.from_hf(PreTrainedTokenizerFast(tokenizer_object=fast), "odd")


def test_fingerprint_is_stable_and_sees_the_vocabulary(bpe, bpe_folder, wordpiece, tmp_path):
    again = load_tokenizer(bpe_folder)
    again.hf("some text", truncation=True, max_length=2)  # leaves its settings in the backend
    assert again.fingerprint == bpe.fingerprint != wordpiece.fingerprint
    state = json.loads((bpe_folder / "tokenizer.json").read_text())
    state["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text((bpe_folder / "tokenizer_config.json").read_text())
    assert load_tokenizer(tmp_path).fingerprint != bpe.fingerprint


def test_nothing_to_load(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer can be loaded.*tokenizer\.json.*found: config\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


def test_json_that_transformers_would_take_or_wait_for_is_refused(bpe_folder, tmp_path):
    """Its parser takes the last of two values of a key, and blocks on a pipe."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((bpe_folder / name).read_text())
    load_tokenizer(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for text, said in (("{not json", "is not valid JSON"), ('{"decoder": null, ' + whole.lstrip()[1:], "occurs twice")):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match=said):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole)
    (tmp_path / "tokenizer_config.json").unlink()
    os.mkfifo(tmp_path / "tokenizer_config.json")
    with pytest.raises(UserError, match="it is a pipe, not a file"):
        load_tokenizer(tmp_path)


def test_import_is_silent_and_leaves_the_environment(bpe_folder):
    code = f"""
import os, sys
import jaxneuro.data as d
assert not {{"transformers", "grain", "pyarrow", "jax"}} & set(sys.modules), sorted(sys.modules)
d.load_tokenizer({str(bpe_folder)!r})
assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_minilm():
    import importlib.util

    if importlib.util.find_spec(MINILM_MODULE) is None:
        pytest.skip("the extra minilm is not installed")
    tokenizer = load_tokenizer("all-MiniLM-L6-v2")
    assert tokenizer.n_vocab == 30522
    assert tokenizer.wrap(tokenizer.encode("hello world")) == [101, 7592, 2088, 102]
    assert len(tokenizer.encode("hello " * 300)) == 300  # its file says: cut at 128
    assert tokenizer.token_strings([101, 7592, 2075]) == ["[CLS]", "hello", "##ing"]
