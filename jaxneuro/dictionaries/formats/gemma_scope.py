# SPDX-License-Identifier: Apache-2.0
"""Gemma Scope: params.npz (version 1) and params.safetensors (version 2); autoencoders and transcoders, all JumpReLU.

    z = relu(pre) where pre > threshold, pre = x W_enc + b_enc;   y = z W_dec + b_dec + [x affine_skip_connection]

b_dec is not subtracted, and nothing is normalised at run time. Attention autoencoders read the heads of hook_z
concatenated. Transcoders of Gemma 2 read the MLP's input after its RMSNorm and write its output after the post-norm.
Source: arXiv:2408.05147 and the notebook of google/gemma-scope; circuit-tracer 0.5 for version 2's names.
"""

import os
from pathlib import Path
from typing import Final

import jax.numpy as jnp

from ...errors import UserError, shown
from ...io import read_safetensors
from ...io.fields import FLAG, choice
from ...io.npy import read_npz
from ..activations import JumpReLU
from ..dictionary import SparseCoder
from . import strict

FILES: Final = ("params.npz", "params.safetensors")
_SKIP: Final = "affine_skip_connection"
# A transcoder's output is as wide as its input: the MLP's, before and after.
_TENSORS: Final = {
    "w_enc": ("d_in", "n_latents"),
    "w_dec": ("n_latents", "d_in"),
    "b_enc": ("n_latents",),
    "b_dec": ("d_in",),
    "threshold": ("n_latents",),
    _SKIP: ("d_in", "d_in"),
}


def load_gemma_scope(
    name: str | os.PathLike, *, subfolder: str | None = None, revision: str | None = None
) -> SparseCoder:
    """Read one dictionary of Gemma Scope.

    Args:
      name: a file, a folder with params.npz or params.safetensors, or a repository of the Hugging Face Hub.
      subfolder: such as "layer_20/width_16k/average_l0_71".
      revision: branch, tag or commit of a Hub repository.
    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once; NaN or infinity; another
        architecture in a config.json beside the file, or a skip connection in one of the two alone.
    """
    path = strict.file_of(name, subfolder, revision, FILES)
    tensors = {_lower(n): a for n, a in _READ[_suffix(path)](path).items()}
    strict.check(path, tensors, _TENSORS, optional=(_SKIP,), problems=_contradictions(path, _SKIP in tensors))
    skip = tensors.get(_SKIP)
    return SparseCoder(
        W_enc=jnp.asarray(tensors["w_enc"]),
        W_dec=jnp.asarray(tensors["w_dec"]),
        b_enc=jnp.asarray(tensors["b_enc"]),
        b_dec=jnp.asarray(tensors["b_dec"]),
        activation=JumpReLU(jnp.asarray(tensors["threshold"])),
        W_skip=None if skip is None else jnp.asarray(skip.T),
        apply_b_dec_to_input=False,
    )


def _contradictions(path: Path, skip: bool) -> list[str]:
    """What a config.json beside the file says otherwise."""
    if not os.path.exists(beside := path.parent / "config.json"):
        return []
    config = strict.config_of(beside)
    config.read("architecture", choice(["jump_relu"]), "jump_relu")
    if config.read("affine_connection", FLAG, skip) is not skip:
        config.note(f"affine_connection is {str(not skip).lower()}, but the file has {'a' if skip else 'no'} {_SKIP}")
    return config.problems


def _lower(name: str) -> str:
    return name.lower() if name in ("W_enc", "W_dec") else name


_READ: Final = {
    ".npz": lambda path: read_npz(path, known={*_TENSORS, "W_enc", "W_dec"}),
    ".safetensors": lambda path: dict(read_safetensors(path)),
}


def _suffix(path: Path) -> str:
    if path.suffix not in _READ:
        raise UserError(f"{shown(path)} is neither .npz nor .safetensors, which Gemma Scope comes in.")
    return path.suffix
