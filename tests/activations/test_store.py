# SPDX-License-Identifier: Apache-2.0
"""What is written is what is read, checked, of a known size, in random order, from many writers to many readers."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneuro.activations import blocks, open_activations
from jaxneuro.activations.store import DTYPES, META, Layout, predicted_bytes, verify
from jaxneuro.activations.writer import Writer, partial
from jaxneuro.errors import UserError
from jaxneuro.io.files import read_json

REQUEST = {"site": "embed"}
T = 7
"""Rows of one text in most tests."""


def columns(layout, first, last):
    """Rows that say in every column which they are."""
    rows = np.arange(first, last, dtype=np.int32)
    x = np.sin(rows[:, None] * (1 + np.arange(layout.d)))
    values = {"x": x.astype(layout.dtype)}
    if layout.dtype == "int8":
        values = {"x": np.round(x * 127).astype(np.int8), "scale": (1 + rows % 5).astype(np.float32)}
    return values | {"window": rows // T, "pos": rows % T, "group": rows % 3}


def expected(layout, acts, rows=slice(None)):
    """x again, from the labels."""
    stored = columns(layout, 0, layout.n)
    x = stored["x"].astype(np.float32) * stored["scale"][:, None] if layout.dtype == "int8" else stored["x"]
    return x[(acts.window * T + acts.pos)[rows]]


def write(path, layout, shard=(0, 1), step=13, marks=True):
    """Appends from where the writer is, in steps that are no multiple of anything."""
    writer = Writer(path, REQUEST, layout, shard)
    try:
        for number in range(writer.done, -(-(writer.last - writer.first) // step)):
            at = writer.first + number * step
            writer.append(columns(layout, at, min(at + step, writer.last)))
            if marks:
                writer.mark(number + 1)
        writer.mark(-(-(writer.last - writer.first) // step))
        return writer.finish()
    finally:
        writer.close()


def small(n=201, d=5, dtype="float32", block=8, shard=32):
    return Layout(n, d, dtype, block, shard)


def made(path, **layout):
    write(path, small(**layout), marks=False)
    return open_activations(path)


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# ---- what is in it


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 8, 32, 201])
def test_every_row_comes_back(tmp_path, dtype, n):
    acts = made(tmp_path / "a", n=n, dtype=dtype)
    x = expected(acts.layout, acts)
    assert np.array_equal(np.asarray(acts.x), x)
    assert acts.x.dtype == x.dtype
    assert acts.x.shape == x.shape
    assert np.array_equal(np.sort(acts.window * T + acts.pos), np.arange(n))
    assert np.array_equal(acts.group, (acts.window * T + acts.pos) % 3)
    assert verify(tmp_path / "a") == acts.layout.n_bytes()


@pytest.mark.parametrize(
    "index",
    [0, -1, slice(3, 50), slice(-9, None), slice(60, 3), slice(None, None, 7), slice(40, 2, -3), [5, 190, 5, -2], []],
)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_are_indexed_like_an_array(tmp_path, index, dtype):
    acts = made(tmp_path / "a", dtype=dtype)
    whole = np.asarray(acts.x)
    index = np.array(index, np.int64) if isinstance(index, list) else index
    assert np.array_equal(acts.x[index], whole[index])
    mask = np.arange(len(acts)) % 11 == 0
    assert np.array_equal(acts.x[mask], whole[mask])


def test_what_is_no_row(tmp_path):
    x = made(tmp_path / "a").x
    for wrong in (201, -202, [3, 201]):
        with pytest.raises(IndexError):
            x[wrong]
    with pytest.raises(TypeError, match="indexed by row"):
        x[3, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_size_is_known_beforehand(tmp_path, dtype):
    """Within 1 % from 10 MB on, everything in the folder counted; and within 1 % of the bytes of the values alone."""
    n, d = 50_001, {"float32": 64, "bfloat16": 128, "int8": 256}[dtype]
    layout = Layout.of(n, d, dtype)
    write(tmp_path / "a", layout, step=20_000, marks=False)
    real = sum(len(b) for b in contents(tmp_path / "a").values())
    assert real > 10e6
    assert 0 <= real - predicted_bytes(n, d, dtype) < 4000  # 4000: five metadata files
    assert abs(real / sum(len(a.tobytes()) for a in columns(layout, 0, n).values()) - 1) < 0.08  # 0.08: the last block


def test_zeros_are_stored_and_rows_of_a_file_are_mixed(tmp_path):
    layout = small(n=64)
    writer = Writer(tmp_path / "a", REQUEST, layout)
    writer.append(
        {n: np.zeros_like(a) for n, a in columns(layout, 0, 64).items()} | {"window": np.arange(64, dtype=np.int32)}
    )
    writer.mark(1)
    assert writer.finish()
    acts = open_activations(tmp_path / "a")
    assert not np.asarray(acts.x).any()
    for half in (acts.window[:32], acts.window[32:] - 32):
        assert np.array_equal(np.sort(half), np.arange(32))
        assert (half == np.arange(32)).sum() < 8  # a shuffle leaves one where it was, on average


# ---- batches


def ids(batch):
    return (batch["window"] * T + batch["pos"])[batch["mask"]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(1, 20),
    st.sampled_from([None, 0, 5]),
)
def test_every_epoch_is_every_row_once(n, block, lanes, window, seed):
    order = blocks.BlockOrder(n, block, seed=seed, lanes=1 if seed is None else lanes, window=window)
    units, within = order.locate(np.arange(3 * n))
    rows = []
    for unit, at in zip(units.tolist(), within.tolist(), strict=True):
        shuffled = order.shuffled(unit)
        there = np.concatenate([np.arange(b * block, min((b + 1) * block, n)) for b in order.blocks(unit)])
        rows.append(there[at if shuffled is None else shuffled[at]])
    for epoch in np.reshape(rows, (3, n)):
        assert np.array_equal(np.sort(epoch), np.arange(n))
        if seed is None:
            assert np.array_equal(epoch, np.arange(n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [2, 10_000])
def test_batches_hold_the_right_rows(tmp_path, dtype, window, monkeypatch):
    monkeypatch.setattr(blocks, "WINDOW", window)
    acts = made(tmp_path / "a", n=1201, dtype=dtype)
    stored = columns(acts.layout, 0, 1201)
    x = stored["x"].astype(np.float32) * (stored["scale"][:, None] if dtype == "int8" else np.float32(1))
    batches = list(acts.batches(batch_size=48, seed=3, epochs=2))
    assert all(b["x"].dtype == np.float32 for b in batches)
    assert all(np.array_equal(b["x"][b["mask"]], x[ids(b)]) for b in batches)
    assert not batches[-1]["x"][~batches[-1]["mask"]].any()
    seen = np.concatenate([ids(b) for b in batches])
    assert Counter(seen.tolist()) == dict.fromkeys(range(1201), 2)
    raw = list(acts.batches(batch_size=48, seed=3, epochs=2, widen=False))
    assert raw[0]["x"].dtype == acts.layout.dtype
    assert all(np.array_equal(r["x"][r["mask"]], stored["x"][ids(r)]) for r in raw)
    assert ("scale" in raw[0]) == (dtype == "int8")


def test_in_order_is_the_order_on_the_disk(tmp_path):
    acts = made(tmp_path / "a", n=601)
    batches = list(acts.batches(batch_size=50, seed=None, epochs=1))
    assert np.array_equal(np.concatenate([b["x"][b["mask"]] for b in batches]), np.asarray(acts.x))


def test_any_batch_at_once_and_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "WINDOW", 4)
    acts = made(tmp_path / "a", n=1201)
    stream = acts.batches(batch_size=32, seed=1)
    for _ in range(50):  # in the second epoch
        next(stream)
    state, following = stream.get_state(), [next(stream) for _ in range(60)]
    again = acts.batches(batch_size=32, seed=1)
    next(again)
    again.set_state(state)
    for expected_batch, batch in zip(following, again, strict=False):
        assert all(np.array_equal(batch[k], expected_batch[k]) for k in expected_batch)


@pytest.mark.parametrize("hosts", [2, 3, 4])
def test_hosts_together_read_what_one_would_and_each_its_part_of_the_blocks(tmp_path, hosts, monkeypatch):
    monkeypatch.setattr(blocks, "WINDOW", 64)
    acts = made(tmp_path / "a", n=64 * 8 * 6)
    read, start = Counter(), blocks._Unit.__init__

    def counted(self, folder, arrays, layout, which, free):
        read.update(which.tolist())
        start(self, folder, arrays, layout, which, free)

    monkeypatch.setattr(blocks._Unit, "__init__", counted)
    options = {"batch_size": 48, "seed": 2, "epochs": 2}
    one = list(acts.batches(**options))
    alone = read.total()
    parts = []
    for i in range(hosts):
        read.clear()
        parts.append(list(acts.batches(**options, shard=(i, hosts))))
        share = read.total() / alone
        assert 1 / hosts <= share < (1.3 if 16 % hosts == 0 else 1.5) / hosts  # 1.3: a lane more between epochs
    for batch, *shards in zip(one, *parts, strict=True):
        assert all(np.array_equal(batch[k], np.concatenate([s[k] for s in shards])) for k in batch)


def test_a_batch_mixes_texts_as_an_exact_shuffle_does(tmp_path):
    """Share of pairs from one text: 255 / (n - 1) for an exact shuffle; here at most 2 times that, and not less."""
    n, text = 2**18, 256
    layout = Layout(n, 1, "bfloat16", 64, 64 * 64)
    writer = Writer(tmp_path / "a", REQUEST, layout)
    rows = np.arange(n, dtype=np.int32)
    writer.append(
        {"x": np.zeros((n, 1), ml_dtypes.bfloat16), "window": rows // text, "pos": rows % text, "group": rows}
    )
    writer.mark(1)
    writer.finish()
    pairs, same = 0, 0
    for batch in open_activations(tmp_path / "a").batches(batch_size=512, seed=0, epochs=1):
        counts = np.unique(batch["window"], return_counts=True)[1]
        same, pairs = same + int((counts * (counts - 1)).sum()), pairs + 512 * 511
    ratio = same / pairs / ((text - 1) / (n - 1))
    assert 0.9 < ratio < 2  # 1.5 by the formula of blocks.py; 130,000 pairs, so the noise is below 0.01


def test_epochs_and_seeds_differ(tmp_path):
    acts = made(tmp_path / "a", n=601)
    once = lambda seed: [tuple(ids(b)) for b in acts.batches(batch_size=601, seed=seed, epochs=2)]  # noqa: E731
    assert len({*once(0), *once(1)}) == 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 5, "shard": (0, 2)}, "not a positive multiple of the 2 shards"),
        ({"batch_size": 4, "shard": (2, 2)}, "0 <= index < count"),
        ({"batch_size": 4, "epochs": 0}, "epochs is at least 1"),
        ({"batch_size": 4000, "epochs": 1, "drop_remainder": True}, "do not fill one batch of 4000"),
    ],
)
def test_wrong_arguments(tmp_path, options, match):
    with pytest.raises(UserError, match=match):
        made(tmp_path / "a").batches(**options)


# ---- many writers


@pytest.mark.parametrize("count", [2, 3, 9])
def test_many_writers_make_the_same_store(tmp_path, count):
    made(tmp_path / "one")
    parts = [small().part(i, count) for i in range(count)]
    assert [p[0] for p in parts] == [0, *(p[1] for p in parts[:-1])]
    assert parts[-1][1] == 201
    whole = [write(tmp_path / "many", small(), (i, count)) for i in reversed(range(count))]
    assert whole == [False] * (count - 1) + [True]
    one, many = contents(tmp_path / "one"), contents(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(one[name] == many[name] for name in one if name != META)


def test_writers_at_once(tmp_path):
    made(tmp_path / "one")
    found, gate = [], threading.Barrier(4)

    def one(i):
        gate.wait()
        found.append(write(tmp_path / "many", small(), (i, 4)))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4
    assert any(found)
    assert np.array_equal(
        np.asarray(open_activations(tmp_path / "many").x), np.asarray(open_activations(tmp_path / "one").x)
    )
    assert sorted(os.listdir(tmp_path)) == ["many", "one"]


def test_writers_that_want_different_things(tmp_path):
    Writer(tmp_path / "a", REQUEST, small(), (0, 2)).close()
    with pytest.raises(UserError, match="writers: there 2, here 1"):
        Writer(tmp_path / "a", REQUEST, small())
    with pytest.raises(UserError, match=r"request.site: there embed, here other"):
        Writer(tmp_path / "a", {"site": "other"}, small(), (1, 2))
    with pytest.raises(UserError, match=r"layout.n: there 201, here 202"):
        Writer(tmp_path / "a", REQUEST, small(n=202), (1, 2))


# ---- cut off


@pytest.mark.parametrize("marks", [True, False])
def test_continued_is_bitwise_the_same(tmp_path, marks):
    made(tmp_path / "one")
    for at in (1, 3, 7, 12):
        path, writer = tmp_path / f"at{at}", Writer(tmp_path / f"at{at}", REQUEST, small())
        for number in range(at):
            writer.append(columns(small(), number * 13, (number + 1) * 13))
            if marks or number == 2:
                writer.mark(number + 1)
        writer.append(columns(small(), at * 13, at * 13 + 40))  # and some that no mark counts
        writer.close()
        (partial(path) / ".progress-0-of-1.npz.99.tmp").write_text("half a mark")
        assert not path.exists()
        assert write(path, small())
        assert contents(path) == contents(tmp_path / "one")


CHILD = """
import runpy, sys, time
from pathlib import Path
test = runpy.run_path({file!r})
columns, small, Writer = test["columns"], test["small"], test["Writer"]
layout = small(n=4001)
writer = Writer(Path({path!r}), test["REQUEST"], layout)
print("ready", flush=True)
for number in range(writer.done, 308):
    writer.append(columns(layout, number * 13, min(number * 13 + 13, 4001)))
    writer.mark(number + 1)
writer.finish()
"""


def test_killed_at_any_moment(tmp_path):
    """SIGKILL within a write of a file, of a mark, or between the two: the rest makes it whole."""
    layout = small(n=4001)
    write(tmp_path / "one", layout, marks=False)
    path, root = tmp_path / "a", str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    code, done = CHILD.format(file=__file__, path=str(path)), []
    for wait in (0.03, 0.11):
        child = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        writer = Writer(path, REQUEST, layout)
        done.append(writer.done)
        writer.close()
    assert 0 < done[0] <= done[1] < 308
    assert write(path, layout)
    assert contents(path) == contents(tmp_path / "one")


def test_a_disk_that_fills_up_keeps_what_is_there(tmp_path):
    """The limit on the size of a file stands for the end of the disk: TensorStore's write fails, a mark does not."""
    layout = small(n=801, d=400)
    write(tmp_path / "one", layout, marks=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = Writer(tmp_path / "a", REQUEST, layout)
    writer.append(columns(layout, 0, 26))
    writer.mark(2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write activations to .*What is there is kept"):
            writer.append(columns(layout, 26, 201))
        with pytest.raises(UserError, match="cannot write"):
            write(tmp_path / "a", layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    assert write(tmp_path / "a", layout)
    assert contents(tmp_path / "a") == contents(tmp_path / "one")


def test_the_wrong_number_of_rows(tmp_path):
    writer = Writer(tmp_path / "a", REQUEST, small())
    writer.append(columns(small(), 0, 100))
    with pytest.raises(UserError, match="100 rows came for the 201"):
        writer.finish()
    with pytest.raises(UserError, match="more than the 201 rows"):
        writer.append(columns(small(), 100, 202))
    writer.close()


# ---- damaged


def change(file, act):
    whole = bytearray(file.read_bytes())
    file.unlink()
    if (changed := act(whole)) is not None:
        file.write_bytes(changed)


def flipped(at):
    def act(whole):
        whole[at] ^= 4
        return whole

    return act


def read_all(acts):
    return [b["x"] for b in acts.batches(batch_size=32, seed=0, epochs=1)]


@pytest.mark.parametrize("at", [0, 20, 41, -30, -1])  # values, a block's checksum, the index and its checksum
@pytest.mark.parametrize("name", ["x/c/2/0", "labels/c/2/0", "scale/c/2"])
def test_a_flipped_bit_is_named(tmp_path, at, name):
    acts = made(tmp_path / "a", dtype="int8")
    change(tmp_path / "a" / name, flipped(at))
    with pytest.raises(UserError, match=rf"activations in {acts.path} are damaged: .*{name}.*back from a copy"):
        read_all(open_activations(tmp_path / "a"))
    with pytest.raises(UserError, match=rf"damaged: blocks of {name} do not have their checksums"):
        verify(tmp_path / "a")
    if not name.startswith("labels"):
        with pytest.raises(UserError, match=name):
            np.asarray(acts.x)


def test_nothing_else_is_lost_with_a_damaged_block(tmp_path):
    acts = made(tmp_path / "a")
    whole = np.asarray(acts.x)
    change(tmp_path / "a" / "x/c/2/0", flipped(3))
    assert np.array_equal(acts.x[:64], whole[:64])
    assert np.array_equal(acts.x[72:], whole[72:])


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda whole: whole[:-40], r"x/c/1/0 has 684 bytes of 724"),
        (lambda whole: b"", "x/c/1/0 has 0 bytes of 724"),
        (lambda whole: None, "x/c/1/0: No such file"),
    ],
)
def test_a_store_cut_short_is_not_opened(tmp_path, act, match):
    made(tmp_path / "a")
    change(tmp_path / "a" / "x/c/1/0", act)
    with pytest.raises(UserError, match=match):
        open_activations(tmp_path / "a")
    with pytest.raises(UserError, match=match):
        verify(tmp_path / "a")


@pytest.mark.parametrize("name", ["x", "labels"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    acts = made(tmp_path / "a")
    (acts.path / name / "zarr.json").unlink()
    os.mkfifo(acts.path / name / "zarr.json")
    with pytest.raises(UserError, match=f"{name}/zarr.json is no file"):
        open_activations(acts.path)


def test_what_a_description_says_is_one_line_without_escapes(tmp_path):
    acts = made(tmp_path / "a")
    said = json.loads((acts.path / "x" / "zarr.json").read_text())
    (acts.path / "x" / "zarr.json").write_text(json.dumps(said | {"data_type": "float\x1b[2J\nOK, all good"}))
    with pytest.raises(UserError, match="are damaged") as caught:
        open_activations(acts.path).x[0]
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("act", [lambda whole: None, lambda whole: whole[:100]])
def test_a_file_that_goes_away_while_it_is_used(tmp_path, act):
    acts = made(tmp_path / "a")
    change(tmp_path / "a" / "x/c/3/0", act)
    with pytest.raises(UserError, match="x/c/3/0"):
        read_all(acts)
    assert np.asarray(acts.x[:96]).shape == (96, 5)


def test_damaged_descriptions(tmp_path):
    acts = made(tmp_path / "a")
    (acts.path / "x" / "zarr.json").write_text("{}")
    with pytest.raises(UserError, match="are damaged"):
        open_activations(acts.path).x[0]
    (acts.path / META).write_text('{"n_tokens": 4}')
    with pytest.raises(UserError, match=r"meta\.json: request is missing; layout\.n is missing; .*layout\.dtype"):
        open_activations(acts.path)
    with pytest.raises(UserError, match="holds no activations"):
        open_activations(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n", 2**40, r"incomplete: .*; and more"),
        ("n", 2**63, r"layout\.n = 9223372036854775808 is not a whole number from 0"),
        ("n", "20", r"layout\.n = '20' is not a whole number"),
        ("d", True, r"layout\.d = true is not a positive whole number"),
        ("d", 6, r"incomplete: x/c/0/0 has .* bytes of"),
        ("dtype", "float16", r"no layout\.dtype 'float16'. .*Known: float32, bfloat16, int8"),
        ("block", 0, r"layout\.block = 0 is not a whole number from 1"),
        ("block", 3, r"layout\.shard = \d+ is no multiple of layout\.block = 3"),
        ("shard", 1e300, r"layout\.shard = 1e\+300 is not a whole number"),
    ],
)
def test_descriptions_that_lie_are_refused_at_once(tmp_path, key, value, message):
    acts = made(tmp_path / "a")
    meta = read_json(acts.path / META)
    meta["layout"][key] = value
    (acts.path / META).write_text(json.dumps(meta))
    with pytest.raises(UserError, match=message):
        open_activations(acts.path)


def test_a_damaged_mark_is_named(tmp_path):
    writer = Writer(tmp_path / "a", REQUEST, small())
    writer.append(columns(small(), 0, 20))
    writer.mark(1)
    writer.close()
    change(partial(tmp_path / "a") / "progress-0-of-1.npz", lambda whole: whole[:100])
    with pytest.raises(UserError, match=r"progress-0-of-1.npz is damaged .* Delete it"):
        Writer(tmp_path / "a", REQUEST, small())


def test_blocks_of_an_accelerator_s_width():
    """A power of two of rows, at most 2 MiB of x and 4096 rows."""
    for d, dtype, block in [(768, "bfloat16", 1024), (768, "float32", 512), (64, "int8", 4096), (2**20, "float32", 1)]:
        layout = Layout.of(10**7, d, dtype)
        assert (layout.block, layout.shard) == (block, 32 * block)
    assert math.isclose(predicted_bytes(10**9, 768, "bfloat16") / (10**9 * (768 * 2 + 12)), 1, rel_tol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_store_says_what_it_is_to_readers_of_zarr(tmp_path, dtype):
    import tensorstore as ts

    layout = Layout(40, 3, dtype, 4, 16)
    request = {"site": "blocks.1.mlp.post", "group_names": ["de", "en"], "model": "Config(...)", "seed": 0}
    writer = Writer(tmp_path / "acts", request, layout)
    writer.append(columns(layout, 0, 40))
    assert writer.finish()
    group = read_json(tmp_path / "acts" / "zarr.json")
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    about = {"site": "blocks.1.mlp.post", "group_names": ["de", "en"], "model": "Config(...)"}
    assert group["attributes"].items() >= about.items()
    assert group["attributes"]["value"] == ("x * scale[:, None]" if dtype == "int8" else "x")
    found = {name: read_json(tmp_path / "acts" / name / "zarr.json") for name in layout.columns}
    axes = {"x": ["token", "d"], "scale": ["token"], "labels": ["token", "label"]}
    assert {name: a["dimension_names"] for name, a in found.items()} == {name: axes[name] for name in found}
    assert found["labels"]["attributes"]["columns"] == ["window", "pos", "group"]
    assert ("bfloat16" in found["x"]["attributes"].get("dtype", "")) == (dtype == "bfloat16")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path / 'acts' / 'x'}/"}}
    assert ts.open(spec, open=True).result().shape == (40, 3)  # by what is in the file alone


def test_a_store_without_attributes_is_read(tmp_path):
    layout = Layout(20, 3, "float32", 4, 16)
    assert write(tmp_path / "acts", layout)
    (tmp_path / "acts" / "zarr.json").unlink()
    for name in layout.columns:
        file = tmp_path / "acts" / name / "zarr.json"
        meta = read_json(file)
        del meta["attributes"], meta["dimension_names"]
        file.write_text(json.dumps(meta))
    acts = open_activations(tmp_path / "acts")
    np.testing.assert_array_equal(acts.x[:], expected(layout, acts))
    assert verify(tmp_path / "acts") > 0


def test_a_folder_of_stores_names_them(tmp_path):
    """What `jaxneuro capture --out` makes is a folder with a store per site."""
    with pytest.raises(UserError, match=r"no meta\.json\. Write some with `jaxneuro capture`"):
        open_activations(tmp_path)
    for i in range(9):
        (tmp_path / f"blocks.{i}.embed").mkdir()
        (tmp_path / f"blocks.{i}.embed" / META).write_text("{}")
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError) as e:
        open_activations(tmp_path)
    assert f"Name one of its folders: {tmp_path}/blocks.0.embed, {tmp_path}/blocks.1.embed, " in str(e.value)
    assert str(e.value).endswith("blocks.7.embed, ... (9 in all).")
