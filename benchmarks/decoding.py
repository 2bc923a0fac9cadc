# SPDX-License-Identifier: Apache-2.0
"""All neurons through the LM head: the ten tokens that each promotes and suppresses, and the log-sum-exp.

Beside PyTorch doing the same, a matmul and two topk per chunk of neurons, once with float32 scores and once with those
that a bfloat16 matmul gives. Here float32 scores decide: on an accelerator directions times a bfloat16 gain are two
bfloat16 parts, those as stored are one. "exact" is the share of a sample whose ten tokens are those of float64.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro.models import Config
from jaxneuro.neurons import Decoded, decode_neurons, neuron_directions

from .harness import Peer, Program, cores, run, with_ratio
from .limits import DTYPE, ON_CPU

LLAMA_8B = Config(
    n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_head=128, d_mlp=14336, d_vocab=128256, n_ctx=8192
)
SMALL = Config(n_layers=4, d_model=512, n_heads=4, n_kv_heads=2, d_head=128, d_mlp=1024, d_vocab=16384, n_ctx=8192)
MODELS: dict[str, Config] = {"reduced": SMALL} if ON_CPU else {"Llama-3.1-8B": LLAMA_8B}
K, SAMPLE = 10, 32
"""Tokens on each side; neurons that are checked."""
PEERS = ("PyTorch, float32 scores", "PyTorch, bfloat16 scores")


def rows(repeats: int) -> list[dict]:
    """A table per model: ours with the norm's gain and as stored, and peers."""
    return [row for name, cfg in MODELS.items() for row in _table(name, cfg, max(3, repeats // 5))]


def _table(name: str, cfg: Config, repeats: int) -> list[dict]:
    weights = jax.jit(random_weights, static_argnums=1)(jax.random.key(0), cfg)
    neurons = cfg.n_layers * cfg.d_mlp
    shape = {"name": name, "neurons": neurons, "d_model": cfg.d_model, "d_vocab": cfg.d_vocab, "k": K}
    programs, peers = [], []
    for op, fold in (("gain folded in", True), ("as stored", False)):

        def decoded(w: Any, cfg: Config = cfg, fold: bool = fold) -> Decoded:
            return decode_neurons(w, cfg, k=K, fold_norm=fold)

        checked = exact(weights, cfg, fold)
        programs.append(Program(op, decoded, (weights,), shape, DTYPE, reference=checked))
    try:
        if python := os.environ.get("JAXNEURO_PEERS"):
            device = "cpu" if ON_CPU else "cuda"
            sizes = (cfg.n_layers, cfg.d_mlp, cfg.d_model, cfg.d_vocab, K, cores(), device)
            for op in PEERS:
                peers.append(Peer(python, "decoding_peers.py", op, *sizes))
                programs.append(_of(peers[-1], op, shape))
        found = with_ratio(list(run(programs, repeats)), "gain folded in")
    finally:
        for peer in peers:
            peer.stop()
    return [_rated(row, neurons, 2.0 * neurons * cfg.d_model * cfg.d_vocab) for row in found]


def _rated(row: dict, neurons: int, flops: float) -> dict:
    ms, wrong = row["p50_ms"], row["error"]
    rates = {"neurons/s": round(neurons / ms * 1e3), "TFLOP/s": round(flops / ms / 1e9, 3)} if ms else {}
    return {k: v for k, v in row.items() if k != "error"} | rates | {"exact": None if wrong is None else 1 - wrong}


def random_weights(key: Any, cfg: Config) -> dict[str, Any]:
    """Those that decoding reads, made where they are used."""
    keys, shape = jax.random.split(key, 3), (cfg.n_layers, cfg.d_mlp, cfg.d_model)
    return {
        "blocks": {"mlp": {"down": jax.random.normal(keys[0], shape, DTYPE) * jnp.asarray(0.02, DTYPE)}},
        "head": {"w": jax.random.normal(keys[1], (cfg.d_model, cfg.d_vocab), DTYPE) * jnp.asarray(0.02, DTYPE)},
        "final_norm": {"scale": jax.random.uniform(keys[2], (cfg.d_model,), DTYPE, 0.5, 2.0)},
    }


def exact(weights: Any, cfg: Config, fold: bool) -> Callable[[Decoded], float]:
    """-> the share of sampled neurons whose promoted tokens are not those of float64 scores."""
    rng = np.random.default_rng(0)
    layers, neurons = rng.integers(0, cfg.n_layers, SAMPLE), rng.integers(0, cfg.d_mlp, SAMPLE)
    rows = jax.tree.map(lambda a: a[layers, neurons][:, None], weights["blocks"])
    d = np.asarray(neuron_directions(weights | {"blocks": rows}, cfg, fold_norm=fold)[:, 0], np.float64)
    scores = d @ np.asarray(weights["head"]["w"].astype(jnp.float32), np.float64)
    want = np.argsort(-scores, axis=1, kind="stable")[:, :K]

    def wrong(found: Decoded) -> float:
        return float(np.mean(np.any(np.asarray(found.promoted)[layers, neurons] != want, axis=1)))

    return wrong


def _of(peer: Peer, op: str, shape: dict) -> Program:
    options: dict[str, Any] = {"wait": lambda _: None, "columns": {"version": peer.version}}
    return Program(op, peer.sample, (), shape, DTYPE, compiled=lambda: peer.sample(1), **options)
