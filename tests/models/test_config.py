# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Config, Rope

from .conftest import SMALL


def test_it_is_frozen_hashable_and_compared_by_value():
    assert Config(**SMALL) == Config(**SMALL)
    assert hash(Config(**SMALL)) == hash(Config(**SMALL))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(**SMALL).d_model = 3


def test_windows_of_none_are_no_windows():
    assert Config(**SMALL, windows=(None, None, None)) == Config(**SMALL)
    cfg = Config(**SMALL, windows=(None, 4, None))
    assert [cfg.window(i) for i in range(3)] == [None, 4, None]


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("value", [0, -1, 2.0, "16", None, True])
def test_sizes_are_counts(size, value):
    with pytest.raises(UserError, match=f"{size}={value!r} is not a positive"):
        Config(**{**SMALL, size: value})


WRONG = {
    "heads that do not divide": ({"n_heads": 3, "n_kv_heads": 2}, "not a multiple of n_kv_heads=2"),
    "an odd head with rope": ({"d_head": 5}, "d_head=5 must be even"),
    "a window of nothing": ({"windows": (4, 0, 4)}, "a window of 0 keys"),
    "windows for other layers": ({"windows": (4, 4)}, "2 entries for 3 layers"),
    "windows without causality": ({"windows": (4, 4, 4), "causal": False}, "need causal=True"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=list(WRONG))
def test_contradictions_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Config(**{**SMALL, **change})


def test_an_odd_head_is_fine_without_rope():
    assert Config(**{**SMALL, "d_head": 5}, rope=None).rope is None
    assert Config(**SMALL).rope == Rope()
