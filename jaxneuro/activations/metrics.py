# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers go: JSON lines by default; TensorBoard and Weights & Biases behind the same two methods."""

import importlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from ..errors import UserError


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
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
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
