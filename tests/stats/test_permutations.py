# SPDX-License-Identifier: Apache-2.0
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneuro.errors import UserError
from jaxneuro.stats import counted_labellings, labels_of_blocks, permuted_labels, smallest_p


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=12), st.integers(0, 9))
def test_blocks_move_as_one_and_groups_keep_their_number_of_blocks(blocks, seed):
    label = np.concatenate([[g] * n for g, n in blocks])
    block = np.concatenate([[100 - i] * n for i, (_, n) in enumerate(blocks)])
    shuffle = np.random.default_rng(seed).permutation(len(label))  # items of a block need not lie side by side
    labels = permuted_labels(label[shuffle], 4, seed, block=block[shuffle])
    np.testing.assert_array_equal(labels[:, 0], label[shuffle])
    assert labels.dtype == np.int32
    for s in range(5):
        of_block = {b: set(labels[block[shuffle] == b, s].tolist()) for b in set(block.tolist())}
        assert all(len(v) == 1 for v in of_block.values())
        assert Counter(v.pop() for v in of_block.values()) == Counter(g for g, _ in blocks)
    np.testing.assert_array_equal(labels, permuted_labels(label[shuffle], 6, seed, block=block[shuffle])[:, :5])


def test_every_labelling_is_equally_likely():
    labels = permuted_labels(np.array([0, 0, 0, 1, 1]), 3000, 0, block=np.array([0, 0, 1, 2, 3]))
    seen = Counter(map(tuple, labels.T[1:, [0, 2, 3, 4]].tolist()))
    assert len(seen) == counted_labellings(np.array([2, 2])) == 6
    chi = sum((n - 500) ** 2 / 500 for n in seen.values())
    assert chi < 20.5  # 99.9 % of chi-square with 5 degrees of freedom


def test_without_blocks_items_are_permuted():
    labels = permuted_labels(np.arange(6) // 3, 200, 1)
    assert len(np.unique(labels, axis=1)[0]) > 15
    assert (np.sort(labels, 0) == np.sort(labels[:, :1], 0)).all()


def test_numbers_of_labellings():
    assert smallest_p(np.array([3, 5])).tolist() == [1 / 56, 1 / 56]
    assert smallest_p(np.array([1, 1, 19])).tolist() == [1 / 21, 1 / 21, 1 / 210]
    assert smallest_p(np.array([4000, 9000])).tolist() == [0.0, 0.0]
    assert counted_labellings(np.array([8, 8, 8])) == pytest.approx(math.factorial(24) / math.factorial(8) ** 3)
    assert counted_labellings(np.array([900, 900])) == math.inf


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (((np.array([0, 1]), 2, 0), {"block": np.array([3, 3])}), "block 3 has items of the groups 0 and 1"),
        (((np.array([0, 1]), 2, 0), {"block": np.array([3])}), r"labels \(2,\) and blocks \(1,\)"),
        (((np.array([0, 1]), -1, 0), {}), "n_shuffles=-1"),
        (((np.array([0, 1]), 1, -4), {}), "seed=-4"),
    ],
)
def test_refused(given, said):
    with pytest.raises(UserError, match=said):
        permuted_labels(*given[0], **given[1])


def test_numbers_of_blocks_are_in_order_of_appearance():
    number, label = labels_of_blocks(np.array([1, 0, 1, 0]), np.array([50, 7, 50, 9]))
    assert number.tolist() == [0, 1, 0, 2]
    assert label.tolist() == [1, 0, 0]
