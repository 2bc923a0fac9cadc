# SPDX-License-Identifier: Apache-2.0
"""Reading ahead, going back, and what counts as a token."""

import numpy as np
import pytest

from jaxneuro.activations import array_batches
from jaxneuro.activations.feed import AHEAD, Feed, count_tokens
from jaxneuro.errors import UserError

X = np.arange(40, dtype=np.float32)[:, None]


def rows(feed, n):
    return [int(feed.take()[0]["x"][0, 0]) for _ in range(n)]


def stream():
    return array_batches(X, batch_size=4, seed=None, epochs=1)


def test_the_first_batch_is_looked_at_and_still_comes():
    for source in (stream(), list(stream()), (b for b in stream())):
        feed = Feed(source, lambda b: b)
        assert feed.sample()["x"][0, 0] == 0
        assert feed.read == 0
        assert rows(feed, 10) == list(range(0, 40, 4))
        assert feed.take() is None


def test_reads_ahead_but_not_past_the_limit():
    feed = Feed(stream(), lambda b: b)
    feed.take()
    assert (feed.read, feed.waiting) == (AHEAD, AHEAD - 1)
    feed.take(until=3)
    feed.take(until=3)
    assert (feed.read, feed.waiting) == (3, 0)
    assert feed.state() == {"next_index": 3}
    assert feed.take(until=3) is None
    assert rows(feed, 1) == [12]


def test_goes_to_where_it_was():
    exact, plain = Feed(stream(), lambda b: b), Feed(list(stream()), lambda b: b)
    exact.resume(6, {"next_index": 6})
    plain.resume(6, None)
    assert rows(exact, 2) == rows(plain, 2) == [24, 28]


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"does not accept the state in the checkpoint \(KeyError"):
        Feed(stream(), lambda b: b).resume(3, {"position": 3})


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [
        ({"tokens": np.zeros((2, 8)), "counted": np.eye(2, 8, dtype=bool), "mask": np.ones((2, 8), bool)}, 2),
        ({"x": np.zeros((5, 3)), "mask": np.array([1, 1, 0, 0, 1], bool)}, 3),
        ({"tokens": np.zeros((2, 8))}, 16),
        ({"x": np.zeros((5, 3))}, 5),
        (np.zeros((7, 2)), 7),
        ((), 1),
    ],
)
def test_tokens_of_a_batch(batch, tokens):
    assert count_tokens(batch) == tokens
