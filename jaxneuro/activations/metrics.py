# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers go: JSON lines by default; TensorBoard and Weights & Biases behind the same two methods."""

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from ..errors import UserError
from ..io import json_text, or_null


@runtime_checkable
class MetricSink(Protocol):
    """Receives the numbers of a step. NaN and infinity arrive as they are."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one logged step; steps only grow."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


@runtime_checkable
class Rewindable(Protocol):
    """A sink that can go back to a checkpoint, so that a resumed run leaves the log of an uninterrupted one."""

    def position(self) -> int:
        """A mark for what has been written, safe on disk when this returns."""
        ...

    def rewind(self, position: int | None, step: int) -> None:
        """Forget everything after the mark (None: everything); `step` is the checkpoint's."""
        ...


class JsonLines:
    """One JSON object per logged step: `{"step": 20, "loss": 0.5}`. NaN and infinity are written as null.

    The file is emptied when a run starts anew and cut back to the checkpoint when a run resumes.

    Raises:
      UserError: the file cannot be written, or is shorter than the checkpoint says.
    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> sink = JsonLines(path)
      >>> sink.write(1, {"loss": 0.5, "grad": float("nan")})
      >>> sink.close()
      >>> path.read_text()
      '{"step": 1, "loss": 0.5, "grad": null}\\n'
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        except OSError as e:
            raise UserError(f"cannot write metrics to {self.path}: {e.strerror or e}.") from e

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; it is on its way to the disk when this returns."""
        line = {"step": step} | {k: or_null(v) for k, v in values.items()}
        try:
            self._file.write(json_text(line).encode() + b"\n")
            self._file.flush()
        except OSError as e:
            raise UserError(f"cannot write metrics to {self.path}: {e.strerror or e}.") from e

    def position(self) -> int:
        """Bytes written and flushed to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def rewind(self, position: int | None, step: int) -> None:
        """Cut the file back to `position` bytes."""
        size = os.fstat(self._file.fileno()).st_size
        if size < (position or 0):
            raise UserError(
                f"{self.path} has {size} bytes, but the checkpoint of step {step} was written when it had {position}: "
                f"it was shortened or replaced since. Put it back, or resume with metrics in another new file."
            )
        self._file.truncate(position or 0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Through:
    """A sink in front of another one, `before` steps of which are not written."""

    def __init__(self, sink: MetricSink, before: int = 0):
        self._sink, self._before = sink, before

    def close(self) -> None:
        """Nothing more will come."""
        self._sink.close()

    def position(self) -> int:
        """The sink's mark, where it has one."""
        return self._sink.position() if isinstance(self._sink, Rewindable) else 0

    def rewind(self, position: int | None, step: int) -> None:
        """The sink goes back, where it can."""
        if isinstance(self._sink, Rewindable):
            self._sink.rewind(position, max(0, step - self._before))


class Counted(Through):
    """A sink that counts a method's own steps, and to which a dead fraction is a number only when latents can be dead.

    A latent is dead after `dead_after` tokens without being on, so before that many were seen nothing is known; the
    numbers of those steps have no `dead_fraction`, and `line` says so.

    Args:
      sink: where the numbers go.
      before: steps before the method's first, in which a buffer fills; they are not written.
      dead_after: tokens; 0: every number is known.
    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> sink = Counted(JsonLines(path), before=4, dead_after=100)
      >>> sink.write(2, {"tokens": 64})
      >>> sink.write(5, {"dead_fraction": 0.0, "tokens": 64, "tokens_seen": 64})
      >>> sink.write(7, {"dead_fraction": 0.5, "tokens": 64, "tokens_seen": 192})
      >>> sink.close()
      >>> import json
      >>> [sorted(json.loads(line)) for line in path.read_text().splitlines()]
      [['step', 'tokens', 'tokens_seen'], ['dead_fraction', 'step', 'tokens', 'tokens_seen']]
      >>> sink.line("fvu 0.5, dead_fraction 0.5, 3 tokens/s")
      'fvu 0.5, dead_fraction 0.5, 3 tokens/s'
    """

    def __init__(self, sink: MetricSink, *, before: int = 0, dead_after: float = 0):
        super().__init__(sink, before)
        self._after = dead_after
        self._unknown: set[str] = set()
        self.written = False
        """Whether a step of the method was."""
        self.tokens_seen: int | None = None
        """Of the last step that was written, the most of several members."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on what is known of a step of the method."""
        if step <= self._before:
            return
        self.written = True
        seen = [v for n, v in values.items() if n.rpartition("/")[2] == "tokens_seen"]
        self.tokens_seen = int(max(seen)) if seen else None
        self._unknown = {n for n in values if not self._known(n, step, values)}
        self._sink.write(step - self._before, {n: v for n, v in values.items() if n not in self._unknown})

    def line(self, text: str) -> str:
        """The progress' words about the newest step that was written, in which what is not known yet is no 0."""
        return re.sub(r"dead_fraction 0(?=,|$)", "dead: not yet countable", text) if self._unknown else text

    def _known(self, name: str, step: int, values: Mapping[str, float]) -> bool:
        member, slash, last = name.rpartition("/")
        now = values.get(f"{member}{slash}tokens", 0)
        seen = values.get(f"{member}{slash}tokens_seen", (step - self._before) * now)
        return last != "dead_fraction" or seen - now >= self._after  # it is that before this step


class TensorBoard:
    """Scalars for TensorBoard, through the package tensorboardX (it needs neither torch nor TensorFlow).

    Raises:
      UserError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike):
        self._module = _optional("tensorboardX", "TensorBoard", "tensorboardX", "tensorboard")
        self._folder = os.fspath(folder)
        self._writer: Any = None

    def _open(self, **options: Any) -> Any:
        if self._writer is None:
            self._writer = self._module.SummaryWriter(self._folder, **options)
        return self._writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per value."""
        for name, value in values.items():
            self._open().add_scalar(name, value, step)

    def position(self) -> int:
        """Event files are only ever added to; the step is enough to go back. This flushes."""
        self._open().flush()
        return 0

    def rewind(self, position: int | None, step: int) -> None:
        """Tell TensorBoard to hide what was logged after `step`."""
        self._open(purge_step=step + 1)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


class WandB:
    """Values for Weights & Biases. Pass an `id` and `resume="allow"` to go on in the same run after an interruption.

    Raises:
      UserError: wandb is not installed.
    """

    def __init__(self, **init: Any):
        self._run = _optional("wandb", "Weights & Biases", "wandb", "wandb").init(**init)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _optional(module: str, what: str, package: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UserError(
            f"metrics to {what} need the package {package}, which is not installed: pip install {package} (or "
            f"jaxneuro[{extra}]). Without it: --metrics jsonl, or in Python a file name."
        ) from e


def open_sink(metrics: MetricSink | str | os.PathLike | None) -> MetricSink | None:
    """A sink as it is, a path as `JsonLines`, None as None."""
    if isinstance(metrics, str | os.PathLike):
        return JsonLines(metrics)
    if metrics is not None and not isinstance(metrics, MetricSink):
        raise UserError(
            f"metrics is a path or an object with write(step, values) and close(), not {type(metrics).__name__}."
        )
    return metrics
