# SPDX-License-Identifier: Apache-2.0
"""A small learner, streams and a model, used in this process and (through `child`) in others that get killed."""

import functools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.activations import run
from jaxneuro.protocols import Method
from jaxneuro.taps import tap

D = 8
STEPS = 30


class Stream:
    """Batches made from a counter and an evolving generator: an iterator with a state that is not just a number."""

    def __init__(self, n=STEPS, fail_at=None, sleep=0.0):
        self.n, self.i, self.fail_at, self.sleep = n, 0, fail_at, sleep
        self.rng = np.random.default_rng(7)

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self.sleep)
        if self.i == self.n:
            raise StopIteration
        if self.i == self.fail_at:
            raise ConnectionError("the data went away")
        self.i += 1
        return {"x": self.rng.normal(size=(16, D)).astype(np.float32)}

    def get_state(self):
        return {"i": self.i, "rng": self.rng.bit_generator.state, "buffer": np.full(3, self.i, np.int16)}

    def set_state(self, state):
        self.i, self.rng.bit_generator.state = state["i"], state["rng"]
        assert state["buffer"].tolist() == [self.i] * 3


@functools.cache
def learner(size=D):
    """The learner of most tests: one object, so that it is compiled once."""
    return new_learner(size=size)


def new_learner(traces=None, size=D):
    """Something with everything a state can hold: matrices, bfloat16, a counter, a typed key, an empty array."""

    def init(key, batch):
        zeros = jnp.zeros((D, size), jnp.float32)
        return {
            "w": jax.random.uniform(key, (D, size)),
            "adam": (zeros, zeros),  # one array twice: may not be donated as it is
            "half": jnp.ones((3,), jnp.bfloat16),
            "n": 0,
            "key": jax.random.fold_in(key, 1),
            "none": jnp.zeros((0, 2), jnp.float32),
        }

    def step(s, batch):
        if traces is not None:
            traces.append(1)
        key, now = jax.random.split(s["key"])
        noise = jax.random.uniform(now, (D, size)) * jnp.float32(0.01)
        g = batch["x"].T @ (batch["x"] @ s["w"]) / jnp.float32(16) * batch.get("scale", jnp.float32(1)) + noise
        m = s["adam"][0] * jnp.float32(0.9) + g
        v = s["adam"][1] * jnp.float32(0.99) + g * g
        w = s["w"] - jnp.float32(0.01) * m / (jnp.sqrt(v) + jnp.float32(1e-3))
        info = {"loss": jnp.sum(w * w), "grad": {"norm": jnp.sqrt(jnp.sum(g * g)), "step": s["n"]}}
        half = s["half"] * jnp.bfloat16(0.99)
        return {**s, "w": w, "adam": (m, v), "half": half, "n": s["n"] + 1, "key": key}, info

    return Method(init, step, numbers)


def numbers(state):
    """Leaves by name as numpy arrays, keys as numbers."""
    named = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_flatten_with_path(state)[0]}
    keys = {n for n, x in named.items() if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)}
    return {n: np.asarray(jax.random.key_data(x) if n in keys else x) for n, x in named.items()}


def equal(a, b):
    """Bitwise, names and dtypes too."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def learn(folder=None, stream=None, **options):
    """The run that every resume test repeats: metrics every 4 steps, checkpoints every 5."""
    folder = Path(folder) if folder else None
    defaults = {"key": jax.random.key(3), "checkpoint_every": 5, "log_every": 4}
    if folder:
        defaults |= {"checkpoint_dir": folder / "ckpt", "metrics": folder / "metrics.jsonl"}
    method = options.pop("method", None) or learner()
    return run(method, Stream() if stream is None else stream, **defaults | options)


def child(folder, sleep, kill_in_save=None):
    """Runs in another process: says each step; optionally kills itself while it saves step `kill_in_save`."""
    size = D
    if kill_in_save is not None:
        size = 200_000  # 6 MB per matrix: the save takes long enough to be hit
        threading.Thread(target=_killer, args=(Path(folder) / "ckpt", kill_in_save), daemon=True).start()

    def say(done, total, text):
        print("step", done, flush=True)

    learn(folder, Stream(sleep=sleep), method=learner(size=size), progress=say)


def _killer(folder, step):
    while True:
        if any(folder.glob(f"{step}.orbax-checkpoint-tmp*")):
            os.kill(os.getpid(), 9)
        time.sleep(0.0005)


@pytest.fixture
def spawn(tmp_path):
    """Start `child` in a process of its own."""
    started = []

    def start(sleep=0.0, kill_in_save=None):
        code = f"import runpy; runpy.run_path({__file__!r})['child']({str(tmp_path)!r}, {sleep}, {kill_in_save})"
        root = str(Path(__file__).parents[2])
        env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        pipe = subprocess.PIPE
        p = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=pipe, stderr=pipe, text=True)
        started.append(p)
        return p

    yield start
    for p in started:
        p.kill()
        p.communicate()


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """(result, metrics bytes) of the run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return learn(folder), (folder / "metrics.jsonl").read_bytes()


class Toy:
    """Two layers with sites, and the stop_at argument that models have."""

    def __init__(self, seed=0, d=6):
        k1, k2 = jax.random.split(jax.random.key(seed))
        self.weights = {"embed": jax.random.normal(k1, (32, d)), "w": jax.random.normal(k2, (2, d, d))}

    @staticmethod
    def apply(weights, tokens, mask=None, *, stop_at=None):
        x = tap(weights["embed"][tokens], "embed", axes=("batch", "pos", "d_model"))
        for layer in range(2 if stop_at is None else stop_at):
            h = tap(jnp.tanh(x @ weights["w"][layer]), "blocks.mlp.post", layer=layer, axes=("batch", "pos", "neuron"))
            heads = h.reshape(*h.shape[:2], 2, -1)
            tap(heads, "blocks.attn.z", layer=layer, axes=("batch", "pos", "head", "d_head"))
            x = tap(x + h, "blocks.resid_post", layer=layer, axes=("batch", "pos", "d_model"))
        return x


class ToyWindows:
    """Like jaxneuro.data.Windows: rows by number, three groups of unequal size, padding and special tokens."""

    group_names = ("de", "en", "code")

    def __init__(self, sizes=(7, 20, 13), length=10, seed=0):
        rng = np.random.default_rng(seed)
        self.group = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        n = len(self.group)
        self._tokens = rng.integers(2, 32, (n, length)).astype(np.int32)
        self._tokens[:, 0] = 1  # BOS
        self._mask = np.arange(length) < rng.integers(2, length + 1, (n, 1))
        counted = self._counted().sum(1)
        self.tokens_per_group = np.bincount(self.group, counted, len(sizes)).astype(np.int64)
        self.fingerprint = f"toy {sizes} {length} {seed}"

    def _counted(self):
        return self._mask & (self._tokens != 1)

    def __len__(self):
        return len(self.group)

    def rows(self, indices):
        indices = np.asarray(indices)
        inside = indices < len(self)
        at = np.where(inside, indices, 0)
        keep = inside[:, None]
        return {
            "tokens": np.where(keep, self._tokens[at], 0),
            "mask": self._mask[at] & keep,
            "counted": self._counted()[at] & keep,
            "group": np.where(inside, self.group[at], 0).astype(np.int32),
            "window": np.where(inside, indices, -1).astype(np.int32),
        }


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def toy_windows():
    return ToyWindows()


@pytest.fixture
def toys():
    """This file's functions, for tests (with importlib mode they cannot import it)."""
    return sys.modules[__name__]
