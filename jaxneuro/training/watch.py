# SPDX-License-Identifier: Apache-2.0
"""Metrics on their way out, looked at: what is not finite, and dictionaries in which nothing is alive."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..activations import JsonLines, MetricSink, TensorBoard, WandB
from ..activations.metrics import Through
from ..errors import UserError
from .config import TrainConfig

_log = logging.getLogger("jaxneuro.train")


class Watched(Through):
    """A sink that ends the run where going on is pointless. It sees log points only: no step waits for it.

    What is not finite ends the run if that was asked for. A dictionary without a living latent is not ended at once,
    as AuxK may revive it: it is given until the next log point. One of a sweep that stays dead is named in the log and
    the others go on; when all are dead the run ends, because every further step would be spent on nothing.

    An error from here is raised before anything else is saved: the last checkpoint stays as it was.
    """

    def __init__(self, sink: MetricSink, *, stop: bool):
        super().__init__(sink)
        self._stop = stop
        self._dead: set[str] = set()
        self._told: set[str] = set()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on, then look."""
        self._sink.write(step, values)
        broken = {n: int(v) for n, v in values.items() if n.endswith(("nonfinite_tokens", "skipped_batches")) and v}
        if self._stop and broken:
            counts = ", ".join(f"{name} {n}" for name, n in broken.items())
            raise UserError(
                f"NaN or infinity was seen by step {step} ({counts}) and nonfinite is 'stop'. The last checkpoint is "
                "as it was: look at the activations, or run the same command with nonfinite 'skip' to go on without."
            )
        every = {n for n in values if n.endswith("dead_fraction")}
        dead = {n for n in every if values[n] >= 1}
        still = dead & self._dead
        if every and still == every:
            raise UserError(
                f"all latents are dead at step {step}, and were at the log point before. Try a smaller learning_rate, "
                "a larger k, a weaker penalty, or auxk; a larger dead_after_tokens if batches are few. Choose another "
                "--out for it."
            )
        for name in sorted(still - self._told):
            _log.warning("%s: all latents are dead at step %d", name.rpartition("/")[0] or "the dictionary", step)
        self._dead, self._told = dead, self._told | still


def sink_of(config: TrainConfig) -> Watched:
    """The configured sink, watched.

    Raises:
      UserError: its package is not installed.
    """
    return Watched(_SINKS[config.metrics](config), stop=config.nonfinite == "stop")


def _wandb(config: TrainConfig) -> WandB:
    """The same run again where the same command is."""
    told = json.dumps([str(config.out.absolute()), config.identity()], sort_keys=True)
    name = hashlib.sha256(told.encode()).hexdigest()[:16]
    return WandB(project="jaxneuro", name=config.out.name, id=name, resume="allow", config=config.identity())


def _tensorboard(config: TrainConfig) -> TensorBoard:
    return TensorBoard(config.out / "tensorboard")


def _json_lines(config: TrainConfig) -> JsonLines:
    return JsonLines(Path(config.out) / METRICS)


METRICS: Final = "metrics.jsonl"
_SINKS: Final = {"jsonl": _json_lines, "tensorboard": _tensorboard, "wandb": _wandb}
