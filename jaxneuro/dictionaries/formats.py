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
from .dictionary import TopKDictionary

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
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


def save_saelens(
    dictionary: TopKDictionary, folder: str | os.PathLike, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write a TopK autoencoder as SAELens (v6) reads it: architecture "topk", tensors W_enc, b_enc, W_dec, b_dec.

    Args:
      dictionary: an autoencoder; its input normalisation is folded into its weights, so "none" is written.
      folder: made if need be. The config is written last: a folder with it is whole.
      metadata: model_name, hook_name and what else SAELens keeps there.
    Raises:
      UserError: a transcoder (SAELens has no TopK transcoder), a folder that cannot be written.
    Source: SAELens 6.18, saes/sae.py (tensor names and cfg.json keys).
    """
    if not dictionary.apply_b_dec_to_input or dictionary.d_in != dictionary.d_out:
        raise UserError(
            f"SAELens has no layout for a TopK transcoder (d_in {dictionary.d_in}, d_out {dictionary.d_out}). "
            "Save an autoencoder, or keep the four arrays with jaxneuro.io."
        )
    folder = Path(folder)
    tensors = {name: np.asarray(getattr(dictionary, name)) for name in _TENSORS}
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
            "metadata": dict(metadata or {}),
        },
    )
    return folder


def load_saelens(folder: str | os.PathLike) -> TopKDictionary:
    """Read a TopK autoencoder in SAELens' layout.

    With `rescale_acts_by_decoder_norm` latents are selected by pre-activation times decoder norm; folding the norm n_i
    into the weights is the same function: W_enc[:, i] n_i, b_enc[i] n_i, W_dec[i] / n_i.

    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once; another architecture or a
        normalisation at run time, which would silently change what the numbers mean.
    """
    folder = Path(folder)
    config, tensors = read_json(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    problems = [
        f"{key} is {config.get(key)!r}, only {v!r} is read" for key, v in _MUST_BE.items() if config.get(key, v) != v
    ]
    problems += [f"unknown key {key!r}" for key in sorted(set(config) - _KNOWN)]
    problems += [f"{key} is missing" for key in ("architecture", "d_in", "d_sae", "k") if key not in config]
    problems += [f"tensor {name} is missing" for name in sorted(set(_TENSORS) - set(tensors))]
    problems += [f"unknown tensor {name}" for name in sorted(set(tensors) - set(_TENSORS))]
    if not problems:
        for name, axes in _TENSORS.items():
            want = tuple(config[a] for a in axes)
            if tensors.shape(name) != want:
                problems.append(f"{name} has shape {tensors.shape(name)}, {CONFIG} says {want}")
        if not 1 <= config["k"] <= config["d_sae"]:
            problems.append(f"k = {config['k']} for {config['d_sae']} latents")
    if problems:
        raise UserError(f"{folder} is no TopK dictionary in SAELens' layout: {'; '.join(problems)}.")
    arrays = {name: jnp.asarray(tensors[name]) for name in _TENSORS}
    if config.get("rescale_acts_by_decoder_norm"):
        norm = jnp.linalg.norm(arrays["W_dec"].astype(jnp.float32), axis=1)
        arrays["W_enc"], arrays["b_enc"] = arrays["W_enc"] * norm, arrays["b_enc"] * norm
        arrays["W_dec"] = arrays["W_dec"] / norm[:, None]
    return TopKDictionary(**arrays, k=config["k"], apply_b_dec_to_input=config.get("apply_b_dec_to_input", True))
