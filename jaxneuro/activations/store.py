# SPDX-License-Identifier: Apache-2.0
"""Activations on disk: zarr3 arrays in a folder, in checksummed blocks of rows; any row is reached, nothing is pickled.

    x        float32, bfloat16 or int8 [n, d]          labels   int32 [n, 3]: window, pos, group
    scale    float32 [n], beside int8                  meta.json

Each is cut into blocks of 1 to 2 MiB of x (the chunks, each with a crc32c), 32 of them to a file (the zarr shard,
whose index has a crc32c too). Nothing is compressed, so the size is known beforehand. The rows of a file are stored in
a shuffled order (`writer.py`), so a block holds tokens of many texts, and `blocks.py` says how they are read back in
random order.

The folder is a zarr3 group whose attributes say what the arrays are, for readers that do not know this page. Any zarr3
reader opens float32 and int8; bfloat16, which zarr-python does not have, is read by tensorstore (and handed to torch
as `torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)`).
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import UserError, shown, unknown
from ..io.fields import OBJECT, Fields, choice, whole
from ..io.files import read_json
from .identity import differences, plain
from .source import check_request, stream

FORMAT: Final = 1
META: Final = "meta.json"
GROUP: Final = "zarr.json"
LABELS: Final = ("window", "pos", "group")
DIMENSIONS: Final = {"x": ["token", "d"], "scale": ["token"], "labels": ["token", "label"]}
SCALE: Final = {"scale": ("float32", ())}
DTYPES: Final[dict[str, dict]] = {"float32": {}, "bfloat16": {}, "int8": SCALE}
"""Storage type of x -> what is stored beside it. float16 is not offered: activations exceed its 65,504."""
BLOCK_BYTES: Final = 2**21
"""Of x, at most. A read costs about 100 us whatever its size, so half the size takes a fifth more time; twice the
size takes as long and mixes less (`blocks.py`)."""
BLOCK_ROWS: Final = 4096
"""At most, so that a store of narrow rows has blocks to shuffle."""
SHARD_BLOCKS: Final = 32
_CRC: Final = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


@dataclass(frozen=True)
class Layout:
    """Where every row lies and how many bytes that takes; both follow from four numbers and a type."""

    n: int
    d: int
    dtype: str
    block: int
    """Rows of a block (a zarr inner chunk)."""
    shard: int
    """Rows of a file (a zarr shard)."""

    @classmethod
    def of(cls, n: int, d: int, dtype: str) -> "Layout":
        """What `harvest` writes n rows of d values in: a power of two of rows, at most BLOCK_BYTES and BLOCK_ROWS."""
        rows = min(max(1, BLOCK_BYTES // (d * np.dtype(dtype).itemsize)), BLOCK_ROWS)
        block = 1 << rows.bit_length() - 1
        return cls(n, d, dtype, block, block * SHARD_BLOCKS)

    @cached_property
    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Name of an array -> its type and the shape of a row."""
        found = {"x": (self.dtype, (self.d,)), **DTYPES[self.dtype], "labels": ("int32", (len(LABELS),))}
        return {name: (np.dtype(kind), shape) for name, (kind, shape) in found.items()}

    @property
    def shards(self) -> int:
        """Files per array."""
        return -(-self.n // self.shard)

    def part(self, index: int, count: int) -> tuple[int, int]:
        """First and last (exclusive) row of one of `count` writers: whole files, so that no two share one."""
        first, last = (self.shards * i // count * self.shard for i in (index, index + 1))
        return min(first, self.n), min(last, self.n)

    def file(self, name: str, shard: int) -> str:
        """Path of a shard in the store's folder, as zarr3 has it."""
        return "/".join([name, "c", str(shard), *("0" for _ in self.columns[name][1])])

    def file_bytes(self, name: str, shard: int) -> int:
        """Exact: blocks (the last one filled up) with 4 bytes of checksum each, and the index of the shard."""
        dtype, shape = self.columns[name]
        blocks = -(-min(self.shard, self.n - shard * self.shard) // self.block)
        index = 16 * (self.shard // self.block) + 4
        return blocks * (self.block * dtype.itemsize * int(np.prod(shape)) + 4) + index

    def n_bytes(self, first: int = 0, last: int | None = None) -> int:
        """Of the files of rows first .. last."""
        shards = range(-(-first // self.shard), -(-(self.n if last is None else last) // self.shard))
        return sum(self.file_bytes(name, shard) for name in self.columns for shard in shards)

    def open(self, folder: Path, name: str, *, mode: str = "default", created: Mapping[str, Any] | None = None) -> Any:
        """A TensorStore of one array.

        A missing block is an error and never zeros; a block of zeros is written like any other.

        Args:
          created: the array is made if it is not there, with these attributes.
        """
        import tensorstore as ts

        dtype, shape = self.columns[name]
        blocks = {"chunk_shape": [self.block, *shape], "codecs": _CRC, "index_codecs": _CRC}
        metadata = {
            "shape": [self.n, *shape],
            "data_type": dtype.name,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard, *shape]}},
            "codecs": [{"name": "sharding_indexed", "configuration": blocks}],
        }
        if created is not None:
            metadata |= {"dimension_names": DIMENSIONS[name], "attributes": dict(created)}
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{(folder / name).absolute()}/"},
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False,
        }
        context = ts.Context({"file_io_mode": {"mode": mode}})
        return ts.open(spec, open=True, create=created is not None, context=context).result()


def predicted_bytes(n: int, d: int, dtype: str) -> int:
    """Size on disk of n rows of d values with their labels and checksums, but for about 3 KB of metadata.

    Example:
      >>> predicted_bytes(1_000_000, 384, "bfloat16") / (1_000_000 * (384 * 2 + 12))    # the last block is filled up
      1.0014...
    """
    return Layout.of(n, d, dtype).n_bytes()


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """TensorStore's errors (which name file and chunk) as one that says what to do."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, RuntimeError, NotImplementedError) as e:
        what = shown(str(e).partition(" [")[0], 400)
        raise UserError(
            f"the activations in {folder} are damaged: {what}. Put that file back from a copy, or delete the folder "
            f"and harvest again. jaxneuro.activations.store.verify lists everything that is damaged."
        ) from e


class StoredRows:
    """x of a store, read when it is indexed: `x[3]`, `x[10:20]`, `x[[5, 2, 9]]`, `x[mask]`, `np.asarray(x)`.

    float32 or bfloat16 as stored; int8 comes out as float32, q * scale.
    """

    def __init__(self, folder: Path, layout: Layout):
        self._folder = folder
        self._parts = [open_array(folder, layout, name) for name in layout.columns if name != "labels"]
        self.shape = (layout.n, layout.d)
        self.dtype = np.dtype("float32") if len(self._parts) > 1 else np.dtype(layout.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        where = _rows(index, len(self))
        with explained(self._folder):
            q, *scale = [f.result() for f in [a[where].read() for a in self._parts]]
        return dequantised(q, scale[0]) if scale else q

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def astype(self, dtype: Any) -> np.ndarray:
        """All rows, in memory."""
        return self.__array__(dtype)


def _rows(index: Any, n: int) -> Any:
    """An index as TensorStore has them: not negative, within."""
    if isinstance(index, tuple):
        raise TypeError("stored activations are indexed by row: x[rows], then [:, columns] of what comes back.")
    if isinstance(index, slice):
        start, stop, step = index.indices(n)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    if np.ndim(index) == 0:
        return range(n)[index]
    rows = np.asarray(index)
    rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
    if rows.size and not -n <= rows.min() <= rows.max() < n:
        raise IndexError(f"rows {rows.min()} to {rows.max()} of a store of {n}")
    return np.where(rows < 0, rows + n, rows)


def dequantised(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 q * scale, one scale per row."""
    return np.multiply(q, scale[..., None], dtype=np.float32)


@dataclass(frozen=True)
class ActivationArray:
    """Activations of one site: row i of `x` belongs to token `pos[i]` of window `window[i]`, of group `group[i]`.

    Opening reads nothing but the sizes of the files; rows are read when they are used, and checked then. Rows come in
    no particular order.
    """

    path: Path
    layout: Layout
    meta: Mapping[str, Any]
    """The request the rows came from: site, seed, fingerprints of model and data."""

    def __repr__(self) -> str:
        site = self.meta.get("site")
        of = f" of {shown(site)}" if site is not None else ""
        return f"ActivationArray({len(self):,} rows of {self.layout.d} {self.layout.dtype}{of}, {shown(self.path)})"

    def __len__(self) -> int:
        return self.layout.n

    @cached_property
    def x(self) -> StoredRows:
        """[n_tokens, d], read when indexed."""
        return StoredRows(self.path, self.layout)

    @cached_property
    def _labels(self) -> np.ndarray:
        with explained(self.path):
            return np.ascontiguousarray(open_array(self.path, self.layout, "labels").read().result().T)

    @property
    def window(self) -> np.ndarray:
        """int32 [n_tokens], in memory: index of the window in the data the rows were harvested from."""
        return self._labels[0]

    @property
    def pos(self) -> np.ndarray:
        """int32 [n_tokens], in memory: position in the window."""
        return self._labels[1]

    @property
    def group(self) -> np.ndarray:
        """int32 [n_tokens], in memory: number of the group; its name is `meta["group_names"][number]`."""
        return self._labels[2]

    def batches(
        self,
        *,
        batch_size: int,
        seed: int | None = 0,
        epochs: int | None = None,
        shard: tuple[int, int] = (0, 1),
        drop_remainder: bool = False,
        threads: int = 2,
        widen: bool = True,
    ) -> Any:
        """Batches as `array_batches` gives them, read in blocks (`blocks.BlockOrder`); every epoch each row once.

        Args:
          shard: (index, count) of this host, whose part of a batch lies in its part of the blocks: hosts whose number
            divides 16 and the batch size read nothing twice.
          widen: x as float32; False: as stored, to cast on the device: bfloat16, or int8 with "scale" [b] beside it.
        Returns:
          Iterator of {"x": [b, d], "window", "pos", "group": int32 [b], "mask": bool [b]}, with get_state and
          set_state. About 512 MiB of blocks are in memory, or the whole store if it is smaller.
        """
        from .blocks import Blocks

        check_request(len(self), batch_size, epochs, shard)
        source = Blocks(self.path, self.layout, seed, batch_size, epochs=epochs, ahead=2 * threads, widen=widen)
        return stream(
            source,
            batch_size=batch_size,
            epochs=epochs,
            shard=shard,
            drop_remainder=drop_remainder,
            threads=threads,
        )


def open_array(folder: Path, layout: Layout, name: str) -> Any:
    """One array to read. Files are mapped: a block is checked where the page cache has it and copied once."""
    with explained(folder):
        return layout.open(folder, name, mode="memmap")


def open_activations(path: str | os.PathLike) -> ActivationArray:
    """Open what `harvest` wrote.

    Raises:
      UserError: no such folder, a file is missing or cut short. Flipped bits are found where they are read, or by
        `verify`.
    """
    path = Path(path)
    if not (path / META).is_file():
        raise UserError(f"{shown(path)} holds no activations: it has no {META}. {_elsewhere(path)}")
    layout, request = _described(path / META)
    every = (line for name in layout.columns for line in _wrong_files(path, layout, name))
    if wrong := list(itertools.islice(every, 9)):  # a layout that lies may name more files than can be looked for
        listed = "; ".join(wrong[:8]) + ("; and more" if len(wrong) > 8 else "")
        raise UserError(
            f"the activations in {path} are incomplete: {listed}. Put the files back from a copy, or delete the folder "
            f"and harvest again."
        )
    return ActivationArray(path, layout, request)


def _elsewhere(path: Path, most: int = 8) -> str:
    """The folders in this one that do hold some, one per site as `jaxneuro capture` writes them; else how to write."""
    found = path.glob(f"*/{META}") if path.is_dir() else []
    inside = sorted(p.parent.name for p in found if not p.parent.name.startswith("."))  # hidden: not complete
    if not inside:
        return "Write some with `jaxneuro capture` (in Python: activations.harvest)."
    listed = [shown(path / name) for name in inside[:most]]
    more = f", ... ({len(inside)} in all)" if len(inside) > most else ""
    return f"Name one of its folders: {', '.join(listed)}{more}."


def _described(file: Path) -> tuple[Layout, Mapping[str, Any]]:
    """What meta.json says, every number in its range."""
    with Fields(read_json(file), file) as meta:
        request, layout = meta.read("request", OBJECT), meta.group("layout")
        n, d = layout.read("n", whole(0, 2**48)), layout.read("d", whole())
        dtype = layout.read("dtype", choice(DTYPES))
        block = layout.read("block", whole(1, 2**40))
        shard = layout.read("shard", whole(1, 2**40))
        if not meta.problems and shard % block:
            meta.note(f"layout.shard = {shard} is no multiple of layout.block = {block}")
    return Layout(n, d, dtype, block, shard), request


def _wrong_files(path: Path, layout: Layout, name: str) -> Iterator[str]:
    if not os.path.isfile(path / name / "zarr.json"):  # TensorStore would wait for a pipe
        yield f"{name}/zarr.json is no file"
    for shard in range(layout.shards):
        file, size = layout.file(name, shard), layout.file_bytes(name, shard)
        try:
            there = (path / file).stat().st_size
        except OSError as e:
            yield f"{file}: {e.strerror}"
        else:
            if there != size:
                yield f"{file} has {there:,} bytes of {size:,}"


def verify(path: str | os.PathLike) -> int:
    """Read everything once and compare every checksum.

    Returns:
      Bytes that were read.
    Raises:
      UserError: names every file with a damaged block.
    """
    acts, damaged = open_activations(path), []
    for name in acts.layout.columns:
        array = open_array(acts.path, acts.layout, name)
        for shard in range(acts.layout.shards):
            first = shard * acts.layout.shard
            try:
                with explained(acts.path):
                    array[first : min(first + acts.layout.shard, len(acts))].read().result()
            except UserError:
                damaged.append(acts.layout.file(name, shard))
    if damaged:
        raise UserError(
            f"the activations in {acts.path} are damaged: blocks of {', '.join(damaged)} do not have their checksums. "
            f"Put these files back from a copy, or delete the folder and harvest again."
        )
    return acts.layout.n_bytes()


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


def description(request: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """What meta.json says."""
    return {"format": FORMAT, "layout": asdict(layout), "request": plain(request)}


def attributes(request: Mapping[str, Any], layout: Layout) -> dict[str, dict[str, Any]]:
    """What each array says of itself to a reader of zarr, by name; "" is the group of them."""
    about = {key: request[key] for key in ("site", "group_names", "model") if key in request}
    value = "x * scale[:, None]" if "scale" in layout.columns else "x"
    found = {
        "": {**about, "value": value, "rows": "one token each, in no particular order; row i of every array is one"},
        "x": {"what": "activations"},
        "scale": {"what": "the factor of each row of x"},
        "labels": {
            "what": "window: the number of the text window; pos: the position in it; group: index into group_names",
            "columns": list(LABELS),
        },
    }
    if layout.dtype == "bfloat16":
        found["x"]["dtype"] = "bfloat16: read it with tensorstore; zarr-python has no such type"
    return {name: plain(value) for name, value in found.items() if name in ("", *layout.columns)}


def check_dtype(dtype: str) -> None:
    """Raises: UserError: no such storage type."""
    if dtype not in DTYPES:
        raise unknown("storage dtype", dtype, DTYPES, where="harvest")
