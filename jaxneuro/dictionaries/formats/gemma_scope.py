# SPDX-License-Identifier: Apache-2.0
"""Gemma Scope: params.npz (version 1) and params.safetensors (version 2); autoencoders and transcoders, all JumpReLU.

    z = relu(pre) where pre > threshold, pre = x W_enc + b_enc;   y = z W_dec + b_dec + [x affine_skip_connection]

b_dec is not subtracted, and nothing is normalised at run time. Attention autoencoders read the heads of hook_z
concatenated. Transcoders of Gemma 2 read the MLP's input after its RMSNorm and write its output after the post-norm.
Source: arXiv:2408.05147 and the notebook of google/gemma-scope; circuit-tracer 0.5 for version 2's names.
"""

import os
import zipfile
from pathlib import Path
from typing import Final

import jax.numpy as jnp
import numpy as np

from ...errors import UserError
from ...io import read_safetensors
from ..activations import JumpReLU
from ..dictionary import SparseCoder
from . import strict

FILES: Final = ("params.npz", "params.safetensors")
_TENSORS: Final = {
    "w_enc": ("d_in", "n_latents"),
    "w_dec": ("n_latents", "d_out"),
    "b_enc": ("n_latents",),
    "b_dec": ("d_out",),
    "threshold": ("n_latents",),
    "affine_skip_connection": ("d_in", "d_out"),
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
        architecture in a config.json beside the file.
    """
    path = strict.file_of(name, subfolder, revision, FILES)
    tensors = {n.lower() if n in ("W_enc", "W_dec") else n: a for n, a in _READ[_suffix(path)](path).items()}
    problems = []
    if (path.parent / "config.json").exists():
        architecture = strict.config_of(path.parent / "config.json").get("architecture", "jump_relu")
        problems = [] if architecture == "jump_relu" else [f"architecture is {architecture!r}, jump_relu is read"]
    strict.check(path, tensors, _TENSORS, optional=("affine_skip_connection",), problems=problems)
    skip = tensors.get("affine_skip_connection")
    return SparseCoder(
        W_enc=jnp.asarray(tensors["w_enc"]),
        W_dec=jnp.asarray(tensors["w_dec"]),
        b_enc=jnp.asarray(tensors["b_enc"]),
        b_dec=jnp.asarray(tensors["b_dec"]),
        activation=JumpReLU(jnp.asarray(tensors["threshold"])),
        W_skip=None if skip is None else jnp.asarray(skip.T),
        apply_b_dec_to_input=False,
    )


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as e:
        raise UserError(f"{path} is no whole .npz of arrays: {e}. Download it again.") from None


_READ: Final = {".npz": _npz, ".safetensors": lambda path: dict(read_safetensors(path))}


def _suffix(path: Path) -> str:
    if path.suffix not in _READ:
        raise UserError(f"{path} is neither .npz nor .safetensors, which Gemma Scope comes in.")
    return path.suffix
