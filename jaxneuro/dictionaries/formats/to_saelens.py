# SPDX-License-Identifier: Apache-2.0
"""Dictionaries written as SAELens (v6) reads them: the other direction of saelens.py."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from ...errors import UserError
from ...io import write_json, write_safetensors
from ..activations import Gated, JumpReLU, Relu, TopK
from ..dictionary import SparseCoder
from . import strict
from .saelens import ARCHITECTURES, CONFIG, NORMS, SCALED, WEIGHTS

WRITTEN_AS: Final = "6.18.0"
"""SAELens' release whose layout is written: without a version of 6 or above it takes a folder for an older layout."""

_NAMES: Final = {Relu: "standard", TopK: "topk", JumpReLU: "jumprelu", Gated: "gated"}
_AS_TRANSCODER: Final = {
    "standard": ("transcoder", "skip_transcoder"),
    "jumprelu": ("jumprelu_transcoder", "jumprelu_skip_transcoder"),
}


def save_saelens(dictionary: SparseCoder, folder: str | os.PathLike, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a dictionary as SAELens (v6) reads it, with the architecture that its activation stands for.

    Args:
      dictionary: an autoencoder, or (not subtracting b_dec, with other widths, a skip or a "hook_name_out" in the
        metadata) a transcoder. Scales of the input are in its weights, so no "expected_average_only_in" is written.
      folder: made if need be. The config is written last: a folder with it is whole.
      metadata: model_name, hook_name and what else SAELens keeps there. A hook name that ends in "hook_z" is written
        with reshape_activations "hook_z".
    Raises:
      UserError: what SAELens has no architecture for (GroupMax, a TopK or Gated transcoder, a skip beside a subtracted
        b_dec), NaN or infinity in the arrays, a folder that cannot be written.
    """
    metadata = {"sae_lens_version": WRITTEN_AS, **dict(metadata or {})}
    architecture, extra = _named(dictionary, metadata)
    values = _stored(dictionary)
    tensors = strict.arrays({n: values[n] for n in ARCHITECTURES[architecture].tensors})
    dtype = np.result_type(*(a.dtype for a in tensors.values()))
    norms = {ours: theirs for theirs, ours in NORMS.items() if theirs != SCALED}
    folder = Path(folder)
    write_safetensors(folder / WEIGHTS, {n: a.astype(dtype) for n, a in tensors.items()})
    write_json(
        folder / CONFIG,
        {
            "architecture": architecture,
            "normalize_activations": norms[dictionary.input_norm],
            "reshape_activations": "hook_z" if str(metadata.get("hook_name")).endswith("hook_z") else "none",
            "d_in": dictionary.d_in,
            "d_sae": dictionary.n_latents,
            **extra,
            "dtype": str(dtype),
            "device": "cpu",
            "apply_b_dec_to_input": dictionary.apply_b_dec_to_input,
            "metadata": metadata,
        },
    )
    return folder


def _named(d: SparseCoder, metadata: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(architecture, what only its config has)."""
    name = type(d.activation).__name__
    architecture = _NAMES.get(type(d.activation))
    transcodes = d.d_in != d.d_out or d.W_skip is not None or "hook_name_out" in metadata
    if architecture is None:
        raise UserError(f"SAELens has no architecture for {name}; it has {', '.join(t.__name__ for t in _NAMES)}.")
    if not transcodes:
        return architecture, {"k": d.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
    if d.apply_b_dec_to_input or d.input_norm != "none" or architecture not in _AS_TRANSCODER:
        raise UserError(
            f"SAELens has no layout for a {name} transcoder (d_in {d.d_in}, d_out {d.d_out}, input_norm {d.input_norm}"
            f"{', b_dec subtracted' if d.apply_b_dec_to_input else ''}). Save an autoencoder, or keep the arrays with "
            "jaxneuro.io."
        )
    return _AS_TRANSCODER[architecture][d.W_skip is not None], {"d_out": d.d_out}


def _stored(d: SparseCoder) -> dict[str, Any]:
    """Every tensor that some architecture stores."""
    values: dict[str, Any] = {n: getattr(d, n) for n in ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip")}
    if isinstance(d.activation, JumpReLU):
        values["threshold"] = jnp.broadcast_to(d.activation.threshold, (d.n_latents,))
    if isinstance(d.activation, Gated):
        values |= {name: getattr(d.activation, name) for name in ("r_mag", "b_mag", "b_gate")}
    return values
