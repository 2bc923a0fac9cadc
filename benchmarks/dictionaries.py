# SPDX-License-Identifier: Apache-2.0
"""Training dictionaries: every method's step, TopK beside other libraries' own, from a store, and many in one pass.

Peers run in an environment of their own, at the same time of the same run, one step of each in turn: give its Python as
JAXNEURO_PEERS (`pip install sae-lens eai-sparsify` there). Without it their rows are left out. On a CPU much of a step
is memory taken fresh from the system: `dictionaries:peers` under MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000
MALLOC_ARENA_MAX=1, which a table records, is the same comparison where glibc keeps it.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro import dictionaries as d
from jaxneuro.activations import array_batches, at_site, open_activations, run, together
from jaxneuro.models import forward, init
from jaxneuro.protocols import Method

from .capture import SHAPES
from .harness import Peer, cores, in_turn, ratio
from .store import Layout, write

D, N, K, TOKENS = 384, 12_288, 32, 2048
"""MiniLM's width, 32 latents per dimension."""
SMALL = {"d": 128, "n_latents": 4096, "tokens": 1024}
"""For the table of methods: those that are dense hold tokens x n_latents several times."""
BATCHES = 4
"""Different batches, used in turn."""
FIRST = 3
"""Steps before any is timed."""


class Ours:
    """A method's step, called like a peer's: `sample(steps)` gives milliseconds per step."""

    def __init__(self, method: Method, batches: list[Any]):
        self._batches, self._step = batches, jax.jit(method.step, donate_argnums=0)
        started = time.perf_counter()
        self._state = jax.jit(method.init)(jax.random.key(0), batches[0])
        self._state, info = self._step(self._state, batches[0])
        jax.block_until_ready(info)
        self.first_ms = (time.perf_counter() - started) * 1e3
        self.sample(FIRST)

    def sample(self, steps: int) -> float:
        started, info = time.perf_counter(), None
        for i in range(steps):
            self._state, info = self._step(self._state, self._batches[i % len(self._batches)])
        jax.block_until_ready((self._state, info))
        return (time.perf_counter() - started) * 1e3 / steps


def noise(tokens: int, width: int) -> list[dict[str, jax.Array]]:
    """Batches of a low-rank signal and noise, so that latents differ in use."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((64, width)).astype(np.float32)
    x = [rng.standard_normal((tokens, 64)).astype(np.float32) @ basis for _ in range(BATCHES)]
    return [{"x": jnp.asarray(a + rng.standard_normal(a.shape).astype(np.float32))} for a in x]


def rows(repeats: int, part: str = "") -> list[dict]:
    """All tables, one after the other; "peers": the first."""
    tables = (against_peers,) if part == "peers" else (against_peers, methods, from_store, many)
    return [row for table in tables for row in table(repeats)]


def against_peers(repeats: int) -> Iterator[dict]:
    """The same TopK step: ours, and the peers'."""
    shape = {"d": D, "n_latents": N, "k": K, "tokens": TOKENS}
    programs: dict[str, Any] = {"topk": Ours(d.topk(N, K), noise(TOKENS, D))}
    with contextlib.ExitStack() as stack:
        if python := os.environ.get("JAXNEURO_PEERS"):
            for name in ("sparsify", "sae_lens, sparse latents", "sae_lens"):
                peer = programs[name] = Peer(python, "dictionary_peers.py", name, D, N, K, TOKENS, BATCHES, cores())
                stack.callback(peer.process.terminate)
        times = in_turn({name: p.sample for name, p in programs.items()}, repeats, inner=2)
    for name, ms in times.items():
        ours = float(np.median(times["topk"]))
        extra = (
            {"first step ms": round(programs[name].first_ms)} if name == "topk" else {"version": programs[name].version}
        )
        yield row(f"step: {name}", ms, TOKENS, shape) | {"times ours": ratio(float(np.median(ms)), ours)} | extra


def methods(repeats: int) -> list[dict]:
    """A step of every method at one shape."""
    n, k, width = SMALL["n_latents"], 32, SMALL["d"]
    make: dict[str, Callable[[], Method]] = {
        "topk": lambda: d.topk(n, k),
        "batch_topk": lambda: d.batch_topk(n, k),
        "group_max": lambda: d.group_max(n, k),
        "multi_topk": lambda: d.multi_topk(n, k),
        "matryoshka": lambda: d.matryoshka(n, k),
        "relu": lambda: d.relu(n, 5.0),
        "jumprelu": lambda: d.jumprelu(n, target_l0=k),
        "gated": lambda: d.gated(n, 5.0),
        "matching_pursuit": lambda: d.matching_pursuit(n, k),
    }
    batches = noise(SMALL["tokens"], width)
    samples = {name: Ours(m(), batches).sample for name, m in make.items()}
    times = in_turn(samples, repeats, inner=2)
    shape = SMALL | {"k": k}
    return [row(f"method: {name}", ms, SMALL["tokens"], shape) for name, ms in times.items()]


def from_store(repeats: int) -> list[dict]:
    """`run` over an array in memory and over a store on disk: what reading costs a run."""
    shape = {"d": D, "n_latents": N, "k": K, "tokens": TOKENS}
    steps = 4 * max(2, repeats // 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "acts"
        write(path, Layout.of(64 * TOKENS, D, "bfloat16"))
        acts, method = open_activations(path), d.topk(N, K)
        sources = {
            "array": lambda: array_batches(np.asarray(acts.x[: 16 * TOKENS], np.float32), batch_size=TOKENS),
            "store": lambda: acts.batches(batch_size=TOKENS, seed=0),
        }

        def timed(name: str) -> float:
            started = time.perf_counter()
            run(method, sources[name](), key=jax.random.key(0), steps=steps)
            return (time.perf_counter() - started) * 1e3 / steps

        timed("array")  # compiles
        times = in_turn({name: lambda _, name=name: timed(name) for name in sources}, 3)
    return [row(f"run from {name}", ms, TOKENS, shape) for name, ms in times.items()]


def many(repeats: int) -> list[dict]:
    """1 and 8 dictionaries at one site of a model that takes longer than they do, one pass of it for all."""
    cfg, _ = SHAPES["GPT-2 124M"]
    site, size = "blocks.8.resid_post", 2048
    tokens = np.random.default_rng(0).integers(0, cfg.d_vocab, (16, 128), np.int32)
    ones = np.ones(tokens.shape, bool)
    batch = {"tokens": tokens, "mask": ones, "counted": ones, "group": np.zeros(16, np.int32)}
    batch = {name: jnp.asarray(a) for name, a in batch.items()} | {"weights": init(cfg, jax.random.key(0))}

    def apply(weights: Any, tokens: Any, mask: Any, **part: Any) -> jax.Array:
        return forward(weights, tokens, cfg=cfg, mask=mask, **part)

    samples, shape = {}, {"model": "GPT-2 124M", "site": site, "tokens": tokens.size, "n_latents": size, "k": "32-39"}
    for count in (1, 8):
        inner = together({f"k{32 + i}": d.topk(size, 32 + i) for i in range(count)})
        samples[f"{count} dictionaries"] = Ours(at_site(apply, site, inner), [batch]).sample
    times = in_turn(samples, repeats)
    one = float(np.median(times["1 dictionaries"]))
    return [
        row(f"live: {n}", ms, tokens.size, shape) | {"times one": ratio(float(np.median(ms)), one)}
        for n, ms in times.items()
    ]


def row(op: str, ms: list[float], tokens: int, shape: dict) -> dict:
    """One line of the table."""
    p20, p50, p80 = (round(float(q), 3) for q in np.percentile(ms, [20, 50, 80]))
    rate = round(tokens / p50 * 1e3)
    return {"op": op, "shape": shape, "dtype": "float32", "p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "tokens/s": rate}
