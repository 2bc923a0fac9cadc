# SPDX-License-Identifier: Apache-2.0
"""Models of one to eight billion parameters in bfloat16 on an accelerator: what reading costs, beside peers.

    python -m benchmarks large:llama-3.1-8b

"share of matmul rate" is the work of the pass (`flops`: matrices and visible pairs) per second, over what a bare
bfloat16 matmul of 8,192 x 8,192 does on the same device in the same run. Programs run one after the other, each let go
of before the next, because no card holds all of them; so do peers, each in a process that ends with its row.
"""

import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxneuro.activations import firing_moments
from jaxneuro.activations.harvest import harvest
from jaxneuro.models import Config, Transformer, config_from_hf, forward, init
from jaxneuro.taps import capture, sites

from . import limits
from .flops import model_flops
from .harness import Program, quantiles, ratio, run
from .hooks import beside

_ROPE = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6}
MODELS: dict[str, dict[str, Any]] = {
    "pythia-1.4b": {
        "model_type": "gpt_neox", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 8192, "vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25,
        "hidden_act": "gelu", "tie_word_embeddings": False,
    },
    "gemma-2-2b": {
        "model_type": "gemma2", "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 9216, "vocab_size": 256000,
        "max_position_embeddings": 8192, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **_ROPE,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": False, **_ROPE, "rope_theta": 500000.0,
    },
}  # fmt: skip
"""Their config.json, as far as it says what is computed. Weights are random."""
SHAPE, FEW = (16, 1024), (1, 128)
"""Rows and tokens of a pass; those of a pass of which everything is kept."""
BATCHES = 4
"""Passes whose activations are written to disk."""
PEERS = {"transformers": SHAPE, "transformers, hooks": SHAPE, "transformer_lens, run_with_cache": FEW}


def rows(repeats: int, model: str | None = None) -> list[dict]:
    """A table per model, or of the one named; a row that says why where the device cannot hold it."""
    limit, found = limits.measure(repeats)
    for name in MODELS if model is None else (model,):
        found += _table(name, config_from_hf(MODELS[name]), limit.flops, max(3, repeats // 5))
    return found


def _table(name: str, cfg: Config, rate: float, repeats: int) -> list[dict]:
    about = functools.partial(_about, name, cfg)
    if reason := too_large(cfg):
        return [{"op": "forward", **about(SHAPE), "p50_ms": None, "failed": reason}]
    model = Transformer(cfg, random_weights(cfg, jax.random.key(0)))
    measured = [_ours(op, model, *what, about, repeats) for op, what in programs(cfg).items()]
    measured.append(_stored(model, about, repeats))
    del model
    for peer, shape in PEERS.items():
        measured.append(_peer(peer, cfg, MODELS[name], shape, about, repeats))
    of_shape = {r["op"]: r["p50_ms"] for r in measured}
    base = {True: of_shape["every site"], False: of_shape["forward"]}
    return [_finished(r, rate, base[r["shape"]["pos"] == FEW[1]]) for r in measured]


def _about(name: str, cfg: Config, shape: tuple[int, int]) -> dict:
    said = {"name": name, "batch": shape[0], "pos": shape[1], "d_model": cfg.d_model, "n_layers": cfg.n_layers}
    return {"shape": said, "dtype": "bfloat16"}


def programs(cfg: Config) -> dict[str, tuple[Callable[..., Any], tuple[int, int], float]]:
    """op -> (function of weights and tokens, shape of tokens, what it multiplies)."""
    middle, whole = cfg.n_layers // 2, model_flops(cfg, *SHAPE)
    part = model_flops(cfg, *SHAPE, layers=range(middle + 1), logits=0)

    def plain(w: Any, t: Any) -> Any:
        return forward(w, t, cfg=cfg)

    def statistics(w: Any, t: Any) -> Any:
        mask = jnp.ones(t.shape, bool)
        return capture(plain, {"blocks.mlp.post": Partial(firing_moments, mask)})(w, t)

    def one_layer(w: Any, t: Any) -> Any:
        stop = functools.partial(forward, cfg=cfg, stop_at=middle + 1)
        return capture(stop, [f"blocks.{middle}.mlp.post"])(w, t)[1]

    def everything(w: Any, t: Any) -> Any:
        return capture(plain, [site.name for site in sites(plain, w, t)])(w, t)

    return {
        "forward": (plain, SHAPE, whole),
        "forward + mlp.post statistics": (statistics, SHAPE, whole),
        f"layer {middle} with stop_at": (one_layer, SHAPE, part),
        "every site": (everything, FEW, model_flops(cfg, *FEW)),
    }


def _ours(op: str, model: Transformer, function: Any, shape: Any, flops: float, about: Any, repeats: int) -> dict:
    arguments = (model.weights, _tokens(model.cfg, shape))
    (row,) = run([Program(op, function, arguments, **about(shape))], repeats, together=False)
    return row | {"flops": flops}


def _tokens(cfg: Config, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, cfg.d_vocab, shape).astype(np.int32)


def _peer(peer: str, cfg: Config, hf: dict, shape: tuple[int, int], about: Any, repeats: int) -> dict:
    with beside([peer], cfg, shape, "bfloat16", hf=hf) as found:
        if peer not in found:
            return {"op": peer, **about(shape), "p50_ms": None, "failed": "no JAXNEURO_PEERS"}
        times = [found[peer].sample(1) for _ in range(repeats)]
        columns = {"version": found[peer].version, "flops": model_flops(cfg, *shape)}
    return {"op": peer, **about(shape), **quantiles(times), **columns}


class Rows:
    """Windows of random tokens, as `harvest` reads them."""

    group_names, fingerprint = ("random",), "random"

    def __init__(self, tokens: np.ndarray):
        self.tokens, self.group = tokens, np.zeros(len(tokens), np.int32)
        self.tokens_per_group = np.array([tokens.size], np.int64)

    def rows(self, indices: Any) -> dict[str, np.ndarray]:
        """See `jaxneuro.data.Windows.rows`."""
        index = np.asarray(indices)
        real = index < len(self.tokens)
        tokens = self.tokens[np.where(real, index, 0)]
        mask = np.broadcast_to(real[:, None], tokens.shape)
        numbers = {"group": np.zeros(len(index), np.int32), "window": index.astype(np.int32)}
        return {"tokens": tokens, "mask": mask, "counted": mask, **numbers}


def _stored(model: Transformer, about: Any, repeats: int) -> dict:
    """Milliseconds per batch of writing every token's residual stream behind the middle layer to disk."""
    cfg, middle = model.cfg, model.cfg.n_layers // 2
    windows, times = Rows(_tokens(cfg, (BATCHES * SHAPE[0], SHAPE[1]))), []
    for _ in range(repeats + 1):  # the first compiles
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            options: dict[str, Any] = {"batch_size": SHAPE[0], "dtype": "bfloat16"}
            harvest(model, windows, f"blocks.{middle}.resid_post", Path(folder) / "store", **options)
            times.append((time.perf_counter() - started) * 1e3 / BATCHES)
    part = model_flops(cfg, *SHAPE, layers=range(middle + 1), logits=0)
    return {"op": f"store of layer {middle}'s resid_post", **about(SHAPE), **quantiles(times[1:]), "flops": part}


def _finished(row: dict, rate: float, base: float | None) -> dict:
    ms, flops = row["p50_ms"], row.pop("flops", None)
    if ms is None:
        return row
    shape = row["shape"]
    return row | {
        "tokens/s": round(shape["batch"] * shape["pos"] / ms * 1e3),
        "TFLOP/s": round(flops / ms / 1e9, 2),
        "share of matmul rate": round(flops / ms * 1e3 / rate, 3),
        "time / ours": ratio(ms, base),
    }


def random_weights(cfg: Config, key: Any, dtype: Any = jnp.bfloat16) -> Any:
    """Near those of `init`, drawn a few rows at a time: no float32 copy of a whole stack of layers exists."""
    leaves, tree = jax.tree.flatten_with_path(jax.eval_shape(functools.partial(init, cfg, dtype=dtype), key))
    keys = jax.random.split(key, len(leaves))
    drawn = [_draw(k, leaf.shape, leaf.dtype, _mean(cfg, path)) for (path, leaf), k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def _mean(cfg: Config, path: Any) -> float:
    return 1.0 if path[-1].key == "scale" and cfg.norm != "gemma_rms" else 0.0


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key: Any, shape: tuple[int, ...], dtype: Any, mean: float) -> Any:
    def one(key: Any) -> Any:
        return (mean + 0.02 * jax.random.normal(key, shape[1:], jnp.float32)).astype(dtype)

    together = max(1, min(shape[0], 2**26 // math.prod(shape[1:])))
    return jax.lax.map(one, jax.random.split(key, shape[0]), batch_size=together)


def too_large(cfg: Config) -> str | None:
    """Why this device cannot run the model: it is a CPU, or its memory does not hold weights, logits and neurons."""
    weights = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(functools.partial(init, cfg), jax.random.key(0)))
    )
    tokens = SHAPE[0] * SHAPE[1]
    need = 2 * weights + tokens * (4 * cfg.d_vocab + 16 * cfg.d_mlp)
    has = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if jax.default_backend() != "cpu" and has > need:
        return None
    return f"needs an accelerator with {need / 1e9:.0f} GB for JAX; this {jax.default_backend()} has {has / 1e9:.0f} GB"
