# SPDX-License-Identifier: Apache-2.0
"""Which tensor of a checkpoint is which leaf, and everything that does not fit, in one message."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import UserError, shown
from ..io.safetensors import Tensors
from .config import Config
from .convert import tensor_shape, to_leaves
from .families import Family
from .layout import PARTS, layout, rows_of, sizes


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a family's table that this configuration has."""

    key: str
    """Name of the tensor, with {i} where the layer goes and {e} where the expert goes."""
    leaves: tuple[str, ...]
    pattern: str
    leaf_axes: tuple[str, ...]
    sizes: dict[str, int]
    layers: tuple[int, ...] | None = None
    """The numbers that {i} stands for, where they are not those of all layers."""

    @property
    def stacked(self) -> tuple[int, ...]:
        """Lengths of the leading axes of its leaves that its tensors do not have: one tensor per layer, per expert."""
        sizes = self.sizes if self.layers is None else {**self.sizes, "layer": len(self.layers)}
        return tuple(sizes[axis] for axis in stacked_axes(self.key))

    def names(self) -> list[str]:
        """Names of its tensors: one per layer, one per expert of each, or one."""
        every = np.ndindex(self.stacked)
        if self.layers is not None:
            every = ((self.layers[at[0]], *at[1:]) for at in every)
        return [self.key.format(**dict(zip("ie", at, strict=False))) for at in every]


def stacked_axes(key: str) -> tuple[str, ...]:
    """Which axes a tensor's name counts.

    Example:
      >>> stacked_axes("layers.{i}.experts.{e}.w1.weight")
      ('layer', 'expert')
    """
    return tuple(axis for letter, axis in (("i", "layer"), ("e", "expert")) if f"{{{letter}}}" in key)


def rows(cfg: Config, family: Family) -> Iterator[Row]:
    """The rows whose leaves are in the layout of this configuration."""
    table = layout(cfg)
    for key, (leaves, pattern) in family.tensors(cfg).items():
        leaves = (leaves,) if isinstance(leaves, str) else leaves
        if all(leaf in table for leaf in leaves):
            axes = tuple(a for a in table[leaves[0]] if a not in (*stacked_axes(key), *PARTS))
            layers = next((rows_of(cfg, a) for a in table[leaves[0]] if a in PARTS), None)
            yield Row(key, leaves, pattern, axes, {**sizes(cfg, leaves[0]), "part": len(leaves)}, layers)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one leaf comes from: a tensor per layer (or per expert, or one), and its part of each."""

    row: Row
    part: int
    names: list[str]
    """As they are called in the file."""

    def views(self, tensors: Tensors) -> list[np.ndarray]:
        """Each tensor's part of the leaf as a view of the file; nothing is read yet."""
        row = self.row
        return [to_leaves(tensors[n], row.pattern, row.leaf_axes, row.sizes)[self.part] for n in self.names]


def canonical_names(family: Family, tensors: Tensors) -> dict[str, str]:
    """{name in the family's table: name in the file}.

    A base model is saved without the prefix; BERT's first files call a norm's parameters gamma and beta; where a
    repeated tensor was stored only as its copy, the copy is the original.
    """
    bare = not any(name.startswith(family.prefix) for name in tensors)
    unprefixed = {k for k in (*family.keys, *family.copies) if not k.startswith(family.prefix)}
    out = {}
    for name in tensors:
        new = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))
        out[family.prefix + new if bare and new not in unprefixed else new] = name
    for copy, original in family.copies.items():
        if copy in out and original not in out:
            out[original] = out.pop(copy)
    return out


def as_stored(cfg: Config, family: Family, names: dict[str, str]) -> Config:
    """The switches that only the tensors can tell: a pooler, a head."""
    tensors = {field: (one,) if isinstance(one, str) else one for field, one in family.optional.items()}
    found = {field: any(tensor in names for tensor in some) for field, some in tensors.items()}
    bare = not any(name.startswith(family.prefix) for name in names.values())
    if not family.optional and bare and not cfg.tied and family.head not in names:
        found["has_head"] = False  # a base model, saved without the head that its config speaks of
    if family.untied_if_stored and cfg.has_head:
        found["tied"] = family.head not in names
    return dataclasses.replace(cfg, **found)


def match(cfg: Config, family: Family, tensors: Tensors, names: dict[str, str], dtype: Any = None) -> dict[str, Source]:
    """{leaf: its source} for every leaf of the layout.

    Raises:
      UserError: all of what is missing, extra, misshapen, of a dtype that no weights have, of mixed dtypes within a
        leaf (unless a dtype is asked for), or a copy of a tied tensor that differs from it.
    """
    what = f"{cfg.family}, {cfg.n_layers} layers"
    return fit(list(rows(cfg, family)), tensors, names, dtype, what, ignored=family.ignored, copies=family.copies)


def fit(
    table: Sequence[Row],
    tensors: Tensors,
    names: dict[str, str],
    dtype: Any,
    what: str,
    *,
    ignored: Sequence[str] = (),
    copies: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Source]:
    """`match` for rows made elsewhere; `what` the config is, for the message."""
    n_needed = sum(math.prod(row.stacked) for row in table)
    if n_needed > 2 * len(names) + 1000:  # before their names are made: a count of millions costs nothing
        raise UserError(f"the config speaks of {n_needed:,} tensors ({what}), the file holds {len(names):,}.")
    needed = [n for row in table for n in row.names()]
    missing = [n for n in needed if n not in names]
    wrong = [w for row in table for w in _misfits(row, tensors, names, dtype)]
    unused = {n: names[n] for n in names if n not in set(needed)}
    unused = {n: f for n, f in unused.items() if not any(re.search(p, f) for p in ignored)}
    repeats = {f: names[copies[n]] for n, f in unused.items() if copies.get(n) in names}
    extra = [f for f in unused.values() if f not in repeats]
    differ = [
        f"{shown(f)} should repeat {shown(o)} (tied) but differs from it"
        for f, o in repeats.items()
        if not _same(tensors, f, o)
    ]
    problems = [f"missing: {listed(missing)}"] if missing else []
    problems += [f"not part of this architecture: {listed(extra)}"] if extra else []
    problems += [*differ, *wrong[:20], *([f"and {len(wrong) - 20} more that do not fit"] if len(wrong) > 20 else [])]
    if problems:
        text = "".join(f"\n  - {p}" for p in problems)
        raise UserError(f"the weights do not fit their config.json ({what}):{text}")
    return {
        leaf: Source(row, part, [names[n] for n in row.names()])
        for row in table
        for part, leaf in enumerate(row.leaves)
    }


def listed(names: list[str]) -> str:
    """The first eight names and how many more."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(shown, names[:8])) + more


def _misfits(row: Row, tensors: Tensors, names: dict[str, str], dtype: Any) -> list[str]:
    out = []
    expected = tensor_shape(row.pattern, row.sizes)
    found = [names[n] for n in row.names() if n in names]
    for name in found:
        shape, stored = tensors.shape(name), tensors.dtype(name)
        if shape != expected:
            out.append(f"{shown(name)} has shape {list(shape)}, the config needs {list(expected)}: {row.pattern}")
        if not jnp.issubdtype(stored, jnp.floating) or stored.itemsize == 1:
            out.append(f"{shown(name)} has dtype {stored}; weights are float16, bfloat16, float32 or float64")
    dtypes = sorted({str(tensors.dtype(n)) for n in found})
    if len(dtypes) > 1 and dtype is None:
        out.append(f"{row.key} has {' and '.join(dtypes)} in different layers: say which with dtype=")
    return out


def _same(tensors: Tensors, a: str, b: str) -> bool:
    if tensors.shape(a) != tensors.shape(b) or tensors.dtype(a) != tensors.dtype(b):
        return False
    bits = f"u{tensors.dtype(a).itemsize}"
    return np.array_equal(tensors[a].view(bits), tensors[b].view(bits))
