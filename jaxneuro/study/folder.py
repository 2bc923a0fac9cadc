# SPDX-License-Identifier: Apache-2.0
"""The folder of one run: whose it is, who is writing it, and which steps are done."""

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import UserError
from ..io import read_json, write_json
from ..io.files import before, clear_temporary, holds, nothing_left
from ..io.npy import read_npz

_CLAIM: Final = frozenset({".lock", "run.json"})
"""What a run that has computed nothing yet has written."""


class RunFolder:
    """Results of one configuration, step by step.

    `run.json` says what the run is; `steps.json` which steps are done. A step's files are written first, atomically,
    and its record last, so a step is either done or will be done again.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What a .npz of a step holds."""
        return read_npz(self / name)

    @property
    def unfinished(self) -> Path:
        """Where a step keeps what it needs to go on after an interruption; gone when the step is done."""
        return self.path / "unfinished"

    @contextlib.contextmanager
    def opened(self) -> Iterator["RunFolder"]:
        """Claim the folder for this process.

        Raises:
          UserError: it belongs to another run, holds something else, or another process is writing it.
        """
        record = self / "run.json"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a folder. Choose another --out.")
        if (
            self.path.exists()
            and not holds(record, ("identity",))
            and any(p.name != ".lock" for p in self.path.iterdir())
        ):
            raise UserError(
                f"{self.path} holds something that is not a study. Choose an empty or a new folder for --out."
            )
        was = before(self.path)
        with self._locked(), nothing_left(self.path, was, _CLAIM):
            clear_temporary(self.path, deep=True)
            if {p.name for p in self.path.iterdir()} <= _CLAIM:
                record.unlink(missing_ok=True)  # a start that failed before anything was computed claims nothing
            else:
                self._compare(read_json(record).get("identity", {}))
            if not record.exists():
                write_json(record, {"identity": self.identity, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
            yield self

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock_file = open(self / ".lock", "w")  # noqa: SIM115
        except OSError as e:
            raise UserError(f"{self.path} cannot be used as a folder: {e.strerror}. Choose another --out.") from e
        with lock_file as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another process is writing {self.path}. Wait for it to finish or choose another --out."
                ) from None
            yield

    def _compare(self, theirs: dict[str, Any]) -> None:
        keys = sorted({*theirs, *self.identity})
        differ = [k for k in keys if theirs.get(k) != self.identity.get(k)]
        if differ:
            shown = "; ".join(f"{k} was {theirs.get(k)!r}, now {self.identity.get(k)!r}" for k in differ[:6])
            raise UserError(
                f"{self.path} belongs to another run: {shown}. Choose another --out, or delete it to start anew."
            )

    def same_inputs(self, fingerprint: dict[str, str]) -> None:
        """Remember which text and weights this run is of; refuse others under the same names.

        Raises:
          UserError: what changed since the run began.
        """
        record = read_json(self / "run.json")
        before = record.setdefault("inputs", fingerprint)
        changed = [k for k, v in fingerprint.items() if before.get(k) != v]
        if changed:
            raise UserError(
                f"the {' and the '.join(changed)} changed since the run in {self.path} began. Choose another --out, or "
                "delete that folder to start anew."
            )
        write_json(self / "run.json", record)

    def done(self, name: str) -> dict[str, Any] | None:
        """The record of a finished step whose files are all there."""
        record = self.records().get(name)
        if record and all((self.path / f).exists() for f in record["files"]):
            return record
        return None

    def records(self) -> dict[str, Any]:
        """Every finished step, in order."""
        path = self / "steps.json"
        return read_json(path) if path.exists() else {}

    def forget(self, name: str) -> None:
        """Let a step be done again."""
        records = self.records()
        if records.pop(name, None) is not None:
            write_json(self / "steps.json", records)

    def step(self, name: str, files: tuple[str, ...], compute: Callable[[], None]) -> bool:
        """Run a step unless it is done; whether it ran. `compute` writes `files` into the folder."""
        if self.done(name):
            return False
        started = time.perf_counter()
        compute()
        missing = [f for f in files if not (self.path / f).exists()]
        if missing:
            raise RuntimeError(f"step {name} did not write {missing}")
        seconds = round(time.perf_counter() - started, 2)
        write_json(self / "steps.json", self.records() | {name: {"files": list(files), "seconds": seconds}})
        shutil.rmtree(self.unfinished, ignore_errors=True)
        return True
