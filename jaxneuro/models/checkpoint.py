# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders to models and back: strict, and a slice at a time."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from ..errors import UserError
from ..io.files import read_json, write_json
from ..io.safetensors import Tensors, read_checkpoint, write_safetensors
from ..io.sources import resolve
from .config import Config
from .convert import from_leaves
from .families import FAMILIES
from .hf_config import config_from_hf, config_to_hf, family_of
from .layout import flatten, nest, shapes
from .match import Source, as_stored, canonical_names, listed, match, rows
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
    """Load a pretrained model from a folder, a Hub name, or a name that `jaxneuro.io.sources.resolve` knows.

    Weights are read from safetensors by mmap, without torch, and never unpickled. With a mesh every device reads
    only its own slices, placed by `shardings`.

    Args:
      name: folder in Hugging Face layout (config.json, model.safetensors or shards), Hub name, "bundled" or
        "all-MiniLM-L6-v2".
      dtype: of the weights and so of the computation; None: as stored.
      mesh: with axes of type Auto called "model", "fsdp", "data", any of them; None: the default device.
      revision: of a Hub repository.
      allow_nonfinite: load weights with NaN or infinity in them.
    Raises:
      UserError: everything that does not fit, in one message: missing and extra tensors, wrong shapes and dtypes,
        NaN; or an architecture that is not ported, a file that is cut short, a name that leads nowhere.
    """
    folder = resolve(name, revision=revision)
    hf = read_json(folder / "config.json")
    tensors = read_checkpoint(folder)
    family = family_of(hf).spelled(tensors)
    names = canonical_names(family, tensors)
    cfg = as_stored(config_from_hf(hf), family, names)
    try:
        sources = match(cfg, family, tensors, names, dtype)
    except UserError as e:
        raise UserError(f"{folder}: {e}") from None
    reader = _Reader(tensors, dtype, None if allow_nonfinite else [])
    placed = {} if mesh is None else flatten(shardings(cfg, mesh))
    leaves = {leaf: reader.leaf(shape, sources[leaf], placed.get(leaf)) for leaf, shape in shapes(cfg).items()}
    if reader.nonfinite:
        raise UserError(
            f"{folder}: NaN or infinity in {listed(sorted(set(reader.nonfinite)))}. "
            "Download it again, or pass allow_nonfinite=True to look at it as it is."
        )
    return Transformer(cfg, nest(leaves), json.dumps(hf, sort_keys=True))


class _Reader:
    """Copies slices of leaves out of the file, in the dtype asked for; notes tensors that are not finite."""

    def __init__(self, tensors: Tensors, dtype: Any, nonfinite: list[str] | None):
        self.tensors, self.dtype, self.nonfinite = tensors, dtype, nonfinite

    def leaf(self, shape: tuple[int, ...], source: Source, sharding: Sharding | None) -> jax.Array:
        if sharding is None:
            return jnp.asarray(self.slice(source, (slice(None),) * len(shape)))
        return jax.make_array_from_callback(shape, sharding, lambda index: self.slice(source, index or ()))

    def slice(self, source: Source, index: tuple[slice, ...]) -> np.ndarray:
        """One device's part; the layer axis is never split, that of experts may be."""
        stacked = source.row.stacked
        picks = np.arange(len(source.names)).reshape(stacked)[index[: len(stacked)]]
        views = [view[index[len(stacked) :]] for view in source.views(self.tensors)]
        out = np.empty((*np.shape(picks), *views[0].shape), self.dtype or views[0].dtype)
        for at, i in np.ndenumerate(picks):
            out[at] = views[i]
            if self.nonfinite is not None and not np.isfinite(out[at]).all():
                self.nonfinite.append(source.names[i])
        return out


def save_pretrained(model: Transformer, folder: str | os.PathLike) -> None:
    """Write config.json and model.safetensors as transformers reads them. Tokenizer files are not the model's.

    What `load` read comes out byte for byte (all but buffers and copies of tied tensors); config keys that are not
    architecture are kept. Rope is spelled as transformers 4 spells it, which version 5 reads too.

    Raises:
      UserError: the family's transformers class cannot express the architecture, or the disk is full.
    """
    folder = Path(folder)
    config = config_to_hf(model.cfg)
    leaves = {leaf: np.asarray(a) for leaf, a in flatten(model.weights).items()}
    old = {k: v for k, v in json.loads(model.hf_config).items() if k not in _REPLACED}
    write_safetensors(folder / "model.safetensors", _tensors(model.cfg, leaves), {"format": "pt"})
    write_json(folder / "config.json", {**old, **config, "torch_dtype": str(leaves["blocks.attn.wq"].dtype)})


_REPLACED = ("rope_parameters", "dtype", "transformers_version", "_name_or_path")


def _tensors(cfg: Config, leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    family, out = FAMILIES[cfg.family], {}
    for row in rows(cfg, family):
        for at, name in zip(np.ndindex(row.stacked), row.names(), strict=True):
            parts = tuple(leaves[leaf][at] for leaf in row.leaves)
            # A model without a head is saved as transformers saves its base class: without the prefix.
            name = name if cfg.has_head else name.removeprefix(family.prefix)
            out[name] = from_leaves(parts, row.pattern, row.leaf_axes, row.sizes)
    return out
