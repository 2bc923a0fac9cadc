# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from jaxneuro.data import Paired, batches, windows
from jaxneuro.errors import UserError

TEXTS = {"a": ["one two three", "four"], "b": ["five six"]}
ANSWERS = {"a": ["eins", "vier und noch vieles mehr"], "b": ["sechs"]}


@pytest.fixture(scope="module")
def sides(wordpiece):
    return [windows(g, wordpiece, length=n, packing="documents") for g, n in ((TEXTS, 12), (ANSWERS, 8))]


def test_the_decoder_reads_a_start_token_and_then_the_answer(sides):
    texts, answers = sides
    rows = Paired(texts, answers, start=7)
    found, said, read = (side.rows([2, 0, 1, 3]) for side in (rows, answers, texts))  # 3: a filler
    assert found["tokens"][:3, 0].tolist() == [7, 7, 7]
    np.testing.assert_array_equal(found["mask"][:, 0], [True, True, True, False])
    assert not found["counted"][:, 0].any()
    for name in ("tokens", "mask", "counted"):
        np.testing.assert_array_equal(found[name][:, 1:], said[name][:, :-1])
    np.testing.assert_array_equal(found["context"], read["tokens"])
    np.testing.assert_array_equal(found["context_mask"], read["mask"])
    assert found["window"].tolist() == [2, 0, 1, -1]
    assert found["group"].tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(rows.tokens_per_group, np.bincount([1, 0, 0, 0], found["counted"].sum(1)))
    np.testing.assert_array_equal(rows[1]["tokens"], found["tokens"][2])
    assert len(list(batches(rows, batch_size=2))) == 2


def test_fingerprints_tell_texts_answers_and_starts_apart(sides):
    texts, answers = sides
    made = [Paired(texts, answers, 7), Paired(texts, answers, 8), Paired(answers, texts, 7)]
    assert len({rows.fingerprint for rows in made}) == 3
    assert made[0].fingerprint == Paired(texts, answers, 7).fingerprint


def test_texts_without_their_answers_are_refused(sides, wordpiece):
    fewer = windows({"a": ["eins"], "b": ["sechs"]}, wordpiece, length=8, packing="documents")
    with pytest.raises(UserError, match=r"groups have \{'a': 2, 'b': 1\} and \{'a': 1, 'b': 1\} rows"):
        Paired(sides[0], fewer, 7)
