# SPDX-License-Identifier: Apache-2.0
"""python -m jaxneuro_kernels.tune: measure every implementation of every op on this device, and keep the fastest.

Writes the device kind's table in `jaxneuro_kernels/tuned/`, which `implementation=None` goes by. Candidates that spill
registers, that disagree with `xla` or that fail are left out, and it says so. Rows measured before are kept until their
size is measured anew, so that a run that ends early loses nothing.
"""

import argparse
import datetime
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from . import aot, tuned
from .dispatch import target
from .shapes import OPS, SHAPES, Case, case, fill

_RING: Final = {"slots": (4, 8, 16, 32)}
_PASS: Final = {"slots": (2, 4, 8), "split": (256, 1024)}
SPACE: Final[dict[tuple[str, str], Mapping[str, Sequence[int]]]] = {
    ("topk", "mosaic_gpu"): {"group": (16, 32, 64, 128)},
    ("encode_topk", "mosaic_gpu"): {"group": (64, 128), "stages": (3, 4), "band": (1, 8, 16)},
    ("sparse_decode", "mosaic_gpu"): _RING,
    ("gather_dot", "mosaic_gpu"): _RING,
    ("row_sum", "mosaic_gpu"): _PASS,
    ("sae_backward", "mosaic_gpu"): _PASS,
    ("sae_adam", "mosaic_gpu"): _PASS,
}
"""Numbers that are tried, by op and implementation; every combination. Not listed: the default alone."""
DTYPES: Final = {"topk": ("float32", "bfloat16")}
"""Of the operands; bfloat16 where nothing is said."""


def configurations(op: str, implementation: str) -> Iterator[dict[str, int]]:
    """The default, then every combination of SPACE.

    Example:
      >>> list(configurations("sparse_decode", "mosaic_gpu"))[:2], list(configurations("topk", "xla"))
      ([{}, {'slots': 4}], [{}])
    """
    space = SPACE.get((op, implementation), {})
    yield {}
    if space:
        yield from (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))


def measure(
    op: str,
    shape: tuple[int, int, int, int],
    dtype: str,
    *,
    repeats: int = 5,
    out_of_time: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row per implementation that runs here and agrees with `xla`: its fastest configuration and time.

    Args:
      op: one of OPS.
      shape: (tokens, d, n_latents, k).
      dtype: of the operands.
      repeats: timed samples, of which the median counts.
      out_of_time: asked between candidates; what is measured by then is returned.
      say: told what is left out and why.
    """
    this = case(op, shape, dtype)
    operands = fill(this.operands, shape[2])
    best: dict[str, dict[str, Any]] = {}
    want = None
    for name in sorted(OPS[op].backends, key=lambda name: name != "xla"):  # first: the others must agree with it
        for config in configurations(OPS[op].name, name):
            if want is not None and out_of_time():
                break
            try:
                run = _compiled(this, name, config)
                got = jax.block_until_ready(run(*operands))
                if want is None:
                    want = got
                if wrong := disagreement(got, want):
                    say(f"{op} {name} {config}: {wrong}; left out")
                    continue
                ms = _median_ms(run, operands, repeats)
            except ExceptionGroup as e:  # it refuses, whatever the configuration
                say(f"{op}: {e.exceptions[0]}")
                break
            except Exception as e:
                say(f"{op} {name} {config}: {type(e).__name__}: {(str(e).splitlines() or [''])[0]}")
                continue
            if name not in best or ms < best[name]["ms"]:
                best[name] = {"implementation": name, "config": config, "ms": round(ms, 4)}
    return [{"op": OPS[op].name, **this.size, **row} for row in best.values()]


def _compiled(this: Case, implementation: str, config: Mapping[str, int]) -> Callable:
    """Raises ValueError where registers spill."""
    jax.clear_caches()  # jitted ops keep the configuration they were traced with
    with tuned.using(config):
        lowered = jax.jit(lambda *a: this.call(*a, implementation=implementation)).lower(*this.operands)
    compiled, report = aot.reported(lowered.compile)
    if report.spilled_bytes:
        raise ValueError(f"{report.spilled_bytes} bytes of registers spill")
    return compiled


def disagreement(got: Any, want: Any) -> str | None:
    """How two results of one op differ beyond rounding, or None. Indices may differ where values are near a tie."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        off = float(_apart(a, b))
        if a.dtype == jnp.int32:
            if off > 0.01:
                return f"{off:.1%} of the indices differ from xla's"
        elif not off < 2e-2:
            return f"values differ from xla's by {off:.1e} of the largest"
    return None


@jax.jit
def _apart(a: jax.Array, b: jax.Array) -> jax.Array:
    """The share of indices that differ; of values, the largest difference in units of b's largest."""
    if a.dtype == jnp.int32:
        return jnp.mean((a != b).astype(jnp.float32))
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(b)), jnp.float32(1e-30))


def _median_ms(run: Callable, operands: Sequence[Any], repeats: int) -> float:
    """Per call, of calls queued back to back for about 20 ms."""
    started = time.perf_counter()
    jax.block_until_ready(run(*operands))
    inner = int(min(20, max(1, 0.02 // max(time.perf_counter() - started, 1e-6))))
    samples = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready([run(*operands) for _ in range(inner)][-1])
        samples.append((time.perf_counter() - started) / inner * 1e3)
    return float(np.median(samples))


def merged(old: Sequence[Mapping], new: Sequence[Mapping]) -> list[Mapping]:
    """New rows, and old ones of sizes that were not measured anew."""

    def size(row):
        return tuple(sorted((k, v) for k, v in row.items() if k not in ("implementation", "config", "ms")))

    fresh = {size(row) for row in new}
    return [row for row in old if size(row) not in fresh] + list(new)


def write(path: Path, rows: Sequence[Mapping]) -> None:
    """Rows with the device's description, in place of the file."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=path.parent)
    about = {
        "device": target().kind,
        "jax": jax.__version__,
        "commit": commit.stdout.strip() or None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(about | {"rows": list(rows)}, indent=1) + "\n")
    part.replace(path)
    tuned.rows.cache_clear()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxneuro_kernels.tune", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), metavar="OP", help=f"of {', '.join(OPS)}")
    large = [name for name, shape in SHAPES.items() if shape[0] == 8192]
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=large, metavar="SHAPE", help=f"of {list(SHAPES)}"
    )
    parser.add_argument("--budget", type=float, default=600.0, help="seconds after which nothing new is started")
    parser.add_argument("--repeats", type=int, default=5, help="samples per candidate")
    parser.add_argument("--out", type=Path, help="file to write; by default the device's table in the package")
    asked = parser.parse_args(arguments)
    here = target()
    if here.platform == "cpu":
        print("Nothing to tune: on a CPU every op has one implementation, xla.", file=sys.stderr)
        return 1
    path = asked.out or tuned.path(here.kind)
    rows: list[Mapping] = json.loads(path.read_text())["rows"] if path.exists() else []
    stop = time.monotonic() + asked.budget
    for shape, op in itertools.product(asked.shapes, asked.ops):
        for dtype in DTYPES.get(op, ("bfloat16",)):
            if time.monotonic() > stop:
                print(f"out of time before {op} at {shape}; {len(rows)} rows are in {path}")
                return 0
            found = measure(
                op, SHAPES[shape], dtype, repeats=asked.repeats, out_of_time=lambda: time.monotonic() > stop, say=print
            )
            for row in sorted(found, key=lambda row: row["ms"]):
                print(f"{op:14} {shape:16} {dtype:9} {row['implementation']:11} {row['ms']:9.3f} ms  {row['config']}")
            rows = merged(rows, found)
            write(path, rows)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
