# SPDX-License-Identifier: Apache-2.0
"""A subset of windows is those windows, whoever reads it."""

import numpy as np
import pytest

from jaxneuro.data import Subset, batches, load_tokenizer, windows
from jaxneuro.errors import UserError


@pytest.fixture
def rows(bpe_folder):
    texts = {"a": ["one two three four five six seven eight nine ten " * 4], "b": ["eleven twelve thirteen " * 9]}
    return windows(texts, load_tokenizer(bpe_folder), length=12)


def test_rows_keep_their_numbers_and_group(rows):
    chosen = [len(rows) - 1, 0, 2]
    some = Subset(rows, chosen)
    got, want = some.rows([0, 1, 2]), rows.rows(chosen)
    assert all(np.array_equal(got[k], want[k]) for k in want)
    assert some.group.tolist() == rows.group[chosen].tolist()
    assert got["window"].tolist() == chosen


def test_past_the_end_is_filler(rows):
    filler = Subset(rows, [1]).rows([0, 1])
    assert filler["window"].tolist() == [1, -1]
    assert not filler["mask"][1].any()


def test_tokens_are_counted_anew(rows):
    everything = Subset(rows, np.arange(len(rows)))
    assert everything.tokens_per_group.tolist() == rows.tokens_per_group.tolist()
    assert Subset(rows, [0]).tokens_per_group.tolist() == [int(rows[0]["counted"].sum()), 0]


def test_batches_cover_it_once(rows):
    chosen = np.arange(1, len(rows), 2)
    seen = np.concatenate([b["window"] for b in batches(Subset(rows, chosen), batch_size=3, seed=1)])
    assert sorted(seen[seen >= 0].tolist()) == chosen.tolist()


def test_fingerprint_tells_subsets_apart(rows):
    assert len({Subset(rows, c).fingerprint for c in ([0], [1], [0, 1])} | {rows.fingerprint}) == 4


@pytest.mark.parametrize("chosen", [[], [-1], [10**6]])
def test_impossible_numbers_are_refused(rows, chosen):
    with pytest.raises(UserError, match="window numbers from 0 to"):
        Subset(rows, chosen)
