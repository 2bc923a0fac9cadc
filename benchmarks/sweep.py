# SPDX-License-Identifier: Apache-2.0
"""A sweep of single-neuron ablations over one prompt: one program in chunks against a loop of jitted calls."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro.models import forward, init
from jaxneuro.taps import intervene, zero

from .capture import SHAPES
from .harness import Program, run, with_ratio

N, LENGTH, CHUNK = {"bundled": 1024, "GPT-2 124M": 128}, 32, 64
"""Ablations per shape (GPT-2's loop takes minutes on a CPU), tokens of the prompt, ablations run together."""


def rows(repeats: int) -> list[dict]:
    """Neurons of one layer (the middle one), one prompt of 32 tokens; the result: the last position's logits."""
    found = []
    for name, (cfg, _) in SHAPES.items():
        weights = init(cfg, jax.random.key(0))
        tokens = np.random.default_rng(0).integers(0, cfg.d_vocab, (1, LENGTH)).astype(np.int32)
        layer = cfg.n_layers // 2
        neurons = np.resize(np.arange(cfg.d_mlp, dtype=np.int32), N[name])

        def whole(w, t, cfg=cfg):
            return forward(w, t, cfg=cfg)[0, -1]

        def ablated(w, t, neuron, whole=whole, layer=layer):
            return intervene(whole, [zero(f"blocks.{layer}.mlp.post", neuron=neuron)])(w, t)

        def sweep(w, t, neurons, cfg=cfg, layer=layer):
            resid = forward(w, t, cfg=cfg, stop_at=layer)

            def one(neuron):
                rest = lambda w, t, r: forward(w, t, cfg=cfg, start_at=layer, resid=r)[0, -1]  # noqa: E731
                return intervene(rest, [zero(f"blocks.{layer}.mlp.post", neuron=neuron)])(w, t, resid)

            return jax.lax.map(one, neurons, batch_size=CHUNK)

        single = jax.jit(ablated)
        single(weights, tokens, neurons[0]).block_until_ready()

        def loop(w, t, neurons, single=single):
            return [single(w, t, n) for n in neurons]

        want = jnp.stack(loop(weights, tokens, neurons[:CHUNK]))

        def error(result, want=want):
            return float(jnp.max(jnp.abs(jnp.stack(list(result[:CHUNK])) - want)))

        shape = {"ablations": N[name], "pos": LENGTH, "chunk": CHUNK, "d_model": cfg.d_model, "n_layers": cfg.n_layers}
        arguments = (weights, tokens, neurons)
        programs = [
            Program("loop of jitted calls", loop, arguments, shape, "float32", compiled=loop, reference=error),
            Program("one mapped program", sweep, arguments, shape, "float32", reference=error),
        ]
        few = max(3, repeats // 5)
        table = with_ratio(list(run(programs, few)), "loop of jitted calls", inverse=True)
        found += [r | {"op": f"{name}: {r['op']}"} for r in table]
    return found
