# SPDX-License-Identifier: Apache-2.0
"""sparsify's folders: cfg.json beside sae.safetensors; autoencoders, transcoders, skips; TopK and group-max.

    pre = (x - [b_dec]) encoder.weight^T + encoder.bias;   y = topk(relu(pre)) W_dec + b_dec + [x W_skip^T]

W_dec is [n_latents, d_out] in the file: it is not transposed. b_dec is subtracted unless `transcode`. Source: sparsify
(PyPI eai-sparsify) 1.3.3, sparse_coder.py. SAELens' own loader of these files transposes W_dec and takes
`normalize_decoder` for `transcode`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from ...errors import UserError, shown
from ...io import read_safetensors, write_json, write_safetensors
from ...io.fields import FLAG, Fields, choice, whole
from ..activations import GroupMax, TopK
from ..dictionary import SparseCoder
from ..places import OURS, Placement, own_words
from . import strict

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae.safetensors"
FILES: Final = (CONFIG, WEIGHTS)
_TENSORS: Final = {
    "encoder.weight": ("n_latents", "d_in"),
    "encoder.bias": ("n_latents",),
    "W_dec": ("n_latents", "d_out"),
    "b_dec": ("d_out",),
}
_SKIP: Final = {"W_skip": ("d_out", "d_in")}
_ACTIVATIONS: Final = {"topk": TopK, "groupmax": GroupMax}
_FLAGS: Final = ("transcode", "skip_connection", "normalize_decoder", "multi_topk", "signed")
_OF_TRAINING: Final = {"expansion_factor": 32, "normalize_decoder": True, "multi_topk": False}
"""What shaped the weights and does not change what they compute, with sparsify's defaults."""


def load_sparsify(name: str | os.PathLike, *, subfolder: str | None = None, revision: str | None = None) -> SparseCoder:
    """Read one hook point's folder ("layers.10.mlp") of sparsify.

    Fields that older releases did not write mean what they meant then: TopK, no transcoder, no skip. Keys that this
    table does not know are ignored, as sparsify ignores them; `signed` latents are refused.

    Args:
      name: a folder, or a repository of the Hugging Face Hub.
      subfolder: the hook point.
      revision: branch, tag or commit of a Hub repository.
    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once.
    """
    folder = strict.folder_of(name, subfolder, revision, FILES)
    config, tensors = strict.config_of(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    counts = strict.sizes_of(config, "d_in", "k")
    activation = config.read("activation", choice(_ACTIVATIONS), "topk")
    flags = {key: config.read(key, FLAG, False) for key in _FLAGS}
    if flags["signed"]:
        config.note("signed latents are not read: they may be below 0")
    n_latents = _n_latents(config, counts.get("d_in", 0))
    stated = {"d_in": counts.get("d_in"), "d_out": None if flags["transcode"] else counts.get("d_in")}
    sizes = {axis: n for axis, n in {**stated, "n_latents": n_latents}.items() if n}
    axes = _TENSORS | (_SKIP if flags["skip_connection"] else {})
    sizes = strict.check(folder, tensors, axes, sizes, says=f"{CONFIG} says", problems=config.problems)
    k, n = counts["k"], sizes["n_latents"]
    if k > n or (activation == "groupmax" and n % k):
        raise UserError(f"{shown(folder)}: {activation} with k = {k} for {n} latents.")
    return SparseCoder(
        W_enc=jnp.asarray(tensors["encoder.weight"].T),
        W_dec=jnp.asarray(tensors["W_dec"]),
        b_enc=jnp.asarray(tensors["encoder.bias"]),
        b_dec=jnp.asarray(tensors["b_dec"]),
        activation=_ACTIVATIONS[activation](k),
        W_skip=jnp.asarray(tensors["W_skip"]) if flags["skip_connection"] else None,
        apply_b_dec_to_input=not flags["transcode"],
    )


def _n_latents(config: Fields, d_in: int) -> int:
    """What the config says, 0 if nothing. num_latents 0 stands for d_in * expansion_factor."""
    before = len(config.problems)
    stated = [config.read(key, whole(0), 0) for key in ("num_latents", "expansion_factor")]
    return (stated[0] or d_in * stated[1]) if len(config.problems) == before else 0


def save_sparsify(
    dictionary: SparseCoder,
    folder: str | os.PathLike,
    metadata: Mapping[str, Any] | None = None,
    *,
    place: Placement | None = None,
) -> Path:
    """Write a dictionary as sparsify reads it.

    Args:
      dictionary: with TopK or GroupMax; d_in = d_out, as sparsify's config holds one width.
      folder: of one hook point; made if need be. The config is written last.
      metadata: expansion_factor, normalize_decoder, multi_topk and whatever else the config should keep.
      place: where the dictionary belongs, kept under a key of ours: sparsify says it by the folder's name alone, a
        module of the Hugging Face model ("layers.10.mlp": `places.sparsify_hookpoint`).
    Raises:
      UserError: a dictionary that sparsify cannot hold, NaN or infinity in the arrays, a folder that cannot be written.
    """
    if not isinstance(dictionary, SparseCoder):
        raise strict.no_layout("sparsify", dictionary, SparseCoder)
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    d = dictionary
    problems = []
    if type(d.activation) not in names:
        problems.append(f"its activation is {type(d.activation).__name__}, sparsify has {', '.join(_ACTIVATIONS)}")
    if d.d_in != d.d_out:
        problems.append(f"d_in is {d.d_in} and d_out {d.d_out}, sparsify has one width")
    if d.input_norm != "none":
        problems.append(f"its input_norm is {d.input_norm}, sparsify has none")
    if problems:
        raise UserError(f"sparsify has no layout for this dictionary: {'; '.join(problems)}.")
    tensors = {"encoder.weight": np.asarray(d.W_enc).T, "encoder.bias": d.b_enc, "W_dec": d.W_dec, "b_dec": d.b_dec}
    arrays = strict.arrays(tensors if d.W_skip is None else {**tensors, "W_skip": d.W_skip})
    folder = Path(folder)
    write_safetensors(folder / WEIGHTS, arrays)
    config = {
        **_OF_TRAINING,
        **({OURS: own_words(place)} if place else {}),
        **(metadata or {}),
        "activation": names[type(d.activation)],
        "num_latents": d.n_latents,
        "k": d.k,
        "skip_connection": d.W_skip is not None,
        "transcode": not d.apply_b_dec_to_input,
        "d_in": d.d_in,
    }
    write_json(folder / CONFIG, config)
    return folder
