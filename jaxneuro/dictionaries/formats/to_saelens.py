# SPDX-License-Identifier: Apache-2.0
"""Dictionaries written as SAELens (v6) reads them: the other direction of saelens.py."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from ...errors import UserError, unknown
from ...io import write_json, write_safetensors
from ..activations import AbsTopK, Gated, JumpReLU, Relu, TopK
from ..dictionary import SparseCoder
from ..matching_pursuit import MatchingPursuit
from ..places import Placement, saelens_words, spelled
from . import strict
from .architectures import ARCHITECTURES, NORMS, SCALED
from .saelens import CONFIG, WEIGHTS

WRITTEN_AS: Final = "6.18.0"
"""SAELens' release whose layout is written: without a version of 6 or above it takes a folder for an older layout."""

_NAMES: Final = {
    Relu: "standard",
    TopK: "topk",
    AbsTopK: "abstopk",
    JumpReLU: "jumprelu",
    Gated: "gated",
    MatchingPursuit: "matching_pursuit",
}
_AS_TRANSCODER: Final = {
    "standard": ("transcoder", "skip_transcoder"),
    "jumprelu": ("jumprelu_transcoder", "jumprelu_skip_transcoder"),
}


def _k(d: Any) -> dict[str, Any]:
    return {"k": d.k, "rescale_acts_by_decoder_norm": False}


def _stops(d: Any) -> dict[str, Any]:
    return {
        "residual_threshold": d.tolerance,
        "max_iterations": d.max_steps,
        "stop_on_duplicate_support": d.stop_on_repeat,
    }


_MORE: Final = {"topk": _k, "abstopk": _k, "matching_pursuit": _stops}
"""What only the configs of some architectures have."""


def save_saelens(
    dictionary: SparseCoder | MatchingPursuit,
    folder: str | os.PathLike,
    metadata: Mapping[str, Any] | None = None,
    *,
    place: Placement | None = None,
) -> Path:
    """Write a dictionary as SAELens (v6) reads it, with the architecture that its activation stands for.

    Args:
      dictionary: an autoencoder, or (not subtracting b_dec, with other widths, a skip or a "hook_name_out" in the
        metadata) a transcoder. Scales of the input are in its weights, so no "expected_average_only_in" is written.
        A `MatchingPursuit` is an autoencoder.
      folder: made if need be. The config is written last: a folder with it is whole.
      metadata: model_name, hook_name and what else SAELens keeps there. Hook names are written as TransformerLens
        spells them, whichever spelling is given; z of the heads ("blocks.1.attn.z") with reshape_activations "hook_z".
      place: where the dictionary belongs, from which SAELens' names are made (`saelens_words`); metadata has the last
        word. At resid_mid SAELens' bridge changes what the MLP reads, not the stream (`taps.definitions`).
    Raises:
      UserError: what SAELens has no architecture for (GroupMax, a TopK or Gated transcoder, a skip beside a subtracted
        b_dec), NaN or infinity in the arrays, a folder that cannot be written.
    """
    if not isinstance(dictionary, SparseCoder | MatchingPursuit):
        raise strict.no_layout("SAELens", dictionary, SparseCoder, MatchingPursuit)
    words = saelens_words(place) if place else {}
    metadata = {"sae_lens_version": WRITTEN_AS, **words, **spelled(metadata or {})}
    architecture, extra = _named(dictionary, metadata)
    values = _stored(dictionary)
    tensors = strict.arrays({n: values[n] for n in ARCHITECTURES[architecture].tensors})
    dtype = np.result_type(*(a.dtype for a in tensors.values()))
    norms = {ours: theirs for theirs, ours in NORMS.items() if theirs != SCALED}
    if dictionary.input_norm not in norms:
        raise unknown("input_norm", dictionary.input_norm, norms, where="SAELens")
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
            "apply_b_dec_to_input": _subtracts(dictionary),
            "metadata": metadata,
        },
    )
    return folder


def _subtracts(d: SparseCoder | MatchingPursuit) -> bool:
    return isinstance(d, MatchingPursuit) or d.apply_b_dec_to_input


def _kind(d: SparseCoder | MatchingPursuit) -> type:
    """What SAELens names an architecture by."""
    return MatchingPursuit if isinstance(d, MatchingPursuit) else type(d.activation)


def _named(d: SparseCoder | MatchingPursuit, metadata: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(architecture, what only its config has)."""
    name, architecture = _kind(d).__name__, _NAMES.get(_kind(d))
    skips = getattr(d, "W_skip", None) is not None
    if architecture is None:
        raise UserError(f"SAELens has no architecture for {name}; it has {', '.join(t.__name__ for t in _NAMES)}.")
    if d.d_in == d.d_out and not skips and not metadata.keys() & {"hook_name_out", "hook_names_out"}:
        return architecture, _MORE.get(architecture, lambda d: {})(d)
    if _subtracts(d) or d.input_norm != "none" or architecture not in _AS_TRANSCODER:
        raise UserError(
            f"SAELens has no layout for a {name} transcoder (d_in {d.d_in}, d_out {d.d_out}, input_norm {d.input_norm}"
            f"{', b_dec subtracted' if _subtracts(d) else ''}). Save an autoencoder, or keep the arrays with "
            "jaxneuro.io."
        )
    return _AS_TRANSCODER[architecture][skips], {"d_out": d.d_out}


def _stored(d: SparseCoder | MatchingPursuit) -> dict[str, Any]:
    """Every tensor that some architecture stores."""
    if isinstance(d, MatchingPursuit):
        return {"W_dec": d.W_dec, "b_dec": d.b_dec}
    values: dict[str, Any] = {n: getattr(d, n) for n in ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip")}
    if isinstance(d.activation, JumpReLU):
        values["threshold"] = jnp.broadcast_to(d.activation.threshold, (d.n_latents,))
    if isinstance(d.activation, Gated):  # SAELens has no b_enc there: it goes into the two biases that are
        a = d.activation
        values |= {
            "r_mag": a.r_mag,
            "b_mag": a.b_mag + d.b_enc * jnp.exp(a.r_mag).astype(d.b_enc.dtype),
            "b_gate": a.b_gate + d.b_enc,
        }
    return values
