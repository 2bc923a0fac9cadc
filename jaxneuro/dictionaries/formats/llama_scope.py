# SPDX-License-Identifier: Apache-2.0
"""Llama Scope (Language-Model-SAEs): hyperparams.json beside checkpoints/final.safetensors; R1-distill's folders.

Trained on inputs scaled by s_in = sqrt(d) / avg_in. Folded as the library folds it before use:

    b_enc / s_in, b_dec / s_out, W_dec s_in / s_out;   then, with the norm n_i of decoder row i if the sparsity loss had
    it, W_enc[:, i] n_i, b_enc[i] n_i, W_dec[i] / n_i;   z = pre where pre > jump_relu_threshold, pre = x W_enc + b_enc

so x, x_hat and latents are in raw units. (SAELens' latents and threshold are s_in times these; it does not fold n_i.)
R1-distill's thresholds are exp(log_jumprelu_threshold) in scaled units: divided by s_in here.

Source: arXiv:2410.20526; Language-Model-SAEs of November 2024, lm_saes/sae.py, `from_config`.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...errors import UserError, quoted, shown
from ...io import read_safetensors
from ...io.fields import FLAG, TEXT, Fields, choice, null_or, number
from ..activations import Activation, JumpReLU, Relu, TopK
from ..dictionary import SparseCoder
from . import strict

_BASE: Final = ("hyperparams.json", "checkpoints/final.safetensors")
_DISTILL: Final = ("config.json", "sae_weights.safetensors")
FILES: Final = (*_BASE, *_DISTILL)
_LOG: Final = "log_jumprelu_threshold"
_NORM: Final = "dataset_average_activation_norm."
_TENSORS: Final = {
    "encoder.weight": ("n_latents", "d_in"),
    "encoder.bias": ("n_latents",),
    "decoder.weight": ("d_in", "n_latents"),
    "decoder.bias": ("d_in",),
    _LOG: ("n_latents",),
}
_NORMALISED: Final = {"dataset-wise": True, "none": False, "inference": False}
_ACTIVATIONS: Final = ("relu", "jumprelu", "topk")
_FLAGS: Final = ("sparsity_include_decoder_norm", "apply_decoder_bias_to_pre_encoder", "use_decoder_bias")


def load_llama_scope(
    name: str | os.PathLike,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    average_norm: Mapping[str, float] | None = None,
) -> SparseCoder:
    """Read one dictionary of Llama Scope or Llama Scope R1-distill.

    Args:
      name: a folder, or a repository of the Hugging Face Hub.
      subfolder: such as "Llama3_1-8B-Base-L15R-8x".
      revision: branch, tag or commit of a Hub repository.
      average_norm: {"in": mean norm of the inputs in training, "out": of the outputs}, for files that say
        "dataset-wise" without it (R1-distill).
    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once; a normalisation, activation or
        encoder that is not read.
    """
    folder = strict.folder_of(name, subfolder, revision, FILES)
    config_file, weights = _DISTILL if (folder / _DISTILL[1]).exists() else _BASE
    config, stored = strict.config_of(folder / config_file), dict(read_safetensors(folder / weights))
    d = strict.sizes_of(config, "d_model").get("d_model", 0)
    if "d_sae" in config or "expansion_factor" not in config:
        n_latents = strict.sizes_of(config, "d_sae").get("d_sae", 0)
    else:
        n_latents = strict.sizes_of(config, "expansion_factor").get("expansion_factor", 0) * d
    norms = average_norm or config.get("dataset_average_activation_norm") or _stored_norms(config, stored)
    stored = {n: a for n, a in stored.items() if not n.startswith(_NORM)}
    act = _checked(config, norms, _LOG in stored)
    sizes = strict.check(
        folder,
        stored,
        _TENSORS,
        {axis: n for axis, n in (("d_in", d), ("n_latents", n_latents)) if n},
        says=f"{config_file} says",
        optional=() if weights == _DISTILL[1] and act == "jumprelu" else (_LOG,),
        problems=config.problems,
    )
    if act == "topk" and config["top_k"] > sizes["n_latents"]:
        raise UserError(f"{shown(folder)}: top_k = {config['top_k']} for {sizes['n_latents']} latents.")
    s_in, s_out = _scales(config, norms)
    p = {n: jnp.asarray(a) for n, a in stored.items()}
    W_enc, b_enc = p["encoder.weight"].T, strict.scaled(p["encoder.bias"], 1 / s_in)
    W_dec = strict.scaled(p["decoder.weight"].T, s_in / s_out)
    if config["sparsity_include_decoder_norm"]:
        n = jnp.linalg.norm(W_dec.astype(jnp.float32), axis=1)
        back = 1 / jnp.where(n > 0, n, jnp.float32(1))
        W_enc, b_enc, W_dec = strict.scaled(W_enc, n), strict.scaled(b_enc, n), strict.scaled(W_dec, back[:, None])
    return SparseCoder(
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_dec=strict.scaled(p["decoder.bias"], 1 / s_out),
        activation=_activation(config, p, s_out if config["sparsity_include_decoder_norm"] else s_in),
        apply_b_dec_to_input=config["apply_decoder_bias_to_pre_encoder"],
    )


def _stored_norms(config: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> dict[str, float] | None:
    """The mean norms where later files keep them: one scalar per hook point."""
    ends = {end: f"{_NORM}{config.get(f'hook_point_{end}')}" for end in ("in", "out")}
    if not all(name in stored and stored[name].size == 1 for name in ends.values()):
        return None
    return {end: stored[name].astype(np.float32).item() for end, name in ends.items()}


def _checked(config: Fields, norms: Any, has_thresholds: bool) -> str:
    """The activation; what the config says wrongly, or asks for that is not read, is noted."""
    for key in _FLAGS:
        config.read(key, FLAG)
    if config.read("use_glu_encoder", FLAG, False):
        config.note("use_glu_encoder is not read")
    if config.get("use_decoder_bias") is False:
        config.note("use_decoder_bias is false, which is not read")
    act = config.read("act_fn", TEXT, "").lower()
    if act not in _ACTIVATIONS:
        config.note(f"act_fn is {quoted(config.get('act_fn'))}, one of {', '.join(_ACTIVATIONS)} is read")
    threshold = config.read("jump_relu_threshold", null_or(_THRESHOLD), None)
    if act == "jumprelu" and not has_thresholds and threshold is None:
        config.note("jump_relu_threshold is missing")
    if act == "topk":
        strict.sizes_of(config, "top_k")
    norm = config.read("norm_activation", choice(_NORMALISED))
    if _NORMALISED.get(norm):
        given = [norms.get(end) for end in ("in", "out")] if isinstance(norms, Mapping) else [None, None]
        if not all(map(_NORM_KIND.fits, given)):
            config.note(f"norm_activation is {norm!r}, but the mean norms are {shown(norms)}: give average_norm=")
    return act


_NORM_KIND: Final = number(above=0, high=strict.LARGEST_ACTIVATION)
_THRESHOLD: Final = number(low=0, high=strict.LARGEST_ACTIVATION)


def _scales(config: Mapping[str, Any], norms: Any) -> tuple[float, float]:
    if not _NORMALISED[config["norm_activation"]]:
        return 1.0, 1.0
    root = float(np.sqrt(config["d_model"]))
    return root / norms["in"], root / norms["out"]


def _activation(config: Mapping[str, Any], p: Mapping[str, Array], s: float) -> Activation:
    """s: what latents of scaled units are divided by here."""
    act, threshold = config["act_fn"].lower(), config.get("jump_relu_threshold") or 0
    if _LOG in p:
        return JumpReLU(jnp.exp(p[_LOG].astype(jnp.float32)) / jnp.float32(s))
    if act == "jumprelu" or (act == "topk" and threshold > 0):  # the library makes the second of TopK files
        return JumpReLU(jnp.float32(threshold))
    return TopK(config["top_k"]) if act == "topk" else Relu()
