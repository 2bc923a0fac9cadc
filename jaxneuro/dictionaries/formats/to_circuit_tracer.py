# SPDX-License-Identifier: Apache-2.0
"""Transcoder sets and cross-layer transcoders written as circuit-tracer reads them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
from jaxtyping import Array

from ...errors import UserError
from ...io import write_safetensors, write_text
from ...io.sources import hub_name
from ...taps.names import hook_name
from ..activations import Activation, JumpReLU, Relu
from ..cross_layer import CrossLayerTranscoder
from ..dictionary import SparseCoder
from ..places import OURS, Placement, own_words
from . import strict
from .circuit_tracer import CONFIG, SAME

_HOOKS: Final = {"feature_input_hook": "site", "feature_output_hook": "target"}
_OF_FAMILIES: Final = {("qwen3", "hook_mlp_out"): "mlp.hook_out"}
"""Where circuit-tracer knows one of two names that mean the same."""


def save_circuit_tracer(
    transcoders: Mapping[int, SparseCoder] | CrossLayerTranscoder,
    folder: str | os.PathLike,
    metadata: Mapping[str, Any] | None = None,
    *,
    place: Placement | None = None,
) -> Path:
    """Write a folder that circuit-tracer loads, with decoder rows contiguous in the file, as it reads single rows.

    It has no TopK transcoders: train `jumprelu`, `relu`, `batch_topk` or `matryoshka` on batches with y, or
    `cross_layer_transcoder` with one of the rules that leave a threshold. It begins every text with a special token,
    the tokenizer's begin token where there is one, and leaves out the features of that position.

    Args:
      transcoders: {layer: transcoder} for layers 0 to n - 1, or a cross-layer transcoder; with ReLU or JumpReLU.
      folder: made if need be. config.yaml is written last: a folder with it is whole.
      metadata: model_name, feature_input_hook ("mlp.hook_in" for the site mlp.in) and feature_output_hook
        ("hook_mlp_out"), which circuit-tracer needs, and what else config.yaml should say.
      place: where they belong, one site and one target of every layer, instead of these three. The hooks of metadata
        must then name the same sites; "mlp.hook_out" may be said for mlp_out.
    Raises:
      UserError: what circuit-tracer cannot hold, each reason; hooks that stand for no site; NaN or infinity; a folder
        that cannot be written.
    """
    import yaml

    words, problems = _words(place) if place else ({}, [])
    metadata = {**words, **(metadata or {})}
    problems += [
        f"metadata lacks {key}" for key in (*([] if place else ["model_name"]), *_HOOKS) if key not in metadata
    ]
    problems += _wrong_hooks(metadata, words)
    one = isinstance(transcoders, CrossLayerTranscoder)
    kind, files, wrong = _cross_layer(transcoders) if one else _set(transcoders)
    if problems + wrong:
        raise UserError(f"circuit-tracer has no layout for this: {'; '.join(problems + wrong)}.")
    folder = Path(folder)
    arrays = {name: strict.arrays(tensors) for name, tensors in files.items()}
    for name, tensors in arrays.items():
        write_safetensors(folder / name, tensors)
    kept = {key: value for key, value in metadata.items() if key != "transcoders"}
    write_text(folder / CONFIG, yaml.safe_dump({**kept, "model_kind": kind}, sort_keys=False))
    return folder


def _words(place: Placement) -> tuple[dict[str, Any], list[str]]:
    """(config.yaml's words for a place, what is wrong with it): one hook of every layer, in order."""
    words: dict[str, Any] = {OURS: own_words(place)}
    problems = []
    for key, field in _HOOKS.items():
        sites = getattr(place, field)
        hooks = [hook_name(site) or "" for site in sites]
        inner = {hook.removeprefix(f"blocks.{layer}.") for layer, hook in enumerate(hooks)}
        if len(inner) == 1 and (hook := inner.pop()) and not hook.startswith("blocks."):
            words[key] = _OF_FAMILIES.get((place.family or "", hook), hook)
        else:
            problems.append(f"{field} is {', '.join(sites) or 'nothing'}: a hook of every layer, from 0, is needed")
    if model := place.model and hub_name(place.model):
        words["model_name"] = model
    return words, problems


def unplaced(place: Placement) -> list[str]:
    """Why circuit-tracer has no hooks for a place; [] if it has."""
    return _words(place)[1]


def _wrong_hooks(metadata: Mapping[str, Any], words: Mapping[str, Any]) -> list[str]:
    """Hooks that stand for no site of ours, or for another than the place's."""
    problems = []
    for key in metadata.keys() & _HOOKS.keys():
        hook = metadata[key]
        theirs = SAME.get(hook, hook) if isinstance(hook, str) else None
        if not (theirs and hook_name(f"blocks.0.{theirs}") == f"blocks.0.{theirs}"):
            problems.append(f"{key} = {hook!r} stands for no site: 'mlp.hook_in' is mlp.in, say")
        elif theirs != SAME.get(words.get(key, theirs), words.get(key, theirs)):
            problems.append(f"{key} is {hook!r}, but the {_HOOKS[key]} of the place is {words[key]!r}")
    return sorted(problems)


type _Files = dict[str, dict[str, Any]]


def _set(coders: Mapping[int, SparseCoder]) -> tuple[str, _Files, list[str]]:
    if not isinstance(coders, Mapping):
        return "", {}, [f"a {type(coders).__name__} is neither {{layer: SparseCoder}} nor a CrossLayerTranscoder"]
    if others := {type(d).__name__ for d in coders.values() if not isinstance(d, SparseCoder)}:
        return "", {}, [f"its layers are {', '.join(sorted(others))}, not SparseCoder"]
    if not all(type(i) is int for i in coders):
        return "", {}, [f"its layers are called {', '.join(map(repr, coders))}, not 0, 1, ..."]
    problems = [] if set(coders) == set(range(len(coders))) and coders else [f"its layers are {sorted(coders)}"]
    if len(widths := {d.n_latents for d in coders.values()}) > 1:
        problems.append(f"its layers have different numbers of latents: {sorted(widths)}")
    files = {}
    for i, d in coders.items():
        problems += [f"layer {i}: {reason}" for reason in _unfit(d)]
        tensors = {"W_enc": jnp.asarray(d.W_enc).T, "W_dec": d.W_dec, "b_enc": d.b_enc, "b_dec": d.b_dec}
        if isinstance(d.activation, JumpReLU):
            tensors["activation_function.threshold"] = _threshold(d.activation, (d.n_latents,))
        files[f"layer_{i}.safetensors"] = tensors if d.W_skip is None else {**tensors, "W_skip": d.W_skip}
    return "transcoder_set", files, problems


def _unfit(d: SparseCoder) -> list[str]:
    return [
        *_unread(d.activation),
        *(["b_dec is subtracted from the input"] if d.apply_b_dec_to_input else []),
        *([f"input_norm is {d.input_norm}"] if d.input_norm != "none" else []),
        *([f"d_in is {d.d_in} and d_out {d.d_out}"] if d.d_in != d.d_out else []),
    ]


def _unread(activation: Activation) -> list[str]:
    if not isinstance(activation, Relu | JumpReLU):
        return [f"its activation is {type(activation).__name__}, neither Relu nor JumpReLU"]
    return []


def _threshold(activation: JumpReLU, shape: tuple[int, ...]) -> Array:
    """At least 0, which is what one below 0 acts as here: circuit-tracer would let negative latents through."""
    return jnp.broadcast_to(jnp.maximum(activation.threshold, jnp.zeros((), activation.threshold.dtype)), shape)


def _cross_layer(t: CrossLayerTranscoder) -> tuple[str, _Files, list[str]]:
    problems = _unread(t.activation) + ([f"d_in is {t.d_in} and d_out {t.d_out}"] if t.d_in != t.d_out else [])
    files = {}
    for i, w in enumerate(t.W_dec):
        encoder = {f"W_enc_{i}": t.W_enc[i].T, f"b_enc_{i}": t.b_enc[i], f"b_dec_{i}": t.b_dec[i]}
        if isinstance(t.activation, JumpReLU):
            encoder[f"threshold_{i}"] = _threshold(t.activation, (t.n_layers, t.n_latents))[i]
        files[f"W_enc_{i}.safetensors"] = encoder
        files[f"W_dec_{i}.safetensors"] = {f"W_dec_{i}": jnp.swapaxes(w, 0, 1)}
    return "cross_layer_transcoder", files, problems
