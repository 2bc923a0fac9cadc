# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from jaxneuro.models.convert import from_leaves, parse_axes, tensor_shape, to_leaves

SIZES = {"embed": 6, "heads": 2, "kv_heads": 1, "head": 3, "mlp": 5, "part": 1, "vocab": 4}
CASES = {
    "embedding": ("vocab embed", ("vocab", "embed"), 1),
    "linear": ("mlp embed", ("embed", "mlp"), 1),
    "query": ("(heads head) embed", ("embed", "heads", "head"), 1),
    "key": ("(kv_heads head) embed", ("embed", "kv_heads", "head"), 1),
    "output": ("embed (heads head)", ("heads", "head", "embed"), 1),
    "bias": ("(heads head)", ("heads", "head"), 1),
    "fused by parts (gpt2)": ("embed (part heads head)", ("embed", "heads", "head"), 3),
    "fused by heads (gpt-neox)": ("(heads part head) embed", ("embed", "heads", "head"), 3),
}


@pytest.mark.parametrize(("pattern", "axes", "parts"), CASES.values(), ids=list(CASES))
def test_back_and_forth_without_copying(pattern, axes, parts):
    sizes = {**SIZES, "part": parts}
    tensor = np.random.default_rng(0).normal(size=tensor_shape(pattern, sizes))
    leaves = to_leaves(tensor, pattern, axes, sizes)
    assert [leaf.shape for leaf in leaves] == [tuple(sizes[a] for a in axes)] * parts
    assert all(np.shares_memory(leaf, tensor) for leaf in leaves)
    np.testing.assert_array_equal(from_leaves(leaves, pattern, axes, sizes), tensor)


def test_a_query_projection_by_hand():
    torch_weight = np.arange(36.0).reshape(6, 6)  # [head 0 rows 0..2, head 1 rows 3..5], one column per input
    (wq,) = to_leaves(torch_weight, "(heads head) embed", ("embed", "heads", "head"), SIZES)
    assert wq[2, 1, 0] == torch_weight[1 * 3 + 0, 2]


def test_a_fused_projection_by_hand():
    weight = np.arange(6 * 18.0).reshape(6, 18)  # [embed, q | k | v]
    _, wk, _ = to_leaves(weight, "embed (part heads head)", ("embed", "kv_heads", "head"), {**SIZES, "part": 3})
    assert wk[4, 1, 2] == weight[4, 6 + 3 + 2]


def test_axes_are_read_as_written():
    assert parse_axes("a (b  c) d") == [["a"], ["b", "c"], ["d"]]
