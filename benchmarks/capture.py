# SPDX-License-Identifier: Apache-2.0
"""What reading costs: the plain forward, statistics of every neuron, one layer with an early stop."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxneuro.activations import firing_moments
from jaxneuro.activations.reducers import _reduced
from jaxneuro.models import Config, forward, init
from jaxneuro.neurons import group_statistics
from jaxneuro.taps import capture

from .harness import Program, run, with_ratio

SHAPES = {
    "bundled": (
        Config(
            n_layers=6, d_model=192, n_heads=6, n_kv_heads=2, d_head=32, d_mlp=512, d_vocab=6144, n_ctx=512, tied=True
        ),
        (16, 256),
    ),
    "GPT-2 124M": (
        Config(
            family="gpt2", n_layers=12, d_model=768, n_heads=12, n_kv_heads=12, d_head=64, d_mlp=3072, d_vocab=50257,
            n_ctx=1024, act="gelu_tanh", gated=False, norm="layer", rope=None, learned_positions=True, qkv_bias=True,
            out_bias=True, mlp_bias=True, tied=True,
        ),
        (4, 128),
    ),
}  # fmt: skip


def reference_moments(weights, tokens, mask, cfg):
    """The same statistics from captured whole activations, as the reference."""
    _, acts = capture(lambda w, t, m: forward(w, t, cfg=cfg, mask=m), ["blocks.mlp.post"])(weights, tokens, mask)
    return jax.vmap(lambda x: _reduced(mask, x))(acts["blocks.mlp.post"])


def study_statistics(op: str, apply, arguments: tuple, shape: dict, bins: int) -> Program:
    """What a study keeps per neuron: counts for nine groups and five shuffles, moments, examples, responses."""
    weights, tokens, mask = arguments
    rng, rows = np.random.default_rng(0), len(tokens)
    batch = {
        "weights": weights, "tokens": tokens, "mask": mask, "counted": mask,
        "labels": rng.integers(0, 9, (rows, 6)).astype(np.int32), "window": np.arange(rows, dtype=np.int32),
    }  # fmt: skip
    method = group_statistics(apply, "blocks.mlp.post", 9, bins=bins, n_examples=5, responses_per_group=64)
    start = lambda: method.init(jax.random.key(0), batch)  # noqa: E731
    return Program(op, method.step, (batch,), shape, "float32", start=start)


def rows(repeats: int) -> list[dict]:
    """One group of rows per shape; ratios are to that shape's plain forward."""
    found = []
    for name, (cfg, (batch, pos)) in SHAPES.items():
        weights = init(cfg, jax.random.key(0))
        tokens = np.random.default_rng(0).integers(0, cfg.d_vocab, (batch, pos)).astype(np.int32)
        mask = np.ones((batch, pos), bool)
        middle = cfg.n_layers // 2

        def plain(w, t, m, cfg=cfg):
            return forward(w, t, cfg=cfg, mask=m)

        def statistics(w, t, m, plain=plain):
            return capture(plain, {"blocks.mlp.post": Partial(firing_moments, m)})(w, t, m)

        def one_layer(w, t, m, cfg=cfg, middle=middle):
            part = lambda w, t, m: forward(w, t, cfg=cfg, mask=m, stop_at=middle + 1)  # noqa: E731
            return capture(part, [f"blocks.{middle}.mlp.post"])(w, t, m)[1]

        want = jax.jit(reference_moments, static_argnums=3)(weights, tokens, mask, cfg)
        logits = jax.jit(lambda w, t, m, plain=plain: plain(w, t, m))(weights, tokens, mask)

        def error(result, want=want, logits=logits):
            out, acts = result
            pairs = [(out, logits), *zip(jax.tree.leaves(acts), jax.tree.leaves(want), strict=True)]
            return max(float(jnp.max(jnp.abs(a.astype(jnp.float32) - b))) for a, b in pairs)

        shape = {"batch": batch, "pos": pos, "d_model": cfg.d_model, "n_layers": cfg.n_layers, "d_mlp": cfg.d_mlp}
        arguments = (weights, tokens, mask)
        programs = [
            Program(f"{name}: forward", plain, arguments, shape, "float32"),
            Program(f"{name}: forward + mlp.post statistics", statistics, arguments, shape, "float32", reference=error),
            Program(f"{name}: layer {middle} with stop_at", one_layer, arguments, shape, "float32"),
        ]
        for op, bins in (("study's statistics", 48), ("study's statistics without histograms", 0)):
            programs.append(study_statistics(f"{name}: forward + {op}", plain, arguments, shape, bins))
        found += with_ratio(list(run(programs, repeats)), f"{name}: forward")
    return [{k.replace(f"{n}: ", ""): v for k, v in r.items()} for r in found for n in [r["op"].split(":")[0]]]
