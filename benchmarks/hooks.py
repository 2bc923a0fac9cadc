# SPDX-License-Identifier: Apache-2.0
"""The forward pass and what is read of it, beside PyTorch libraries doing the same with hooks, at the same shapes.

Peers run in an environment of their own, at the same time of the same run, one pass of each in turn: give its Python
as JAXNEURO_PEERS (`pip install transformers transformer-lens` there). Without it their rows are left out. All of it
float32 with random weights; a ratio is made of the matrix library, fusion and compilation, hooks themselves cost little
at these batches.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from jaxneuro.activations import firing_moments
from jaxneuro.models import Config, forward, init
from jaxneuro.taps import capture, sites

from .capture import SHAPES as CAPTURED
from .harness import Peer, cores, in_turn, quantiles, ratio

GPT2 = CAPTURED["GPT-2 124M"][0]
LLAMA = Config(
    n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_head=64, d_mlp=1536, d_vocab=49152, n_ctx=2048, tied=True
)
MINILM = Config(
    family="bert", n_layers=6, d_model=384, n_heads=12, n_kv_heads=12, d_head=32, d_mlp=1536, d_vocab=30522, n_ctx=512,
    act="gelu", gated=False, norm="layer", norm_placement="post", causal=False, rope=None, learned_positions=True,
    n_token_types=2, embed_norm=True, qkv_bias=True, out_bias=True, mlp_bias=True, has_head=False,
)  # fmt: skip
MODELS: dict[str, Config] = {"GPT-2 124M": GPT2, "Llama 135M": LLAMA, "MiniLM": MINILM}
BATCH, POS = 4, 128
FEW = 1, 8
"""Batch and positions at which everything is read: launching dominates, as in work by hand."""


def rows(repeats: int) -> list[dict]:
    """A table per model, and one for everything at once."""
    found = []
    for name, cfg in MODELS.items():
        ours = {"forward": _forward, "forward + mlp.post statistics": _statistics}
        theirs = {"forward": "transformers", "forward + mlp.post statistics": "transformers, hooks"}
        found += _beside(name, cfg, (BATCH, POS), ours, theirs, repeats)
    everything = {"every site": _everything}, {"every site": "transformer_lens, run_with_cache"}
    return found + _beside("GPT-2 124M", GPT2, FEW, *everything, repeats)


def _forward(cfg: Config) -> Callable[..., Any]:
    return lambda weights, tokens: forward(weights, tokens, cfg=cfg)


def _statistics(cfg: Config) -> Callable[..., Any]:
    def run(weights: Any, tokens: Any) -> Any:
        mask = jax.numpy.ones(tokens.shape, bool)
        return capture(_forward(cfg), {"blocks.mlp.post": Partial(firing_moments, mask)})(weights, tokens)

    return run


def _everything(cfg: Config) -> Callable[..., Any]:
    def run(weights: Any, tokens: Any) -> Any:
        return capture(_forward(cfg), [site.name for site in sites(_forward(cfg), weights, tokens)])(weights, tokens)

    return run


def _beside(
    model: str,
    cfg: Config,
    shape: tuple[int, int],
    ours: dict[str, Callable[[Config], Callable[..., Any]]],
    theirs: dict[str, str],
    repeats: int,
) -> list[dict]:
    weights = init(cfg, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, cfg.d_vocab, shape).astype(np.int32)
    samples: dict[str, Callable[[int], float]] = {op: _timed(make(cfg), weights, tokens) for op, make in ours.items()}
    with beside(theirs.values(), cfg, shape) as peers:
        times = in_turn(samples | {program: peer.sample for program, peer in peers.items()}, repeats, inner=5)
    about = {"name": f"{model}, {shape[0]} x {shape[1]}", "batch": shape[0], "pos": shape[1]}
    base = {**{op: op for op in ours}, **{program: op for op, program in theirs.items()}}
    return [
        {
            "op": op,
            "shape": about,
            "dtype": "float32",
            **quantiles(ms),
            "tokens/s": round(tokens.size / float(np.median(ms)) * 1e3),
            "times ours": ratio(float(np.median(ms)), float(np.median(times[base[op]]))),
            "version": peers[op].version if op in peers else None,
        }
        for op, ms in times.items()
    ]


@contextlib.contextmanager
def beside(
    programs: Iterable[str], cfg: Config, shape: tuple[int, int], dtype: str = "float32", hf: dict | None = None
) -> Iterator[dict[str, Peer]]:
    """These of hook_peers.py on the device that JAX uses, if there is an environment for them.

    hf: a config.json that transformers builds the model from; None: of three families known there.
    """
    found: dict[str, Peer] = {}
    said = {k: v for k, v in dataclasses.asdict(cfg).items() if isinstance(v, int | float | str)} | {"hf": hf}
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    try:
        if python := os.environ.get("JAXNEURO_PEERS"):
            for program in programs:
                found[program] = Peer(
                    python, "hook_peers.py", program, json.dumps(said), *shape, cores(), device, dtype
                )
        yield found
    finally:
        for peer in found.values():
            peer.stop()


def _timed(run: Callable[..., Any], weights: Any, tokens: Any) -> Callable[[int], float]:
    program = jax.jit(run)
    jax.block_until_ready(program(weights, tokens))

    def sample(steps: int) -> float:
        started, out = time.perf_counter(), None
        for _ in range(steps):
            out = program(weights, tokens)
        jax.block_until_ready(out)
        return (time.perf_counter() - started) * 1e3 / steps

    return sample
