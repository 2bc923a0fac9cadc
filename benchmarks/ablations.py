# SPDX-License-Identifier: Apache-2.0
"""4,096 single-neuron ablations over one prompt, beside a loop over TransformerLens' hooks.

What a ratio is made of, row by row: "GFLOP each" says how much less is multiplied (layers below the edited one, and
positions before it, run once for all; the head runs at one position), "GFLOP/s" what is left, which is the matrix
library, compilation and batching. The loop of jitted calls multiplies what the loop over hooks does, one at a time: it
shows the library and compilation alone. The loop that starts at the edited layer is the best that one could write with
hooks by hand. Loops are measured on a sample that visits every layer equally often, and extrapolated.

Peers: see `hooks`. On a GPU both sides multiply float32 as TF32, JAX's default there.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro.inference import steer_sweep
from jaxneuro.models import Config, Transformer, forward, init
from jaxneuro.taps import intervene, zero

from .capture import SHAPES
from .flops import model_flops
from .harness import in_turn, quantiles, ratio
from .hooks import beside

MODELS: dict[str, Config] = {"GPT-2 124M": SHAPES["GPT-2 124M"][0]}
WHOLE, POS = 4096, 64
"""Ablations that are asked for, tokens of the prompt."""
ON_CPU = jax.default_backend() == "cpu"
N, CHUNK, LOOPED = (384, 16, 24) if ON_CPU else (WHOLE, 256, 240)
"""How many of them a sample of ours runs (a CPU takes minutes for all), how many together, how many of a loop."""
PEERS = ("transformer_lens, loop over hooks", "transformer_lens, loop from the edited layer")
SITE = "blocks.{}.mlp.post"


def rows(repeats: int) -> list[dict]:
    """Per model: loops of libraries and of ours, and our sweeps; the result is the last position's logits."""
    return [row for name, cfg in MODELS.items() for row in _table(name, cfg, max(3, repeats // 5))]


class _Ours(NamedTuple):
    run: Callable[[], list[Any]]
    n: int
    flops: float
    pos: int | None = None


def _table(name: str, cfg: Config, repeats: int) -> list[dict]:
    model = Transformer(cfg, init(cfg, jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, cfg.d_vocab, (1, POS)).astype(np.int32)
    points, few = per_layer(cfg, N), per_layer(cfg, LOOPED)
    whole, last = model_flops(cfg, 1, POS), POS - 1
    ours = {
        "loop of jitted calls": _Ours(looped(model, tokens, few), LOOPED, whole),
        "one program per layer": _Ours(swept(model, tokens, points, None), N, _mean(cfg, 0)),
        "the same, last position only": _Ours(swept(model, tokens, points, last), N, _mean(cfg, last), last),
    }
    first = {op: _seconds(o.run) for op, o in ours.items()}
    flops = {op: o.flops for op, o in ours.items()} | dict(zip(PEERS, (whole, _mean(cfg, 0, POS)), strict=True))
    samples: dict[str, Callable[[int], float]] = {}
    with beside(PEERS, cfg, (1, POS)) as peers:
        samples |= {op: peer.sample for op, peer in peers.items()}
        samples |= {op: _each(o) for op, o in ours.items()}
        times = in_turn(samples, repeats, LOOPED)
    wrong = {op: error(model, tokens, points, o.pos, o.run()) for op, o in ours.items() if o.n == N}
    base, about = next(iter(times)), {"pos": POS, "ours": N, "together": CHUNK, "of a loop": LOOPED}
    return [
        {
            "op": op,
            "shape": {"name": f"{name}, {POS} tokens", **about},
            "dtype": "float32",
            **quantiles(ms),
            f"{WHOLE:,} of them, s": round(float(np.median(ms)) * WHOLE / 1e3, 2),
            "first call, s": first.get(op),
            f"speed-up over {base}": ratio(float(np.median(times[base])), float(np.median(ms))),
            "GFLOP each": round(flops[op] / 1e9, 3),
            "GFLOP/s": round(flops[op] / float(np.median(ms)) / 1e6, 1),
            "error": wrong.get(op),
            "version": peers[op].version if op in peers else None,
        }
        for op, ms in times.items()
    ]


def per_layer(cfg: Config, n: int) -> list[np.ndarray]:
    """For each layer the neurons to ablate, `n` in all, as evenly as that goes."""
    rng = np.random.default_rng(0)
    sizes = np.bincount(np.arange(n) % cfg.n_layers, minlength=cfg.n_layers)
    return [np.resize(rng.permutation(cfg.d_mlp), size).astype(np.int32) for size in sizes]


def swept(model: Transformer, tokens: Any, points: list[np.ndarray], pos: int | None) -> Callable[[], list[Any]]:
    """-> logits [neuron, d_vocab] of every layer's ablations; `pos`: only there, None: at every position."""
    edits = [lambda n, layer=layer: [zero(SITE.format(layer), neuron=n, pos=pos)] for layer in range(len(points))]

    def run() -> list[Any]:
        layers = zip(edits, points, strict=True)
        return [steer_sweep(model, tokens, e, n, measure=_last, chunk=CHUNK).measured for e, n in layers if n.size]

    return run


def looped(model: Transformer, tokens: Any, points: list[np.ndarray]) -> Callable[[], list[Any]]:
    """The same ablations at every position, one call of the whole compiled pass each."""
    single = _single(model.cfg, None)
    return lambda: [single(model.weights, tokens, layer, n) for layer, ns in enumerate(points) for n in ns]


def _single(cfg: Config, pos: int | None) -> Callable[..., Any]:
    def ablated(w: Any, t: Any, layer: Any, neuron: Any) -> Any:
        edit = zero("blocks.mlp.post", layer=layer, neuron=neuron, pos=pos)
        return intervene(lambda w, t: forward(w, t, cfg=cfg)[0, -1], [edit])(w, t)

    return jax.jit(ablated)


def error(model: Transformer, tokens: Any, points: list[np.ndarray], pos: int | None, found: list[Any]) -> float:
    """Largest difference of the first ablation of every layer from a whole edited pass."""
    single, firsts = _single(model.cfg, pos), [(layer, ns[0]) for layer, ns in enumerate(points) if ns.size]
    want = [single(model.weights, tokens, np.int32(layer), n) for layer, n in firsts]
    return max(float(jnp.max(jnp.abs(f[0] - w))) for f, w in zip(found, want, strict=True))


def _last(logits: Any) -> Any:
    return logits[0]


def _mean(cfg: Config, first: int, logits: int = 1) -> float:
    """What an ablation multiplies on the average of the layers, if it runs from its own on, and from `first` on."""
    rest = [range(layer, cfg.n_layers) for layer in range(cfg.n_layers)]
    return float(np.mean([model_flops(cfg, 1, POS, first=first, layers=layers, logits=logits) for layers in rest]))


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return round(time.perf_counter() - started, 4)


def _each(of: _Ours) -> Callable[[int], float]:
    return lambda _: _seconds(of.run) * 1e3 / of.n
