# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders to models and back: strict, and a slice at a time."""

import json
import os
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import Mesh

from ..errors import UserError, shown
from ..io.files import read_json, write_json
from ..io.generation import GENERATION, generation_config, token_names
from ..io.safetensors import Tensors, read_checkpoint, write_safetensors
from ..io.sources import resolve
from .convnet import ConvModel, is_convnet, load_convnet, save_convnet
from .families import FAMILIES, PAIRS
from .families.wrappers import text_model
from .half import check_half, in_half
from .hf_config import config_from_hf, config_to_hf, family_of
from .layout import flatten, shapes
from .match import as_stored, canonical_names, match, rows
from .module import Transformer
from .quantised import Quantised, eight_bits
from .reader import read_weights, tensors_of
from .sharding import shardings


def load(
    name: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
    allow_nonfinite: bool = False,
) -> Transformer:
    """Load a pretrained model, in the dtype it is stored in unless another is asked for.

    From a folder, a Hub name, or a name that `jaxneuro.io.sources.resolve` knows. The text model inside a wrapper of
    `families.wrappers` (Gemma 3 with pictures, Mistral 3, LLaVA) is loaded alone; what is passed over is said.

    Weights are read from safetensors by mmap, without torch, and never unpickled. With a mesh every device reads
    only its own slices, placed by `shardings`.

    Args:
      name: folder in Hugging Face layout (config.json, model.safetensors or shards), Hub name, "bundled" or
        "all-MiniLM-L6-v2".
      dtype: of the weights and so of the computation; None: as stored, which is bfloat16 for the bundled model and most
        others, where the commands take float32. In float16 the model is run once, and refused where it overflows.
        "int8" and "float8_e4m3fn": matrices in eight bits, the rest as stored (see `quantised`).
      mesh: with axes of type Auto called "model", "fsdp", "data", any of them; None: the default device.
      revision: of a Hub repository.
      allow_nonfinite: load weights with NaN or infinity in them.
    Returns:
      A `Transformer`; of a ResNet or DenseNet a `ConvModel`, which is used in the same way but for its `cfg`. (The type
      is a Transformer's, so that editors know what most code calls; `isinstance(model, ConvModel)` tells.)
    Raises:
      UserError: everything that does not fit, in one message: missing and extra tensors, wrong shapes and dtypes,
        NaN, numbers that the dtype cannot hold; or an architecture that is not ported, a file that is cut short, a
        name that leads nowhere.
    """
    folder = resolve(name, revision=revision)
    hf = read_json(folder / "config.json")
    if is_convnet(hf):
        if eight_bits(dtype) is not None:
            raise UserError(f"{dtype} is for matrices of layers, not for convolutions. Load it as bfloat16.")
        other: Any = load_convnet(folder, hf, dtype=dtype, mesh=mesh, allow_nonfinite=allow_nonfinite)
        return other
    if isinstance(hf, dict) and hf.get("model_type") in tuple(PAIRS):
        raise UserError(f"{folder} holds two models, of pictures and of text: open them with models.load_pair.")
    hf, tensors = text_model(hf, read_checkpoint(folder))
    return from_tensors(folder, hf, tensors, dtype=dtype, mesh=mesh, allow_nonfinite=allow_nonfinite)


def from_tensors(
    folder: Path, hf: dict[str, Any], tensors: Tensors, *, dtype: Any, mesh: Mesh | None, allow_nonfinite: bool
) -> Transformer:
    """The model of one config and its tensors; `folder` is for messages. See `load`."""
    eight, family = eight_bits(dtype), family_of(hf).spelled(tensors)
    names = canonical_names(family, tensors)
    cfg = as_stored(config_from_hf(hf), family, names)
    if eight is not None:
        _check_eight(eight, allow_nonfinite)
    try:
        sources = match(cfg, family, tensors, names, None if eight else dtype)
    except UserError as e:
        raise UserError(f"{folder}: {e}") from None
    weights = read_weights(
        folder,
        tensors,
        sources,
        shapes(cfg),
        dtype=None if eight else dtype,
        placed={} if mesh is None else flatten(shardings(cfg, mesh)),
        allow_nonfinite=allow_nonfinite,
        eight=eight,
    )
    generation = generation_config(folder) if folder.is_dir() else {}
    model = Transformer(cfg, weights, *(json.dumps(config, sort_keys=True) for config in (hf, generation)))
    if in_half(weights) and not allow_nonfinite:
        check_half(model.apply, weights, cfg, str(folder))
    return model


def _check_eight(dtype: np.dtype, allow_nonfinite: bool) -> None:
    if allow_nonfinite:
        raise UserError(f"{dtype} cannot hold NaN or infinity: load with a dtype of 16 bits or more to look at them.")


def save_pretrained(model: Transformer | ConvModel, folder: str | os.PathLike, tokenizer: Any = None) -> None:
    """Write config.json and model.safetensors as transformers reads them. Tokenizer files are not the model's.

    What `load` read comes out byte for byte (all but buffers and copies of tied tensors); config keys that are not
    architecture are kept, generation_config.json too. Rope is spelled as transformers 4 spells it, which version 5
    reads too.

    Args:
      tokenizer: of a model made here, a `data.Tokenizer`: config.json then names its begin, end and padding tokens.
        Without it a model made here names none, and generates until it is stopped; where config.json did not say so,
        transformers would take ids of the family's first model for them.
    Raises:
      UserError: the family's transformers class cannot express the architecture, the weights are quantised, or the disk
        is full.
    """
    if not isinstance(model, Transformer | ConvModel):
        raise UserError(f"save_pretrained writes a model that load gives or one made here, not {shown(model)}.")
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"save_pretrained writes into a folder, given as text or path, not {shown(folder)}.")
    folder = Path(folder)
    if isinstance(model, ConvModel):
        return save_convnet(model, folder)
    if any(isinstance(a, Quantised) for a in flatten(model.weights).values()):
        raise UserError(
            "quantised weights are not saved: they are read from the original folder whenever it is loaded."
        )
    config = config_to_hf(model.cfg)
    tensors, prefix = to_tensors(model), FAMILIES[model.cfg.family].prefix
    if not model.cfg.has_head and all(name.startswith(prefix) for name in tensors):
        # Nothing stands on the base model, so it is saved as transformers saves its class: without the prefix.
        tensors = {name.removeprefix(prefix): a for name, a in tensors.items()}
    old = {k: v for k, v in json.loads(model.hf_config).items() if k not in REPLACED}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    named = _named(model, tokenizer) if tokenizer is not None or not old else {}
    write_json(folder / "config.json", {**old, **named, **config, "torch_dtype": stored_dtype(model)})
    if generation := json.loads(model.generation_config):
        write_json(folder / GENERATION, generation)
    return None


def _named(model: Transformer, tokenizer: Any) -> dict[str, int | None]:
    """Token ids for config.json. What is missing is null for models that write text: a default would end them."""
    writes = model.cfg.causal and model.cfg.has_head and model.cfg.encoder is None
    found = token_names(tokenizer)
    return {k: i for k, i in found.items() if i is not None or (writes and (tokenizer is not None or k[0] != "p"))}


REPLACED: Final = ("rope_parameters", "dtype", "transformers_version", "_name_or_path")
"""Config keys that are not kept as they were."""


def stored_dtype(model: Transformer) -> str:
    """What config.json calls the dtype of the weights."""
    return str(max(jax.tree.leaves(model.weights), key=lambda a: a.size).dtype)


def to_tensors(model: Transformer) -> dict[str, np.ndarray]:
    """{name in the family's table: tensor}."""
    return tensors_of(model.weights, rows(model.cfg, FAMILIES[model.cfg.family]))
