# SPDX-License-Identifier: Apache-2.0
"""What is stored is what the forward pass gives, of the right tokens, whole or resumable."""

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneuro.activations import fair_shares, harvest, harvest_part, harvest_sites, open_activations, store
from jaxneuro.activations.store import predicted_bytes
from jaxneuro.errors import UserError
from jaxneuro.models import Config, Transformer, init
from jaxneuro.taps import capture

SITE = "blocks.0.mlp.post"
MODULE = sys.modules["jaxneuro.activations.harvest"]  # the room exports a function of that name


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """32 rows to a file, so that a harvest of these few hundred has several."""
    monkeypatch.setattr(store, "BLOCK_ROWS", 8)
    monkeypatch.setattr(store, "SHARD_BLOCKS", 4)


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def plainly(model, windows, acts, site):
    """Every row again, by one whole forward pass over all windows."""
    batch = windows.rows(np.arange(len(windows)))
    found = jax.jit(capture(model.apply, [site]))(model.weights, batch["tokens"], batch["mask"])[1][site]
    return np.asarray(found.reshape(*batch["tokens"].shape, -1))[acts.window, acts.pos]


@pytest.mark.parametrize("site", [SITE, "blocks.1.resid_post", "blocks.1.attn.z", "embed", "blocks.0.mlp.hook_post"])
def test_equals_the_plain_forward_pass(tmp_path, toy, toy_windows, site):
    acts = harvest(toy, toy_windows, site, tmp_path / "acts", batch_size=4)
    np.testing.assert_allclose(acts.x, plainly(toy, toy_windows, acts, site), rtol=1e-5, atol=1e-6)
    everything = toy_windows.rows(np.arange(len(toy_windows)))
    assert len(acts) == everything["counted"].sum()
    assert everything["counted"][acts.window, acts.pos].all()
    assert len(set(zip(acts.window.tolist(), acts.pos.tolist(), strict=True))) == len(acts)
    assert np.array_equal(acts.group, toy_windows.group[acts.window])
    assert sorted(os.listdir(tmp_path)) == ["acts"]
    assert sorted(os.listdir(tmp_path / "acts")) == ["labels", "meta.json", "x", "zarr.json"]


SITES = [SITE, "blocks.1.resid_post", "embed"]


def test_several_sites_in_one_pass_are_what_each_is_alone(tmp_path, toy, toy_windows):
    together = harvest_sites(toy, toy_windows, SITES, tmp_path / "acts", batch_size=4, max_tokens=90)
    assert sorted(os.listdir(tmp_path / "acts")) == sorted(SITES)
    for site in SITES:
        alone = harvest(toy, toy_windows, site, tmp_path / site, batch_size=4, max_tokens=90)
        np.testing.assert_array_equal(together[site].pos, alone.pos)
        np.testing.assert_array_equal(together[site].window, alone.window)
        np.testing.assert_allclose(together[site].x, alone.x, rtol=1e-6, atol=1e-6)
    again = harvest_sites(toy, toy_windows, SITES, tmp_path / "acts", batch_size=4, max_tokens=90)
    assert contents(again[SITE].path) == contents(together[SITE].path)


@pytest.mark.parametrize("count", [2, 3])
def test_parts_of_several_sites_of_different_widths(tmp_path, toy_windows, count, monkeypatch):
    monkeypatch.setattr(store, "BLOCK_BYTES", 256)  # of 8 values 8 rows to a block, of 16 values 4
    cfg = Config(n_layers=2, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=16, d_vocab=32, n_ctx=64)
    toy = Transformer(cfg, init(cfg, jax.random.key(0)))
    whole = harvest_sites(toy, toy_windows, SITES, tmp_path / "whole", batch_size=4)
    assert len({acts.layout.shard for acts in whole.values()}) > 1
    done = [
        harvest_part(toy, toy_windows, SITES, tmp_path / "parts", shard=(i, count), batch_size=4)
        for i in reversed(range(count))
    ]
    assert done == [False] * (count - 1) + [True]
    for site in SITES:
        parts = open_activations(tmp_path / "parts" / site)
        np.testing.assert_array_equal(parts.pos, whole[site].pos)
        np.testing.assert_allclose(parts.x, whole[site].x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("at", [1, 5])
def test_several_sites_killed_between_two_marks_go_on_bitwise(tmp_path, toy, toy_windows, at, monkeypatch):
    whole = harvest_sites(toy, toy_windows, SITES, tmp_path / "whole", batch_size=4)
    monkeypatch.setattr(MODULE, "MARK_SECONDS", -1.0)
    marks, plain = [], MODULE.Writer.mark

    def mark(self, batches):
        marks.append(batches)
        if len(marks) > at:
            raise RuntimeError("killed")
        plain(self, batches)

    monkeypatch.setattr(MODULE.Writer, "mark", mark)
    with pytest.raises(RuntimeError, match="killed"):
        harvest_sites(toy, toy_windows, SITES, tmp_path / "acts", batch_size=4)
    monkeypatch.setattr(MODULE.Writer, "mark", plain)
    acts = harvest_sites(toy, toy_windows, SITES, tmp_path / "acts", batch_size=4)
    for site in SITES:
        assert contents(acts[site].path) == contents(whole[site].path)


@pytest.mark.parametrize("sites", [[], [SITE, SITE]])
def test_no_site_or_one_twice(tmp_path, toy, toy_windows, sites):
    with pytest.raises(UserError, match="different sites"):
        harvest_sites(toy, toy_windows, sites, tmp_path / "acts")


def test_a_real_model_is_run_only_up_to_the_layer(tmp_path, toy_windows):
    cfg = Config(n_layers=3, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=16, d_vocab=32, n_ctx=64)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))
    weights = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
    model = Transformer(cfg, weights)
    poisoned = jax.tree.map(lambda w: w.at[2].set(jnp.nan), model.weights["blocks"])
    above = Transformer(cfg, {**model.weights, "blocks": poisoned})
    acts = harvest(above, toy_windows, "blocks.1.mlp.post", tmp_path / "acts", batch_size=8)
    expected = plainly(model, toy_windows, acts, "blocks.1.mlp.post")
    np.testing.assert_allclose(acts.x, expected, atol=2e-5 * np.abs(expected).max())


def test_groups_get_equal_shares(tmp_path, toy, toy_windows):
    acts = harvest(toy, toy_windows, SITE, tmp_path / "acts", max_tokens=90, batch_size=4)
    assert len(acts) == 90
    assert np.bincount(acts.group).tolist() == fair_shares(toy_windows.tokens_per_group, 90).tolist()
    other = harvest(toy, toy_windows, SITE, tmp_path / "other", max_tokens=90, batch_size=4, seed=1)
    assert not np.array_equal(acts.window, other.window)


@pytest.mark.parametrize(
    ("available", "total", "shares"),
    [
        ([10, 100, 100], 90, [10, 40, 40]),
        ([50, 50], 11, [5, 6]),
        ([5, 5], 100, [5, 5]),
        ([5, 0, 9], None, [5, 0, 9]),
        ([3, 3, 3], 2, [0, 1, 1]),
    ],
)
def test_fair_shares(available, total, shares):
    assert fair_shares(np.array(available), total).tolist() == shares


def by_token(acts):
    """(labels, x) in the order of windows and positions."""
    order = np.lexsort((acts.pos, acts.window))
    return np.stack([acts.window, acts.pos, acts.group])[:, order], np.asarray(acts.x)[order]


def test_bfloat16_is_the_rounded_value_and_half_the_size(tmp_path, toy, toy_windows):
    full = harvest(toy, toy_windows, SITE, tmp_path / "full", batch_size=4)
    half = harvest(toy, toy_windows, SITE, tmp_path / "half", batch_size=4, dtype="bfloat16")
    assert half.x.dtype == ml_dtypes.bfloat16
    assert np.array_equal(np.asarray(half.x), np.asarray(full.x).astype(ml_dtypes.bfloat16))
    size = {f: sum(map(len, contents(tmp_path / f / "x" / "c").values())) for f in ("full", "half")}
    blocks, files = -(-len(full) // 8), -(-len(full) // 32)
    overhead = 4 * blocks + (4 * 16 + 4) * files  # checksums and indices
    assert size["full"] - overhead == 2 * (size["half"] - overhead)
    first = next(half.batches(batch_size=8, seed=0))
    assert first["x"].dtype == np.float32
    assert {"group", "window", "pos", "mask"} < first.keys()


def test_int8_is_off_by_half_a_scale_at_most(tmp_path, toy, toy_windows):
    """Uniform errors of a scale's width: largest one scale / 2, mean scale / 4 (the row's largest value aside)."""
    toy.weights = {**toy.weights, "embed": toy.weights["embed"].at[7].set(0)}  # rows of zeros too
    full = harvest(toy, toy_windows, "embed", tmp_path / "full", batch_size=4)
    small = harvest(toy, toy_windows, "embed", tmp_path / "small", batch_size=4, dtype="int8")
    (labels, x), (labels_small, x_small) = by_token(full), by_token(small)
    assert np.array_equal(labels, labels_small)
    scale = np.abs(x).max(1, keepdims=True) / 127
    zero = scale[:, 0] == 0
    assert zero.any()
    assert not x_small[zero].any()
    error = np.abs(x_small - x)[~zero] / scale[~zero]
    assert 0.45 < error.max() <= 0.5 + 1e-4  # 1e-4: 127 in float32
    assert 0.18 < error.mean() < 0.25  # 0.25 x 5 / 6: one of six values is the largest and exact
    first = next(small.batches(batch_size=8, seed=0, widen=False))
    assert first["x"].dtype == np.int8
    assert first["scale"].shape == (8,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_size_said_beforehand_is_the_size(tmp_path, toy, toy_windows, dtype):
    acts = harvest(toy, toy_windows, SITE, tmp_path / "acts", batch_size=4, dtype=dtype)
    on_disk = sum(len(b) for name, b in contents(acts.path).items() if not name.endswith(".json"))
    assert on_disk == predicted_bytes(len(acts), 6, dtype)


# ---- by several processes


@pytest.mark.parametrize("count", [2, 3])
def test_parts_make_the_store_that_one_would(tmp_path, toy, toy_windows, count):
    options = {"batch_size": 4, "max_tokens": 150}
    one = harvest(toy, toy_windows, SITE, tmp_path / "one", **options)
    used = []
    for i in reversed(range(count)):
        counting = Breaking(toy_windows, 10_000)
        whole = MODULE.harvest_part(toy, counting, SITE, tmp_path / "many", shard=(i, count), **options)
        assert whole == (i == 0)
        used.append(counting.calls - 1)  # one to learn the width
    many = open_activations(tmp_path / "many")
    for a, b in zip(by_token(one), by_token(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # other windows beside a window: rounding
    assert np.array_equal(one.window, many.window)
    assert sum(used) <= 8 + count  # no window is run twice but at the borders, 8 batches of 4 are all there is
    assert MODULE.harvest_part(toy, toy_windows, SITE, tmp_path / "many", shard=(1, count), **options)


PROCESS = """
import runpy, sys
import jax
jax.distributed.initialize({address!r}, 2, int(sys.argv[1]))
from jaxneuro.activations import harvest, store
store.BLOCK_ROWS, store.SHARD_BLOCKS = 8, 4
toys = runpy.run_path({toys!r})
acts = harvest(toys["Toy"](), toys["ToyWindows"](), {site!r}, {path!r}, batch_size=4)
sys.stdout.write(f"rows: {{len(acts)}}\\n")  # one write: a library prints lines of its own from another thread
"""


def test_two_processes_of_one_program(tmp_path, toy, toy_windows, toys):
    one = harvest(toy, toy_windows, SITE, tmp_path / "one", batch_size=4)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    code = PROCESS.format(address=address, toys=toys.__file__, site=SITE, path=str(tmp_path / "two"))
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    run = functools.partial(subprocess.Popen, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    both = [run([sys.executable, "-c", code, str(i)]) for i in range(2)]
    said = [p.communicate(timeout=300)[0] for p in both]
    assert all(f"rows: {len(one)}\n" in text for text in said), said
    two = open_activations(tmp_path / "two")
    np.testing.assert_allclose(np.asarray(two.x), np.asarray(one.x), rtol=1e-5, atol=1e-6)
    assert np.array_equal(two.window, one.window)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_part_that_is_killed_goes_on(tmp_path, toy, toy_windows, monkeypatch):
    monkeypatch.setattr(MODULE, "MARK_SECONDS", 0.0)
    part = functools.partial(MODULE.harvest_part, toy, site=SITE, batch_size=4)
    for i in range(2):
        part(toy_windows, out_path=tmp_path / "whole", shard=(i, 2))
    assert not part(toy_windows, out_path=tmp_path / "acts", shard=(1, 2))
    with pytest.raises(ConnectionError):
        part(Breaking(toy_windows, 5), out_path=tmp_path / "acts", shard=(0, 2))
    again = Breaking(toy_windows, 10_000)
    assert part(again, out_path=tmp_path / "acts", shard=(0, 2))
    assert again.calls < 7
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")


def test_two_runs_of_one_part(tmp_path, toy, toy_windows):
    def second():
        with pytest.raises(UserError, match=r"is being written by process .* Two runs cannot write one place"):
            MODULE.harvest_part(toy, toy_windows, SITE, tmp_path / "acts", shard=(0, 2), batch_size=4)
        assert not MODULE.harvest_part(toy, toy_windows, SITE, tmp_path / "acts", shard=(1, 2), batch_size=4)
        with pytest.raises(UserError, match="writers: there 2, here 1"):
            harvest(toy, toy_windows, SITE, tmp_path / "acts", batch_size=4)

    meddling = Breaking(toy_windows, 3, second)
    assert MODULE.harvest_part(toy, meddling, SITE, tmp_path / "acts", shard=(0, 2), batch_size=4)
    alone = harvest(toy, toy_windows, SITE, tmp_path / "alone", batch_size=4)
    assert np.array_equal(open_activations(tmp_path / "acts").window, alone.window)


# ---- interrupted


class Breaking:
    """Windows that stop working (or do something else) at the n-th batch of the run itself."""

    def __init__(self, inner, at, act=None):
        self.inner, self.at, self.act, self.calls = inner, at, act, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def rows(self, indices):
        if len(indices) == 4:
            self.calls += 1
            if self.calls == self.at:
                if self.act is None:
                    raise ConnectionError("gone")
                self.act()
        return self.inner.rows(indices)


@pytest.mark.parametrize("at", [2, 5, 8])
def test_killed_and_continued_is_bitwise_the_same(tmp_path, toy, toy_windows, at, monkeypatch):
    monkeypatch.setattr(MODULE, "MARK_SECONDS", 0.0)
    options = {"batch_size": 4, "max_tokens": 150}
    harvest(toy, toy_windows, SITE, tmp_path / "whole", **options)
    with pytest.raises(ConnectionError):
        harvest(toy, Breaking(toy_windows, at), SITE, tmp_path / "acts", **options)
    assert not (tmp_path / "acts").exists()
    again = Breaking(toy_windows, 10_000)
    harvest(toy, again, SITE, tmp_path / "acts", **options)
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")
    if at == 8:
        assert again.calls < 5  # of 1 + 7 and more: it did go on, and did not begin again


def test_ctrl_c_keeps_what_was_computed(tmp_path, toy, toy_windows):
    harvest(toy, toy_windows, SITE, tmp_path / "whole", batch_size=4)
    interrupting = Breaking(toy_windows, 5, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        harvest(toy, interrupting, SITE, tmp_path / "acts", batch_size=4)
    again = Breaking(toy_windows, 10_000)
    harvest(toy, again, SITE, tmp_path / "acts", batch_size=4)
    assert again.calls == 1 + 10 - 4  # one to learn the width; 4 of 10 batches were done
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")


def test_a_finished_one_is_opened(tmp_path, toy, toy_windows):
    first = harvest(toy, toy_windows, SITE, tmp_path / "acts", batch_size=4)
    again = Breaking(toy_windows, 1)
    assert np.array_equal(np.asarray(harvest(toy, again, SITE, tmp_path / "acts", batch_size=4).x), np.asarray(first.x))
    assert again.calls == 0


# ---- refused


def test_another_request_under_the_same_name(tmp_path, toy, toys, toy_windows):
    harvest(toy, toy_windows, SITE, tmp_path / "acts", batch_size=4)
    with pytest.raises(UserError, match=r"holds other activations .* site: there blocks.0.mlp.post, here embed"):
        harvest(toy, toy_windows, "embed", tmp_path / "acts", batch_size=4)
    with pytest.raises(UserError, match="weights: there"):
        harvest(toys.Toy(seed=1), toy_windows, SITE, tmp_path / "acts", batch_size=4)
    with pytest.raises(ConnectionError):
        harvest(toy, Breaking(toy_windows, 5), SITE, tmp_path / "b", batch_size=4)
    with pytest.raises(UserError, match=r"unfinished harvest of something else .* request.seed: there 0, here 1"):
        harvest(toy, toy_windows, SITE, tmp_path / "b", batch_size=4, seed=1)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="exists and holds no activations"):
        harvest(toy, toy_windows, SITE, tmp_path / "c", batch_size=4)


def test_nan_names_site_window_and_count(tmp_path, toy, toy_windows):
    bad = toy_windows.rows(np.arange(len(toy_windows)))["tokens"][5, 1]
    toy.weights = {**toy.weights, "embed": toy.weights["embed"].at[bad].set(jnp.inf)}
    with pytest.raises(UserError, match=r"embed: NaN or infinity at \d+ tokens of window \d+"):
        harvest(toy, toy_windows, "embed", tmp_path / "acts", batch_size=4)
    assert not (tmp_path / "acts").exists()


def test_nan_at_padding_and_special_tokens_does_not_matter(tmp_path, toy, toy_windows):
    toy.weights = {**toy.weights, "embed": toy.weights["embed"].at[1].set(jnp.nan)}  # 1: BOS, not counted
    assert np.isfinite(np.asarray(harvest(toy, toy_windows, "embed", tmp_path / "acts", batch_size=4).x)).all()


def test_a_disk_that_is_too_small_is_known_beforehand(tmp_path, toy, toy_windows, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    need = predicted_bytes(int(toy_windows.tokens_per_group.sum()), 6, "float32")
    with pytest.raises(UserError, match=f"needs {need:,} bytes .* but 100 .* are free"):
        harvest(toy, toy_windows, SITE, tmp_path / "acts", batch_size=4)


def test_a_disk_that_fills_up_keeps_what_is_there(tmp_path, toy, toy_windows, monkeypatch):
    monkeypatch.setattr(MODULE, "MARK_SECONDS", 0.0)
    harvest(toy, toy_windows, SITE, tmp_path / "whole", batch_size=4)
    real, calls = os.fsync, []

    def full(fd):
        calls.append(fd)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        return real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*run the same command again"):
        harvest(toy, toy_windows, SITE, tmp_path / "acts", batch_size=4)
    monkeypatch.setattr(os, "fsync", real)
    harvest(toy, toy_windows, SITE, tmp_path / "acts", batch_size=4)
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("site", "match"),
    [
        ("blocks.0.mlp.posts", "blocks.mlp.post"),
        ("blocks.*.mlp.post", "stands for several layers"),
        ("blocks.0,1.mlp.post", "stands for several layers"),
        ("blocks.0.mlp.post@grad", "is a gradient"),
        ("blocks.0.attn.pattern", "per pair of positions"),
    ],
)
def test_sites_that_cannot_be_harvested(tmp_path, toy, toy_windows, site, match):
    with pytest.raises(UserError, match=match):
        harvest(toy, toy_windows, site, tmp_path / "acts", batch_size=4)
    assert not (tmp_path / "acts").exists()


def test_a_storage_type_that_does_not_exist(tmp_path, toy, toy_windows):
    with pytest.raises(UserError, match="no storage dtype 'float16'"):
        harvest(toy, toy_windows, SITE, tmp_path / "b", dtype="float16")


def test_spread_over_four_devices(tmp_path, toy, toy_windows):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    one = harvest(toy, toy_windows, SITE, tmp_path / "one", batch_size=8)
    four = harvest(toy, toy_windows, SITE, tmp_path / "four", batch_size=8, sharding=sharding)
    np.testing.assert_allclose(four.x, one.x, rtol=1e-5, atol=1e-6)
    assert np.array_equal(four.window, one.window)
