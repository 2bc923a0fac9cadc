# SPDX-License-Identifier: Apache-2.0
"""SynthSAEBench: do the architectures find features that are known, and rank as published (arXiv:2602.14687)?

On an accelerator the benchmark itself, five architectures at two L0, each trained on 200 million samples; on a CPU its
small sister, of which `tests/dictionaries/test_ranking.py` asserts the ranking. With JAXNEURO_SYNTHSAE=FOLDER a run
that was stopped goes on from its last checkpoint and what is finished is kept as JSON: call it again until all rows are
there (a folder is for one version of the code: empty it after a change).

Settings are those of the authors' experiments (github.com/decoderesearch/synth-sae-bench-experiments): a constant rate,
L1 from 0 over the first third, JumpReLU's bandwidth and first threshold. Three things are ours: the features (PyTorch's
draw cannot be repeated); JumpReLU's penalty, (L0 / target - 1)^2 with the published pseudo-derivatives, where they tune
the coefficient of a tanh; and L1, which has no target: all of `Setting.l1s` are trained side by side, and the one whose
L0 is nearest is reported, where they tune the coefficient.
"""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import jax
from jaxtyping import Array

from jaxneuro import dictionaries as d
from jaxneuro.activations import run, together
from jaxneuro.dictionaries.linear import LinearDictionary
from jaxneuro.dictionaries.synthetic import (
    Recovery,
    SyntheticConfig,
    SyntheticFeatures,
    on_synthetic,
    recovery,
    synthetic,
    synthetic_batches,
    synthetic_steps,
)
from jaxneuro.protocols import Method

FEATURES_SEED, JUDGED_SEED = 42, 1_000_003
"""Of the features, and of samples that nothing was trained on."""
SD: Final = 0.005
"""Most that a published score varies between seeds."""
CHECKPOINT_CALLS = 50
"""Compiled calls between checkpoints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained on what, and how long."""

    name: str
    config: SyntheticConfig
    n_latents: int
    l0s: tuple[int, ...]
    steps: int
    batch: int
    learning_rate: float
    inner_steps: int
    """Steps of one compiled call."""
    judged: int
    """Samples for the scores."""
    l1s: tuple[float, ...]
    """Coefficients of which each L0 takes the nearest."""
    threshold: float = 0.5
    """Where JumpReLU's thresholds start, for inputs of norm sqrt(d). They move by about the learning rate, relatively,
    in a step: a short run must start near where a long one ends."""

    @property
    def training(self) -> d.Training:
        """The same for all: a constant rate; dead after 1,000 steps."""
        return d.Training(learning_rate=self.learning_rate, warmup_steps=0, dead_after_tokens=1000 * self.batch)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Matryoshka's: 128, 512, 2,048 of 4,096."""
        return tuple(self.n_latents // part for part in (32, 8, 2, 1) if self.n_latents >= 4 * part)


WHOLE: Final = Setting(
    name="SynthSAEBench-16k",
    config=SyntheticConfig(),
    n_latents=4096,
    l0s=(20, 25),
    steps=195_312,
    batch=1024,
    learning_rate=3e-4,
    inner_steps=208,
    judged=500_000,
    l1s=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5),
)
SMALL: Final = Setting(
    name="small",
    config=SyntheticConfig(n_features=224, d=48, n_roots=2, p_max=0.9),
    n_latents=64,
    l0s=(4,),
    steps=1000,
    batch=256,
    learning_rate=3e-3,
    inner_steps=50,
    judged=8192,
    l1s=(1.75,),
    threshold=1.5,
)

METHODS: Final[Mapping[str, Callable[[Setting, int], Method]]] = {
    "BatchTopK": lambda s, l0: d.batch_topk(s.n_latents, l0, training=s.training),
    "Matryoshka": lambda s, l0: d.matryoshka(s.n_latents, l0, prefixes=s.prefixes, training=s.training),
    "JumpReLU": lambda s, l0: jumprelu(s, l0),
    "L1": lambda s, l0: together({f"l1={c:g}": lasso(s, c) for c in s.l1s}),
    "MP": lambda s, l0: d.matching_pursuit(s.n_latents, l0, training=s.training),
}
"""By name in the published table; what L1's finishes with is a dict of dictionaries, for any L0."""
SCORES: Final[tuple[str, ...]] = ("F1", "MCC", "uniqueness", "EV")
PUBLISHED: Final[Mapping[tuple[str, int], tuple[float, ...]]] = {
    ("BatchTopK", 20): (0.818, 0.753, 0.976, 0.789),
    ("Matryoshka", 20): (0.860, 0.746, 0.987, 0.770),
    ("JumpReLU", 20): (0.824, 0.743, 0.978, 0.791),
    ("L1", 20): (0.578, 0.583, 0.853, 0.750),
    ("MP", 20): (0.444, 0.675, 0.755, 0.827),
    ("BatchTopK", 25): (0.732, 0.757, 0.984, 0.792),
    ("Matryoshka", 25): (0.879, 0.793, 0.999, 0.779),
    ("JumpReLU", 25): (0.732, 0.753, 0.989, 0.795),
    ("L1", 25): (0.556, 0.604, 0.898, 0.765),
    ("MP", 25): (0.446, 0.693, 0.828, 0.835),
}
"""SCORES of `WHOLE`, means over seeds."""


def jumprelu(s: Setting, l0: int) -> Method:
    """The authors' bandwidth 2, and our thresholds, are for inputs of norm sqrt(d), `d.jumprelu`'s for norm 1."""
    unit = math.sqrt(s.config.d)
    width, start = 2 / unit, s.threshold / unit
    return d.jumprelu(s.n_latents, target_l0=l0, bandwidth=width, threshold_start=start, training=s.training)


def lasso(s: Setting, coefficient: float) -> Method:
    """ReLU with L1, from 0 over the first third of the run."""
    return d.relu(s.n_latents, coefficient, l1_warmup_steps=s.steps // 3, training=s.training)


def features(s: Setting) -> SyntheticFeatures:
    """The truth."""
    return synthetic(s.config, key=jax.random.key(FEATURES_SEED))


def trained(
    s: Setting, method: Method, truth: SyntheticFeatures, *, seed: int = 0, folder: Path | None = None
) -> tuple[Any, float | None]:
    """What the method finishes with, and seconds for all its steps, judged by those of this process (None: none)."""
    calls, seen = s.steps // s.inner_steps, []
    found = run(
        on_synthetic(method, batch_size=s.batch, inner_steps=s.inner_steps),
        synthetic_steps(seed=seed, steps=calls),
        key=jax.random.key(seed),
        constants={"features": truth},
        checkpoint_dir=folder,
        checkpoint_every=CHECKPOINT_CALLS,
        progress=lambda done, total, text: seen.append((done, time.perf_counter())),
        identity=dataclasses.asdict(s),
    )
    (first, started), (last, ended) = seen[1], seen[-1]  # seen[0] is before the first call, which compiles
    return found, (ended - started) / (last - first) * calls if last > first else None


def judged(s: Setting, found: Any, truth: SyntheticFeatures, vectors: Array, l0: int) -> Recovery:
    """Scores of a dictionary, or of the one of several whose L0 is nearest to l0."""
    candidates: list[LinearDictionary] = list(found.values()) if isinstance(found, dict) else [found]
    batches = {"batch_size": s.batch, "seed": JUDGED_SEED, "steps": math.ceil(s.judged / s.batch), "truth": True}
    scores = (recovery(each, vectors, synthetic_batches(truth, **batches)) for each in candidates)
    return min(scores, key=lambda r: abs(r.reconstruction.l0 - l0))


def rows(repeats: int) -> list[dict]:
    """One row per architecture and L0, from one training each, however many `repeats` are asked for."""
    del repeats
    s = SMALL if jax.default_backend() == "cpu" else WHOLE
    kept = os.environ.get("JAXNEURO_SYNTHSAE")
    with contextlib.nullcontext(kept) if kept else tempfile.TemporaryDirectory() as folder:
        return [once(s, name, l0, Path(folder) / s.name) for l0 in s.l0s for name in METHODS]


def once(s: Setting, name: str, l0: int, folder: Path) -> dict:
    """The row that is kept in the folder, or else a new one."""
    kept = folder / f"{name}-{l0}.json"
    if not kept.exists():
        truth, run_of = features(s), f"{name}-run" if name == "L1" else f"{name}-{l0}-run"  # all L0 share L1's
        found, seconds = trained(s, METHODS[name](s, l0), truth, folder=folder / run_of)
        new = row(s, name, l0, judged(s, found, truth, truth.vectors, l0), seconds)
        kept.with_suffix(".new").write_text(json.dumps(new))
        kept.with_suffix(".new").replace(kept)
    return json.loads(kept.read_text())


def row(s: Setting, name: str, l0: int, r: Recovery, seconds: float | None) -> dict:
    """One line of the table."""
    values = (r.f1, r.mcc, r.uniqueness, r.reconstruction.explained_variance)
    scores: dict[str, float] = dict(zip(SCORES, values, strict=True))
    config = {"n_features": s.config.n_features, "d": s.config.d, "n_latents": s.n_latents}
    line = {
        "op": name,
        "shape": {"name": f"{s.name}, L0 {l0}"} | config | {"steps": s.steps, "batch": s.batch},
        "dtype": "float32",
        "L0": round(r.reconstruction.l0, 2),
        **{score: round(value, 4) for score, value in scores.items()},
        "dead fraction": round(r.reconstruction.dead_fraction, 4),
        "seconds": None if seconds is None else round(seconds, 1),
    }
    return line | against(name, l0, scores) if s == WHOLE else line


def against(name: str, l0: int, scores: Mapping[str, float]) -> dict:
    """The published scores, and how far the worst of ours is from its own, in their largest standard deviations."""
    published = dict(zip(SCORES, PUBLISHED[name, l0], strict=True))
    worst = max(abs(scores[score] - value) for score, value in published.items())
    return {f"{score}, published": value for score, value in published.items()} | {
        "worst deviation / sd": round(worst / SD, 1)
    }
