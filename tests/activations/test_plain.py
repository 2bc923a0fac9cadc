# SPDX-License-Identifier: Apache-2.0
"""A stream's state survives JSON."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxneuro.activations.plain import from_json, to_json
from jaxneuro.errors import UserError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.sampled_from(["__array__", "__tuple__"])
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v) | st.lists(v).map(tuple) | st.dictionaries(KEYS, v, max_size=3), max_leaves=12
)


@given(VALUES)
def test_round_trip(value):
    text, arrays = to_json(value)
    assert from_json(json.loads(json.dumps(text)), arrays) == value


def test_arrays_are_copies_both_ways():
    a = np.arange(3)
    text, arrays = to_json({"buffer": [a], "n": np.int64(4)})
    a[0] = 9
    back = from_json(text, arrays)
    assert back["buffer"][0].tolist() == [0, 1, 2]
    assert back["n"] == 4
    back["buffer"][0][1] = 5
    assert arrays[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [{"f": open}, np.array([object()]), {1, 2}])
def test_what_cannot_be_kept(value):
    with pytest.raises(UserError, match="which a checkpoint cannot keep"):
        to_json(value)
