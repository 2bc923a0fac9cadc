# SPDX-License-Identifier: Apache-2.0
"""circuit-tracer's folders: config.yaml with per-layer transcoders, or with one cross-layer transcoder.

model_kind "transcoder_set": layer_{i}.safetensors, or the files that `transcoders` lists, each with W_enc
[n_latents, d], W_dec [n_latents, d], b_enc, b_dec and, if need be, activation_function.threshold and W_skip
[d_out, d_in].

model_kind "cross_layer_transcoder": W_enc_{i}.safetensors with W_enc_{i} [n_latents, d], b_enc_{i}, b_dec_{i} and, if
need be, threshold_{i}; W_dec_{i}.safetensors with W_dec_{i} [n_latents, n_layers - i, d].

b_dec is never subtracted. Attribution sets the latents of position 0 (BOS) to zero; `encode` does not. Source:
circuit-tracer 0.5, transcoder/*.py and utils/hf_utils.py; for lists of {id, layer, filepath}, whose ReLU files hold
W_dec as [d, n_latents], its first release.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlparse

import jax.numpy as jnp
import numpy as np

from ...errors import UserError, quoted, shown, unknown
from ...io import read_safetensors
from ...io.files import open_regular
from ..activations import JumpReLU, Relu
from ..cross_layer import CrossLayerTranscoder
from ..dictionary import SparseCoder
from ..places import Placement, our_site
from . import strict
from .gemma_scope import load_gemma_scope

CONFIG: Final = "config.yaml"
FILES: Final = (CONFIG, "layer_*.safetensors", "W_enc_*.safetensors", "W_dec_*.safetensors")
SAME: Final = {"mlp.hook_out": "hook_mlp_out"}
"""What circuit-tracer calls the MLP's output where no norm comes after it, and then it is `mlp_out`."""
_LONGEST: Final = 10_000_000
"""Bytes of config.yaml."""
_STEMS: Final = ("layer", "W_enc")
_THRESHOLD: Final = "activation_function.threshold"
_LAYER: Final = {
    "W_enc": ("n_latents", "d_in"),
    "W_dec": ("n_latents", "d_out"),
    "b_enc": ("n_latents",),
    "b_dec": ("d_out",),
    _THRESHOLD: ("n_latents",),
    "W_skip": ("d_out", "d_in"),
}
_GEMMA_SCOPE_2: Final = {"w_enc", "w_dec"}


def load_circuit_tracer(
    name: str | os.PathLike, *, subfolder: str | None = None, revision: str | None = None
) -> dict[int, SparseCoder] | CrossLayerTranscoder:
    """Read a set of transcoders, {layer: transcoder}, or a cross-layer transcoder.

    Files that config.yaml lists as hf://owner/repository/path are fetched from the Hub; Gemma Scope's are read too.

    Args:
      name: a folder, or a repository of the Hugging Face Hub.
      subfolder: the folder inside it that holds config.yaml.
      revision: branch, tag or commit of a Hub repository.
    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once; a layer that is missing; a
        threshold below 0, above which circuit-tracer lets negative latents through.
    """
    folder = strict.folder_of(name, subfolder, revision, FILES)
    config = read_config(folder)
    kind = config.get("model_kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise unknown("model_kind", kind, _KINDS, where=folder / CONFIG)
    return _KINDS[kind](folder, config)


def read_config(folder: Path) -> dict[str, Any]:
    """config.yaml: model_name, model_kind, feature_input_hook, feature_output_hook, scan and what else it says."""
    import yaml

    name = shown(folder / CONFIG)
    with open_regular(folder / CONFIG) as f:
        content = f.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise UserError(f"{name} has more than {_LONGEST:,} bytes: a list of layers and four names need a thousandth.")
    try:
        config = yaml.safe_load(content.decode())
    except RecursionError:
        raise UserError(f"{name} is nested too deeply.") from None
    # TypeError: a list as a key; AttributeError, KeyError: tags that stand at the wrong place
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as e:
        raise UserError(f"{name} is not valid YAML: {shown(' '.join(str(e).split()), 400)}.") from e
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UserError(f"{name} is not a YAML mapping of names.")
    if "transcoders" in config:  # the first release had no model_kind
        config.setdefault("model_kind", "transcoder_set")
    return config


def place_of(config: Mapping[str, Any], folder: Path) -> Placement | None:
    """Where config.yaml says that the transcoders belong: a site and a target of every layer."""
    listed = config.get("transcoders")
    layers = range(len(listed) if isinstance(listed, list) else max(len(_numbered(folder, s)) for s in _STEMS))
    hooks: list[Any] = [config.get(key) for key in ("feature_input_hook", "feature_output_hook")]
    if not layers or not all(isinstance(hook, str) for hook in hooks):
        return None
    site, target = (tuple(our_site(f"blocks.{layer}.{SAME.get(hook, hook)}") for layer in layers) for hook in hooks)
    model = config.get("model_name")
    return Placement(site=site, target=target, model=model if isinstance(model, str) else None)


def _set(folder: Path, config: Mapping[str, Any]) -> dict[int, SparseCoder]:
    listed = config.get("transcoders")
    if listed is None:
        files = {i: (p, False) for i, p in _numbered(folder, "layer").items()}
    elif isinstance(listed, list) and listed:
        files = dict(_listed(folder, i, entry) for i, entry in enumerate(listed))
    else:
        raise UserError(f"{shown(folder / CONFIG)}: transcoders is not a list of files.")
    _all_layers(folder, set(files), len(files) if listed is None else len(listed))
    coders = {i: _transcoder(*files[i]) for i in sorted(files)}
    if len(widths := {c.n_latents for c in coders.values()}) > 1:
        raise UserError(f"{folder}: its layers have different numbers of latents: {sorted(widths)}.")
    for what, has in _OF_ALL.items() if listed is None else ():  # a list may name files of several trainings
        if 0 < len(some := [i for i, c in coders.items() if has(c)]) < len(coders):
            raise UserError(
                f"{shown(folder)}: {what} of layers {shown(some)} alone; either every layer has one or none."
            )
    return coders


_OF_ALL: Final[Mapping[str, Callable[[SparseCoder], bool]]] = {
    "W_skip": lambda coder: coder.W_skip is not None,
    _THRESHOLD: lambda coder: isinstance(coder.activation, JumpReLU),
}


def _listed(folder: Path, i: int, entry: Any) -> tuple[int, tuple[Path, bool]]:
    """(layer, (file, whether W_dec is the other way round)) of one entry of `transcoders`."""
    old = isinstance(entry, dict)
    layer, text = (entry.get("layer"), entry.get("filepath")) if old else (i, entry)
    if type(layer) is not int or not isinstance(text, str):
        said = f"transcoders[{i}] is {quoted(entry)}"
        raise UserError(f"{shown(folder / CONFIG)}: {said}, neither a file nor {{id, layer, filepath}}.")
    try:
        return layer, (_fetched(text) if text.startswith("hf://") else _inside(folder, text), old)
    except (ValueError, OSError) as e:  # no address, or no path
        if isinstance(e, UserError):
            raise
        raise UserError(f"{shown(folder / CONFIG)}: transcoders[{i}] is {quoted(text)}: {e}.") from e


def _fetched(uri: str) -> Path:
    parsed = urlparse(uri)
    repository, _, path = parsed.path.lstrip("/").partition("/")
    revision = parse_qs(parsed.query).get("revision", [None])[0]
    return strict.folder_of(f"{parsed.netloc}/{repository}", None, revision, (path,)) / path


def _inside(folder: Path, text: str) -> Path:
    path = (folder / text).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{shown(folder / CONFIG)} names {shown(text)}, which is not inside its folder.")
    return path


def _transcoder(path: Path, turned: bool) -> SparseCoder:
    if path.suffix == ".npz":
        return load_gemma_scope(path)
    stored = dict(read_safetensors(path))
    if set(stored) >= _GEMMA_SCOPE_2:
        return load_gemma_scope(path)
    axes = {**_LAYER, "W_dec": _LAYER["W_dec"][::-1]} if turned and _THRESHOLD not in stored else _LAYER
    problems = _below_zero(stored, _THRESHOLD)
    strict.check(path, stored, axes, optional=(_THRESHOLD, "W_skip"), problems=problems)
    W_dec = stored["W_dec"] if axes is _LAYER else stored["W_dec"].T
    return SparseCoder(
        W_enc=jnp.asarray(stored["W_enc"].T),
        W_dec=jnp.asarray(W_dec),
        b_enc=jnp.asarray(stored["b_enc"]),
        b_dec=jnp.asarray(stored["b_dec"]),
        activation=JumpReLU(jnp.asarray(stored[_THRESHOLD])) if _THRESHOLD in stored else Relu(),
        W_skip=jnp.asarray(stored["W_skip"]) if "W_skip" in stored else None,
        apply_b_dec_to_input=False,
    )


def _cross_layer(folder: Path, config: Mapping[str, Any]) -> CrossLayerTranscoder:
    encoders, decoders = _numbered(folder, "W_enc"), _numbered(folder, "W_dec")
    n_layers = max(len(encoders), len(decoders))
    for found in (encoders, decoders):
        _all_layers(folder, set(found), n_layers)
    stored = {n: a for files in (encoders, decoders) for i in files for n, a in read_safetensors(files[i]).items()}
    has_threshold = any(n.startswith("threshold_") for n in stored)
    axes, problems = {}, []
    for i in range(n_layers):
        axes |= {f"W_enc_{i}": ("n_latents", "d_in"), f"b_enc_{i}": ("n_latents",), f"b_dec_{i}": ("d_out",)}
        axes |= {f"W_dec_{i}": ("n_latents", f"layers from {i}", "d_out")}
        axes |= {f"threshold_{i}": ("n_latents",)} if has_threshold else {}
        problems += _below_zero(stored, f"threshold_{i}")
    strict.check(folder, stored, axes, {f"layers from {i}": n_layers - i for i in range(n_layers)}, problems=problems)

    def stacked(name: str):
        return jnp.stack([jnp.asarray(stored[f"{name}_{i}"]) for i in range(n_layers)])

    return CrossLayerTranscoder(
        W_enc=jnp.swapaxes(stacked("W_enc"), 1, 2),
        b_enc=stacked("b_enc"),
        W_dec=tuple(jnp.asarray(stored[f"W_dec_{i}"].swapaxes(0, 1)) for i in range(n_layers)),
        b_dec=stacked("b_dec"),
        activation=JumpReLU(stacked("threshold")) if has_threshold else Relu(),
    )


_KINDS: Final[Mapping[str, Callable[[Path, Mapping[str, Any]], Any]]] = {
    "transcoder_set": _set,
    "cross_layer_transcoder": _cross_layer,
}


def _numbered(folder: Path, stem: str) -> dict[int, Path]:
    found = ((re.fullmatch(rf"{stem}_(\d+)\.safetensors", p.name), p) for p in folder.iterdir())
    return {int(match[1]): p for match, p in found if match}


def _all_layers(folder: Path, found: set[int], n_layers: int) -> None:
    if not found or found != set(range(n_layers)):
        there = shown(sorted(found)) if found else "none"
        raise UserError(f"{shown(folder)} should hold layers 0 to {max(n_layers, 1) - 1}; it holds {there}.")


def _below_zero(stored: Mapping[str, np.ndarray], name: str) -> list[str]:
    return [f"{name} is below 0 in places"] if name in stored and (stored[name] < 0).any() else []
