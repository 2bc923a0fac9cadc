# SPDX-License-Identifier: Apache-2.0
"""Texts as rows: what stands around a text stands there once, whichever way it came, and padding on either side."""

import json

import numpy as np
import pytest

from jaxneuro.data import Tokenizer, load_tokenizer, windows
from jaxneuro.errors import UserError

CASES = {"bpe": ("<s>", ""), "wordpiece": ("[CLS]", "[SEP]"), "sentencepiece": ("", "")}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("which", CASES)
def test_rows_are_those_of_transformers(which, side, request):
    tokenizer = request.getfixturevalue(which)
    texts = ["the lazy fox", "hi"]
    tokens, mask = tokenizer.batch(texts, side=side)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    for row, real, text in zip(tokens, mask, texts, strict=True):
        wanted = tokenizer.hf(text, truncation=False)["input_ids"]
        assert row[real].tolist() == wanted
        assert (row[~real] == tokenizer.fill_id).all()
        padding = real[len(wanted) :] if side == "right" else real[: len(real) - len(wanted)]
        assert not padding.any()
    assert mask.shape[1] == mask.sum(1).max()
    assert tokenizer.batch(texts, side=side, length=40).mask.sum(1).tolist() == mask.sum(1).tolist()


@pytest.mark.parametrize("which", ["bpe", "wordpiece"])
def test_what_a_text_spells_out_is_not_put_there_again(which, request):
    tokenizer, (before, behind) = request.getfixturevalue(which), CASES[which]
    plain = tokenizer.batch("the fox").tokens
    for text in (before + "the fox", before + "the fox" + behind, "the fox" + behind):
        np.testing.assert_array_equal(tokenizer.batch(text).tokens, plain)
        assert tokenizer.rows(text) == [tokenizer.wrap(tokenizer.encode(text))]
        rows = windows({"a": [text, "the fox"]}, tokenizer, length=12, packing="documents")
        np.testing.assert_array_equal(rows[0]["tokens"], rows[1]["tokens"])
        assert rows[0]["tokens"][rows[0]["mask"]].tolist() == plain[0].tolist()
    inside = tokenizer.batch("the" + before + " fox").tokens[0]
    assert (inside == tokenizer.prefix[0]).sum() == 2  # in the middle it is what the author meant


def test_a_document_that_spells_out_its_begin_token_is_cut_where_others_are(bpe):
    texts = ["<s>the best of times", "the best of times"]
    rows = windows({"a": texts}, bpe, length=4, packing="documents")
    np.testing.assert_array_equal(rows[0]["tokens"], rows[1]["tokens"])
    assert rows.truncated_documents.tolist() == [2]


def test_a_begin_token_can_be_asked_for_or_left_out(bpe, bpe_folder, sentencepiece, sentencepiece_folder):
    ids = sentencepiece.encode("hi a")
    assert sentencepiece.batch("hi a").tokens.tolist() == [ids]
    assert sentencepiece.batch("hi a", bos=True).tokens.tolist() == [[1, *ids]]  # its only candidate is </s>
    assert sentencepiece.batch("</s>hi a", bos=True).tokens[0, :2].tolist() != [1, 1]
    asked = load_tokenizer(sentencepiece_folder, bos=True)
    assert asked.prefix == sentencepiece.with_bos().prefix == (1,)
    row = windows({"a": ["hi a"]}, asked, length=3)[0]
    assert (row["tokens"][0], row["counted"][0]) == (1, False)
    assert asked.fingerprint != sentencepiece.fingerprint
    assert bpe.with_bos() is bpe
    assert load_tokenizer(bpe_folder, bos=False).batch("fox").tokens.tolist() == [bpe.encode("fox")]
    assert bpe.batch("fox", bos=False).tokens.tolist() == [bpe.encode("fox")]


def test_nothing_to_begin_with():
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fast = Fast(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer.from_hf(PreTrainedTokenizerFast(tokenizer_object=fast), "tiny")
    with pytest.raises(UserError, match="tiny has no token that a text could begin with"):
        tokenizer.with_bos()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([],), "no texts"),
        ((["a", 3],), "there is a int among them"),
        ((["a", ""],), "text 1 is empty"),
        ((["hi a hi"], {"length": 1}), "more than length=1"),
        ((["a"], {"side": "both"}), "no side 'both'"),
    ],
)
def test_what_is_no_batch(sentencepiece, given, message):
    texts, options = given if len(given) == 2 else (given[0], {})
    with pytest.raises(UserError, match=message):
        sentencepiece.batch(texts, **options)


def test_an_empty_text_is_its_begin_token(bpe):
    assert bpe.batch(["", "fox"]).tokens[0, 0] == bpe.bos_id
    assert bpe.batch(["", "fox"]).mask.sum(1).tolist() == [1, 1 + len(bpe.encode("fox"))]


def test_tokens_without_a_row_are_named_where_they_occur(bpe):
    bpe.check_vocabulary(10)  # more tokens than rows: they may never occur
    rows = windows({"a": ["fox dog x"]}, bpe, length=3)
    highest = max(bpe.encode("fox dog x"))
    rows.check_vocabulary(highest + 1)
    with pytest.raises(
        UserError, match=rf"token {highest} \('.+' of the tokenizer .+\) has no row in the model's table"
    ):
        rows.check_vocabulary(highest)


@pytest.mark.parametrize(
    ("config", "generation", "wanted"),
    [
        ({}, None, (2,)),
        ({"eos_token_id": 7}, None, (7, 2)),
        ({"eos_token_id": 2}, {"eos_token_id": [9, 2]}, (9, 2)),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": None}, (5, 6, 2)),
    ],
)
def test_end_tokens_are_all_that_the_folder_names(bpe_folder, tmp_path, config, generation, wanted):
    for file in bpe_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert load_tokenizer(tmp_path).end_ids == wanted
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(UserError, match=r"eos_token_id of generation_config.json is '</s>'; it is a token id"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("texts", "message"), [(["a", "b\ud800c"], "text 1 holds half .* character 1"), ([3], "a int")]
)
def test_what_is_no_text_is_said(texts, message):
    tokenizer = load_tokenizer("bundled")
    for call in (tokenizer.batch, tokenizer.rows, tokenizer.encode_batch):
        with pytest.raises(UserError, match=message):
            call(texts)
