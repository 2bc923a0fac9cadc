# SPDX-License-Identifier: Apache-2.0
"""Two formats of single files that do not say all of what they mean: transcoder_circuits' and saex's."""

import os

import jax.numpy as jnp
import numpy as np

from ...errors import UserError, shown
from ...io import read_safetensors
from ...io.torch_file import read_torch
from ..activations import Relu
from ..dictionary import SparseCoder
from . import strict

_CIRCUITS = {
    "W_enc": ("d_in", "n_latents"),
    "b_enc": ("n_latents",),
    "W_dec": ("n_latents", "d_out"),
    "b_dec": ("d_in",),
    "b_dec_out": ("d_out",),
}
_SAEX = {
    "W_enc": ("d_in", "n_latents"),
    "b_enc": ("n_latents",),
    "W_dec": ("n_latents", "d_in"),
    "b_dec": ("d_in",),
    "s": ("n_latents",),
}


def load_transcoder_circuits(path: str | os.PathLike) -> SparseCoder:
    """Read a ReLU transcoder of transcoder_circuits: {"cfg": ..., "state_dict": ...} in a .pt file.

        z = relu((x - b_dec) W_enc + b_enc);   y = z W_dec + b_dec_out

    It has two biases: b_dec of the input is folded into b_enc (- b_dec W_enc), b_dec_out becomes b_dec. Files whose cfg
    is an object of the library, and not a dict, are refused as all objects are: save their state_dict alone, which is
    read too. Source: github.com/jacobdunefsky/transcoder_circuits.

    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once.
    """
    content = read_torch(path)
    stored = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not isinstance(stored, dict) or not all(isinstance(a, np.ndarray) for a in stored.values()):
        raise UserError(f"{shown(path)} holds no state_dict of named tensors.")
    strict.check(path, stored, _CIRCUITS)
    p = {n: jnp.asarray(a) for n, a in stored.items()}
    shift = p["b_dec"].astype(jnp.float32) @ p["W_enc"].astype(jnp.float32)
    return SparseCoder(
        W_enc=p["W_enc"],
        W_dec=p["W_dec"],
        b_enc=(p["b_enc"].astype(jnp.float32) - shift).astype(p["b_enc"].dtype),
        b_dec=p["b_dec_out"],
        activation=Relu(),
        apply_b_dec_to_input=False,
    )


def load_saex(path: str | os.PathLike, *, use_encoder_bias: bool, remove_decoder_bias: bool) -> SparseCoder:
    """Read a ReLU autoencoder of saex. Its file does not hold the two flags that change the function: they are yours.

        z = relu((x - [b_dec]) W_enc + [b_enc]);   x_hat = (z s) W_dec + b_dec

    The output scale s of each latent is folded into its row of W_dec.

    Args:
      path: the .safetensors file.
      use_encoder_bias: whether b_enc was used; if not, it is zero here.
      remove_decoder_bias: whether b_dec was subtracted from the input.
    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once.
    """
    stored = read_safetensors(path)
    strict.check(path, stored, _SAEX)
    p = {n: jnp.asarray(a) for n, a in stored.items()}
    return SparseCoder(
        W_enc=p["W_enc"],
        W_dec=strict.scaled(p["W_dec"], p["s"][:, None]),
        b_enc=p["b_enc"] if use_encoder_bias else jnp.zeros_like(p["b_enc"]),
        b_dec=p["b_dec"],
        activation=Relu(),
        apply_b_dec_to_input=remove_decoder_bias,
    )
