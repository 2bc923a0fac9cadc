# SPDX-License-Identifier: Apache-2.0
"""Activations of sites over a corpus, to disk: the same number of tokens of every group, resumable, bounded."""

import contextlib
import functools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..data.by_row import counted_of, counted_per_group
from ..errors import UserError
from .checkpoint import need_space
from .feed import placer
from .identity import fingerprint
from .interrupts import Held
from .lock import exclusive
from .placement import everywhere, placed
from .progress import Progress, quantity
from .site import answered, by_text, check_alike, check_answers, reached, readers
from .source import check_shard
from .store import LABELS, ActivationArray, Layout, check_dtype, existing, open_activations
from .writer import Writer

QUEUE = 2
"""Batches computed and still on their way to the host."""
MARK_SECONDS = 10.0
"""Time between marks: what a crash may cost."""
_log = logging.getLogger(__name__)


class Model(Protocol):
    """What is needed of a model: `jaxneuro.models.Transformer`, or any pure function with sites and its weights."""

    @property
    def apply(self) -> Callable[..., Any]:
        """(weights, tokens, mask, *, stop_at) -> anything."""
        ...

    @property
    def weights(self) -> Any:
        """A pytree of arrays."""
        ...


class Rows(Protocol):
    """What is needed of `jaxneuro.data.Windows`."""

    @property
    def group_names(self) -> Sequence[str]:
        """Names of the groups."""
        ...

    @property
    def group(self) -> np.ndarray:
        """int32 [n_windows]: group of every window."""
        ...

    @property
    def tokens_per_group(self) -> np.ndarray:
        """int64 [n_groups]: counted tokens."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows."""
        ...

    def rows(self, indices: Any) -> dict[str, np.ndarray]:
        """Stacked windows: tokens, mask, counted [b, pos], group, window [b]; fillers for indices past the end."""
        ...


def harvest(
    model: Model,
    windows: Rows,
    site: str,
    out_path: str | os.PathLike,
    *,
    max_tokens: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    dtype: str = "float32",
    sharding: jax.sharding.Sharding | None = None,
    progress: Progress | None = None,
) -> ActivationArray:
    """Run a model up to one site over windows and store the site's values at all counted tokens.

    The model is compiled up to the site's layer only. Windows are drawn at random without replacement, from each group
    until it has its share of `max_tokens` (`fair_shares`). Nothing is held in memory but a few batches and one file of
    at most 64 MiB. The files grow in a hidden folder beside `out_path` and get their name when complete; interrupted
    (Ctrl-C, kill, full disk), the same call goes on from the last mark and leaves bitwise the same files. If they are
    complete it opens them.

    With several processes (`jax.distributed`), each with the whole model on its own devices, each runs its part of the
    windows, and all return when the store is whole; `out_path` is a folder that all of them see.

    Args:
      model: has `apply` and `weights`.
      windows: `jaxneuro.data.windows(...)`.
      site: one site of one layer: "blocks.3.mlp.post", "blocks.3.resid_post", "embed". Axes after the position (heads)
        are joined. "encoder.blocks.3.resid_post": of the encoder of a T5; its decoder's need `jaxneuro.data.Paired`.
        "pooled", "projected": one row per window, a text ("documents" packing) or picture, at pos 0.
      out_path: folder to make; see `store.py` for what is in it.
      max_tokens: rows in all; None: every counted token once.
      batch_size: windows per pass. Part of the request: other batch shapes may round differently.
      seed: of the drawing.
      dtype: "float32"; "bfloat16" (half the size; 8 bits of precision); "int8" with a float32 scale per row, the
        largest absolute value of the row / 127 (a quarter; no value is off by more than half a scale: fine for values
        of one size, while rows with a few huge coordinates lose their small ones).
      sharding: of the batch axis, to spread a batch over devices.
      progress: called after every batch.
    Raises:
      UserError: unknown site, NaN or infinity (names site, window and count), a size that does not fit on the disk,
        something else under that name, another run writing it.
    Example:
      >>> acts = harvest(model, rows, "blocks.3.mlp.post", "acts", max_tokens=100_000)          # doctest: +SKIP
      >>> for batch in acts.batches(batch_size=4096, seed=0): ...                               # doctest: +SKIP
    """
    path = Path(out_path)
    _harvest(_Asked(model, windows, {site: path}, path, max_tokens, batch_size, seed, dtype, sharding, progress))
    return open_activations(path)


def harvest_sites(
    model: Model,
    windows: Rows,
    sites: Sequence[str],
    out_path: str | os.PathLike,
    *,
    max_tokens: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    dtype: str = "float32",
    sharding: jax.sharding.Sharding | None = None,
    progress: Progress | None = None,
) -> dict[str, ActivationArray]:
    """`harvest` of several sites in one pass of the model, each to a store of its own: `out_path`/SITE.

    All stores hold the same tokens in the same order: row i of one belongs to row i of another.

    Args:
      sites: each of one layer, see `harvest`; as for the rest.
    Returns:
      {site: its store}.
    Raises:
      UserError: as `harvest`; no site, or one twice.
    Example:
      >>> sites = [f"blocks.{i}.resid_post" for i in range(12)]                                  # doctest: +SKIP
      >>> acts = harvest_sites(model, rows, sites, "acts", max_tokens=100_000)                   # doctest: +SKIP
    """
    path = Path(out_path)
    paths = _paths(sites, path)
    _harvest(_Asked(model, windows, paths, path, max_tokens, batch_size, seed, dtype, sharding, progress))
    return {site: open_activations(where) for site, where in paths.items()}


def _paths(sites: Sequence[str], path: Path) -> dict[str, Path]:
    if len(set(sites)) != len(sites) or not sites:
        raise UserError(f"the sites {list(sites)} are no list of different sites: name each once, and one at least.")
    check_alike(sites)
    return {site: path / site for site in sites}


class _Asked(NamedTuple):
    """What one call of `harvest`, `harvest_sites` or `harvest_part` asks for, but for the shard."""

    model: Model
    windows: Rows
    paths: Mapping[str, Path]
    """{site: where its store goes}."""
    path: Path
    """The folder of all of them, or the one store."""
    max_tokens: int | None
    batch_size: int
    seed: int
    dtype: str
    sharding: jax.sharding.Sharding | None
    progress: Progress | None

    def requests(self) -> dict[str, dict[str, Any]]:
        """{site: what its store holds}, by which an interrupted one is known again."""
        request = {
            "max_tokens": self.max_tokens,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "dtype": self.dtype,
            "data": self.windows.fingerprint,
            "model": repr(getattr(self.model, "cfg", "")),
            "weights": fingerprint(self.model.weights),
            "group_names": list(self.windows.group_names),
        }
        return {site: {"site": site} | request for site in self.paths}


def _harvest(asked: _Asked) -> None:
    """This process's part of it, then wait for the others'."""
    shard = (jax.process_index(), jax.process_count())
    _part(asked, shard)
    if shard[1] > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"harvest {asked.path}")


def harvest_part(
    model: Model,
    windows: Rows,
    site: str | Sequence[str],
    out_path: str | os.PathLike,
    *,
    shard: tuple[int, int],
    max_tokens: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    dtype: str = "float32",
    sharding: jax.sharding.Sharding | None = None,
    progress: Progress | None = None,
) -> bool:
    """One of several processes' part of `harvest`, for those that know nothing of each other (an array of jobs).

    Part i writes the rows of its own files; parts may run at once or one after the other, on any machines that see the
    folder, and the one that ends last gives it its name. The rows are those that one process would have written.

    Args:
      site: as in `harvest`; a list: as in `harvest_sites`.
      shard: (index, count) of this part. All parts are asked for with the same count.
    Returns:
      Whether it is whole now: `open_activations(out_path)`.
    """
    path = Path(out_path)
    paths = {site: path} if isinstance(site, str) else _paths(site, path)
    return _part(_Asked(model, windows, paths, path, max_tokens, batch_size, seed, dtype, sharding, progress), shard)


def _part(asked: _Asked, shard: tuple[int, int]) -> bool:
    model, paths, path, dtype = asked.model, asked.paths, asked.path, asked.dtype
    check_dtype(dtype)
    check_shard(shard)
    _check_local(model.weights, asked.sharding)
    requests = asked.requests()
    part = "" if shard[1] == 1 else f".{shard[0]}-of-{shard[1]}"
    with Held() as signals, exclusive(path.parent, f".{path.name}{part}.lock"), contextlib.ExitStack() as opened:
        left = [site for site in paths if existing(paths[site], requests[site]) is None]
        if not left:
            return True
        windows = rows_of(asked.windows, left)
        order, keep = draw(windows, asked.max_tokens, asked.seed)
        job = _Job(model, windows, tuple(left), dtype, asked.batch_size, asked.sharding)
        layouts = {site: Layout.of(int(keep.sum()), d, dtype) for site, d in job.widths().items()}
        writers = {site: Writer(paths[site], requests[site], layouts[site], shard) for site in left}
        for writer in writers.values():
            opened.callback(writer.close)
        size = _size(layouts.values(), dtype)
        _log.info("harvest of %s: %s", ", ".join(left), size)
        needed = sum(writer.needed for writer in writers.values())
        need_space(writers[left[0]].folder, needed, f"a harvest of {len(left)} sites ({size})")
        signals.hold()
        if _fill(writers, job, _within(order, keep, *_rows_of(writers.values())), signals, asked.progress, size):
            finished = [writer.finish() for writer in writers.values()]
            return all(finished)
    raise KeyboardInterrupt  # whoever handles the signal let it pass: there is nothing to return


def _rows_of(writers: Iterable[Writer]) -> tuple[int, int]:
    """From the first row of any to the last of any: files of narrow rows hold more of them, so parts differ by site."""
    every = list(writers)
    return min(w.first for w in every), max(w.last for w in every)


def _size(layouts: Iterable[Layout], dtype: str) -> str:
    every = list(layouts)
    widths = " + ".join(str(layout.d) for layout in every)
    return f"{every[0].n:,} rows x {widths} {dtype}, {sum(layout.n_bytes() for layout in every) / 1e9:.3g} GB"


def _check_local(weights: Any, sharding: jax.sharding.Sharding | None) -> None:
    """Parts run at their own speed: no program of theirs may span processes."""
    placements = [x.sharding for x in jax.tree.leaves(weights) if isinstance(x, jax.Array)]
    placements += [] if sharding is None else [sharding]
    if not all(s.is_fully_addressable for s in placements):
        raise UserError(
            "harvest runs each process by itself, but the weights or the sharding span several processes. Load the "
            "model on each process's own devices (a mesh of jax.local_devices())."
        )


def _within(order: np.ndarray, keep: np.ndarray, first: int, last: int) -> np.ndarray:
    """int64 [m, 3]: the windows that hold rows first .. last - 1, and which of their kept tokens these are."""
    end = np.cumsum(keep)
    begin = end - keep
    mine = (begin < last) & (end > first)
    spans = np.stack([order, np.maximum(first - begin, 0), np.minimum(last - begin, keep)], axis=1)
    return spans[mine]


def fair_shares(available: np.ndarray, total: int | None) -> np.ndarray:
    """Tokens to take from each group: equal, but never more than it has; what one lacks, the others share.

    Example:
      >>> fair_shares(np.array([10, 100, 100]), 90).tolist()
      [10, 40, 40]
    """
    available = np.asarray(available, np.int64)
    if total is None or total >= available.sum():
        return available
    if total < 1:
        raise UserError(f"max_tokens is at least 1, not {total}.")
    shares, left = np.zeros_like(available), int(total)
    for rank, g in enumerate(np.argsort(available, kind="stable")):  # the poorest first
        shares[g] = min(int(available[g]), left // (len(available) - rank))
        left -= int(shares[g])
    return shares


class _OneEach:
    """Windows of which each has one row: what is pooled."""

    def __init__(self, windows: Rows):
        self._windows = windows
        self.group_names, self.group, self.fingerprint = windows.group_names, windows.group, windows.fingerprint
        known = getattr(windows, "counted_each", None)
        self.counted_each = None if known is None else np.minimum(known, 1)
        self.tokens_per_group = counted_per_group(self)

    group_names: Sequence[str]
    group: np.ndarray
    fingerprint: str
    tokens_per_group: np.ndarray

    def rows(self, indices: Any) -> dict[str, np.ndarray]:
        """As of the windows, counted being bool [b, 1]: those that have a counted token."""
        found = self._windows.rows(indices)
        return found | {"counted": found["counted"].any(1, keepdims=True)}


def rows_of(windows: Rows, sites: Sequence[str]) -> Rows:
    """The windows as the sites see them: where these are pooled one row of each that has a counted token."""
    return _OneEach(windows) if all(map(by_text, sites)) else windows


def draw(windows: Rows, max_tokens: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows in the order in which they are run, and how many of each one's counted tokens are kept (int64 both).

    Raises:
      UserError: no counted token at all.
    """
    orders, keeps = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for g, share in enumerate(fair_shares(windows.tokens_per_group, max_tokens)):
        candidates = np.random.default_rng([seed, g]).permutation(np.flatnonzero(windows.group == g))
        for chunk in np.array_split(candidates, max(1, len(candidates) // 1024)):
            if share <= 0 or not len(chunk):
                break
            counted = counted_of(windows, chunk)
            kept = np.minimum(counted, np.maximum(share - (np.cumsum(counted) - counted), 0))
            orders.append(chunk[kept > 0])
            keeps.append(kept[kept > 0])
            share -= kept.sum()
    order, keep = np.concatenate(orders), np.concatenate(keeps)
    if not len(order):
        raise UserError("the windows hold no counted token: is all of the text padding or special tokens?")
    mixed = np.random.default_rng(seed).permutation(len(order))
    return order[mixed], keep[mixed]


class _Job:
    """The compiled forward pass and what it takes to give it a batch."""

    def __init__(self, model: Model, windows: Rows, sites: tuple[str, ...], dtype: str, batch_size: int, sharding: Any):
        self.windows, self.batch_size = windows, batch_size
        spread = everywhere(sharding, model.weights)
        self._weights, self._place = placed(model.weights, spread), placer(sharding, spread)
        self._forward = jax.jit(functools.partial(_forward, readers(reached(model, sites), sites), dtype))
        self._example = _read(self.rows(np.array([0])))
        check_answers(model, sites, bool(answered(self._example)))

    def widths(self) -> dict[str, int]:
        """Values per row of every site."""
        out = jax.eval_shape(self._forward, self._weights, self._example)
        return {site: values["x"].shape[-1] for site, (values, _) in out.items()}

    def rows(self, order: np.ndarray) -> dict[str, np.ndarray]:
        filler = np.full(self.batch_size - len(order), len(self.windows.group), np.int64)
        return self.windows.rows(np.concatenate([order, filler]))

    def start(self, batch: dict[str, np.ndarray]) -> "Found":
        out = self._forward(self._weights, self._place(_read(batch)))
        for a in jax.tree.leaves(out):
            a.copy_to_host_async()
        return out


type Found = dict[str, tuple[dict[str, Any], Any]]
"""{site: (its columns [batch, pos, ...], tokens of each window that are not finite)}."""


def _read(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch the program reads."""
    return {n: batch[n] for n in ("tokens", "mask", "counted")} | answered(batch)


def _forward(read: Any, dtype: str, weights: Any, batch: dict[str, Any]) -> Found:
    def one(x):
        x = x.astype("float32" if dtype == "int8" else dtype)
        bad = jnp.sum(~jnp.isfinite(x).all(-1) & batch["counted"], axis=1, dtype=jnp.int32)
        return (_quantised(x) if dtype == "int8" else {"x": x}), bad

    return {site: one(x) for site, x in read(weights, batch["tokens"], batch["mask"], **answered(batch)).items()}


def _quantised(x: jax.Array) -> dict[str, jax.Array]:
    """x ~ q * scale, scale = max |x| / 127 over the last axis, q = round(x / scale) in -127 .. 127."""
    scale = jnp.max(jnp.abs(x), axis=-1) / jnp.float32(127)
    q = jnp.round(x / jnp.where(scale > 0, scale, jnp.float32(1))[..., None])
    return {"x": q.astype(jnp.int8), "scale": scale}


def _fill(writers: Mapping[str, Writer], job: _Job, spans: np.ndarray, signals: Held, progress: Any, size: str) -> bool:
    """Compute and write batch after batch, and mark the end; False if a signal came first."""
    every = writers.values()
    total, done, marked = -(-len(spans) // job.batch_size), min(w.done for w in every), time.monotonic()
    kept = np.add.reduceat(spans[:, 2] - spans[:, 1], np.arange(0, len(spans), job.batch_size))
    ends = _rows_of(every)[0] + np.cumsum(kept)
    began = None
    if progress is not None:
        progress(done, total, size)
    for batch, span, found in _results(job, spans, range(done, total), signals):
        labels, where = _labels(batch, span)
        if (n := len(where[0])) != kept[done]:
            raise UserError(f"{n:,} tokens came for the {kept[done]:,} that were planned: did the data change?")
        for site, writer in writers.items():  # a writer's rows are its own, and come once
            mine = slice(*(max(0, end + n - int(ends[done])) for end in (writer.rows, writer.last)))
            writer.append({name: a[mine] for name, a in (labels | _values(site, batch, found[site], where)).items()})
        rows, done, now = int(ends[done]), done + 1, time.monotonic()
        if now - marked > MARK_SECONDS:
            _mark(every, done)
            marked = now
        if progress is not None:
            progress(done, total, size + _rate(rows, now, began))
        began = began or (now, rows)
    _mark(every, done)
    return done == total


def _mark(writers: Iterable[Writer], done: int) -> None:
    for writer in writers:
        writer.mark(done)


def _rate(rows: int, now: float, began: tuple[float, int] | None) -> str:
    """Counted from the end of the first batch, which compiled."""
    return f", {quantity((rows - began[1]) / max(now - began[0], 1e-9))} tokens/s" if began else ""


def _results(job: _Job, spans: np.ndarray, numbers: range, signals: Held) -> Iterator[tuple[dict, Any, Found]]:
    """Batches in order, each given out when QUEUE later ones are on the device."""
    queue: deque[tuple[dict, Any, Found]] = deque()
    for number in numbers:
        if signals.caught is not None:
            break
        span = spans[number * job.batch_size : (number + 1) * job.batch_size]
        batch = job.rows(span[:, 0])
        queue.append((batch, span, job.start(batch)))
        if len(queue) > QUEUE:
            yield queue.popleft()
    yield from queue


def _labels(batch: dict, span: np.ndarray) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """What is said of every token that is kept, and (window of the batch, position) of each."""
    counted = batch["counted"][: len(span)]
    place, (first, last) = np.cumsum(counted, axis=1) - 1, span[:, 1:].T[..., None]
    row, pos = np.nonzero(counted & (place >= first) & (place < last))
    labels = zip(LABELS, (batch["window"][row], pos, batch["group"][row]), strict=True)
    return {name: a.astype(np.int32) for name, a in labels}, (row, pos)


def _values(site: str, batch: dict, found: tuple[dict, Any], where: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    bad = np.asarray(found[1])
    if bad.any():
        row = int(np.argmax(bad > 0))
        raise UserError(
            f"{site}: NaN or infinity at {int(bad[row])} tokens of window {int(batch['window'][row])} "
            f"({int((bad > 0).sum())} windows of this batch). Check the model's weights, or run it in float32."
        )
    return {name: np.asarray(a)[where] for name, a in found[0].items()}
