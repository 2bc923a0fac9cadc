# SPDX-License-Identifier: Apache-2.0
"""A run's folder of checkpoints, written by Orbax: whole or absent, recognisable, exact."""

import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import jax

from ..errors import UserError, shown
from ..io.files import read_json, write_json
from .identity import differences, is_key, leaf_names, plain
from .plain import from_json, to_json

FORMAT = 1
RUN_FILE = "run.json"


class Checkpoints:
    """The checkpoints of one run in one folder. The last two are kept; a save that was cut short never counts.

    `run.json` in the folder says which run it is; a run with another identity is refused before anything is written.

    Args:
      folder: made if it does not exist.
      identity: JSON-like; what has to be equal for a resume to be right.
    Raises:
      UserError: the folder belongs to another run (says what differs), or cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").addFilter(_said_by_us)
        if not _hooks:
            _hooks.append(sys.unraisablehook)
            sys.unraisablehook = _unraisable
        self.folder = folder.absolute()
        self._claim(plain(identity))
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._ocp, self._manager = ocp, ocp.CheckpointManager(self.folder, options=options)

    def _claim(self, identity: dict) -> None:
        path = self.folder / RUN_FILE
        ours = {"format": FORMAT, "identity": identity}
        if path.exists():
            lines = differences(read_json(path), ours)
            if lines:
                raise UserError(
                    f"the checkpoints in {self.folder} belong to another run (there: in that folder, here: asked "
                    f"for now): {'; '.join(lines)}. Ask for the same run to go on with it, or choose another folder."
                )
            return
        steps = [p.name for p in self.folder.glob("[0-9]*") if p.is_dir()] if self.folder.exists() else []
        if steps:
            raise UserError(
                f"{self.folder} holds step folders ({', '.join(sorted(steps)[:3])}) but no {RUN_FILE}: it was not "
                f"written by jaxneuro, or the file was lost. Choose another folder."
            )
        if jax.process_index() == 0:
            write_json(path, ours)

    def latest(self) -> int | None:
        """The newest whole checkpoint's step."""
        return self._manager.latest_step()

    def meta(self, step: int) -> dict:
        """What was saved beside the state."""
        args = self._ocp.args
        meta = self._read(step, meta=args.JsonRestore())["meta"]
        arrays = self._read(step, arrays=args.StandardRestore())["arrays"] if meta["n_arrays"] else {}
        return from_json(meta["json"], {int(k): v for k, v in arrays.items()})

    def restore(self, step: int, like: Any) -> Any:
        """The state, bitwise; `like` gives its structure, shapes, dtypes and shardings (arrays or their shapes)."""
        leaves, treedef = jax.tree.flatten(like)
        names = _names(like)
        keys = {n: x for n, x in zip(names, leaves, strict=True) if is_key(x)}
        wanted = {n: _stored_shape(x) for n, x in zip(names, leaves, strict=True) if x.size}
        found = self._read(step, state=self._ocp.args.StandardRestore(wanted))["state"] if wanted else {}
        for name, x in zip(names, leaves, strict=True):
            if not x.size:
                found[name] = jax.numpy.zeros(x.shape, x.dtype, device=x.sharding)
            elif name in keys:
                found[name] = jax.random.wrap_key_data(found[name], impl=jax.random.key_impl(x))
        return treedef.unflatten([found[n] for n in names])

    def save(self, step: int, state: Any, meta: Mapping[str, Any], *, wait: bool = False) -> None:
        """Copy the state off the device and write it in the background; the call before must have ended first.

        Raises:
          UserError: no room, or the write (this one or the one before) failed; earlier checkpoints are as they were.
        """
        leaves = dict(zip(_names(state), jax.tree.leaves(state), strict=True))
        stored = {n: jax.random.key_data(x) if is_key(x) else x for n, x in leaves.items() if x.size}
        need_space(self.folder, sum(x.nbytes for x in stored.values()), f"the checkpoint of step {step}")
        text, arrays = to_json(dict(meta))
        args = self._ocp.args
        items: dict[str, Any] = {"meta": args.JsonSave({"json": text, "n_arrays": len(arrays)})}
        if stored:
            items["state"] = args.StandardSave(stored)
        if arrays:
            items["arrays"] = args.StandardSave({str(i): a for i, a in enumerate(arrays)})
        try:
            self._manager.wait_until_finished()
            self._probe()
            self._manager.save(step, args=args.Composite(**items), force=True)
            if wait:
                self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as e:
            raise UserError(
                f"the checkpoint of step {step} (or the one before it) could not be written to {self.folder}: "
                f"{_brief(e)}. The last whole one there is of step {self._whole()}; make room and run the same command "
                f"again to go on."
            ) from e

    def _probe(self) -> None:
        """Orbax's threads wait minutes for a folder that another of them could not make: see that one can be made."""
        probe = self.folder / ".probe"
        probe.mkdir(exist_ok=True)
        probe.rmdir()

    def _whole(self) -> int | None:
        self._manager.reload()
        return self._manager.latest_step()

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._ocp.args.Composite(**items))
        except Exception as e:  # Orbax and TensorStore raise many kinds for a damaged file
            others = [s for s in self._manager.all_steps() if s != step]
            way = f"delete it to go on from step {max(others)}" if others else "delete the folder to start again"
            raise UserError(
                f"the checkpoint {self.folder / str(step)} is damaged ({type(e).__name__}: {_brief(e)}): {way}."
            ) from e

    def close(self) -> None:
        """Wait for the write in progress, if any."""
        try:
            self._manager.close()
        except (OSError, ValueError, RuntimeError) as e:
            raise UserError(
                f"the last checkpoint could not be written to {self.folder}: {_brief(e)}. "
                "Make room and run the same command again to go on."
            ) from e


def _said_by_us(record: logging.LogRecord) -> bool:
    """Orbax's threads log the tracebacks of a failed write before it raises; the error raised here says it once."""
    return not (record.exc_info and str(record.msg).startswith("[process="))


_hooks: Final[list[Callable[..., Any]]] = []
"""The hook before ours, last."""


def _unraisable(e: "sys.UnraisableHookArgs") -> None:
    """Where a save fails, TensorStore's threads report to an event loop that Orbax has closed by then, each with a
    traceback, above the error that says it once."""
    if not (e.exc_type is RuntimeError and str(e.exc_value) == "Event loop is closed" and e.object is None):
        _hooks[-1](e)


def _brief(e: Exception) -> str:
    """TensorStore's messages go on with source locations."""
    return shown(str(e).partition(" [")[0], 300)


def need_space(folder: Path, n_bytes: int, what: str) -> None:
    """Refuse, with numbers, what cannot fit on the disk that holds `folder` (which may not exist yet).

    Raises:
      UserError: less is free than `n_bytes`.
    """
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < n_bytes:
        raise UserError(
            f"{what} needs {n_bytes:,} bytes ({n_bytes / 1e9:.2f} GB) in {folder}, but {free:,} ({free / 1e9:.2f} GB) "
            f"are free there. Make room, ask for less, or choose another disk."
        )


def _names(tree: Any) -> list[str]:
    """Unique file-safe names; the number keeps two paths apart that read alike."""
    return [f"{i:04d}.{name}".replace("/", ".") for i, name in enumerate(leaf_names(tree))]


def shapes(state: Any) -> Any:
    """What `restore` needs to know of a state, without its memory (keys are kept: they are small)."""
    return jax.tree.map(
        lambda x: x if is_key(x) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _stored_shape(x: Any) -> jax.ShapeDtypeStruct:
    if not is_key(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    data = jax.eval_shape(jax.random.key_data, x)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)
