# SPDX-License-Identifier: Apache-2.0
"""The folder of one training run: whose it is, who is writing it, and what it was made with."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jax

from ..activations.identity import differences
from ..activations.lock import NAME as LOCK
from ..activations.lock import exclusive
from ..dictionaries.native import BELOW
from ..errors import UserError
from ..io import read_json, write_json
from ..io.files import before, clear_temporary, holds, nothing_left
from ..versions import versions
from .config import FREE, LENGTH, TrainConfig
from .strict import plain

CONFIG: Final = "config.json"
RESULTS: Final = "results.json"
CHECKPOINTS: Final = "checkpoints"
DICTIONARY: Final = BELOW
_KEYS: Final = ("config", "started", "continued")
"""Of a run's config.json."""


@contextlib.contextmanager
def claimed(config: TrainConfig) -> Iterator[Path]:
    """The folder, for this process alone, its config.json written.

    config.json holds the configuration, versions and commit, the device, and when the run was started and continued.
    A start that failed before anything was computed claims nothing, and leaves no folder.

    Raises:
      UserError: the folder is another configuration's (with the fields that differ), holds something else, or another
        process is writing it.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder. Choose another --out.")
    if out.exists() and not holds(out / CONFIG, _KEYS) and {p.name for p in out.iterdir()} - {LOCK}:
        raise UserError(f"{out} holds something that is no training run. Choose an empty or a new folder for --out.")
    was = before(out)
    with exclusive(out), nothing_left(out, was, {CONFIG, LOCK}):
        clear_temporary(out, deep=True)
        begun = any((out / name).exists() for name in (CHECKPOINTS, DICTIONARY, RESULTS))
        earlier = read_json(out / CONFIG) if begun else None
        write_json(out / CONFIG, _record(config, earlier))
        yield out


def longer(config: TrainConfig) -> int:
    """Steps of the finished run in the folder, if the configuration asks for more; else 0."""
    path = config.out / RESULTS
    before = read_json(path).get("steps", 0) if path.exists() else 0
    return before if config.updates > before else 0


def _record(config: TrainConfig, before: dict[str, Any] | None) -> dict[str, Any]:
    now = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }
    if before is None:
        return {"config": plain(config), "seed": config.seed, "started": now, "continued": []}
    theirs = {name: value for name, value in before["config"].items() if name not in FREE}
    ours = config.identity()
    if longer(config):
        theirs, ours = ({n: v for n, v in said.items() if n not in LENGTH} for said in (theirs, ours))
    lines = differences(theirs, ours)
    if lines:
        raise UserError(
            f"{config.out} belongs to another run (there: in that folder, here: asked for now): {'; '.join(lines)}. "
            "Choose another --out, or delete it to start anew."
        )
    kept = {"keep": config.keep or bool(before["config"].get("keep"))}  # what was kept once is not thrown away
    return {**before, "config": {**plain(config), **kept}, "continued": [*before["continued"], now]}
