# SPDX-License-Identifier: Apache-2.0
"""dictionary_learning's folders: config.json, which names a class, beside ae.pt, its state dict.

| dict_class | activation | differs in |
|---|---|---|
| AutoEncoder | `Relu` | its bias is called `bias` |
| AutoEncoderNew | `Relu` | subtracts nothing from the input |
| GatedAutoEncoder | `Gated` | |
| AutoEncoderTopK | `TopK` | holds a threshold that it does not use |
| BatchTopKSAE, MatryoshkaBatchTopKSAE | `JumpReLU` with one threshold | relu, then above the threshold |
| JumpReluAutoEncoder | `JumpReLU` | subtracts nothing from the input |

Latents are in raw units: on saving the library multiplies biases and thresholds by its norm factor. Source:
dictionary_learning 0.1.0, dictionary.py and trainers/*.py.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import jax.numpy as jnp
import numpy as np

from ...errors import UserError, shown, unknown
from ..activations import Activation, Gated, JumpReLU, Relu, TopK
from ..dictionary import SparseCoder
from . import strict
from .strict import Axes

CONFIG: Final = "config.json"
WEIGHTS: Final = "ae.pt"
FILES: Final = (CONFIG, WEIGHTS)
type Stored = Mapping[str, np.ndarray]


class _Class(NamedTuple):
    """What one class stores, which of it is which parameter, and the activation it means."""

    tensors: Axes
    names: Mapping[str, str]  # of W_enc, W_dec, b_enc, b_dec in the file; a "T " before those that are transposed
    activation: Callable[[Stored, int], Activation]  # of what is stored, and k
    subtracts: bool = True
    optional: tuple[str, ...] = ()


def _relu(p: Stored, k: int) -> Activation:
    return Relu()


def _topk(p: Stored, k: int) -> Activation:
    return TopK(k)


def _threshold(p: Stored, k: int) -> Activation:
    return JumpReLU(jnp.asarray(p["threshold"]))


def _gated(p: Stored, k: int) -> Activation:
    return Gated(*(jnp.asarray(p[name]) for name in ("r_mag", "mag_bias", "gate_bias")))


_LINEAR: Final = {"encoder.weight": ("n_latents", "d_in"), "decoder.weight": ("d_in", "n_latents")}
_PLAIN: Final = {
    "W_enc": ("d_in", "n_latents"),
    "b_enc": ("n_latents",),
    "W_dec": ("n_latents", "d_in"),
    "b_dec": ("d_in",),
}
_WEIGHTS: Final = {"W_enc": "T encoder.weight", "W_dec": "T decoder.weight"}
_LINEAR_NAMES: Final = {**_WEIGHTS, "b_enc": "encoder.bias", "b_dec": "b_dec"}
_PLAIN_NAMES: Final = {name: name for name in _PLAIN}
_BUFFERS: Final = {"k": (), "threshold": ()}
_TOPK: Final = {**_LINEAR, "encoder.bias": ("n_latents",), "b_dec": ("d_in",), **_BUFFERS}
_CLASSES: Final = {
    "AutoEncoder": _Class(
        {**_LINEAR, "encoder.bias": ("n_latents",), "bias": ("d_in",)}, {**_LINEAR_NAMES, "b_dec": "bias"}, _relu
    ),
    "AutoEncoderNew": _Class(
        {**_LINEAR, "encoder.bias": ("n_latents",), "decoder.bias": ("d_in",)},
        {**_LINEAR_NAMES, "b_dec": "decoder.bias"},
        _relu,
        subtracts=False,
    ),
    "GatedAutoEncoder": _Class(
        {**_LINEAR, **dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), ("n_latents",)), "decoder_bias": ("d_in",)},
        {**_WEIGHTS, "b_dec": "decoder_bias"},  # the gate has its own bias
        _gated,
    ),
    "AutoEncoderTopK": _Class(_TOPK, _LINEAR_NAMES, _topk, optional=("k", "threshold")),
    "BatchTopKSAE": _Class(_TOPK, _LINEAR_NAMES, _threshold),
    "MatryoshkaBatchTopKSAE": _Class({**_PLAIN, **_BUFFERS, "group_sizes": ("groups",)}, _PLAIN_NAMES, _threshold),
    "JumpReluAutoEncoder": _Class({**_PLAIN, "threshold": ("n_latents",)}, _PLAIN_NAMES, _threshold, subtracts=False),
}


def load_dictionary_learning(
    name: str | os.PathLike, *, subfolder: str | None = None, revision: str | None = None, weights: str = WEIGHTS
) -> SparseCoder:
    """Read a trainer's folder ("trainer_0"); the .pt file is not unpickled (jaxneuro.io.torch_file).

    The decoder stays as it is stored: the library's `AutoEncoder.from_pretrained` rescales it to unit rows unless told
    otherwise, which scales the latents of "April update" files.

    Args:
      name: a folder, or a repository of the Hugging Face Hub.
      subfolder: the trainer's folder inside it.
      revision: branch, tag or commit of a Hub repository.
      weights: another state dict of the folder, such as "checkpoints/ae_1000.pt".
    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once; a threshold that was never set
        (-1); a backup, which is a training state and not a dictionary.
    """
    folder = strict.folder_of(name, subfolder, revision, (CONFIG, weights))
    config = strict.config_of(folder / CONFIG)
    if not isinstance(config.get("trainer"), dict):
        raise UserError(f"{shown(folder / CONFIG)} has no object 'trainer'.")
    trainer = config.group("trainer")
    called = trainer.get("dict_class")
    if not isinstance(called, str) or called not in _CLASSES:
        raise unknown("dict_class", called, _CLASSES, where=folder / CONFIG)
    stored = strict.state_dict(folder / weights)
    cls = _CLASSES[called]
    stated = strict.sizes_of(trainer, "activation_dim", "dict_size", *(("k",) if "k" in cls.tensors else ()))
    sizes = {"d_in": stated.get("activation_dim"), "n_latents": stated.get("dict_size")}
    strict.check(
        folder / weights,
        stored,
        cls.tensors,
        {axis: n for axis, n in sizes.items() if n},
        says=f"{CONFIG} says",
        optional=cls.optional,
        integers=("k", "group_sizes"),
        problems=[*trainer.problems, *_untrue(cls, stored, stated)],
    )
    p = {ours: _part(stored, theirs) for ours, theirs in cls.names.items()}
    return SparseCoder(
        W_enc=p["W_enc"],
        W_dec=p["W_dec"],
        b_enc=p["b_enc"] if "b_enc" in p else jnp.zeros_like(p["W_dec"][:, 0]),
        b_dec=p["b_dec"],
        activation=cls.activation(stored, stated.get("k", 0)),
        apply_b_dec_to_input=cls.subtracts,
    )


def _part(stored: Stored, name: str):
    return jnp.asarray(stored[name[2:]].T if name.startswith("T ") else stored[name])


def _untrue(cls: _Class, stored: Stored, stated: Mapping[str, int]) -> list[str]:
    """What tensors of the right shapes may still say wrongly."""
    problems = []
    if "k" in stored and "k" in stated and stored["k"].size == 1 and int(stored["k"].item()) != stated["k"]:
        problems.append(f"k is {int(stored['k'].item())}, {CONFIG} says {stated['k']}")
    if stated.get("k", 0) > stated.get("dict_size", np.inf):
        problems.append(f"k = {stated['k']} for {stated['dict_size']} latents")
    # A threshold of one latent that was learned below 0 acts as 0, there and in `JumpReLU`.
    threshold = stored.get("threshold")
    if "k" in cls.tensors and cls.activation is _threshold and threshold is not None and (threshold == -1).any():
        problems.append("its threshold is -1: it was never set in training, so nothing says which latents are on")
    groups = stored.get("group_sizes")
    if groups is not None and int(groups.sum()) != stated.get("dict_size"):
        problems.append(f"group_sizes add up to {int(groups.sum())}, {CONFIG} says {stated.get('dict_size')}")
    return problems
