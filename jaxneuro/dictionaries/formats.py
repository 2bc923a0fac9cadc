# SPDX-License-Identifier: Apache-2.0
"""SAELens' folder layout: cfg.json beside sae_weights.safetensors. Strict both ways; nothing is filled in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from ..io import read_json, write_json
from ..io.safetensors import read_safetensors, write_safetensors
from .activations import TopK
from .dictionary import SparseCoder

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
WRITTEN_AS: Final = "6.18.0"
"""SAELens' release whose layout is written: without a version of 6 or above it takes a folder for an older layout."""
_DTYPES: Final = ("float32", "bfloat16", "float16", "float64")
_TENSORS: Final = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}
_MUST_BE: Final = {"architecture": "topk", "normalize_activations": "none", "reshape_activations": "none"}
_KNOWN: Final = {
    *_MUST_BE,
    *("d_in", "d_sae", "k", "dtype", "device", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "metadata"),
}


def save_saelens(dictionary: SparseCoder, folder: str | os.PathLike, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a TopK autoencoder as SAELens (v6) reads it: architecture "topk", tensors W_enc, b_enc, W_dec, b_dec.

    Args:
      dictionary: an autoencoder; its input normalisation is folded into its weights, so "none" is written.
      folder: made if need be. The config is written last: a folder with it is whole.
      metadata: model_name, hook_name and what else SAELens keeps there.
    Raises:
      UserError: a transcoder (SAELens has no TopK transcoder), NaN or infinity in the arrays, a folder that cannot be
        written.
    Source: SAELens 6.18, saes/sae.py (tensor names and cfg.json keys).
    """
    if not dictionary.apply_b_dec_to_input or dictionary.d_in != dictionary.d_out:
        raise UserError(
            f"SAELens has no layout for a TopK transcoder (d_in {dictionary.d_in}, d_out {dictionary.d_out}). "
            "Save an autoencoder, or keep the four arrays with jaxneuro.io."
        )
    folder = Path(folder)
    tensors = {name: np.asarray(getattr(dictionary, name)) for name in _TENSORS}
    if problems := _not_finite(tensors):
        raise UserError(f"cannot write {folder}: {'; '.join(problems)}.")
    write_safetensors(folder / WEIGHTS, tensors)
    write_json(
        folder / CONFIG,
        {
            **_MUST_BE,
            "d_in": dictionary.d_in,
            "d_sae": dictionary.n_latents,
            "k": dictionary.k,
            "dtype": str(tensors["W_dec"].dtype),
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "rescale_acts_by_decoder_norm": False,
            "metadata": {"sae_lens_version": WRITTEN_AS, **dict(metadata or {})},
        },
    )
    return folder


def load_saelens(folder: str | os.PathLike) -> SparseCoder:
    """Read a TopK autoencoder in SAELens' layout.

    With `rescale_acts_by_decoder_norm` latents are selected by pre-activation times decoder norm; folding the norm n_i
    into the weights is the same function: W_enc[:, i] n_i, b_enc[i] n_i, W_dec[i] / n_i.

    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once; another architecture or a
        normalisation at run time, which would silently change what the numbers mean.
    """
    folder = Path(folder)
    config, tensors = read_json(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is not a JSON object.")
    problems = [
        f"{key} is {config.get(key)!r}, only {v!r} is read" for key, v in _MUST_BE.items() if config.get(key, v) != v
    ]
    problems += [f"unknown key {key!r}" for key in sorted(set(config) - _KNOWN)]
    problems += [f"{key} is missing" for key in ("architecture", "d_in", "d_sae", "k") if key not in config]
    dtype = str(config.get("dtype", "float32")).removeprefix("torch.")
    problems += [] if dtype in _DTYPES else [f"dtype is {dtype!r}, one of {', '.join(_DTYPES)} is read"]
    problems += [f"tensor {name} is missing" for name in sorted(set(_TENSORS) - set(tensors))]
    problems += [f"unknown tensor {name}" for name in sorted(set(tensors) - set(_TENSORS))]
    if not problems:
        for name, axes in _TENSORS.items():
            want = tuple(config[a] for a in axes)
            if tensors.shape(name) != want:
                problems.append(f"{name} has shape {tensors.shape(name)}, {CONFIG} says {want}")
            if str(tensors.dtype(name)) != dtype:
                problems.append(f"{name} is {tensors.dtype(name)}, {CONFIG} says {dtype}")
        problems += _not_finite(tensors)
        if not 1 <= config["k"] <= config["d_sae"]:
            problems.append(f"k = {config['k']} for {config['d_sae']} latents")
    if problems:
        raise UserError(f"{folder} is no TopK dictionary in SAELens' layout: {'; '.join(problems)}.")
    arrays = {name: jnp.asarray(tensors[name]) for name in _TENSORS}
    if config.get("rescale_acts_by_decoder_norm"):
        arrays = _folded(arrays)
    return SparseCoder(
        **arrays, activation=TopK(config["k"]), apply_b_dec_to_input=config.get("apply_b_dec_to_input", True)
    )


def _not_finite(tensors: Mapping[str, Any]) -> list[str]:
    return [f"{n} holds NaN or infinity" for n in tensors if not np.isfinite(tensors[n].astype(np.float32)).all()]


def _folded(arrays: dict[str, Any]) -> dict[str, Any]:
    """Decoder norms into the encoder, in float32; a row of zeros decodes to nothing either way."""
    wide = {name: a.astype(jnp.float32) for name, a in arrays.items()}
    norm = jnp.linalg.norm(wide["W_dec"], axis=1)
    wide["W_enc"], wide["b_enc"] = wide["W_enc"] * norm, wide["b_enc"] * norm
    wide["W_dec"] = wide["W_dec"] / jnp.where(norm > 0, norm, jnp.float32(1))[:, None]
    return {name: wide[name].astype(a.dtype) for name, a in arrays.items()}
