# SPDX-License-Identifier: Apache-2.0
"""OpenAI's autoencoders: one .pt file with a state dict, the name of the activation and its k.

    x' = (x - mean) / (std + 1e-5) per token, TopK files only;   pre = (x' - pre_bias) encoder.weight^T + latent_bias

and the reconstruction is multiplied by std and shifted by mean again. Source: github.com/openai/sparse_autoencoder,
model.py. SAELens read its TopK files as ReLU (#553).
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from ...errors import UserError, quoted, shown
from ...io.fields import Fields
from ...io.torch_file import read_torch
from ..activations import Activation, Relu, TopK
from ..dictionary import SparseCoder
from . import strict

_TENSORS: Final = {
    "pre_bias": ("d_in",),
    "encoder.weight": ("n_latents", "d_in"),
    "latent_bias": ("n_latents",),
    "decoder.weight": ("d_in", "n_latents"),
    **dict.fromkeys(("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"), ("n_latents",)),
}
_STATISTICS: Final = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
"""Of training; integers or floats; not part of the function."""
_OTHERS: Final = ("activation", "activation_state_dict")


def load_openai(path: str | os.PathLike) -> SparseCoder:
    """Read one autoencoder ("autoencoders/8.pt"); the file is not unpickled (jaxneuro.io.torch_file).

    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once; an activation besides "ReLU" and
        "TopK" with ReLU; NaN or infinity.
    """
    content = read_torch(path)
    if not isinstance(content, dict) or "activation" not in content:
        raise UserError(f"{shown(path)} is no autoencoder of OpenAI's: it holds no dict with 'activation'.")
    tensors = {n: a for n, a in content.items() if isinstance(a, np.ndarray)}
    more = sorted(set(content) - set(tensors) - set(_OTHERS), key=str)
    problems = strict.some(f"unknown entry {quoted(n)}" for n in more)
    activation, wrong = _activation(content)
    statistics = [n for n in _STATISTICS if n in tensors]
    sizes = strict.check(
        path,
        tensors,
        _TENSORS,
        optional=_STATISTICS,
        integers=[n for n in statistics if tensors[n].dtype.kind in "iu"],
        problems=[*problems, *wrong],
    )
    if isinstance(activation, TopK) and activation.k > sizes["n_latents"]:
        raise UserError(f"{shown(path)}: k = {activation.k} for {sizes['n_latents']} latents.")
    return SparseCoder(
        W_enc=jnp.asarray(tensors["encoder.weight"].T),
        W_dec=jnp.asarray(tensors["decoder.weight"].T),
        b_enc=jnp.asarray(tensors["latent_bias"]),
        b_dec=jnp.asarray(tensors["pre_bias"]),
        activation=activation,
        input_norm="layer_norm" if isinstance(activation, TopK) else "none",
    )


def _activation(content: Mapping[str, Any]) -> tuple[Activation, list[str]]:
    """(the activation, what is wrong with its description)."""
    name, state = content["activation"], content.get("activation_state_dict", {})
    if not isinstance(name, str) or name not in ("ReLU", "TopK"):
        return Relu(), [f"activation is {quoted(name)}, ReLU or TopK is read"]
    if name == "ReLU":
        return Relu(), [] if state in ({}, None) else [f"ReLU has no state, the file gives it {shown(state)}"]
    fields = Fields(state if isinstance(state, dict) else {}, "activation_state_dict")
    k = strict.sizes_of(fields, "k").get("k", 1)
    after = fields.get("postact_fn", "ReLU")
    if not isinstance(after, str) or after != "ReLU":
        fields.note(f"TopK is followed by {quoted(after)}, only ReLU is read")
    return TopK(k), [f"activation_state_dict: {p}" for p in fields.problems]
