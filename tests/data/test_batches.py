# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import threading
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxneuro.data import batches, windows
from jaxneuro.errors import UserError


@pytest.fixture(scope="module")
def rows(bpe):
    return windows({"a": ["was the best fox"] * 9, "b": ["лиса dog"] * 5}, bpe, length=8)


@pytest.fixture(params=["table", "cipher"])
def both_shuffles(request, monkeypatch):
    """Small data are shuffled with a table, large data by Grain: here the same data by both."""
    if request.param == "cipher":
        monkeypatch.setattr(importlib.import_module("jaxneuro.data.batches"), "TABLE_ROWS", 0)


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


def seen(stream):
    return [int(w) for batch in stream for w in batch["window"]]


def real(ids):
    return [w for w in ids if w >= 0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 7),
    hosts=st.integers(1, 4),
    seed=st.none() | st.integers(0, 2**32 - 1),
    epochs=st.integers(1, 3),
)
def test_shards_are_disjoint_and_cover_everything(rows, both_shuffles, batch_size, hosts, seed, epochs):
    n = len(rows)
    streams = [
        list(batches(rows, batch_size=batch_size, seed=seed, epochs=epochs, shard=(i, hosts))) for i in range(hosts)
    ]
    per_epoch = -(-n // (batch_size * hosts))
    assert {len(s) for s in streams} == {epochs * per_epoch}  # hosts step together
    for e in range(epochs):
        part = [seen(s[e * per_epoch : (e + 1) * per_epoch]) for s in streams]
        assert sorted(real(chain(*part))) == list(range(n))
    for batch in (b for s in streams for b in s):
        assert batch["tokens"].shape == batch["mask"].shape == batch["counted"].shape == (batch_size, 8)
        assert batch["group"].shape == batch["window"].shape == (batch_size,)
        filler = batch["window"] < 0
        assert not batch["mask"][filler].any()
        assert batch["mask"][~filler].any(axis=1).all()


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 4), hosts=st.integers(1, 3), seed=st.none() | st.integers(0, 9))
def test_drop_remainder(rows, batch_size, hosts, seed):
    ids = []
    for i in range(hosts):
        stream = batches(rows, batch_size=batch_size, seed=seed, shard=(i, hosts), drop_remainder=True)
        part = [b["window"] for b in stream]
        assert len(part) == len(rows) // (batch_size * hosts)
        ids += np.concatenate(part).tolist()
    assert min(ids) >= 0
    assert len(set(ids)) == len(ids) == len(rows) - len(rows) % (batch_size * hosts)


def test_batches_are_rows_in_order_without_a_seed(rows):
    first = next(batches(rows, batch_size=4))
    equal(first, rows.rows([0, 1, 2, 3]))
    assert real(seen(batches(rows, batch_size=4, epochs=2))) == [*range(len(rows))] * 2


def test_deterministic_and_new_in_every_epoch(rows, both_shuffles):
    n = len(rows)
    one = real(seen(batches(rows, batch_size=3, seed=7, epochs=3)))
    assert one == real(seen(batches(rows, batch_size=3, seed=7, epochs=3)))
    epochs = [tuple(one[i * n : (i + 1) * n]) for i in range(3)]
    assert len({*epochs, tuple(range(n))}) == 4
    # a neighbouring seed is another stream, not this one shifted by an epoch
    other = real(seen(batches(rows, batch_size=3, seed=8, epochs=3)))
    assert not set(epochs) & {tuple(other[i * n : (i + 1) * n]) for i in range(3)}


def test_shuffling_is_even(bpe):
    # Over many epochs every window comes first about equally often: chi-square with n - 1 degrees of freedom.
    rows = windows({"a": ["fox"] * 12}, bpe, length=4, packing="documents")
    epochs = 40 * len(rows)
    first = [int(b["window"][0]) for b in batches(rows, batch_size=len(rows), seed=0, epochs=epochs)]
    counts = np.bincount(first, minlength=len(rows))
    freedom = len(rows) - 1
    assert ((counts - 40) ** 2 / 40).sum() < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
@pytest.mark.parametrize("seed", [None, 3])
def test_resume_is_bitwise_the_rest(rows, both_shuffles, seed, shard):
    def make():
        return batches(rows, batch_size=3, seed=seed, epochs=2, shard=shard)

    whole = list(make())
    for stop in range(len(whole) + 1):
        stream = make()
        for _ in range(stop):
            next(stream)
        state = json.loads(json.dumps(stream.get_state()))  # plain data: goes into any checkpoint
        fresh = make()
        fresh.set_state(state)
        rest = list(fresh)
        assert len(rest) == len(whole) - stop
        for a, b in zip(rest, whole[stop:], strict=True):
            equal(a, b)
    going_back = make()
    start = going_back.get_state()
    consumed = [next(going_back), next(going_back)]
    going_back.set_state(start)
    for batch in consumed:
        equal(next(going_back), batch)


def test_endless(rows):
    stream = batches(rows, batch_size=4, seed=0, epochs=None)
    per_epoch = -(-len(rows) // 4)
    ids = seen(next(stream) for _ in range(3 * per_epoch))
    assert sorted(real(ids)) == sorted([*range(len(rows))] * 3)


def test_few_threads(rows):
    before = threading.active_count()
    stream = batches(rows, batch_size=4, seed=0)
    next(stream)
    assert threading.active_count() - before <= 1


def test_bad_requests(rows):
    with pytest.raises(UserError, match="batch_size=0"):
        batches(rows, batch_size=0)
    with pytest.raises(UserError, match="epochs=0"):
        batches(rows, batch_size=1, epochs=0)
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match=r"give \(i, n\) with 0 <= i < n"):
            batches(rows, batch_size=1, shard=shard)
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"seed={seed}"):
            batches(rows, batch_size=1, seed=seed)
    with pytest.raises(UserError, match=r"windows do not fill one batch of 1000 on 1 shard"):
        batches(rows, batch_size=1000, drop_remainder=True)
