# SPDX-License-Identifier: Apache-2.0
"""Activations on disk: plain .npy files in a folder, written in order, whole or resumable, never pickled."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from ..errors import UserError, unknown
from ..io.files import read_json, write_json
from .checkpoint import need_space
from .identity import differences, plain

DTYPES: Final = {"float32": (np.dtype("<f4"), np.dtype("<f4")), "bfloat16": (np.dtype("<u2"), ml_dtypes.bfloat16)}
"""Name -> (type in the file, type in memory). NumPy's format has no bfloat16: its bits are stored as uint16 and
`meta.json` says so. float16 is not offered: activations exceed its 65,504."""
META: Final = "meta.json"
LABELS: Final = ("window", "pos", "group")
_PROGRESS: Final = "progress.json"


@dataclass(frozen=True)
class ActivationArray:
    """Activations of one site: row i of `x` belongs to token `pos[i]` of window `window[i]`, of group `group[i]`.

    All are memmaps: opening reads nothing, and rows are read when they are used. `np.load(folder / "x.npy")` works
    without this library (bfloat16 shows as uint16).
    """

    path: Path
    x: np.ndarray
    """float32 or bfloat16 [n_tokens, d]."""
    window: np.ndarray
    """int32 [n_tokens]: index of the window in the data the rows were harvested from."""
    pos: np.ndarray
    """int32 [n_tokens]: position in the window."""
    group: np.ndarray
    """int32 [n_tokens]: number of the group; its name is `meta["group_names"][number]`."""
    meta: Mapping[str, Any]
    """The request the rows came from: site, seed, fingerprints of model and data."""

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, *, batch_size: int, **options: Any) -> Any:
        """`array_batches` over x with group, window and pos delivered beside it."""
        from .source import array_batches

        extra = {name: getattr(self, name) for name in LABELS}
        return array_batches(self.x, batch_size=batch_size, extra=extra, **options)


def open_activations(path: str | os.PathLike) -> ActivationArray:
    """Open what `harvest` wrote.

    Raises:
      UserError: no such folder, a file is missing, cut short or of another shape than `meta.json` says.
    """
    path = Path(path)
    if not (path / META).is_file():
        raise UserError(f"{path} holds no activations: it has no {META}. Write some there with harvest.")
    meta = read_json(path / META)
    try:
        n, shape = meta["n_tokens"], (meta["n_tokens"], meta["d"])
        stored, kind = DTYPES[meta["request"]["dtype"]]
        x = _load(path / "x.npy", shape, stored).view(kind)
        labels = {name: _load(path / f"{name}.npy", (n,), np.dtype("<i4")) for name in LABELS}
    except (KeyError, TypeError) as e:
        raise UserError(f"{path / META} does not describe activations: {e!r}.") from e
    return ActivationArray(path, x, **labels, meta=meta["request"])


def _load(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        a = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f"{path} cannot be read: {e}. It was cut short or replaced; harvest again.") from e
    if a.shape != shape or a.dtype != dtype:
        raise UserError(f"{path} holds {a.dtype}{list(a.shape)}, but {META} says {dtype}{list(shape)}.")
    return a


class Writer:
    """Fills the files of an ActivationArray in order, beside their final place; renamed there when complete.

    Args:
      path: the folder that will appear.
      request: what is asked for, JSON-like; unfinished work is only continued for an equal request.
      n, d: rows and columns, known beforehand, so that the size is checked before anything is written.
    Raises:
      UserError: unfinished work of another request, no room, an unknown dtype.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], n: int, d: int):
        self.path, self.folder = path, partial(path)
        self.request, self.n, self.d = plain(request), n, d
        stored, _ = DTYPES[self.request["dtype"]]
        self._kinds = {"x": (stored, (n, d)), **{name: (np.dtype("<i4"), (n,)) for name in LABELS}}
        self.done = self._begin()
        """Batches already in the files."""

    @property
    def n_bytes(self) -> int:
        """Size of the finished folder, but for headers and meta.json."""
        return predicted_bytes(self.n, self.d, self.request["dtype"])

    def _begin(self) -> int:
        wanted = {"request": self.request, "n_tokens": self.n, "d": self.d}
        marked = {"batches": 0, "rows": 0}
        if (self.folder / META).exists():
            lines = differences(read_json(self.folder / META), wanted)
            if lines:
                raise UserError(
                    f"{self.folder} holds an unfinished harvest of something else (there: in that folder, here: asked "
                    f"for now): {'; '.join(lines)}. Ask for the same to finish it, or delete that folder."
                )
            if (self.folder / _PROGRESS).exists():
                marked = read_json(self.folder / _PROGRESS)
        self.rows = marked["rows"]
        row_bytes = self.n_bytes // self.n
        need_space(self.folder, self.n_bytes - self.rows * row_bytes, f"a harvest of {self.n:,} tokens x {self.d}")
        self._files = {}
        with self._full_disk():
            write_json(self.folder / META, wanted)
            for name, (dtype, shape) in self._kinds.items():
                self._files[name] = self._open(name, dtype, shape)
        return marked["batches"]

    def _open(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
        path = self.folder / f"{name}.npy"
        f = open(path, "r+b" if self.rows else "w+b")  # noqa: SIM115 - closed by close()
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(f, header)
        f.flush()  # so that the file's size is true
        end = f.tell() + self.rows * dtype.itemsize * int(np.prod(shape[1:]))
        if os.fstat(f.fileno()).st_size < end:
            f.close()
            raise UserError(f"{path} is shorter than {_PROGRESS} says. Delete {self.folder} and harvest again.")
        f.truncate(end)
        f.seek(end)
        return f

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows of x and of every label."""
        with self._full_disk():
            for name, (dtype, shape) in self._kinds.items():
                a = np.ascontiguousarray(columns[name])
                if a.dtype != dtype or a.shape[1:] != shape[1:] or len(a) != len(columns["x"]):
                    raise ValueError(f"{name}: {a.dtype}{a.shape} appended to {dtype}{shape}")
                self._files[name].write(a.data)
        self.rows += len(columns["x"])

    def mark(self, batches: int) -> None:
        """Make everything appended so far, `batches` batches, the place from which an interrupted run goes on."""
        with self._full_disk():
            for f in self._files.values():
                f.flush()
                os.fsync(f.fileno())
            write_json(self.folder / _PROGRESS, {"batches": batches, "rows": self.rows})

    def finish(self) -> None:
        """Give the folder its name."""
        if self.rows != self.n:
            raise UserError(f"{self.rows:,} rows came for the {self.n:,} that were planned: did the data change?")
        self.close()
        with self._full_disk():
            os.replace(self.folder, self.path)
            (self.path / _PROGRESS).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; unfinished work stays."""
        with self._full_disk():
            for f in self._files.values():
                f.close()

    def _full_disk(self) -> "_Explain":
        return _Explain(self.folder)


class _Explain:
    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise UserError(
                f"cannot write activations to {self._folder}: {error.strerror or error}. What is there is kept: free "
                f"some space and run the same command again to go on, or delete that folder."
            ) from error


def partial(path: Path) -> Path:
    """Where unfinished work for `path` lies."""
    return path.with_name(f".{path.name}.partial")


def predicted_bytes(n: int, d: int, dtype: str) -> int:
    """Size on disk of n rows of d values and their labels.

    Example:
      >>> predicted_bytes(1_000_000, 384, "bfloat16")
      780000000
    """
    return n * (d * DTYPES[dtype][0].itemsize + 4 * len(LABELS))


def existing(path: Path, request: Mapping[str, Any]) -> ActivationArray | None:
    """What is already complete under `path`, if it is what is asked for.

    Raises:
      UserError: something else is there.
    """
    if not path.exists():
        return None
    if not (path / META).is_file():
        if path.is_dir() and not any(path.iterdir()):
            return None
        raise UserError(f"{path} exists and holds no activations. Choose another name, or remove it.")
    found = open_activations(path)
    lines = differences(found.meta, plain(request))
    if lines:
        raise UserError(
            f"{path} holds other activations (there: in that folder, here: asked for now): {'; '.join(lines)}. "
            f"Choose another name, or delete it."
        )
    return found


def check_dtype(dtype: str) -> None:
    """Raises: UserError: no such storage type."""
    if dtype not in DTYPES:
        raise unknown("storage dtype", dtype, DTYPES, where="harvest")
