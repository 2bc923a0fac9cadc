# SPDX-License-Identifier: Apache-2.0
"""Pictures as rows of places, with the interface of `Windows`: prepared as the model wants them, batch by batch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..errors import UserError
from .by_row import ByRow
from .pictures import THREADS, Pictures
from .processor import Processor


class Places(NamedTuple):
    """Where in a picture the values of a site are: a grid of patches in reading order, and what stands before it."""

    grid: tuple[int, int]
    """Rows and columns."""
    first: int = 0
    """Positions before the grid: class token, registers."""
    counted: str = "patches"
    """A row of `COUNTED`: which positions are in statistics and stores."""

    @property
    def n(self) -> int:
        """Positions."""
        return self.first + self.grid[0] * self.grid[1]

    def mask(self) -> np.ndarray:
        """bool [n]: the counted positions."""
        return COUNTED[self.counted](np.arange(self.n), self.first)


COUNTED: Mapping[str, Any] = {
    "patches": lambda at, first: at >= first,
    "first": lambda at, first: at == 0,
    "all": lambda at, first: at >= 0,
}
"""(position, positions before the patches) -> whether it counts. first: the class token where there is one."""


class PictureRows(ByRow):
    """One row per picture, in order of the groups: `batches`, `harvest` and the statistics take it like `Windows`.

    `rows(indices)` is a dict: tokens float32 [b, row, column, channel], the pixels as the model reads them; mask bool
    [b, pos]; counted bool [b, pos]; group and window int32 [b], the window being the picture's number.

    Args:
      pictures: from `read_pictures`.
      processor: what the model's folder says of its pictures (`load_processor`).
      places: of the sites that will be read.
      channels: of the model's pictures, 3 or 1.
    Raises:
      UserError: there are none, or the processor refuses them.
    """

    def __init__(self, pictures: Pictures, processor: Processor, places: Places, *, channels: int = 3):
        if not any(map(len, pictures.values())):
            raise UserError("no pictures were given.")
        self.group_names: tuple[str, ...] = tuple(pictures)
        self.files = tuple(file for files in pictures.values() for file in files.files)
        self.group = np.repeat(np.arange(len(pictures), dtype=np.int32), [len(files) for files in pictures.values()])
        self.processor, self.places, self.length = processor, places, places.n
        self._mode, self._counted = ("L" if channels == 1 else "RGB"), places.mask()
        self.block = self._blocks()
        self.of_all = np.array([pictures.of_all.get(name, len(files)) for name, files in pictures.items()], np.int64)
        self.bad = np.array([pictures.bad.get(name, 0) for name in pictures], np.int64)
        self.shape = self._pixels(0).shape
        about = [repr(processor), self._mode, [*places], self.group_names, self.group.tolist()]
        about += [[f.digest, f.document] for f in self.files]
        self.fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    block: np.ndarray
    """int64 [n]: pictures of one document, or with the same content, have the same number; see `Windows.block`."""
    shape: tuple[int, ...]
    """Rows, columns and channels of what the model reads."""
    fingerprint: str
    """A hash of the files' contents, the processor and the places."""
    of_all: np.ndarray
    """int64 [n_groups]: pictures of each group before any were drawn."""
    bad: np.ndarray
    """int64 [n_groups]: files of each group that were found to be no whole pictures and passed over."""

    def _blocks(self) -> np.ndarray:
        keys = [(int(g), f.document or f.digest) for g, f in zip(self.group, self.files, strict=True)]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([number[key] for key in keys], np.int64)

    @property
    def counted_each(self) -> np.ndarray:
        """int64 [n]: counted positions of each picture, without looking at one."""
        return np.full(len(self), self._counted.sum(), np.int64)

    @property
    def tokens_per_group(self) -> np.ndarray:
        """int64 [n_groups]: counted positions."""
        return np.bincount(self.group, minlength=len(self.group_names)) * self._counted.sum()

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Pictures stacked on axis 0. An index past the end gives a filler row: mask False, window -1, group 0."""
        at = np.asarray(indices, np.int64)
        real = at < len(self)
        pixels = np.zeros((len(at), *self.shape), np.float32)
        wanted = np.flatnonzero(real)
        with ThreadPoolExecutor(THREADS) as threads:  # Pillow decodes and resizes without the GIL
            for row, found in zip(wanted, threads.map(self._pixels, at[wanted].tolist()), strict=True):
                pixels[row] = self._fitting(found, int(at[row]))
        mask = np.repeat(real[:, None], self.length, 1)
        group, window = np.zeros(len(at), np.int32), np.full(len(at), -1, np.int32)
        group[real], window[real] = self.group[at[real]], at[real]
        return {"tokens": pixels, "mask": mask, "counted": mask & self._counted, "group": group, "window": window}

    def _pixels(self, i: int) -> np.ndarray:
        file = self.files[i]
        return self.processor(file.read().convert(self._mode))[0]

    def _fitting(self, found: np.ndarray, i: int) -> np.ndarray:
        if found.shape != self.shape:
            raise UserError(
                f"{self.files[i].name} comes out as {list(found.shape)}, {self.files[0].name} as {list(self.shape)}: a "
                "batch has pictures of one size. Give the processor a crop, or a size of rows and columns."
            )
        return found

    def shown(self, i: int) -> UInt8[np.ndarray, "row column channel"]:
        """Picture i as the model sees it, resized and cropped, in colours for a person."""
        return self.processor.undone(self._pixels(i))

    def named(self) -> list[dict[str, Any]]:
        """Of every row: its file, its group and its document, where there are such."""
        return [
            {"path": f.name, "group": self.group_names[g], "document": f.document}
            for g, f in zip(self.group, self.files, strict=True)
        ]

    def __repr__(self) -> str:
        sizes = zip(self.group_names, np.bincount(self.group, minlength=len(self.group_names)), strict=True)
        return f"PictureRows({len(self)} pictures: {', '.join(f'{g} {n}' for g, n in sizes)})"
