# SPDX-License-Identifier: Apache-2.0
"""Shuffles are exact, fair, and anywhere at once; batches come out the same from any state and any number of hosts."""

import collections
import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneuro.activations import Shuffle, array_batches, source
from jaxneuro.errors import UserError

X = np.arange(23 * 3, dtype=np.float32).reshape(23, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 50))
def test_a_permutation_of_any_length(n, seed, epoch):
    assert np.array_equal(np.sort(Shuffle(n, seed=seed, epoch=epoch)(np.arange(n))), np.arange(n))


@pytest.mark.parametrize("n", [2**31 - 1, 2**40 + 7])
def test_large_n_stays_within_and_distinct(n):
    rows = Shuffle(n, seed=1)(np.arange(5000))
    assert rows.min() >= 0
    assert rows.max() < n
    assert len(np.unique(rows)) == 5000
    assert abs(rows.mean() / n - 0.5) < 0.02  # sd of the mean: 0.004


def test_all_orders_are_equally_likely():
    """Chi-square over the 24 orders of 4 rows, 23 degrees of freedom: 99.9 % below 49.7."""
    orders = [tuple(Shuffle(4, seed=s)(np.arange(4))) for s in range(12_000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 500) ** 2 / 500).sum() < 49.7


def test_neighbours_are_unrelated_and_epochs_differ():
    a = Shuffle(20_000, seed=0, epoch=0)(np.arange(20_000))
    b = Shuffle(20_000, seed=0, epoch=1)(np.arange(20_000))
    for pair in ((a[:-1], a[1:]), (a, np.arange(20_000)), (a, b)):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.03  # sd 0.007


def rows(batches):
    """First column as row numbers, fillers dropped."""
    return np.concatenate([b["x"][b["mask"], 0] for b in batches]).astype(int) // 3


def test_every_epoch_is_every_row_once():
    got = rows(array_batches(X, batch_size=4, seed=5, epochs=3)).reshape(3, 23)
    assert all(sorted(epoch) == list(range(23)) for epoch in got)
    assert len({tuple(epoch) for epoch in got}) == 3
    assert np.array_equal(rows(array_batches(X, batch_size=4, seed=None, epochs=1)), np.arange(23))


def test_the_last_batch_is_filled_or_dropped():
    batches = list(array_batches(X, batch_size=10, seed=0, epochs=1))
    assert [b["mask"].sum() for b in batches] == [10, 10, 3]
    assert (batches[-1]["x"][3:] == 0).all()
    assert len(list(array_batches(X, batch_size=10, seed=0, epochs=1, drop_remainder=True))) == 2


def test_endless_and_resumed_from_a_state():
    stream = array_batches(X, batch_size=4, seed=1)
    for _ in range(9):
        next(stream)
    state = stream.get_state()
    expected = [next(stream)["x"] for _ in range(20)]
    again = array_batches(X, batch_size=4, seed=1)
    next(again)
    again.set_state(state)
    assert all(np.array_equal(next(again)["x"], e) for e in expected)


def test_hosts_together_read_what_one_would():
    one = array_batches(X, batch_size=6, seed=2, epochs=2)
    hosts = [array_batches(X, batch_size=6, seed=2, epochs=2, shard=(i, 3)) for i in range(3)]
    for batch, *parts in zip(one, *hosts, strict=True):
        for name in ("x", "mask"):
            assert np.array_equal(batch[name], np.concatenate([p[name] for p in parts]))


def test_extras_stay_aligned_and_small_floats_widen():
    half = X.astype(ml_dtypes.bfloat16)
    extra = {"group": np.arange(23, dtype=np.int32), "weights": np.ones(23)}
    for batch in array_batches(half, batch_size=4, seed=3, epochs=1, extra=extra):
        assert batch["x"].dtype == np.float32
        assert batch["group"].dtype == np.int32
        expected = half[batch["group"]].astype(np.float32)
        assert np.array_equal(batch["x"][batch["mask"]], expected[batch["mask"]])


def test_a_memmap_is_read_in_place(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    a, b = (array_batches(x, batch_size=5, seed=4, epochs=1) for x in (mapped, X))
    assert all(np.array_equal(p["x"], q["x"]) for p, q in zip(a, b, strict=True))


CHANGES = {
    "cut": lambda path: os.truncate(path, 4096),
    "touched": lambda path: os.utime(path, (1, 1)),
    "removed": os.unlink,
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_mapped_file_that_changes_is_an_error_and_no_crash(tmp_path, how):
    """A file that is cut while it is mapped would end the process with SIGBUS at the next row behind the cut."""
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((100_000, 4), np.float32))
    arrays = source._Arrays({"x": np.load(path, mmap_mode="r")}, 100_000, None, True, {path: True})
    arrays.read(np.arange(9))
    CHANGES[how](path)
    with pytest.raises(UserError, match=r"x\.npy was changed while it was read: 1,600,128 bytes"):
        arrays.read(np.arange(90_000, 90_009))


@pytest.mark.parametrize("known", ["memmap", "file"])
def test_batches_of_a_mapped_file_watch_it(tmp_path, known):
    path = tmp_path / "x.npy"
    np.save(path, X)
    x = np.load(path, mmap_mode="r")[:20]
    x, file = (x, None) if known == "memmap" else (np.asarray(x), path)
    stream = array_batches(x, batch_size=4, seed=None, file=file)
    next(stream)
    CHANGES["touched"](path)
    with pytest.raises(UserError, match=r"x\.npy was changed while it was read"):
        collections.deque(stream, 0)  # what was read ahead comes first


def test_a_file_that_is_mapped_to_be_written_may_be_written_late(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(8, 2))
    stream = array_batches(x, batch_size=8, seed=None)
    next(stream)
    x[:] = 1
    x.flush()
    os.utime(tmp_path / "x", (1, 1))
    for _ in range(20):
        next(stream)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size 0 is not a positive multiple"),
        ({"batch_size": 5, "shard": (0, 2)}, "batch_size 5 is not a positive multiple of the 2 shards"),
        ({"batch_size": 4, "shard": (2, 2)}, r"0 <= index < count, not \(2, 2\)"),
        ({"batch_size": 4, "epochs": 0}, "epochs is at least 1"),
        ({"batch_size": 4, "extra": {"group": np.zeros(3)}}, "equal numbers of rows"),
        ({"batch_size": 4, "extra": {"mask": np.zeros(23)}}, "'mask' is the name of the filler mask"),
        ({"batch_size": 40, "epochs": 1, "drop_remainder": True}, "do not fill one batch of 40"),
    ],
)
def test_wrong_arguments(options, match):
    with pytest.raises(UserError, match=match):
        array_batches(X, **options)


def test_no_rows():
    with pytest.raises(UserError, match="has no rows"):
        array_batches(X[:0], batch_size=2)


def test_a_device_array_is_a_source():
    import jax.numpy as jnp

    ours, theirs = (array_batches(a, batch_size=3, epochs=1) for a in (jnp.arange(7.0), np.arange(7, dtype=np.float32)))
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one["x"], two["x"])
