# SPDX-License-Identifier: Apache-2.0
"""Folders to ConvNets and back: strict, with one message for everything that does not fit."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...errors import UserError
from ...io.fields import Fields
from ...io.files import write_json
from ...io.safetensors import Tensors, read_checkpoint, write_safetensors
from ..families.family import classes_of
from ..half import check_half_pictures, in_half
from ..layout import flatten
from ..match import Row, fit, listed
from ..reader import read_weights, tensors_of
from .families import CONVNETS, Family, convnet_from_hf, convnet_to_hf, tensor_of
from .layout import ConvNet, convnet_shapes
from .module import ConvModel

_PARTS: Final = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_MEAN, _COUNTER = ".running_mean", ".num_batches_tracked"


def load_convnet(
    folder: Path, hf: dict[str, Any], *, dtype: Any = None, mesh: Mesh | None = None, allow_nonfinite: bool = False
) -> ConvModel:
    """The network of a folder whose config.json is `hf`: see `jaxneuro.models.load`, which calls this.

    With a mesh every device has all weights: split the batch of pictures instead.
    """
    cfg, tensors = convnet_from_hf(hf), read_checkpoint(folder)
    family = CONVNETS[cfg.family]
    bare = not any(name.startswith(family.prefix) for name in tensors)
    names = {(family.prefix if bare else "") + name: name for name in tensors}
    cfg = _as_stored(cfg, family, names, hf)
    table = list(rows(cfg, family))
    try:
        sources = fit(table, tensors, names, dtype, f"{cfg.family}, {cfg.depths} blocks", ignored=(rf"\{_COUNTER}$",))
    except UserError as e:
        raise UserError(f"{folder}: {e}") from None
    shapes = convnet_shapes(cfg)
    placed = {} if mesh is None else dict.fromkeys(shapes, NamedSharding(mesh, PartitionSpec()))
    weights = read_weights(
        folder, tensors, sources, shapes, dtype=dtype, placed=placed, allow_nonfinite=allow_nonfinite
    )
    counters = _counters(tensors, names)
    model = ConvModel(cfg, weights, json.dumps(hf, sort_keys=True), json.dumps(counters, sort_keys=True))
    if in_half(weights) and not allow_nonfinite:
        check_half_pictures(model.apply, weights, model.example().shape[1], cfg.channels, str(folder))
    return model


def _counters(tensors: Tensors, names: dict[str, str]) -> dict[str, int]:
    """How many batches each norm has seen; read by nothing, written back."""
    files = {name: file for name, file in names.items() if name.endswith(_COUNTER)}
    if wrong := [f for f in files.values() if tensors.shape(f) not in ((), (1,)) or tensors.dtype(f).kind not in "iu"]:
        raise UserError(f"{listed(wrong)} should be one whole number each.")
    return {name: int(tensors[file].reshape(())) for name, file in files.items()}


def _as_stored(cfg: ConvNet, family: Family, names: dict[str, str], hf: dict[str, Any]) -> ConvNet:
    """Without its head if there is none in the file and the config does not speak of it."""
    head = tensor_of("head", family.names)
    with Fields(hf, "config.json") as fields:
        promised = family.prefix == "" or any("Classification" in name for name in classes_of(fields))
    if promised or any(name.startswith(f"{head}.") for name in names):
        return cfg
    return dataclasses.replace(cfg, n_classes=0)


@dataclasses.dataclass(frozen=True)
class _Blocks(Row):
    """A row whose tensors are those of a stage's blocks from the second on."""

    def names(self) -> list[str]:
        return [self.key.format(i=i) for i in range(1, self.sizes["layer"] + 1)]


def rows(cfg: ConvNet, family: Family) -> Iterator[Row]:
    """A row for each leaf: what its tensor is called, and its axes."""
    for leaf, shape in convnet_shapes(cfg).items():
        stacked = ".rest." in leaf
        inner = shape[1:] if stacked else shape
        pattern, axes = _AXES[len(inner)]
        sizes = {**dict(zip(axes, inner, strict=True)), "part": 1, **({"layer": shape[0]} if stacked else {})}
        yield (_Blocks if stacked else Row)(_key(leaf, family), (leaf,), pattern, axes, sizes)


_AXES: Final = {
    1: ("out", ("out",)),
    2: ("out in", ("in", "out")),
    4: ("out in row column", ("row", "column", "in", "out")),
}


def _key(leaf: str, family: Family) -> str:
    """The tensor of a leaf, {i} where the number of a stacked block goes."""
    module, _, part = leaf.rpartition(".")
    if part.startswith("conv"):
        module, part = leaf, "weight"
    elif module == "head":
        part = {"w": "weight", "b": "bias"}[part]
    else:
        part = _PARTS[part]
    module = module.replace(".first.", ".blocks.0.").replace(".rest.", ".blocks.{i}.")
    return f"{tensor_of(module, family.names)}.{part}"


def save_convnet(model: ConvModel, folder: Path) -> None:
    """Write config.json and model.safetensors: see `jaxneuro.models.save_pretrained`, which calls this.

    Raises:
      UserError: the family cannot express the architecture, or the norms were folded.
    """
    cfg = model.cfg
    config, family = convnet_to_hf(cfg), CONVNETS[cfg.family]
    if lost := sorted(set(convnet_shapes(cfg)) - set(flatten(model.weights))):
        raise UserError(f"these weights lack {listed(lost)}: they were folded. Save the model that was loaded.")
    tensors, counters = tensors_of(model.weights, rows(cfg, family)), json.loads(model.counters)
    for counter in [n.removesuffix(_MEAN) + _COUNTER for n in tensors if n.endswith(_MEAN)]:
        tensors[counter] = np.asarray(counters.get(counter, 0), np.int64)
    if not cfg.n_classes:
        tensors = {name.removeprefix(family.prefix): a for name, a in tensors.items()}
    old = {k: v for k, v in json.loads(model.hf_config).items() if k not in _REPLACED}
    labels = {k: old[k] for k in ("id2label", "label2id") if k in old and len(old[k] or ()) == cfg.n_classes}
    dtype = {"torch_dtype": str(model.weights["stem"]["conv"].dtype)} if "model_type" in config else {}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", {**old, **config, **labels, **dtype})


_REPLACED: Final = ("model_args", "dtype", "transformers_version", "_name_or_path")
