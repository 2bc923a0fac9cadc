# SPDX-License-Identifier: Apache-2.0
"""Writing a store: by one process or by many, each its own files; resumable, and whole or absent."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, shown
from ..io.files import atomic_write, read_json, write_json
from .checkpoint import need_space
from .identity import differences
from .source import Shuffle
from .store import GROUP, LABELS, META, Layout, attributes, description


class Writer:
    """Fills the part of a store that belongs to one of several writers, in order; the last one gives it its name.

    The rows of one file are gathered in memory, shuffled and written at once, so that no file is ever half new. The
    shuffle costs nothing here and makes every block a mixture of the texts of 32 blocks. `mark` keeps the rows that
    fill no file yet beside the store: whatever happens, a repeated call goes on from the last mark and leaves bitwise
    the same files.

    Args:
      path: the folder that will appear; until then its content is in a hidden folder beside it.
      request: what is asked for, JSON-like; unfinished work is only continued for an equal request.
      layout: rows and columns, known beforehand, so that the size is checked before anything is written.
      shard: (index, count) of this writer. Nothing is shared by two writers but the folder.
    Raises:
      UserError: unfinished work of another request, no room.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], layout: Layout, shard: tuple[int, int] = (0, 1)):
        self.path, self.folder, self.layout, self.shard = path, partial(path), layout, shard
        self.first, self.last = layout.part(*shard)
        self._about = description(request, layout) | {"writers": shard[1]}
        self._buffer = {
            name: np.empty((min(layout.shard, self.last - self.first), *shape), dtype)
            for name, (dtype, shape) in layout.columns.items()
        }
        self._writing: list[Any] = []
        self.done, self.rows, self._filled = self._begin(request)

    done: int
    """Batches up to the last mark."""
    rows: int
    """The next row to come, counted over all writers."""
    needed: int
    """Bytes of files that were not there when it was made."""

    def _begin(self, request: Mapping[str, Any]) -> tuple[int, int, int]:
        self._claim()
        done, rows, filled = 0, self.first, 0
        if (mark := self._mark_file(self.shard[0])).exists():
            with _marked(mark) as saved:
                done, rows = int(saved["batches"]), int(saved["rows"])
                for name, buffer in self._buffer.items():
                    held = saved[name].view(buffer.dtype).reshape(-1, *buffer.shape[1:])
                    buffer[: len(held)], filled = held, len(held)
        self.needed = self.layout.n_bytes(rows - filled, self.last)
        need_space(self.folder, self.needed, f"a harvest of {self.last - self.first:,} rows x {self.layout.d}")
        with _kept(self.folder):
            says = attributes(request, self.layout)
            if self.shard[0] == 0:  # the folder gets its name when all have finished, this one too
                write_json(self.folder / GROUP, {"zarr_format": 3, "node_type": "group", "attributes": says[""]})
            self._arrays = {name: self.layout.open(self.folder, name, created=says[name]) for name in self._buffer}
        return done, rows, filled

    def _claim(self) -> None:
        """Say in the folder whose it is; of several writers that begin at once, one does."""
        there, mine = self.folder / META, self.folder / f".{META}.{os.getpid()}.{self.shard[0]}"
        write_json(mine, self._about)
        with _kept(self.folder):
            try:
                os.link(mine, there)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                if not there.exists():
                    os.replace(mine, there)
            mine.unlink(missing_ok=True)
        if lines := differences(read_json(there), self._about):
            raise UserError(
                f"{self.folder} holds an unfinished harvest of something else (there: in that folder, here: asked "
                f"for now): {'; '.join(lines)}. Ask for the same to finish it, or delete that folder."
            )

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows of every column of the layout; `labels` as window, pos and group."""
        rows = dict(columns) | {"labels": np.stack([columns[name] for name in LABELS], axis=1)}
        n, at = len(rows["x"]), 0
        if self.rows + n > self.last:
            raise UserError(f"more than the {self.last - self.first:,} rows that were planned: did the data change?")
        while at < n:
            step = min(n - at, len(self._buffer["x"]) - self._filled)
            for name, buffer in self._buffer.items():
                if (a := rows[name]).dtype != buffer.dtype or a.shape[1:] != buffer.shape[1:] or len(a) != n:
                    raise ValueError(f"{name}: {a.dtype}{a.shape} appended to {buffer.dtype}{buffer.shape}")
                buffer[self._filled : self._filled + step] = a[at : at + step]
            at, self.rows, self._filled = at + step, self.rows + step, self._filled + step
            if self._filled == len(self._buffer["x"]) or self.rows == self.last:
                self._flush()

    def _flush(self) -> None:
        """Begin to write one file of each array."""
        self._wait()
        first = self.rows - self._filled
        order = Shuffle(self._filled, seed=first // self.layout.shard)(np.arange(self._filled))
        self._writing = [
            self._arrays[name][first : self.rows].write(buffer[order]) for name, buffer in self._buffer.items()
        ]
        self._filled = 0

    def _wait(self) -> None:
        writing, self._writing = self._writing, []
        with _kept(self.folder):
            for future in writing:
                future.result()

    def mark(self, batches: int) -> None:
        """Make everything appended so far, `batches` batches, the place from which an interrupted run goes on."""
        self._save(batches, finished=False)

    def _save(self, batches: int, finished: bool) -> None:
        self._wait()
        held = {name: np.ascontiguousarray(b[: self._filled]).view(np.uint8) for name, b in self._buffer.items()}
        with atomic_write(self._mark_file(self.shard[0])) as f:
            np.savez(f, allow_pickle=False, batches=batches, rows=self.rows, finished=finished, **held)
        self.done = batches

    def finish(self) -> bool:
        """Give the folder its name if every writer has finished, and say so."""
        if self.rows != self.last:
            raise UserError(
                f"{self.rows - self.first:,} rows came for the {self.last - self.first:,} that were planned: did the "
                f"data change?"
            )
        self._save(self.done, finished=True)
        if not all(self._finished(i) for i in range(self.shard[1])):
            return (self.path / META).exists()
        with _kept(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another one that finished at the same time did it
                for left in self.folder.glob(".*"):  # by a writer that was killed within `atomic_write`
                    left.unlink()
                os.replace(self.folder, self.path)
            for i in range(self.shard[1]):
                (self.path / self._mark_file(i).name).unlink(missing_ok=True)
        return True

    def _finished(self, index: int) -> bool:
        try:
            with _marked(self._mark_file(index)) as saved:
                return bool(saved["finished"])
        except FileNotFoundError:
            return False

    def _mark_file(self, index: int) -> Path:
        return self.folder / f"progress-{index}-of-{self.shard[1]}.npz"

    def close(self) -> None:
        """Wait for what is being written; unfinished work stays."""
        self._wait()


@contextlib.contextmanager
def _marked(path: Path) -> Iterator[Any]:
    """What `mark` saved; the format has checksums of its own."""
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as saved:
            yield saved
    except (UserError, FileNotFoundError):
        raise
    except Exception as e:  # zipfile raises many kinds for a damaged file
        raise UserError(
            f"{path} is damaged ({shown(str(e), 300)}). Delete it to begin that part of the harvest again."
        ) from e


@contextlib.contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Errors of writing, of Python's and of TensorStore's kinds."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as e:
        if isinstance(e, UserError):
            raise
        why = (e.strerror if isinstance(e, OSError) else None) or shown(str(e).partition(" [")[0], 300)
        raise UserError(
            f"cannot write activations to {folder}: {why}. What is there is kept: free some space and run the same "
            f"command again to go on, or delete that folder."
        ) from e


def partial(path: Path) -> Path:
    """Where unfinished work for `path` lies."""
    return path.with_name(f".{path.name}.partial")
