# SPDX-License-Identifier: Apache-2.0
"""How well each method reconstructs what it was not trained on, at equal steps and equal L0, beside other libraries.

    JAXNEURO_PEERS=PYTHON python -m benchmarks dictionary_quality:400k          (or :4m)

One site of the bundled model, every eighth window to choose rates on, every eighth to judge on, the others to train on.
All libraries see the same batches in the same order, the same warm-up and decay. PYTHON has sae-lens and
dictionary-learning (`pip install sae-lens dictionary-learning`). For every method and library:

1. three rates, from one seed, at values of its own option (k, a target, an L1 coefficient) on both sides of L0; the
   third, least one only where the second was better than the first;
2. the rate with the least FVU at L0, by the tokens to choose on; further seeds at that rate, of the value that came
   near L0, or of all values if none did;
3. for ours, the default rate of so many steps too, where it is another.

FVU at L0 is read off the line through two points in log-log (of a further seed with one point, by the first seed's
slope); where a rate missed L0 by far, it has none. A row is one dictionary; rows are written as they come and a
repeated call makes those that are missing, so it may be stopped at any time (or after JAXNEURO_MINUTES). The table,
made of whatever rows are there, has each method's medians over seeds and their ratios.
"""

import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro import dictionaries as d
from jaxneuro.activations import at_site
from jaxneuro.activations.site import reached
from jaxneuro.activations.text import model_and_tokenizer, read_windows
from jaxneuro.data import batches
from jaxneuro.protocols import Method

from . import harness

SITE, L0, BATCH, N_LATENTS = "blocks.3.resid_post", 32, 1024, 1024
PREFIXES = (64, 128, 256, 512, 1024)
STEPS: Final = {"400k": 400, "4m": 4000}
RATES: Final = {400: (1e-2, 3e-3, 1e-3), 4000: (1e-2, 3.238e-3, 1e-3)}
"""By steps, each with the default rate of so many steps: 1e-2 and 3.238e-3."""
SEEDS = (0, 1, 2)
NEAR = 1.25
"""How far a point may be from L0, as a factor, for the line through points on one side of it."""
PARTS = {"train": (0, 1, 2, 4, 5, 6), "choose": (3,), "judge": (7,)}
"""Windows by their number modulo 8."""
VALUES: Final = {
    "topk": (32,),
    "batch_topk": (32, 40),
    "matryoshka": (32, 40),
    "jumprelu": (32, 40),
    "relu": (1.0, 2.0),
    "gated": (1.0, 2.0),
}
"""Of each method's own option, around L0."""
MAKE: Final = {
    "topk": lambda v, t: d.topk(N_LATENTS, v, training=t),
    "batch_topk": lambda v, t: d.batch_topk(N_LATENTS, v, training=t),
    "matryoshka": lambda v, t: d.matryoshka(N_LATENTS, v, prefixes=PREFIXES, training=t),
    "jumprelu": lambda v, t: d.jumprelu(N_LATENTS, target_l0=v, training=t),
    "relu": lambda v, t: d.relu(N_LATENTS, v, training=t),
    "gated": lambda v, t: d.gated(N_LATENTS, v, training=t),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One dictionary to train."""

    library: str
    method: str
    value: float
    rate: float
    steps: int
    seed: int
    batch: int = BATCH

    def of(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is this one's."""
        return all(row[name] == value for name, value in dataclasses.asdict(self).items())


def rows(repeats: int, part: str = "400k") -> list[dict]:
    """Every dictionary, then the comparison of each method."""
    del repeats
    name, steps = f"dictionary_quality-{part}", STEPS[part]
    path = harness.RESULTS / f"{name}-{harness.label_of(harness.machine()['device'])}.json"
    done = [row for row in _rows_of(path) if "fvu" in row.get("judge", {})]
    ends = time.monotonic() + 60 * float(os.environ.get("JAXNEURO_MINUTES", "inf"))
    with tempfile.TemporaryDirectory() as folder:
        learners = _learners(Path(folder))
        while (asked := _next(done, steps, set(learners))) is not None and time.monotonic() < ends:
            started = time.perf_counter()
            found = learners[asked.library](asked)
            seconds = round(time.perf_counter() - started, 1)
            where = harness.machine()
            origin = {"seconds": seconds, "commit": where["commit"], "date": where["date"]}
            done.append(dataclasses.asdict(asked) | found | origin)
            print(json.dumps(done[-1]), flush=True)
            harness.save(name, done)
    return [*done, *compared(done, steps)]


def _rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def _next(done: Sequence[Mapping[str, Any]], steps: int, libraries: set[str]) -> Asked | None:
    """The first dictionary of the plan that is not there."""
    asked = (a for a in plan(done, steps) if a.library in libraries)
    return next((a for a in asked if not any(a.of(row) for row in done)), None)


def plan(done: Sequence[Mapping[str, Any]], steps: int) -> Iterator[Asked]:
    """All dictionaries, rates first; what follows rates needs their rows."""
    pairs = [(lib, m) for m in VALUES for lib in ("jaxneuro", "sae_lens")] + [("dictionary_learning", "jumprelu")]
    first, second, last = RATES[steps]
    for rate, (library, method) in itertools.product((first, second, last), pairs):
        if rate != last or best_rate(done, steps, library, method) != first:  # else it gets worse towards the last
            for value in VALUES[method]:
                yield Asked(library=library, method=method, value=value, rate=rate, steps=steps, seed=SEEDS[0])
    for seed, (library, method) in itertools.product(SEEDS[1:], pairs):
        more = (best_rate(done, steps, library, method), *((default_rate(steps),) if library == "jaxneuro" else ()))
        for rate in dict.fromkeys(more):
            for value in _near(done, library, method, rate):
                yield Asked(library=library, method=method, value=value, rate=rate, steps=steps, seed=seed)


def _near(done: Sequence[Mapping[str, Any]], library: str, method: str, rate: float) -> tuple[float, ...]:
    """The value that came near L0 with the first seed; all values, if none did."""
    mine = [row for row in _of(done, library, method) if (row["rate"], row["seed"]) == (rate, SEEDS[0])]
    apart, value = min(((abs(np.log(r["choose"]["l0"] / L0)), r["value"]) for r in mine), default=(np.inf, 0.0))
    return (value,) if apart < np.log(NEAR) else VALUES[method]


def _of(done: Sequence[Mapping[str, Any]], library: str, method: str) -> list[Mapping[str, Any]]:
    return [row for row in done if (row["library"], row["method"]) == (library, method)]


def default_rate(steps: int) -> float:
    """What ours takes in a run of so many steps."""
    return float(f"{float(d.Training(steps=steps).rate(N_LATENTS)(jnp.int32(steps // 2))):.4g}")


def best_rate(done: Sequence[Mapping[str, Any]], steps: int, library: str, method: str) -> float:
    """The rate with the least FVU at L0 on the tokens to choose on, from the first seed."""
    mine = [row for row in _of(done, library, method) if row["seed"] == SEEDS[0] and row["rate"] in RATES[steps]]
    at = {rate: [r["choose"] for r in mine if r["rate"] == rate] for rate in {r["rate"] for r in mine}}
    return min(at, key=lambda rate: fvu_at(at[rate])) if at else RATES[steps][0]


def fvu_at(points: Sequence[Mapping[str, float]], l0: float = L0, slope: float = 0.0) -> float:
    """FVU at this L0, from the line through the nearest points on both sides of it in log-log, or, of points on one
    side, through the two nearest; of one point, by this slope. Infinite where no point is near: the target was missed.

    Example:
      >>> round(fvu_at([{"fvu": 0.4, "l0": 16}, {"fvu": 0.1, "l0": 64}]), 3)
      0.2
      >>> fvu_at([{"fvu": 0.01, "l0": 700}, {"fvu": 0.011, "l0": 650}])
      inf
      >>> round(fvu_at([{"fvu": 0.2, "l0": 36}], slope=-1.0), 3)
      0.225
    """
    chosen = _nearest(points, l0)
    one_side = len({p["l0"] > l0 for p in chosen}) == 1
    if one_side and abs(np.log(chosen[0]["l0"] / l0)) > np.log(NEAR):
        return float("inf")
    slope = _slope(chosen, slope)
    return float(chosen[0]["fvu"] * (l0 / chosen[0]["l0"]) ** slope)


def _nearest(points: Sequence[Mapping[str, float]], l0: float) -> list[Mapping[str, float]]:
    """The nearest on both sides, or the two nearest; the nearer one first."""
    near = sorted(points, key=lambda p: abs(np.log(p["l0"] / l0)))
    other = [p for p in near[1:] if (p["l0"] > l0) != (near[0]["l0"] > l0)] or near[1:]
    return [near[0], *other[:1]]


def _slope(chosen: Sequence[Mapping[str, float]], otherwise: float = 0.0) -> float:
    """d log FVU / d log L0 of two points that are apart."""
    if len(chosen) < 2 or abs(np.log(chosen[1]["l0"] / chosen[0]["l0"])) < 1e-2:
        return otherwise
    return float(np.log(chosen[1]["fvu"] / chosen[0]["fvu"]) / np.log(chosen[1]["l0"] / chosen[0]["l0"]))


def compared(done: Sequence[Mapping[str, Any]], steps: int) -> list[dict]:
    """One row for each method: FVU at L0 of every library at its best rate and of our default; medians of seeds."""
    found = []
    for method in VALUES:
        row: dict[str, Any] = {"op": f"{method}: FVU at L0 {L0}", "shape": {}, "dtype": "float32"}
        for library in ("jaxneuro", "sae_lens", "dictionary_learning"):
            if mine := _of(done, library, method):
                rate = best_rate(done, steps, library, method)
                row |= {library: _median(mine, rate), f"{library} rate": rate}
        row["default"] = _median(_of(done, "jaxneuro", method), default_rate(steps))
        row["seeds"] = len({r["seed"] for r in _of(done, "jaxneuro", method)})
        row["/ sae_lens"] = harness.ratio(row.get("jaxneuro"), row.get("sae_lens"))
        row["default / best"] = harness.ratio(row["default"], row.get("jaxneuro"))
        found.append(row)
    return found


def _median(mine: Sequence[Mapping[str, Any]], rate: float) -> float | None:
    at: dict[int, list[Mapping[str, float]]] = {}
    for row in mine:
        if row["rate"] == rate:
            at.setdefault(row["seed"], []).append(row["judge"])
    slope = _slope(_nearest(at[SEEDS[0]], L0)) if SEEDS[0] in at else 0.0
    return float(np.median([fvu_at(points, slope=slope) for points in at.values()])) if at else None


def _learners(folder: Path) -> dict[str, Any]:
    """Library -> what trains and judges one dictionary; peers only where their Python is given."""
    arrays = _stored(folder)
    found: dict[str, Any] = {"jaxneuro": lambda asked: _ours(asked, arrays)}
    if python := os.environ.get("JAXNEURO_PEERS"):
        peer = harness.Peer(python, "dictionary_quality_peers.py", folder, harness.cores())
        versions = json.loads(peer.version)
        for library in ("sae_lens", "dictionary_learning"):
            if versions[library] is not None:
                found[library] = lambda asked: _theirs(peer, asked, versions, len(arrays["train"]), folder)
    return found


def order(n: int, asked: Asked) -> np.ndarray:
    """Rows of every batch [steps, batch]: one permutation of the tokens after the other."""
    rng, size = np.random.default_rng(asked.seed), asked.steps * asked.batch
    rounds = [rng.permutation(n) for _ in range(-(-size // n))]
    return np.concatenate(rounds)[:size].reshape(asked.steps, asked.batch)


def _theirs(peer: harness.Peer, asked: Asked, versions: Mapping[str, str], n: int, folder: Path) -> dict:
    np.save(folder / "order.npy", order(n, asked))
    told = {"n_latents": N_LATENTS, "prefixes": PREFIXES, "order": "order.npy"}
    answer = json.loads(peer.ask(json.dumps(dataclasses.asdict(asked) | told)))
    return answer | {"versions": {name: versions[name] for name in (asked.library, "torch")}}


def _stored(folder: Path) -> dict[str, np.ndarray]:
    """Activations of the site at tokens that count, by part; also as files for peers."""
    model, tokenizer = model_and_tokenizer("bundled", dtype=jnp.dtype("float32"))
    windows = read_windows(model, tokenizer, "bundled", length=128, max_tokens_per_group=None)
    rows_of = Method(init=lambda key, rows: rows, step=lambda state, rows: (state, {}), finish=lambda state: state)
    read = jax.jit(at_site(reached(model, [SITE]), {"x": (SITE,)}, rows_of).init)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    for i, batch in enumerate(batches(windows, batch_size=1)):
        found = read(None, {**batch, "weights": model.weights})
        part = next(name for name, which in PARTS.items() if i % 8 in which)
        kept[part].append(np.asarray(found["x"], np.float32)[np.asarray(found["mask"])])
    arrays = {name: np.concatenate(parts) for name, parts in kept.items()}
    for name, a in arrays.items():
        np.save(folder / f"{name}.npy", a)
    return arrays


def _ours(asked: Asked, arrays: Mapping[str, np.ndarray]) -> dict:
    training = d.Training(learning_rate=asked.rate, steps=asked.steps)
    method = MAKE[asked.method](asked.value, training)
    x = jnp.asarray(arrays["train"])
    at = jnp.asarray(order(len(x), asked), jnp.int32)
    state = jax.jit(method.init)(jax.random.key(asked.seed), {"x": x[at[0]]})
    state, _ = jax.jit(lambda s, at: jax.lax.scan(lambda s, i: method.step(s, {"x": x[i]}), s, at))(state, at)
    found = method.finish(state)
    return {name: _judged(found, jnp.asarray(arrays[name])) for name in ("choose", "judge")}


@jax.jit
def _numbers(dictionary: Any, x: jax.Array) -> dict[str, jax.Array]:
    z = dictionary.encode(x)
    error, on = x - dictionary.decode(z), z > 0
    return {
        "fvu": jnp.sum(jnp.square(error)) / jnp.sum(jnp.square(x - x.mean(0, keepdims=True))),
        "l0": jnp.sum(on) / len(x),
        "dead": jnp.mean(~on.any(0)),
    }


def _judged(dictionary: Any, x: jax.Array) -> dict[str, float]:
    return {name: float(value) for name, value in _numbers(dictionary, x).items()}
