# SPDX-License-Identifier: Apache-2.0
"""One small call of every kind, for JAX's strict modes.

    JAX_NUMPY_RANK_PROMOTION=raise JAX_DEBUG_NANS=1 JAX_CHECK_TRACER_LEAKS=1 python -OO scripts/strict_modes.py

A mode raises where it is violated; what comes out is looked at for NaN and infinity. tests/test_strict_modes.py runs
the same cases under rank promotion "raise", and some under the search for leaks, which turns caches of traces off.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro import add, capture, dictionaries, intervene, scale, sweep, zero
from jaxneuro.activations import moments
from jaxneuro.inference import Sampler, generate, steer_sweep
from jaxneuro.models import Config, Transformer, init
from jaxneuro.training.options import METHODS

CFG: Final = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
SITE: Final = "blocks.1.resid_post"
ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    **{name: {"k": 2} for name in ("topk", "batch_topk", "matryoshka", "multi_topk", "matching_pursuit", "transcoder")},
    "group_max": {"k": 4},
    "relu": {"l1": 1.0},
    "gated": {"l1": 1.0},
    "jumprelu": {"target_l0": 2.0},
    "atoms": {"target_l0": 2.0},
    "cross_layer_transcoder": {"n_layers": 2, "sparsity": 1.0},
    "crosscoder": {"k": 2, "widths": (4, 4)},
}
"""What a method must be told beside its number of latents."""


def _model() -> tuple[Transformer, jax.Array, jax.Array]:
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    return Transformer(CFG, init(CFG, jax.random.key(0))), tokens, jnp.array([[False, *[True] * 5], [True] * 6])


def captured() -> Any:
    """Every site, with padding."""
    model, tokens, mask = _model()
    return jax.jit(capture(partial(model.apply, mask=mask), "*"))(model.weights, tokens)


def intervened() -> Any:
    """Edits with a number, a vector, a row per text, and positions from the end."""
    model, tokens, _ = _model()
    edits = [
        add(SITE, jnp.ones(8), pos=-1),
        add(SITE, jnp.ones((2, 1, 8))),
        scale("blocks.0.mlp.post", 0.5, neuron=[1, 3]),
        zero("blocks.*.mlp.post", neuron=jnp.arange(16) < 2, pos=[0, -2]),
    ]
    return intervene(model.apply, edits)(model.weights, tokens)


def differentiated() -> Any:
    """A gradient to the weights and to a steering vector."""
    model, tokens, _ = _model()

    def loss(weights: Any, vector: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(intervene(model.apply, [add(SITE, vector)])(weights, tokens)))

    return jax.grad(loss, (0, 1))(model.weights, jnp.ones(8))


def swept() -> Any:
    """One ablation after another, and doses."""
    model, tokens, _ = _model()

    @jax.jit
    def run(weights: Any, neurons: jax.Array) -> Any:
        def ablated(n: jax.Array) -> jax.Array:
            return intervene(model.apply, [zero("blocks.1.mlp.post", neuron=n)])(weights, tokens)[:, -1]

        return sweep(ablated, neurons, batch_size=2)

    doses = steer_sweep(model, tokens, lambda d: [add(SITE, d * jnp.ones(8))], jnp.array([0.0, 1.0]), max_new=2)
    return run(model.weights, jnp.arange(4)), doses.generated.log_probs


def generated() -> Any:
    """Tokens drawn one by one, with padding, an edit and a stop token."""
    model, tokens, mask = _model()
    edit, sampler = add(SITE, jnp.ones((2, 1, 8))), Sampler(temperature=0.8, top_p=0.9)
    return generate(model, tokens, mask=mask, max_new=3, sampler=sampler, key=jax.random.key(0), stop=[3], edits=[edit])


def statistics() -> Any:
    """Moments of a stream."""
    method, batch = moments(), {"x": jnp.arange(12.0).reshape(4, 3), "mask": jnp.array([True, True, True, False])}
    state, _ = method.step(method.init(jax.random.key(0), batch), batch)
    return method.finish(state).variance


def trained(name: str) -> Callable[[], Any]:
    """One training step of a method, and its dictionary, saved and read."""

    def run() -> Any:
        method = METHODS[name](**{"n_latents": 8, **ARGUMENTS.get(name, {})})
        batch = {"x": jax.random.normal(jax.random.key(1), (64, 8))}
        if name in ("transcoder", "cross_layer_transcoder"):
            batch["y"] = batch["x"][:, ::-1]
        state = method.init(jax.random.key(2), batch)
        state, info = jax.jit(method.step)(state, batch)
        learned, x = method.finish(state), batch["x"]
        shaped = x.reshape(64, 2, 4) if name == "cross_layer_transcoder" else x
        with tempfile.TemporaryDirectory() as folder:
            path = dictionaries.save_native(learned, f"{folder}/d")
            again: Any = dictionaries.load_dictionary(path)
        return info, learned(shaped), again.decode(again.encode(shaped))

    return run


KINDS: Final[dict[str, Callable[[], Any]]] = {
    f.__name__: f for f in (captured, intervened, differentiated, swept, generated, statistics)
}
CASES: Final[dict[str, Callable[[], Any]]] = {**KINDS, **{name: trained(name) for name in METHODS}}


def check(name: str) -> None:
    """Run a case.

    Raises:
      ValueError: NaN or infinity came out.
    """
    for leaf in jax.tree.leaves(CASES[name]()):
        a = np.asarray(leaf)
        if a.dtype.kind == "f" and not np.isfinite(a).all():
            raise ValueError(f"{name}: not finite")


if __name__ == "__main__":
    for name in CASES:
        check(name)
        print(name, "passes", flush=True)
    print(f"{len(CASES)} cases under -{'O' * sys.flags.optimize}")
