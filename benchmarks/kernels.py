# SPDX-License-Identifier: Apache-2.0
"""The kernels at real sizes: every implementation that runs on this device, its peers, and whole training steps.

`share of limit` is the time that the device's own limits leave, measured in the same run, over the time taken:

    max(bytes / copy rate, flops / matmul rate) / time          see COST; for a step, the sum over its three ops

Bytes are what has to move once; a gathered row counts every time it is asked for, so a share can be above 1 where a
cache serves it. `error` is the largest difference from the reference over the largest number, on the first tokens and
latents; of a step, that of its first loss. Indices are used as unevenly as in a trained dictionary.
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxneuro_kernels.dispatch import target
from jaxneuro_kernels.shapes import OPS, SHAPES, case, fill
from rich.console import Console

from . import harness, limits, steps, truth
from .correctness import refusal
from .harness import Program
from .limits import DTYPE, INNER, ON_CPU, SETS, Limits, Size, size_of

NAMES: Final = ("cpu-256", "cpu-128") if ON_CPU else tuple(n for n, s in SHAPES.items() if s[0] == 8192)
STEPS: Final = (
    {"cpu-256, 1,024 tokens": (1024, 256, 8192, 32), "cpu-256": SHAPES["cpu-256"]}
    if ON_CPU
    else {name: SHAPES[name] for name in NAMES}
)
"""(tokens, d, n_latents, k) of the training steps."""
SAMPLES: Final = 7
"""At least."""
BUDGET_S: Final = float("inf") if ON_CPU else 480.0
"""Nothing new is begun after this."""
BARE: Final = "bare matmul"


class Comparison(NamedTuple):
    """Programs that do the same."""

    op: str
    """Key of COST, or "step"."""
    title: str
    size: Size
    make: Callable[[], list[Program]]
    """Their arguments too, which go when the comparison is over."""
    together: bool = True


def rows(repeats: int) -> list[dict]:
    """Limits, then ops and steps shape by shape; what is measured is kept as it comes."""
    console, started = Console(width=150), time.perf_counter()
    torch = _torch(console)
    best, found = limits.measure(max(SAMPLES, repeats))
    console.print(f"copy {best.bytes / 1e9:,.1f} GB/s, matmul {best.flops / 1e12:,.3f} TFLOP/s ({DTYPE})")
    for one in comparisons(torch, console):
        if time.perf_counter() - started > BUDGET_S:
            console.print(f"out of time, not measured: {one.title}", style="yellow")
            continue
        console.print(f"{time.perf_counter() - started:6.1f} s  {one.title}", style="dim")
        measured = _measured(one, max(SAMPLES, repeats))
        for r in measured:
            console.print(f"          {r['implementation']}: {r.get('failed') or r['p50_ms']}", style="dim")
        found += finished(measured, one, best)
        harness.save("kernels", found)
    return found


def _measured(one: Comparison, repeats: int) -> list[dict]:
    """A row per program; one alone where the operands cannot be made."""
    try:
        programs = one.make()
    except Exception as e:
        labels = {
            "op": one.op,
            "implementation": None,
            "ours": False,
            "shape": one.size.named(one.title),
            "dtype": DTYPE,
        }
        return [labels | {"p50_ms": None, "failed": harness.told(e)}]
    return list(harness.run(programs, repeats, INNER, together=one.together))


def finished(measured: list[dict], one: Comparison, best: Limits) -> list[dict]:
    """Rows with their share of the limit, and those of ours with their speed-up over every peer."""
    least = limits.least_of(one.op, one.size, best)
    peers = {r["implementation"]: r["p50_ms"] for r in measured if not r["ours"]}
    bare = peers.pop(BARE, None)
    out = []
    for r in measured:
        mine, kept = r["p50_ms"], {k: v for k, v in r.items() if k != "ours"}
        kept["share of limit"] = harness.ratio(least, mine)
        if r["ours"]:
            kept["speed-up over"] = {name: harness.ratio(ms, mine) for name, ms in peers.items()}
        if r["ours"] and bare is not None:
            kept[f"time / {BARE}"] = harness.ratio(mine, bare)
        out.append(kept)
    return out


def comparisons(torch: Any, console: Console) -> Iterator[Comparison]:
    """Everything, the shapes in turn. torch: the module of its peers and which are here, or None."""
    for name in NAMES:
        for op in OPS:
            for dtype in dict.fromkeys((DTYPE, "float32")) if op == "topk" else (DTYPE,):
                make = functools.partial(of_op, op, name, dtype, torch, console)
                yield Comparison(OPS[op].name, f"{op}, {name}, {dtype}", size_of(SHAPES[name], dtype), make)
        for title, shape in STEPS.items():
            if title.partition(",")[0] == name:
                size, make = size_of(shape, DTYPE), functools.partial(steps.programs, title, shape, torch)
                yield Comparison("step", f"step, {title}", size, make, together=_fits(size))


def _fits(s: Size) -> bool:
    """Whether the states of all training steps may be in memory together."""
    memory = jax.devices()[0].memory_stats() or {}
    return 6 * 24 * s.n * s.d < memory.get("bytes_limit", float("inf")) / 2


def of_op(op: str, name: str, dtype: str, torch: Any, console: Console) -> list[Program]:
    """An op's implementations and peers at a named shape."""
    shape = SHAPES[name]
    this, (_, _, n, k) = case(op, shape, dtype), shape
    states = this.operands[4:] if op == "sae_adam" else ()  # parameters and moments: one set, donated
    operands = this.operands[: len(this.operands) - len(states)]
    sets = [fill(operands, n, seed) for seed in range(SETS)]
    start = functools.partial(fill, states, n, SETS) if states else None
    error = truth.reference(op, sets[0] + (start() if start else ()), k)
    loose = truth.reference(op, sets[0], k, ties=False) if op == "topk" else error

    def one(implementation: str, call: Callable, check: truth.Error | None, *, ours: bool = False) -> Program:
        return Program(
            *(op, call, sets[0], size_of(shape, dtype).named(name), dtype),
            others=tuple(sets[1:]),
            start=start,
            reference=check,
            columns={"implementation": implementation, "ours": ours},
        )

    programs = []
    for implementation, backend in OPS[op].backends.items():
        if refused := refusal(this.call, this.operands, implementation):
            if backend.devices is not None and backend.devices.platform == target().platform:
                console.print(f"          {refused}", style="yellow")
            continue
        call = functools.partial(this.call, implementation=implementation)
        programs.append(one(implementation, _training(call) if start else call, error, ours=True))
    programs += [one(peer, call, None if peer == BARE else loose) for peer, call in _peers(op, n, k)]
    if torch is not None:
        module, here = torch
        for peer in module.calls(op, sets, n, k, here):
            programs.append(module.program(one(peer.name, peer.function, loose), peer.name, peer.sets))
    return programs


def _training(call: Callable) -> Callable:
    """sae_adam as a step that carries its state and shows the first rows."""

    def step(state: tuple, *tokens: Array) -> tuple:
        out = call(*tokens, *state)
        return tuple(out[:3]), jax.tree.map(lambda a: a[: truth.FIRST], out)

    return step


def _peers(op: str, n: int, k: int) -> Iterator[tuple[str, Callable]]:
    """What else JAX has for an op."""
    if op == "topk":
        yield "lax.top_k", lambda x: lax.top_k(x, k)
        yield "lax.top_k, unstable", lambda x: lax.top_k(x, k, is_stable=False)
        yield "lax.approx_max_k", lambda x: lax.approx_max_k(x, k)
    elif op == "topk_mask":
        yield "lax.top_k, scatter", _mask_by_indices
    elif op.startswith("encode_topk"):
        yield from _encoders("bfloat16" if op.endswith("rounded") else "float32", k)
    elif op == "sparse_decode":
        yield "dense", functools.partial(_dense_decode, n)
    elif op == "row_sum":
        yield "scatter-add", functools.partial(_scatter_add, n)


def _mask_by_indices(h: Array) -> Array:
    vals, idx = lax.top_k(h, h.shape[-1] // 10)
    return jnp.zeros_like(h).at[jnp.arange(h.shape[0])[:, None], idx].set(vals)


def _encoders(dtype: str, k: int) -> Iterator[tuple[str, Callable]]:
    """The matmul alone, and what a JAX user writes. dtype: of the pre-activations."""

    def matmul(x: Array, w: Array, b: Array) -> Array:
        del b
        out = dtype if x.dtype == jnp.bfloat16 else "float32"
        return jnp.dot(x, w.T, preferred_element_type=out).astype(dtype)

    def encode(x: Array, w: Array, b: Array) -> tuple[Array, Array]:
        pre = jnp.dot(x, w.T, preferred_element_type=jnp.float32) + b[None]
        vals, idx = lax.top_k(pre.astype(dtype), k)
        return jax.nn.relu(vals), idx

    yield BARE, matmul
    yield "jnp.dot, lax.top_k", encode


def _dense_decode(n: int, vals: Array, idx: Array, w: Array) -> Array:
    tokens = jnp.arange(idx.shape[0])[:, None]
    z = jnp.zeros((idx.shape[0], n), w.dtype).at[tokens, idx].add(vals.astype(w.dtype))
    return jnp.dot(z, w, preferred_element_type=jnp.float32)


def _scatter_add(n: int, vals: Array, idx: Array, x: Array) -> Array:
    rows = vals[..., None] * x.astype(jnp.float32)[:, None]
    return jnp.zeros((n, x.shape[1]), jnp.float32).at[idx].add(rows)


def _torch(console: Console) -> Any:
    """The module of PyTorch's peers and which are here; None without PyTorch, or where JAX runs on what it cannot."""
    if importlib.util.find_spec("torch") is None:
        console.print("not present: torch")
        return None
    from . import torch_peers

    if not ON_CPU and not torch_peers.ON_GPU:
        console.print(f"not present: torch for {jax.devices()[0].device_kind}")
        return None
    here = torch_peers.found()
    for reason in here.absent:
        console.print(f"not present: {reason}")
    return torch_peers, here
