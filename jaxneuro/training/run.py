# SPDX-License-Identifier: Apache-2.0
"""The training run itself: checked, planned, run, saved, judged."""

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..activations import rich_progress, run
from ..activations.metrics import Counted
from ..activations.plan import check_state, free_bytes, planned, size
from ..activations.progress import Progress
from ..console import say
from ..dictionaries.parts.training import DATA, LATENT
from ..errors import UserError
from ..io import read_json
from ..models.sharding import device_mesh
from ..protocols import Method
from .config import LENGTH, TrainConfig, check
from .folder import CHECKPOINTS, CONFIG, RESULTS, claimed, longer
from .results import check_exports, dead_after, show, write
from .sources import Data, open_source
from .sweep import methods
from .watch import sink_of

ADVICE = (
    "Smaller: batch, training.accumulate (parts of a batch in turn), n_latents, fewer members of the sweep, "
    "source.buffer_tokens; more devices: devices.latent, devices.data."
)


def train_dictionary(config: TrainConfig) -> Path:
    """Train what the configuration says, or go on with it; the folder with the dictionaries.

    Args:
      config: see `TrainConfig`; the command line's flags are its fields.
    Returns:
      The folder: config.json, metrics.jsonl, dictionary/ (one folder per member of a sweep), results.json.
    Raises:
      UserError: what cannot be done, before anything is written where possible; a run that does not fit into memory,
        with numbers, before anything is allocated.
    Example:
      >>> train_dictionary(TrainConfig(source=Live(site=("blocks.3.resid_post",)), method=...))  # doctest: +SKIP
      PosixPath('jaxneuro-dictionary')
    """
    check(config)
    check_exports(config)
    mesh = _mesh(config)
    by_place = methods(config, mesh)
    with claimed(config) as out:
        before = longer(config)
        if before:
            _check_longer(config, before)
        elif (out / RESULTS).exists():
            if not read_json(out / CONFIG)["config"]["keep"]:  # a run that was killed after its results and before this
                shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
            say(f"{out} is complete")
            show(read_json(out / RESULTS), out)
            return out
        with contextlib.closing(sink_of(config)) as sink:  # first: its package may be missing
            data = open_source(config)
            counted = Counted(sink, before=data.extra_steps, dead_after=dead_after(config))
            found = _learned(config, data, data.attach(by_place), mesh, counted)
        results = write(config, data, found, out, counted.tokens_seen)
        if not config.keep:
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        show(results, out)
    return out


def _learned(config: TrainConfig, data: Data, method: Method, mesh: Mesh | None, sink: Counted) -> dict[str, Any]:
    """Member's name -> its dictionary."""
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(DATA))
    key = jax.random.key(config.seed)
    _plan(method, data, key, sharding)
    lasting = {name: value for name, value in config.identity().items() if name not in LENGTH}  # `claimed` checks these
    with _progress(data.extra_steps, sink) as progress:
        found = run(
            method,
            data.stream(),
            key=key,
            constants=data.constants,
            steps=config.updates + data.extra_steps,
            checkpoint_dir=config.out / CHECKPOINTS,
            checkpoint_every=config.checkpoint_every,
            metrics=sink,
            progress=progress,
            log_every=config.log_every,
            sharding=sharding,
            identity={**lasting, "data": data.fingerprint},
        )
    several = all(isinstance(part, Mapping) for part in found.values())
    return functools.reduce(lambda a, b: {**a, **b}, found.values()) if several else found


def _check_longer(config: TrainConfig, before: int) -> None:
    """A finished run goes on.

    Raises:
      UserError: nothing is left to go on from.
    """
    if not (config.out / CHECKPOINTS).exists():
        raise UserError(
            f"{config.out} is complete at {before} steps and its checkpoints are gone, so it cannot go on to "
            f"{config.updates}. A run with --keep can. Choose another --out."
        )
    say(f"{config.out} is complete at {before} steps: going on to {config.updates}")
    if config.decay:
        say(
            f"its learning rate had fallen by then and rises again, so this is not what one run of {config.updates} "
            "steps would be; with --no-decay it is, bitwise"
        )


@contextlib.contextmanager
def _progress(filling: int, sink: Counted) -> Iterator[Progress]:
    """Two lines: the buffer fills, whose steps have zeros for numbers, then the method's own steps."""
    with contextlib.ExitStack() as stack:
        shown: dict[str, Progress] = {}

        def line(title: str) -> Progress:
            if title not in shown:
                stack.close()
                shown[title] = stack.enter_context(rich_progress(title))
            return shown[title]

        def show(done: int, total: int | None, text: str) -> None:
            if not sink.written:
                text = ", ".join(part for part in text.split(", ") if part == "compiling" or part.endswith("tokens/s"))
            if done < filling:
                line("filling the buffer")(done, filling, text)
                return
            if "filling the buffer" in shown and "train" not in shown:
                line("filling the buffer")(filling, filling, "")
            line("train")(done - filling, None if total is None else total - filling, sink.line(text))

        yield show


def _plan(method: Method, data: Data, key: jax.Array, sharding: NamedSharding | None) -> None:
    """Compile the step and say what it takes; refuse what does not fit."""
    started = time.perf_counter()
    batch, free = next(data.stream()), free_bytes()
    how: dict[str, Any] = {"key": key, "constants": data.constants, "sharding": sharding}
    check_state(method, batch, free, **how, advice=ADVICE)
    plan = planned(method, batch, **how)
    there = plan.constants if data.constants else 0
    plan.check(free, there=there, advice=ADVICE)
    of = "" if free is None else f" of {size(free + there)}"
    seconds = time.perf_counter() - started
    say(f"compiled in {seconds:.1f} s; a device needs {size(plan.total)}{of}")


def _mesh(config: TrainConfig) -> Mesh | None:
    d = config.devices
    if d.latent > 1 and not hasattr(config.method, "training"):
        raise UserError(
            f"devices.latent: {config.method.kind} cannot be split over its latents; devices.data is there."
        )
    return device_mesh({DATA: d.data, LATENT: d.latent})
