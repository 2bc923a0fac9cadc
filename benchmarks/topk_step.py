# SPDX-License-Identifier: Apache-2.0
"""A TopK dictionary's training step against the step a JAX user writes first (dense latents, autodiff, Adam)."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro.dictionaries import AuxK, topk

from .harness import Program, run, with_ratio

SHAPES = {"d 128": (128, 4096, 32, 1024), "d 256": (256, 8192, 32, 1024)}
"""d_in, n_latents = 32 d_in, k, tokens."""


def naive_module():
    """The peer, imported from the tests so that it is written once."""
    path = Path(__file__).parents[1] / "tests" / "kernels" / "naive.py"
    spec = importlib.util.spec_from_file_location("naive", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(repeats: int) -> list[dict]:
    """Per shape: the naive step, ours with AuxK off (the same work), ours as it is by default."""
    naive, found = naive_module(), []
    for name, (d, n_latents, k, n) in SHAPES.items():
        x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
        shape = {"d_in": d, "n_latents": n_latents, "k": k, "tokens": n}
        start = functools.partial(naive.start, jax.random.key(0), d, n_latents)
        step = lambda s, x, k=k: naive.step(s, x, k)  # noqa: E731
        programs = [Program("naive dense step", step, (x,), shape, "float32", start=start)]
        for op, aux in (("TopK step without AuxK", 0.0), ("TopK step", 1 / 32)):
            method = topk(n_latents, k, auxk=AuxK(weight=aux) if aux else None)
            start = functools.partial(jax.jit(method.init), jax.random.key(0), {"x": jnp.asarray(x)})
            step = lambda s, x, m=method: m.step(s, {"x": x})  # noqa: E731
            programs.append(Program(op, step, (x,), shape, "float32", start=start))
        table = with_ratio(list(run(programs, repeats)), "naive dense step", inverse=True)
        found += [r | {"op": f"{name}: {r['op']}"} for r in table]
    return found
