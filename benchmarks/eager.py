# SPDX-License-Identifier: Apache-2.0
"""Ten thousand calls outside of jit: their time beside the jitted call's, and the memory maps and memory they leave.

Linux gives a process 65,530 maps, so what leaves some at every call ends the process; rows say maps and resident memory
before and after the calls (after eight that fill what is kept).
"""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxneuro
from jaxneuro.taps import capture, intervene, scale, zero

CALLS, ANEW = 10_000, 1_000
"""Of one function or edit; of a lambda made at each call, which is traced in every one."""
SITE, N_NEURONS = "blocks.2.mlp.post", 512


def rows(repeats: int) -> list[dict]:
    """The bundled model on eight tokens."""
    del repeats
    model = jaxneuro.load("bundled", dtype="float32")
    tokens = jnp.arange(8)[None] + 100
    jitted = jax.jit(lambda model, tokens: model(tokens))
    read = capture(model.__call__, SITE)
    silenced = intervene(model.__call__, zero(SITE, neuron=3))
    return [
        _row("jitted model(tokens)", lambda i: jitted(model, tokens), CALLS),
        _row("model(tokens)", lambda i: model(tokens), CALLS),
        _row("capture(f, site)(tokens)", lambda i: read(tokens), CALLS),
        _row("intervene(f, edit)(tokens)", lambda i: silenced(tokens), CALLS),
        _row("capture of a new lambda", lambda i: capture(lambda t: model(t), SITE)(tokens), ANEW),
        _row("a new edit at each call", lambda i: intervene(model, scale(SITE, i, neuron=i % N_NEURONS))(tokens), ANEW),
        _row("a new lambda as an edit", lambda i: intervene(lambda t: model(t), zero(SITE))(tokens), ANEW),
    ]


def _row(op: str, call: Callable[[int], object], n: int) -> dict:
    for i in range(8):
        jax.block_until_ready(call(i))
    maps, memory, started = _maps(), _resident(), time.perf_counter()
    for i in range(n):
        jax.block_until_ready(call(i))
    ms = 1e3 * (time.perf_counter() - started) / n
    return {
        "op": op,
        "shape": {"batch": 1, "pos": 8},
        "dtype": "float32",
        "calls": n,
        "ms a call": round(ms, 2),
        "maps before": maps,
        "maps after": _maps(),
        "MiB before": memory,
        "MiB after": _resident(),
    }


def _maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20
