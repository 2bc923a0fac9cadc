# SPDX-License-Identifier: Apache-2.0
"""Whole training steps from one start: dense JAX, our method, our ops with Adam inside the row pass, PyTorch."""

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxneuro_kernels import Rows, encode_topk, sae_adam, sparse_decode
from jaxneuro_kernels.sae_backward import adam
from jaxneuro_kernels.shapes import OPS, case

from jaxneuro.dictionaries import Training, topk

from . import truth
from .correctness import refusal
from .harness import Program
from .limits import DTYPE, SETS, size_of
from .topk_step import naive_module

RATE: Final = 2e-4
"""Of learning."""
BETAS: Final = (0.9, 0.999)
"""Adam's."""


def programs(title: str, shape: tuple[int, int, int, int], torch: Any) -> list[Program]:
    """Each returns the loss of its batch before the step: the fraction of variance unexplained.

    Dense JAX lets decoder rows grow; all others keep them at norm 1.

    Args:
      title: of the shape.
      shape: (tokens, d, n_latents, k).
      torch: the module of PyTorch's peers and which of them are here, or None.
    """
    tokens, d, n, k = shape
    w = truth.unit_rows(jax.random.key(0), (n, d))
    xs = [(jax.random.normal(jax.random.key(1 + seed), (tokens, d), jnp.float32),) for seed in range(SETS)]
    want = truth.first_loss(xs[0][0], w, k)
    naive, method = (
        naive_module(),
        topk(n, k, auxk=None, training=Training(b_dec_start="zeros", learning_rate=RATE, dtype=DTYPE)),
    )

    def one(name: str, step: Callable, start: Callable, *, ours: bool = True, dtype: str = DTYPE) -> Program:
        return Program(
            *("step", step, xs[0], size_of(shape, dtype).named(title), dtype),
            others=tuple(xs[1:]),
            start=start,
            reference=lambda loss: truth.largest((loss, want)),
            columns={"implementation": name, "ours": ours},
        )

    def dense(state: Any, x: Array) -> Any:
        return naive.step(state, x, k)

    def learned(state: Any, x: Array) -> Any:
        state, info = method.step(state, {"x": x})
        return state, info["fvu"]

    found = [
        one("dense JAX", dense, lambda: _dense_state(naive, w), ours=False, dtype="float32"),
        one("topk method", learned, lambda: _method_state(method, xs[0][0], w)),
    ]
    encoder = case("encode_topk", shape, DTYPE)
    for name in OPS["encode_topk"].backends:
        if refusal(encoder.call, encoder.operands, name) is None:
            step = functools.partial(ops_step, k=k, implementation=name)
            found.append(one(f"ops, Adam inside: {name}", step, lambda: _ops_state(w)))
    if torch is not None:
        module, here = torch
        tensors = [(module.tensor(x),) for (x,) in xs]
        for name, pieces in here.pieces.items():
            start = functools.partial(module.Step, pieces, w, k, RATE)
            found.append(module.program(one(name, lambda step, x: step(x), start), name, tensors))
    return found


def _dense_state(naive: Any, w: Array) -> Any:
    n, d = w.shape
    p = {"W_enc": jnp.array(w.T), "W_dec": jnp.array(w)}
    p |= {"b_enc": jnp.zeros(n, jnp.float32), "b_dec": jnp.zeros(d, jnp.float32)}
    return p, naive.OPTIMISER.init(p)


def _method_state(method: Any, x: Array, w: Array) -> Any:
    state = jax.jit(method.init)(jax.random.key(0), {"x": x})
    return state._replace(parameters=state.parameters | {"w_enc": jnp.array(w), "w_dec": jnp.array(w)})


class OpsState(NamedTuple):
    """Of a step made of the ops alone."""

    p: Rows
    first: Rows
    second: Rows
    b_dec: Array
    moments: tuple[Array, Array]
    """Of b_dec."""
    step: Array


def _ops_state(w: Array) -> OpsState:
    n, d = w.shape

    def zeros(size: int) -> Array:
        return jnp.zeros(size, jnp.float32)

    p = Rows(jnp.array(w), zeros(n), jnp.array(w))
    first, second = (jax.tree.map(jnp.zeros_like, p) for _ in range(2))
    return OpsState(p, first, second, zeros(d), (zeros(d), zeros(d)), jnp.int32(0))


def ops_step(state: OpsState, x: Array, *, k: int, implementation: str) -> tuple[OpsState, Array]:
    """One step; operands of the products rounded to DTYPE."""

    def prefer(op: str) -> tuple[str, ...]:
        return (implementation, "xla") if implementation in OPS[op].backends else ("xla",)

    p, step = state.p, state.step + jnp.int32(1)
    centred = x - state.b_dec[None]
    low, w_enc, w_dec = (a.astype(DTYPE) for a in (centred, p.w_enc, p.w_dec))
    vals, idx = encode_topk(low, w_enc, p.b_enc, k, implementation=prefer("encode_topk"))
    error = sparse_decode(vals, idx, w_dec, implementation=prefer("sparse_decode")) - centred
    variance = jnp.sum(jnp.square(x - x.mean(0, keepdims=True)))
    g = error * (2 / variance)
    new = sae_adam(
        *(vals, idx, g.astype(DTYPE), low, p, state.first, state.second, step),
        learning_rate=RATE,
        unit_norm=True,
        w_dec=w_dec,
        implementation=prefer("sae_adam"),
    )
    db_enc = (new.first.b_enc - BETAS[0] * state.first.b_enc) / (1 - BETAS[0])  # the gradient that Adam was given
    db_dec = g.sum(0) - db_enc @ p.w_enc  # through the subtraction too
    b_dec, *moments = adam.updated(state.b_dec, *state.moments, db_dec, adam.rates(step, RATE, *BETAS, 1e-8))
    after = OpsState(new.parameters, new.first, new.second, b_dec, (moments[0], moments[1]), step)
    return after, jnp.sum(jnp.square(error)) / variance
