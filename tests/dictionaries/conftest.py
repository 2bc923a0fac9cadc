# SPDX-License-Identifier: Apache-2.0
"""Streams with a known truth, and a training loop."""

from typing import Any

import jax
import numpy as np

D_IN, TRUE, ACTIVE = 16, 24, 2


def rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Directions, uniform on the sphere."""
    w = rng.normal(size=(n, d))
    return (w / np.linalg.norm(w, axis=1, keepdims=True)).astype(np.float32)


def planted(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(x [n, D_IN], truth [TRUE, D_IN]): ACTIVE of TRUE directions per token, of sizes 1 to 2, off centre."""
    truth = rows(np.random.default_rng(7), TRUE, D_IN)
    rng = np.random.default_rng(seed)
    z = np.zeros((n, TRUE), np.float32)
    which = np.argsort(rng.random((n, TRUE)), axis=1)[:, :ACTIVE]
    np.put_along_axis(z, which, rng.uniform(1, 2, (n, ACTIVE)).astype(np.float32), 1)
    return z @ truth + np.float32(0.5), truth


def train(method: Any, batches: dict[str, np.ndarray], *, seed: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
    """Run all batches (leading axis: steps), the step a program of its own. (state, infos by step)."""
    steps = [dict(zip(batches, rows, strict=True)) for rows in zip(*batches.values(), strict=True)]
    state, infos = method.init(jax.random.key(seed), steps[0]), []
    step = jax.jit(method.step)
    for batch in steps:
        state, info = step(state, batch)
        infos.append(info)
    return state, {name: np.stack([info[name] for info in infos]) for name in infos[0]}


@jax.jit
def through(dictionary, x):
    """(encode, decode of that, reconstruction) of x; one program for all dictionaries of one kind."""
    z = dictionary.encode(x)
    return z, dictionary.decode(z), dictionary(x)


@jax.jit
def shaped(dictionary, x):
    """[n, d_in] in other shapes: (codes and their reconstructions as they come, in a row, of one token, of none)."""
    deep = x.reshape(2, 1, -1, D_IN)
    zs = [dictionary.encode(a) for a in (deep, x, x[0], x[:0])]
    return zs, [dictionary.decode(z) for z in zs]


def matched(found: Any, truth: Any) -> np.ndarray:
    """For every true direction the largest cosine with a found one."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return (truth @ found.T / np.linalg.norm(truth, axis=1, keepdims=True)).max(1)
