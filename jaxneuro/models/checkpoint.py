# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders to models and back: strict, complete about what is wrong, and a slice at a time."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..errors import UserError
from ..io.files import read_json, write_json
from ..io.safetensors import Tensors, read_checkpoint, write_safetensors
from ..io.sources import resolve
from .config import Config
from .convert import from_leaves, tensor_shape, to_leaves
from .families import FAMILIES, Family
from .hf_config import config_from_hf, config_to_hf, family_of
from .layout import flatten, layout, nest, shapes, sizes
from .module import Transformer
from .sharding import shardings


def load(
    name: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
    allow_nonfinite: bool = False,
) -> Transformer:
    """Load a pretrained model from a folder, a Hub name, or one of the names that `jaxneuro.io.resolve` knows.

    Weights are read from safetensors by mmap, without torch, and never unpickled. With a mesh every device reads
    only its own slices, placed by `shardings`.

    Args:
      name: folder in Hugging Face layout (config.json, model.safetensors or shards), Hub name, or "bundled".
      dtype: of the weights and so of the computation; None: as stored.
      mesh: with axes called "model", "fsdp", "data", any of them; None: the default device.
      revision: of a Hub repository.
      allow_nonfinite: load weights with NaN or infinity in them.
    Raises:
      UserError: everything that does not fit, in one message: missing, extra or repeated tensors that differ, wrong
        shapes and dtypes, NaN; or an architecture that is not ported.
    """
    folder = resolve(name, revision=revision)
    hf = read_json(folder / "config.json")
    family, tensors = family_of(hf), read_checkpoint(folder)
    names = _names(family, tensors)
    cfg = _as_stored(config_from_hf(hf), family, names)
    plan = _plan(cfg, family, tensors, names, folder)
    reader = _Reader(cfg, family, tensors, plan, dtype, not allow_nonfinite)
    placed = None if mesh is None else flatten(shardings(cfg, mesh))
    leaves = {leaf: reader.leaf(leaf, None if placed is None else placed[leaf]) for leaf in layout(cfg)}
    if reader.nonfinite:
        raise UserError(
            f"{folder} has NaN or infinity in {_listed(sorted(reader.nonfinite))}. "
            "Download it again, or pass allow_nonfinite=True to look at it as it is."
        )
    return Transformer(cfg, nest(leaves), json.dumps(hf, sort_keys=True))


def _names(family: Family, tensors: Tensors) -> dict[str, str]:
    """{canonical name: name in the file}: base models are saved without the prefix, old BERTs with gamma and beta."""
    bare = not any(name.startswith(family.prefix) for name in tensors)
    heads = {k for k in family.keys if not k.startswith(family.prefix)} | set(family.copies)
    out = {}
    for name in tensors:
        canonical = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        canonical = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", canonical)
        out[canonical if not bare or canonical in heads else family.prefix + canonical] = name
    return out


def _as_stored(cfg: Config, family: Family, names: dict[str, str]) -> Config:
    """The switches that only the tensors can tell: pooler, head."""
    found = {field: tensor in names for field, tensor in family.optional.items()}
    bare = all(names[n] != n for n in names if n.startswith(family.prefix))
    if "has_head" not in found and bare and not cfg.tied and "lm_head.weight" not in names:
        found["has_head"] = False  # a base model, saved without the head that its config speaks of
    return dataclasses.replace(cfg, **found)


type Plan = dict[str, tuple[str, str, int]]
"""{leaf: (canonical name of its tensor, with {i} for the layer; axes pattern; which part)}."""


def _rows(cfg: Config, family: Family) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(key, leaves, pattern) of the rows that this configuration has."""
    table = layout(cfg)
    for key, (leaves, pattern) in family.keys.items():
        leaves = (leaves,) if isinstance(leaves, str) else leaves
        if all(leaf in table for leaf in leaves):
            yield key, leaves, pattern


def _layers(key: str, cfg: Config) -> list[str]:
    return [key.format(i=i) for i in range(cfg.n_layers)] if "{i}" in key else [key]


def _tensor_sizes(cfg: Config, leaves: tuple[str, ...]) -> dict[str, int]:
    return {**sizes(cfg), "part": len(leaves)}


def _leaf_axes(cfg: Config, leaf: str) -> tuple[str, ...]:
    return tuple(a for a in layout(cfg)[leaf] if a != "layer")


def _plan(cfg: Config, family: Family, tensors: Tensors, names: dict[str, str], folder: Path) -> Plan:
    """Match every leaf with its tensors and every tensor with a leaf, or say all that is wrong."""
    for repeat, original in family.copies.items():  # some files hold only the copy
        if repeat in names and original not in names:
            names[original] = names.pop(repeat)
    plan: Plan = {}
    missing, wrong, used = [], [], set()
    for key, leaves, pattern in _rows(cfg, family):
        expected = tensor_shape(pattern, _tensor_sizes(cfg, leaves))
        plan |= {leaf: (key, pattern, part) for part, leaf in enumerate(leaves)}
        for name in _layers(key, cfg):
            used.add(name)
            if name not in names:
                missing.append(name)
            else:
                wrong += _misfit(tensors, names[name], expected, pattern)
    extra = [names[n] for n in names if n not in used and not any(re.search(p, n) for p in family.ignored)]
    differ = [e for e in extra if _repeats(family, names, tensors, e) is False]
    extra = [e for e in extra if _repeats(family, names, tensors, e) is None]
    problems = [
        *([f"missing: {_listed(missing)}"] if missing else []),
        *([f"not part of this architecture: {_listed(extra)}"] if extra else []),
        *[f"{e} should repeat another tensor (tied weights) but differs from it" for e in differ],
        *wrong[:20],
        *([f"and {len(wrong) - 20} more tensors that do not fit"] if len(wrong) > 20 else []),
    ]
    if problems:
        text = "".join(f"\n  - {p}" for p in problems)
        raise UserError(
            f"the weights in {folder} do not fit its config.json ({cfg.family}, {cfg.n_layers} layers):{text}"
        )
    return plan


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _misfit(tensors: Tensors, name: str, expected: tuple[int, ...], pattern: str) -> list[str]:
    shape, dtype = tensors.shape(name), tensors.dtype(name)
    out = []
    if shape != expected:
        out.append(f"{name} has shape {list(shape)}, its config needs {list(expected)} ({pattern})")
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize == 1:
        out.append(f"{name} has dtype {dtype}; weights are float16, bfloat16, float32 or float64")
    return out


def _repeats(family: Family, names: dict[str, str], tensors: Tensors, name: str) -> bool | None:
    """Whether a tensor is an equal copy of the one it may repeat; None if it is no copy at all."""
    canonical = next(c for c, n in names.items() if n == name)
    original = names.get(family.copies.get(canonical, ""))
    if original is None:
        return None
    same = tensors.shape(name) == tensors.shape(original) and tensors.dtype(name) == tensors.dtype(original)
    return same and np.array_equal(_bits(tensors[name]), _bits(tensors[original]))


def _bits(a: np.ndarray) -> np.ndarray:
    return a.view(f"u{a.dtype.itemsize}")


class _Reader:
    """Copies slices of leaves out of the file, converts them, and notes what is not finite."""

    def __init__(self, cfg: Config, family: Family, tensors: Tensors, plan: Plan, dtype: Any, check: bool):
        self.cfg, self.tensors, self.plan, self.dtype, self.check = cfg, tensors, plan, dtype, check
        self.names = _names(family, tensors)
        for repeat, original in family.copies.items():
            self.names.setdefault(original, self.names.get(repeat, original))
        self.parts = {leaf: leaves for _, leaves, _ in _rows(cfg, family) for leaf in leaves}
        self.nonfinite: set[str] = set()

    def leaf(self, leaf: str, sharding: Any) -> jax.Array:
        shape = shapes(self.cfg)[leaf]
        if sharding is None:
            return jnp.asarray(self.slice(leaf, (slice(None),) * len(shape)))
        return jax.make_array_from_callback(shape, sharding, lambda index: self.slice(leaf, index or ()))

    def slice(self, leaf: str, index: tuple[slice, ...]) -> np.ndarray:
        key, pattern, part = self.plan[leaf]
        names = _layers(key, self.cfg)
        layered = "{i}" in key
        views = [self._view(n, leaf, pattern, part) for n in (names[index[0]] if layered else names)]
        views = [v[index[1:] if layered else index] for v in views]
        dtype = self.dtype or views[0].dtype
        out = np.empty((len(views), *views[0].shape), dtype)
        for i, view in enumerate(views):
            out[i] = view
            if self.check and not np.isfinite(out[i]).all():
                self.nonfinite.add(names[i])
        return out if layered else out[0]

    def _view(self, name: str, leaf: str, pattern: str, part: int) -> np.ndarray:
        tensor = self.tensors[self.names[name]]
        sizes = _tensor_sizes(self.cfg, self.parts[leaf])
        return to_leaves(tensor, pattern, _leaf_axes(self.cfg, leaf), sizes)[part]


def save_pretrained(model: Transformer, folder: str | os.PathLike) -> None:
    """Write config.json and model.safetensors, as transformers reads them. Tokenizer files are not the model's.

    Tensors come out byte for byte as `load` read them; config keys that are not architecture are kept.

    Raises:
      UserError: the architecture has no Hugging Face class, or the disk is full.
    """
    cfg, folder = model.cfg, Path(folder)
    ours = config_to_hf(cfg)
    leaves = {name: np.asarray(a) for name, a in flatten(model.weights).items()}
    tensors = _tensors(cfg, FAMILIES[cfg.family], leaves)
    old = json.loads(model.hf_config)
    dtype = str(leaves["embed.tok"].dtype)
    drop = ("rope_parameters", "dtype", "transformers_version", "_name_or_path")
    kept = {k: v for k, v in old.items() if k not in drop}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", {**kept, **ours, "torch_dtype": dtype})


def _tensors(cfg: Config, family: Family, leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = family.prefix if cfg.has_head else ""
    out = {}
    for key, row, pattern in _rows(cfg, family):
        for i, name in enumerate(_layers(key, cfg)):
            parts = tuple(leaves[leaf][i] if "{i}" in key else leaves[leaf] for leaf in row)
            tensor = from_leaves(parts, pattern, _leaf_axes(cfg, row[0]), _tensor_sizes(cfg, row))
            out[prefix + name.removeprefix(family.prefix) if name.startswith(family.prefix) else name] = tensor
    return out
