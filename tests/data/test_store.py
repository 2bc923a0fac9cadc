# SPDX-License-Identifier: Apache-2.0
import json
import logging
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from jaxneuro.data import store, tokenize
from jaxneuro.errors import UserError

TEXTS = ["The quick brown fox", "Größe", "лиса </s> x", "a" * 50]


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.offsets, b.offsets)
    assert a.ids.dtype == b.ids.dtype == np.int32
    numbers = ("n_counted", "truncated_documents", "truncated_tokens", "fingerprint", "n_documents")
    assert [getattr(a, n) for n in numbers] == [getattr(b, n) for n in numbers]


def test_documents_are_their_ids(bpe):
    s = tokenize(TEXTS, bpe)
    assert s.n_documents == len(TEXTS)
    for d, text in enumerate(TEXTS):
        assert s.ids[s.offsets[d] : s.offsets[d + 1]].tolist() == bpe.encode(text)
    assert s.n_counted == len(s.ids) - 1  # the </s> that the text spells out


def test_batches_do_not_matter_and_documents_without_tokens_are_left_out(bpe, wordpiece, monkeypatch):
    whole = tokenize(TEXTS, bpe)
    monkeypatch.setattr(store, "BATCH_CHARACTERS", 20)
    same(tokenize(TEXTS, bpe), whole)
    monkeypatch.setattr(store, "BATCH_DOCUMENTS", 1)
    same(tokenize(TEXTS, bpe), whole)
    assert wordpiece.encode("\x00") == []
    assert tokenize(["fox", "\x00", "dog"], wordpiece).n_documents == 2
    assert tokenize([], bpe).n_documents == 0


@pytest.mark.parametrize("cached", [False, True])
def test_limits(bpe, cached, tmp_path):
    lengths = [len(bpe.encode(t)) for t in TEXTS]
    where = tmp_path if cached else None
    s = tokenize(TEXTS, bpe, max_per_document=4, cache_dir=where)
    np.testing.assert_array_equal(np.diff(s.offsets), np.minimum(lengths, 4))
    assert s.truncated_documents == sum(n > 4 for n in lengths)
    assert s.truncated_tokens == sum(max(0, n - 4) for n in lengths)
    for limit in (1, lengths[0], lengths[0] + 1, sum(lengths), sum(lengths) + 5):
        s = tokenize(TEXTS, bpe, max_tokens=limit, cache_dir=where)
        np.testing.assert_array_equal(s.ids, tokenize(TEXTS, bpe).ids[:limit])
        assert s.truncated_documents == 0


def test_tokenizing_stops_at_the_limit(bpe, monkeypatch):
    monkeypatch.setattr(store, "BATCH_DOCUMENTS", 1)
    calls = []
    tokenize(TEXTS * 10, bpe, max_tokens=5, progress=lambda *a: calls.append(a), name="g")
    assert calls == [(1, 40, "g")]


def test_cache_is_used_and_bitwise_the_same(bpe, tmp_path, monkeypatch):
    fresh = tokenize(TEXTS, bpe)
    same(tokenize(TEXTS, bpe, cache_dir=tmp_path), fresh)
    monkeypatch.setattr(type(bpe), "encode_batch", lambda *a: pytest.fail("tokenized again"))
    again = tokenize(TEXTS, bpe, cache_dir=tmp_path)
    assert isinstance(again.ids, np.memmap)
    assert not again.ids.flags.writeable
    same(again, fresh)
    assert len(list(tmp_path.iterdir())) == 3


def test_other_text_tokenizer_or_settings_are_other_files(bpe, wordpiece, tmp_path):
    prints = {
        tokenize(TEXTS, bpe, cache_dir=tmp_path).fingerprint,
        tokenize([*TEXTS[:-1], "b"], bpe, cache_dir=tmp_path).fingerprint,
        tokenize(["".join(TEXTS[:2]), *TEXTS[2:]], bpe, cache_dir=tmp_path).fingerprint,
        tokenize(TEXTS, wordpiece, cache_dir=tmp_path).fingerprint,
        tokenize(TEXTS, bpe, max_tokens=9, cache_dir=tmp_path).fingerprint,
        tokenize(TEXTS, bpe, max_per_document=9, cache_dir=tmp_path).fingerprint,
    }
    assert len(prints) == 6
    assert len(list(tmp_path.glob("*.json"))) == 6


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def change(key, value):
    def edit(path):
        about = json.loads(path.read_text())
        about[key] = value
        path.write_text(json.dumps(about))

    return edit


DAMAGE = {
    "ids flipped": ("*[0-9a-f].npy", flip),
    "ids cut": ("*[0-9a-f].npy", cut),
    "ids gone": ("*[0-9a-f].npy", lambda p: p.unlink()),
    "offsets flipped": ("*.offsets.npy", flip),
    "offsets gone": ("*.offsets.npy", lambda p: p.unlink()),
    "other text": ("*.json", change("fingerprint", "x")),
    "no counts": ("*.json", change("n_counted", None)),
    "no list": ("*.json", change("crc32", None)),
    "not JSON": ("*.json", lambda p: p.write_text("{")),
    "a list": ("*.json", lambda p: p.write_text("[]")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_cache_is_built_again(case, bpe, tmp_path, caplog):
    fresh = tokenize(TEXTS, bpe, cache_dir=tmp_path)
    pattern, damage = DAMAGE[case]
    (path,) = tmp_path.glob(pattern)
    ids = np.array(fresh.ids)
    damage(path)
    with caplog.at_level(logging.WARNING):
        again = tokenize(TEXTS, bpe, cache_dir=tmp_path)
    assert "is not usable" in caplog.text
    np.testing.assert_array_equal(again.ids, ids)
    same(again, tokenize(TEXTS, bpe))


def test_an_interrupted_build_leaves_nothing(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH_DOCUMENTS", 1)

    def progress(done, total, name):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(TEXTS, bpe, cache_dir=tmp_path, progress=progress)
    assert list(tmp_path.iterdir()) == []
    same(tokenize(TEXTS, bpe, cache_dir=tmp_path), tokenize(TEXTS, bpe))


def test_a_cache_that_cannot_be_written(bpe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*choose another folder"):
        tokenize(TEXTS, bpe, cache_dir=tmp_path / "file")


def test_empty_cache_file_round_trip(bpe, tmp_path):
    same(tokenize([], bpe, cache_dir=tmp_path), tokenize([], bpe))


def test_memory_does_not_grow_with_the_text(bpe, tmp_path, monkeypatch):
    class Texts(Sequence):
        fingerprint = "made on demand"

        def __len__(self):
            return 2000

        def __getitem__(self, i):
            if not 0 <= i < len(self):
                raise IndexError
            return "was the best of times " * 50

    monkeypatch.setattr(store, "BATCH_CHARACTERS", 20_000)
    tracemalloc.start()
    s = tokenize(Texts(), bpe, cache_dir=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert s.ids.nbytes > 2_500_000
    assert peak < 1_300_000
