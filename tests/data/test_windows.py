# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneuro.data import shuffled_labels, windows
from jaxneuro.errors import UserError

WORDS = ["fox", "Größe", "лиса", "was the best", "x", "hello(name)", "</s>"]
documents = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=6)


def check_row(row, ids, tokenizer):
    """A row is these ids, then filling that no mask shows."""
    length = len(row["tokens"])
    np.testing.assert_array_equal(row["tokens"], [*ids, *[tokenizer.fill_id] * (length - len(ids))])
    np.testing.assert_array_equal(row["mask"], np.arange(length) < len(ids))
    special = np.isin(row["tokens"], list(tokenizer.special_ids))
    np.testing.assert_array_equal(row["counted"], row["mask"] & ~special)
    assert [row[k].dtype for k in ("tokens", "mask", "counted", "group", "window")] == [
        np.int32,
        np.bool_,
        np.bool_,
        np.int32,
        np.int32,
    ]


def reference(texts, tokenizer, capacity, packing):
    """Both packings, written down plainly."""
    ids = [tokenizer.encode(t) for t in texts]
    if packing == "documents":
        return [d[:capacity] for d in ids]
    if packing == "apart":
        return [row for row, _ in apart(ids, tokenizer.separator_id, capacity)]
    joined = []
    for d in ids:
        gap = [tokenizer.separator_id] if joined and tokenizer.separator_id is not None else []
        joined += gap + d
    return [joined[i : i + capacity] for i in range(0, len(joined), capacity)]


def apart(documents, separator, capacity):
    """[(ids, numbers of the documents in them)]: pieces of a long document, or whole short ones that fit together."""
    rows, gap = [], [] if separator is None else [separator]
    for d, ids in enumerate(documents):
        last = rows[-1] if rows and rows[-1][2] else None
        if last and len(last[0]) + len(gap) + len(ids) <= capacity:
            rows[-1] = (last[0] + gap + ids, last[1] | {d}, True)
            continue
        n = -(-len(ids) // capacity)
        edges = [len(ids) * i // n for i in range(n + 1)]
        rows += [(ids[a:b], {d}, n == 1) for a, b in itertools.pairwise(edges)]
    return [(ids, of) for ids, of, _ in rows]


@pytest.mark.parametrize("packing", ["windows", "documents", "apart"])
@pytest.mark.parametrize("which", ["bpe", "wordpiece", "sentencepiece"])
@settings(max_examples=12, deadline=None)
@given(a=documents, b=documents, length=st.integers(3, 9))
def test_rows_against_a_plain_definition(which, packing, request, a, b, length):
    tokenizer = request.getfixturevalue(which)
    capacity = length - len(tokenizer.prefix) - len(tokenizer.suffix)
    groups = {"a": a, "b": b}
    wanted = [(g, r) for g, t in enumerate(groups.values()) for r in reference(t, tokenizer, capacity, packing)]
    firsts = dict(reversed(wanted))
    if packing == "windows" and any(len(r) < capacity for r in firsts.values()):
        with pytest.raises(UserError, match="fewer than one window"):
            windows(groups, tokenizer, length=length, packing=packing)
        return
    rows = windows(groups, tokenizer, length=length, packing=packing)
    assert len(rows) == len(wanted)
    for i, (group, ids) in enumerate(wanted):
        row = rows[i]
        check_row(row, [*tokenizer.prefix, *ids, *tokenizer.suffix], tokenizer)
        assert (row["group"], row["window"], rows.group[i]) == (group, i, group)
        assert rows.text(i) == tokenizer.decode(ids)
    batch = rows.rows(range(len(rows)))
    counted = np.bincount(batch["group"], weights=batch["counted"].sum(axis=1), minlength=2)
    np.testing.assert_array_equal(rows.tokens_per_group, counted)


def test_conventions(bpe, wordpiece, sentencepiece):
    texts = {"g": ["fox", "dog", "x"]}
    row = windows(texts, bpe, length=4)[0]["tokens"]
    assert row[0] == bpe.bos_id
    all_of_it = np.concatenate([r["tokens"][r["mask"]] for r in windows(texts, bpe, length=4)])
    assert np.count_nonzero(all_of_it == bpe.eos_id) == 2  # between three documents, not behind the last
    r = windows(texts, wordpiece, length=5, packing="documents")[2]
    assert r["tokens"].tolist() == [2, wordpiece.encode("x")[0], 3, 0, 0]
    assert r["counted"].tolist() == [False, True, False, False, False]
    assert windows(texts, sentencepiece, length=4)[0]["tokens"][0] not in sentencepiece.special_ids


def test_padding_that_is_the_separator_is_still_masked(sentencepiece):
    assert sentencepiece.fill_id == sentencepiece.separator_id
    rows = windows({"g": ["hi", "a hi"]}, sentencepiece, length=3)
    last = rows[len(rows) - 1]
    assert not last["mask"].all()
    assert not last["counted"][~last["mask"]].any()


def test_sequence_of_rows(bpe):
    rows = windows({"b": ["fox dog"] * 3, "a": ["лиса"] * 4}, bpe, length=5)
    assert rows.group_names == ("b", "a")  # the mapping's own order; read_groups sorts
    np.testing.assert_array_equal(rows[-1]["tokens"], rows[len(rows) - 1]["tokens"])
    with pytest.raises(IndexError):
        rows[len(rows)]
    np.testing.assert_array_equal(rows[1:3]["window"], [1, 2])
    assert (np.diff(rows.group) >= 0).all()
    filler = rows.rows([0, len(rows), len(rows) + 7])
    assert filler["window"].tolist() == [0, -1, -1]
    assert not filler["mask"][1:].any()
    assert not filler["counted"][1:].any()
    assert filler["group"].tolist()[1:] == [0, 0]
    assert filler["mask"][0].any()


def test_truncation_is_counted(bpe):
    rows = windows({"a": ["fox", "the best of times"], "b": ["x"]}, bpe, length=4, packing="documents")
    n = len(bpe.encode("the best of times"))
    assert n > 3
    assert rows.truncated_documents.tolist() == [1, 0]
    assert rows.truncated_tokens.tolist() == [n - 3, 0]
    assert rows.truncated_tokens.dtype == rows.tokens_per_group.dtype == np.int64
    assert windows({"a": ["fox dog лиса"]}, bpe, length=4).truncated_tokens.tolist() == [0]


def test_max_tokens_per_group(bpe):
    groups = {"a": ["was the best"] * 30, "b": ["fox"] * 2}
    rows = windows(groups, bpe, length=4, max_tokens_per_group=10, packing="documents")
    assert rows.tokens_per_group[0] == 10
    assert rows.tokens_per_group[1] == 2 * len(bpe.encode("fox"))


def test_fingerprint(bpe, tmp_path):
    groups = {"a": ["was the best"] * 3}

    def fingerprint(groups=groups, length=4, **kw):
        return windows(groups, bpe, length=length, **kw).fingerprint

    others = [
        fingerprint(length=5),
        fingerprint(packing="documents"),
        fingerprint(max_tokens_per_group=7),
        fingerprint({"a": ["was the best"] * 4}),
        fingerprint({"b": ["was the best"] * 3}),
    ]
    assert len({fingerprint(), *others}) == 6
    assert fingerprint() == fingerprint(cache_dir=tmp_path) == fingerprint(cache_dir=tmp_path)


def test_cached_rows_are_the_same(bpe, tmp_path):
    groups = {"a": ["was the best fox"] * 9, "b": ["лиса"] * 9}
    seen = []
    for _ in range(2):
        rows = windows(groups, bpe, length=6, cache_dir=tmp_path, progress=lambda *a: seen.append(a))
        plain = windows(groups, bpe, length=6)
        for name, column in rows.rows(range(len(rows))).items():
            np.testing.assert_array_equal(column, plain.rows(range(len(rows)))[name])
    assert seen == [(9, 9, "a"), (9, 9, "b")]  # the second time nothing is tokenized


def test_bad_requests(bpe, wordpiece):
    groups = {"long": ["was the best of times"] * 9, "de": ["fox"]}
    n = len(bpe.encode("fox"))
    with pytest.raises(UserError, match=rf"group 'de' has {n} tokens, fewer than one window of 15\. Add text"):
        windows(groups, bpe, length=16)
    with pytest.raises(UserError, match=r"'long' has 5 tokens \(max_tokens_per_group=5\), fewer than one window of 15"):
        windows(groups, bpe, length=16, max_tokens_per_group=5)
    with pytest.raises(
        UserError, match=r"no packing 'window'\. Did you mean 'windows'\? Known: windows, apart, documents"
    ):
        windows(groups, bpe, length=16, packing="window")
    with pytest.raises(UserError, match="length 2 leaves no room beside the 2 special tokens"):
        windows(groups, wordpiece, length=2)
    with pytest.raises(UserError, match="max_tokens_per_group is 0"):
        windows(groups, bpe, length=4, max_tokens_per_group=0)
    with pytest.raises(UserError, match="no groups were given"):
        windows({}, bpe, length=4)
    for packing in ("windows", "documents"):
        with pytest.raises(UserError, match="group 'x' is empty: its text gives no tokens"):
            windows({"x": ["\x00"]}, wordpiece, length=4, packing=packing)


@settings(max_examples=30, deadline=None)
@given(group=st.lists(st.integers(0, 4), min_size=1, max_size=40), n=st.integers(0, 5), seed=st.integers(0, 9))
def test_shuffled_labels(group, n, seed):
    true = np.array(group, np.int32)
    labels = shuffled_labels(true, n, seed)
    assert labels.dtype == np.int32
    assert labels.shape == (len(group), 1 + n)
    np.testing.assert_array_equal(labels[:, 0], true)
    np.testing.assert_array_equal(np.sort(labels, axis=0), np.sort(true)[:, None].repeat(1 + n, axis=1))
    np.testing.assert_array_equal(labels, shuffled_labels(true, n + 2, seed)[:, : 1 + n])


def test_shuffles_differ_and_take_windows(bpe):
    rows = windows({"a": ["was the best"] * 40, "b": ["fox dog"] * 40}, bpe, length=4)
    labels = shuffled_labels(rows, 20, seed=1)
    np.testing.assert_array_equal(labels[:, 0], rows.group)
    assert len(np.unique(labels, axis=1)[0]) == 21
    assert (shuffled_labels(rows, 20, seed=2)[:, 1:] != labels[:, 1:]).any(axis=0).all()
    # no trace of the truth is left: the share of unchanged labels is what chance gives
    p = np.bincount(rows.group) / len(rows)
    assert abs((labels[:, 1:] == labels[:, :1]).mean() - (p**2).sum()) < 0.06
    with pytest.raises(UserError, match="n_shuffles=-1"):
        shuffled_labels(rows, -1, seed=1)


@pytest.mark.parametrize("which", ["bpe", "sentencepiece"])
@settings(max_examples=25, deadline=None)
@given(a=documents, b=documents, length=st.integers(3, 9))
def test_windows_of_a_document_are_one_block(which, request, a, b, length):
    """Two rows are in one block if a chain of shared documents joins them: against a union of all pairs."""
    tokenizer = request.getfixturevalue(which)
    capacity = length - len(tokenizer.prefix) - len(tokenizer.suffix)
    groups, of = {"a": a, "b": b}, {}
    for packing in ("windows", "apart", "documents"):
        try:
            rows = windows(groups, tokenizer, length=length, packing=packing)
        except UserError:  # fewer tokens than one window
            continue
        of[packing] = []
        for name, texts in groups.items():
            ids = [tokenizer.encode(t) for t in texts]
            if packing == "documents":
                of[packing] += [{(name, d)} for d in range(len(ids))]
            elif packing == "apart":
                of[packing] += [{(name, d) for d in s} for _, s in apart(ids, tokenizer.separator_id, capacity)]
            else:
                gap = [] if tokenizer.separator_id is None else [None]
                owner = [o for d, x in enumerate(ids) for o in [(name, d)] * len(x) + (gap if d + 1 < len(ids) else [])]
                of[packing] += [set(owner[i : i + capacity]) - {None} for i in range(0, len(owner), capacity)]
        parts = of[packing]
        assert len(parts) == len(rows) == len(rows.block)
        block = list(range(len(parts)))
        for i in range(len(parts)):
            for j in range(i):
                if parts[i] & parts[j]:
                    old, new = block[i], block[j]
                    block = [new if x == old else x for x in block]
        same = np.equal.outer(block, block)
        np.testing.assert_array_equal(np.equal.outer(rows.block, rows.block), same)
        if packing == "apart":
            assert len(np.unique(rows.block)) <= len(a) + len(b)


def test_apart_leaves_no_scrap(bpe):
    text = "was the best fox " * 20
    n, rows = len(bpe.encode(text)), windows({"g": [text, "x", "fox"]}, bpe, length=12, packing="apart")
    sizes = rows.rows(range(len(rows)))["counted"].sum(1)
    assert sizes[:-1].sum() == n
    assert np.ptp(sizes[:-1]) <= 1
    assert rows.block.tolist() == [*[0] * (len(rows) - 1), 1]


def test_labels_move_with_their_documents(bpe):
    rows = windows({"a": ["was the best " * 6] * 9, "b": ["fox dog " * 3] * 7}, bpe, length=6, packing="apart")
    labels = shuffled_labels(rows, 30, seed=0)
    for b in np.unique(rows.block):
        assert (labels[rows.block == b] == labels[rows.block == b][0]).all()
    single = shuffled_labels(rows, 30, seed=0, block=np.arange(len(rows)))
    assert (single[rows.block == 0] != single[rows.block == 0][0]).any()
