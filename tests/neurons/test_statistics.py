# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxneuro.errors import UserError
from jaxneuro.neurons import GroupStatistics, LabelledStream, group_statistics, statistics_bytes
from jaxneuro.taps import capture


@pytest.fixture(scope="module")
def values(toy):
    """Every activation [n, L, T, F] with its mask, group and window: the thing the library never builds."""
    f = jax.jit(capture(toy.apply, [toy.site]))
    parts = [np.asarray(f(toy.weights, b["tokens"], b["mask"])[1][toy.site]).swapaxes(0, 1) for b in toy.batches]
    together = lambda key: np.concatenate([b[key] for b in toy.batches])  # noqa: E731
    return np.concatenate(parts), together("counted"), together("group"), together("window")


def test_counts_equal_a_loop_bit_for_bit(toy, table, labels, values):
    x, counted, _, window = values
    tokens, fired = (np.zeros((labels.shape[1], *n), np.int64) for n in ((toy.K,), (toy.L, toy.F, toy.K)))
    for i in np.flatnonzero(window >= 0):
        for s in range(labels.shape[1]):
            k = labels[window[i], s]
            for t in np.flatnonzero(counted[i]):
                tokens[s, k] += 1
                fired[s, :, :, k] += x[i, :, t] > 0
    np.testing.assert_array_equal(table.tokens, tokens)
    np.testing.assert_array_equal(table.fired, fired)
    assert table.tokens.dtype == table.fired.dtype == np.int64
    assert table.windows.sum() == len(window) - 1  # not the filler
    np.testing.assert_allclose(table.rate, fired[0] / tokens[0], rtol=1e-6)


def test_left_padding_counts_the_same(toy, method, table, labels):
    left = toy.run(method, toy.make_batches(padding="left"), toy.weights, labels)
    np.testing.assert_array_equal(left.fired, table.fired)
    np.testing.assert_array_equal(left.tokens, table.tokens)
    np.testing.assert_allclose(left.mean, table.mean, atol=1e-5)


def test_moments_extremes_and_histogram(toy, table, values):
    x, counted, group, window = values
    for k in range(toy.K):
        rows = (window >= 0) & (group == k)
        v = np.concatenate([x[i][:, counted[i]].astype(np.float64) for i in np.flatnonzero(rows)], 1)  # [L, n, F]
        np.testing.assert_allclose(table.mean[..., k], v.mean(1), atol=1e-5)
        np.testing.assert_allclose(table.variance[..., k], v.var(1), atol=1e-4)
        np.testing.assert_allclose(table.high[..., k], v.max(1), atol=1e-5)
        np.testing.assert_allclose(table.low[..., k], v.min(1), atol=1e-5)
        inner = table.edges[1:-1]
        for layer, f in [(0, 3), (1, 7), (2, 11), (2, 20)]:
            at = np.searchsorted(inner, v[layer, :, f].astype(np.float32), side="right")
            np.testing.assert_array_equal(table.histogram[layer, f, k], np.bincount(at, minlength=16))
    assert (table.histogram.sum(-1) == table.tokens[0]).all()


def test_mean_and_spread_far_from_zero_are_kept(toy):
    """A sum of squares minus a squared sum would lose this variance in float32."""
    weights = jax.tree.map(jnp.array, toy.weights)
    weights["blocks"]["b"] = weights["blocks"]["b"].at[0, 0].set(3000.0)
    method = group_statistics(toy.apply, "blocks.0.mlp.post", toy.K, bins=0, n_examples=0)
    got = toy.run(method, toy.batches, weights, toy.group[:, None])
    f = jax.jit(capture(toy.apply, ["blocks.0.mlp.post"]))
    x = np.concatenate(
        [np.asarray(f(weights, b["tokens"], b["mask"])[1]["blocks.0.mlp.post"])[..., 0] for b in toy.batches]
    )
    counted, group = (np.concatenate([b[k] for b in toy.batches]) for k in ("counted", "group"))
    true = np.array([x[(group == k)[:, None] & counted].astype(np.float64).var() for k in range(toy.K)])
    np.testing.assert_allclose(got.variance[0, 0], true, rtol=1e-2)


def assert_largest(table, best, rows_of_group, atol=1e-5):
    """The examples are the largest windows, in order, at the place of their maximum: up to values within rounding.

    best: every value [n, L, T, F], -inf where it is not counted.
    """
    layers, neurons, groups, kept = table.example_window.shape
    layer, f = np.ogrid[:layers, :neurons]
    for k in range(groups):
        rows = rows_of_group[k]
        high = best[rows].max(2)  # [row, L, F]
        window, position = table.example_window[:, :, k], table.example_position[:, :, k]
        assert np.isin(window, rows).all()
        assert (np.diff(np.sort(window, -1)) > 0).all()  # each window once
        for j in range(kept):
            value = best[window[..., j], layer, position[..., j], f]
            np.testing.assert_allclose(table.example_value[:, :, k, j], value, atol=atol)
            np.testing.assert_allclose(value, np.sort(high, 0)[-1 - j], atol=atol)  # the j-th largest there is
            np.testing.assert_allclose(value, best[window[..., j], layer, :, f].max(-1), atol=atol)


@pytest.fixture(scope="module")
def best(values):
    x, counted, group, window = values
    assert (window[:-1] == np.arange(len(window) - 1)).all()  # a row's number is its window's
    rows = [np.flatnonzero((window >= 0) & (group == k)) for k in range(group.max() + 1)]
    return np.where(counted[:, None, :, None], x, -np.inf), rows


def test_top_examples_are_the_largest_and_do_not_depend_on_the_order_of_batches(toy, method, table, labels, best):
    assert_largest(table, *best)
    back = toy.run(method, toy.batches[::-1], toy.weights, labels)
    for name in ("example_value", "example_window", "example_position", "fired"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    first = table.examples(0, 3, 4)
    assert [e["value"] for e in first] == sorted((e["value"] for e in first), reverse=True)
    assert {e["group"] for e in table.examples(0, 3, 2, group=1)} == {1}


def test_equal_values_are_ordered_by_window_and_position(toy, method, labels):
    """Without weights every value is its bias: the same at every place, whatever the order of a sum."""
    weights = {**toy.weights, "blocks": {**toy.weights["blocks"], "up": jnp.zeros_like(toy.weights["blocks"]["up"])}}
    for batches in (toy.batches, toy.batches[::-1]):
        got = toy.run(method, batches, weights, labels)
        for k in range(toy.K):
            rows = [
                (w, np.flatnonzero(c)[0])
                for b in toy.batches
                for g, w, c in zip(b["group"], b["window"], b["counted"], strict=True)
                if g == k and w >= 0
            ]
            windows, positions = np.array(rows[:4]).T
            assert (got.example_window[:, :, k] == windows).all()
            assert (got.example_position[:, :, k] == positions).all()


def test_few_windows_leave_empty_places(toy, method, labels):
    table = toy.run(method, toy.batches[:1], toy.weights, labels)
    assert table.windows.tolist() == [2, 2, 2]
    assert ((table.example_window >= 0).sum(-1) == 2).all()
    assert len(table.examples(0, 0, 1000)) == 6
    assert table.responses.shape[0] == 6


def test_responses_are_means_of_the_first_windows(toy, table, values):
    x, counted, group, window = values
    assert table.responses.shape == (toy.K * 12, toy.L, toy.F)
    for k in range(toy.K):
        rows = np.flatnonzero((window >= 0) & (group == k))[:12]
        here = table.response_group == k
        np.testing.assert_array_equal(table.response_window[here], window[rows])
        want = np.stack([x[i][:, counted[i]].mean(1) for i in rows])
        np.testing.assert_allclose(table.responses[here], want, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sharded_over_devices_counts_the_same(toy, table, method, labels, best, n):
    """Rows over n devices, filled up with empty rows to divide by n: counts are exact, examples up to rounding."""
    mesh = jax.make_mesh((n,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:n])
    rows, whole = (NamedSharding(mesh, p) for p in (PartitionSpec("data"), PartitionSpec()))
    weights = jax.device_put(toy.weights, whole)
    (init, step), state = toy.compiled(method), None
    for b in LabelledStream(toy.batches, labels):
        more = -toy.B % n
        filled = {k: np.concatenate([v, np.zeros_like(v[:more])]) for k, v in b.items()}
        filled["window"][toy.B :] = filled["labels"][toy.B :] = -1
        placed = {**jax.device_put(filled, rows), "weights": weights}
        state = init(jax.random.key(0), placed) if state is None else state
        state, _ = step(state, placed)
    got = method.finish(state)
    assert len(state.fired.low.devices()) == n
    for name in ("tokens", "fired", "windows", "histogram", "response_window"):
        np.testing.assert_array_equal(getattr(got, name), getattr(table, name), err_msg=name)
    assert_largest(got, *best)


def batch_of_zeros(weights, n_batch, n_pos):
    tokens = np.zeros((n_batch, n_pos), np.int32)
    window = np.arange(n_batch, dtype=np.int32)
    labels = np.zeros((n_batch, 2), np.int32)
    on = tokens == 0
    return {"weights": weights, "tokens": tokens, "mask": on, "counted": on, "labels": labels, "window": window}


@pytest.mark.usefixtures("this_machine")
def test_no_array_of_all_layers_and_positions_is_ever_held(toy):
    """12 more layers add far less memory than 12 more layers of activations, and the carried state is donated."""
    n_batch, n_pos = 4, 256

    def held(n_layers):
        blocks = {"up": (toy.D, toy.F), "b": (toy.F,), "down": (toy.F, toy.D)}
        weights = {**toy.weights, "blocks": {k: jnp.zeros((n_layers, *s), jnp.float32) for k, s in blocks.items()}}
        batch = batch_of_zeros(weights, n_batch, n_pos)
        method = group_statistics(toy.apply, toy.site, toy.K, bins=16, n_examples=3)
        state = jax.eval_shape(method.init, jax.random.key(0), batch)
        return jax.jit(method.step, donate_argnums=0).lower(state, batch).compile().memory_analysis()

    few, many = held(4), held(16)
    activations = 12 * n_batch * n_pos * toy.F * 4
    assert many.temp_size_in_bytes - few.temp_size_in_bytes < activations / 4
    assert many.alias_size_in_bytes > 0.95 * many.output_size_in_bytes


def test_other_values_do_not_compile_again(toy, method, table, labels):
    toy.run(method, toy.make_batches(), toy.weights, labels)  # `this_machine` forgets programs
    before = toy.compiled(method)[1]._cache_size()
    other = [{**b, "counted": b["mask"]} for b in toy.make_batches(seed=9)]
    again = toy.run(method, other, toy.plain, labels[::-1])
    assert toy.compiled(method)[1]._cache_size() == before
    assert (again.tokens != table.tokens).any()


def test_size_of_the_state_is_known_beforehand(toy, method):
    batch = batch_of_zeros(toy.weights, 2, 4)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    held = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
    told = statistics_bytes(toy.L, toy.F, toy.K, 1, bins=16, n_examples=4, responses_per_group=12)
    assert told <= held <= told + 1000


def test_finish_refuses_nan_and_empty_groups(toy, method, labels):
    broken = jax.tree.map(jnp.array, toy.weights)
    broken["blocks"]["b"] = broken["blocks"]["b"].at[1, 0].set(jnp.nan)
    with pytest.raises(UserError, match=r"not finite .* layers \[1, 2\] of the 3"):
        toy.run(method, toy.batches[:2], broken, labels)
    with pytest.raises(UserError, match=r"no counted token in group number \[2\]"):
        toy.run(method, toy.batches[:2], toy.weights, np.minimum(labels, 1))


def test_rows_labelled_minus_one_are_left_out(toy, method, labels):
    hidden = labels.copy()
    hidden[toy.batches[0]["window"]] = -1
    got = toy.run(method, toy.batches, toy.weights, hidden)
    want = toy.run(method, toy.batches[1:], toy.weights, labels)
    np.testing.assert_array_equal(got.fired, want.fired)
    np.testing.assert_array_equal(got.example_window, want.example_window)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-6)


def test_save_and_load(table, tmp_path):
    table.save(tmp_path / "t.npz")
    back = GroupStatistics.load(tmp_path / "t.npz")
    for f in dataclasses.fields(table):
        np.testing.assert_array_equal(getattr(back, f.name), getattr(table, f.name))
    assert isinstance(back.site, str)
    np.savez(tmp_path / "other.npz", site="x")
    with pytest.raises(UserError, match="tokens, fired"):
        GroupStatistics.load(tmp_path / "other.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="cannot be read"):
        GroupStatistics.load(tmp_path / "broken.npz")


def test_labels_follow_windows(toy, labels):
    last = list(LabelledStream(toy.batches, labels))[-1]
    assert (last["labels"][-1] == -1).all()
    np.testing.assert_array_equal(last["labels"][:-1], labels[last["window"][:-1]])
    assert last["labels"].dtype == np.int32
    assert not hasattr(LabelledStream(toy.batches, labels), "get_state")


def test_labelled_stream_goes_on_where_it_was(toy, labels):
    class Positions:
        """A stream with a position, as Grain's."""

        def __init__(self, rows):
            self.rows, self.i = rows, 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.i == len(self.rows):
                raise StopIteration
            self.i += 1
            return self.rows[self.i - 1]

        def get_state(self):
            return self.i

        def set_state(self, i):
            self.i = i

    stream = LabelledStream(Positions(toy.batches), labels)
    next(stream)
    here = stream.get_state()
    second = next(stream)["labels"]
    stream.set_state(here)
    np.testing.assert_array_equal(next(stream)["labels"], second)
