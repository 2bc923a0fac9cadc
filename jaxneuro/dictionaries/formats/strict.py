# SPDX-License-Identifier: Apache-2.0
"""What all formats share: where the files are, and tensors that are exactly what a table says, or one error."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array

from ...axes import aligned
from ...errors import UserError, shown, unknown
from ...io import read_json
from ...io.fields import Fields, whole
from ...io.sources import resolve
from ...io.torch_file import read_torch

type Axes = Mapping[str, tuple[str, ...]]
"""{tensor: the names of its axes}; () is a scalar."""

FLOATS: Final = tuple(np.dtype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64))
"""What a dictionary is kept in. float64 becomes float32 where JAX runs without 64 bits."""

LARGEST: Final = 1e30
"""Of a number of a config: it is computed with in float32."""
LARGEST_ACTIVATION: Final = 1e7
"""Of a norm, a threshold or a factor between them: the outliers of large language models are below 1e5."""


def check(
    where: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    axes: Axes,
    sizes: Mapping[str, int] | None = None,
    *,
    says: str = "the others say",
    optional: Collection[str] = (),
    integers: Collection[str] = (),
    problems: Iterable[str] = (),
) -> dict[str, int]:
    """The sizes of all axes, if the tensors are exactly those of the table.

    Args:
      where: what is being read, for the message.
      tensors: what is there.
      axes: what should be there.
      sizes: of axes that something else states; the first tensor with another axis states its size.
      says: who stated them.
      optional: tensors of the table that may be absent.
      integers: tensors of the table that hold integers; all others must be floating and finite.
      problems: what was found before.
    Raises:
      UserError: everything that is missing, unknown, of the wrong shape or type, or not finite, in one message.
    Example:
      >>> check("a file", {"b": np.ones(3, np.float32)}, {"b": ("n",)})
      {'n': 3}
    """
    found, sizes = list(problems), dict(sizes or {})
    found += [f"tensor {name} is missing" for name in sorted(set(axes) - set(tensors) - set(optional))]
    found += some(f"unknown tensor {shown(name)}" for name in sorted(set(tensors) - set(axes), key=str))
    for name in axes:
        if name in tensors:
            found += _wrong(name, tensors[name], axes[name], sizes, says, name in integers)
    if found:
        raise UserError(f"{shown(where, 400)}: {'; '.join(found)}.")
    return sizes


def some(problems: Iterable[str], most: int = 20) -> list[str]:
    """The first of many like problems, and how many there are: a file may hold a million names."""
    found = list(problems)
    return found if len(found) <= most else [*found[:most], f"and {len(found) - most:,} more"]


def _wrong(name: str, a: np.ndarray, axes: tuple[str, ...], sizes: dict[str, int], says: str, integer: bool):
    if a.ndim != len(axes):
        yield f"{name} has shape {a.shape}, not [{', '.join(axes)}]"
        return
    want = tuple(sizes.setdefault(axis, n) for axis, n in zip(axes, a.shape, strict=True))
    if a.shape != want:
        yield f"{name} has shape {a.shape}, {says} {want}"
    if 0 in a.shape:
        yield f"{name} is empty"
    if integer:
        if a.dtype.kind not in "iu":
            yield f"{name} is {a.dtype}, not an integer"
    elif a.dtype not in FLOATS:
        yield f"{name} is {a.dtype}, not one of {', '.join(map(str, FLOATS))}"
    elif not np.isfinite(a).all():
        yield f"{name} holds NaN or infinity"


def no_layout(library: str, dictionary: Any, *held: type) -> UserError:
    """The error of a writer that is given something else than its format holds."""
    return UserError(
        f"{library} has no layout for a {type(dictionary).__name__}; it holds "
        f"{' or '.join(t.__name__ for t in held)}. Our own format holds every dictionary: "
        "jaxneuro.dictionaries.native.save_native."
    )


def arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters of a dictionary about to be written; refused if one is not finite."""
    out = {name: np.asarray(a) for name, a in tensors.items()}
    if broken := [name for name, a in out.items() if not np.isfinite(a).all()]:
        raise UserError(f"cannot write this dictionary: {', '.join(broken)} holds NaN or infinity.")
    return out


def scaled(a: Array | np.ndarray, factor: Array | np.ndarray | float) -> Array:
    """a times a factor, in float32, back in a's dtype.

    Raises:
      UserError: a finite number becomes infinite.
    """
    a = jnp.asarray(a)
    out = (a.astype(jnp.float32) * aligned(jnp.asarray(factor, jnp.float32), a)).astype(a.dtype)
    if not np.isfinite(out).all():
        raise UserError(f"the numbers of this dictionary overflow {a.dtype} when its scales are folded into them.")
    return out


def config_of(path: Path) -> Fields:
    """A JSON object, to be read by kinds; what is wrong with it gathers in its `problems`, for `check`."""
    return Fields(read_json(path), path)


def sizes_of(fields: Fields, *keys: str) -> dict[str, int]:
    """{key: count} of a config's keys that must be there; a wrong one is noted and left out.

    Example:
      >>> fields = Fields({"k": 2, "d_in": "6"}, "cfg.json")
      >>> sizes_of(fields, "k", "d_in", "d_sae"), fields.problems[1]
      ({'k': 2}, 'd_sae is missing')
    """
    found = {}
    for key in keys:
        before = len(fields.problems)
        size = fields.read(key, whole())
        if len(fields.problems) == before:
            found[key] = size
    return found


def folder_of(name: str | os.PathLike, subfolder: str | None, revision: str | None, files: tuple[str, ...]) -> Path:
    """The folder on this machine, fetched from the Hub if it is a name there: only `files`, only from `subfolder`."""
    inside = files if subfolder is None else tuple(f"{subfolder}/{f}" for f in files)
    root = resolve(name, revision=revision, files=inside, kind="dictionary")
    if subfolder is None:
        return root
    if not (root / subfolder).is_dir():
        known = sorted(str(p.relative_to(root)) for p in root.rglob("*/") if p != root)
        raise unknown("folder", subfolder, known, where=os.fspath(name))
    return root / subfolder


def file_of(name: str | os.PathLike, subfolder: str | None, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The one file of a format that is a single file: that file itself, or the one in a folder that fits a pattern."""
    path = Path(name).expanduser()
    if subfolder is None and path.is_file():
        return path
    folder = folder_of(name, subfolder, revision, patterns)
    found = sorted({p for pattern in patterns for p in folder.glob(pattern)})
    if len(found) != 1:
        there = ", ".join(some(shown(p.name) for p in found)) or "none"
        raise UserError(
            f"{shown(folder)} should hold one file like {' or '.join(patterns)}; it holds {there}. Name the file."
        )
    return found[0]


def state_dict(path: Path) -> dict[str, np.ndarray]:
    """The named tensors of a .pt file.

    Raises:
      UserError: it holds something else; says what.
    """
    value = read_torch(path)
    named = value.items() if isinstance(value, dict) else [(None, None)]
    if not all(isinstance(n, str) and isinstance(a, np.ndarray) for n, a in named):
        what = f"dict of {', '.join(some(map(shown, value)))}" if isinstance(value, dict) else type(value).__name__
        raise UserError(f"{shown(path)} is no state dict (named tensors) but a {what}.")
    return value
