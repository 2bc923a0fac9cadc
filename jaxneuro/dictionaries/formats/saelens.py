# SPDX-License-Identifier: Apache-2.0
"""SAELens' folders: cfg.json beside sae_weights.safetensors; v6 read and written, the flat v5 read.

| architecture | activation | tensors besides W_enc, W_dec, b_dec |
|---|---|---|
| standard, transcoder, skip_transcoder | `Relu` | b_enc [+ W_skip] |
| topk, abstopk | `TopK`, `AbsTopK` | b_enc |
| jumprelu, jumprelu_transcoder, jumprelu_skip_transcoder | `JumpReLU` | b_enc, threshold or log_threshold [+ W_skip] |
| gated | `Gated` | b_gate, b_mag, r_mag |
| batchtopk, matryoshka_batchtopk (training files) | `JumpReLU` | b_enc, topk_threshold |
| matching_pursuit | a `MatchingPursuit` | W_dec and b_dec alone |

Source: SAELens 6.54 and 5.11 (saes/*.py, loading/pretrained_sae_loaders.py).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from ...errors import UserError, quoted, shown, unknown
from ...io import read_safetensors
from ...io.fields import FLAG, TEXT, Fields, choice, null_or, number
from ..dictionary import SparseCoder
from ..matching_pursuit import MatchingPursuit
from . import strict
from .architectures import ARCHITECTURES, FINETUNED, NORMS, SCALED, Architecture
from .flat import to_v6

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
SCALER: Final = "activation_scaler.json"
FILES: Final = (CONFIG, WEIGHTS, SCALER)

_DTYPES: Final = tuple(str(d) for d in strict.FLOATS)
_RESHAPES: Final = ("none", "hook_z")
_KNOWN: Final = {
    *("architecture", "normalize_activations", "reshape_activations", "apply_b_dec_to_input", "metadata"),
    *("d_in", "d_sae", "dtype", "device", "finetuning_scaling_factor"),
    # What training checkpoints add: it shaped the weights and does not change what they compute.
    *("decoder_init_norm", "l1_coefficient", "lp_norm", "l1_warm_up_steps", "l0_coefficient", "l0_warm_up_steps"),
    *("jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode", "pre_act_loss_coefficient"),
    *("jumprelu_tanh_scale", "jumprelu_ste_to_input", "target_l0", "use_sparse_activations", "aux_loss_coefficient"),
    *("topk_threshold_lr", "matryoshka_widths", "use_matryoshka_aux_loss"),
}


def load_saelens(
    name: str | os.PathLike,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    scaling_factor: float | None = None,
) -> SparseCoder | MatchingPursuit:
    """Read a dictionary in SAELens' layout: v6 of every architecture in the table above, v5 and older (flat cfg.json).

    Of SAELens' architectures "temporal" alone is not read: it attends over a sequence, so that its latents are no
    function of one token.

    Folded, as SAELens folds them after training: a scaling factor s of the inputs (W_enc s, W_dec / s, b_dec / s:
    latents stay in normalised units); with `rescale_acts_by_decoder_norm` the norm n_i of decoder row i
    (W_enc[:, i] n_i, b_enc[i] n_i, W_dec[i] / n_i); a finetuning scale (W_dec[i] s_i). Matching pursuit, whose rows
    read and write, has b_dec / s and its threshold / s: its latents are in the input's units. "hook_z" files take the
    heads concatenated.

    Args:
      name: a folder, or a repository of the Hugging Face Hub.
      subfolder: the folder inside it (SAELens' sae_id).
      revision: branch, tag or commit of a Hub repository.
      scaling_factor: for files that say "expected_average_only_in"; None: from activation_scaler.json.
    Raises:
      UserError: everything that is missing, unknown or of the wrong shape, at once; an architecture or normalisation
        that is not read, which would silently change what the numbers mean.
    """
    folder = strict.folder_of(name, subfolder, revision, FILES)
    config = v6_config(folder)
    called = config.get("architecture")
    if not isinstance(called, str) or called not in ARCHITECTURES:
        raise unknown("architecture", called, ARCHITECTURES, where=folder / CONFIG)
    architecture = ARCHITECTURES[called]
    stored = read_safetensors(folder / WEIGHTS)
    if config.get(FINETUNED) is True and not {FINETUNED, "scaling_factor"} & set(stored):
        config.note(f"{FINETUNED} is true, but {WEIGHTS} holds none")
    tensors = _spelled(stored)
    finetuned = config.get(FINETUNED) and FINETUNED in tensors and "W_enc" in architecture.tensors
    axes = {**architecture.tensors, **({FINETUNED: ("d_sae",)} if finetuned else {})}
    sizes = _checked(config, architecture)
    tensors |= _in_dtype(config, {n: a for n, a in tensors.items() if n in axes and n != "topk_threshold"})
    strict.check(folder, tensors, axes, sizes, says=f"{CONFIG} says", problems=config.problems)
    factor = _factor(folder, config, scaling_factor)
    return architecture.build(config, {n: jnp.asarray(a) for n, a in tensors.items()}, factor)


def v6_config(folder: Path) -> Fields:
    """cfg.json as v6 writes it. Its "metadata" holds model_name, hook_name and what else SAELens keeps there."""
    config = strict.config_of(folder / CONFIG)
    if not isinstance(config.get("metadata", {}), dict):
        raise UserError(f"{shown(folder / CONFIG)}: metadata is not an object.")
    return config if "metadata" in config else Fields(to_v6(config), folder / CONFIG)


def _checked(config: Fields, architecture: Architecture) -> dict[str, int]:
    """Sizes that the config states; what is wrong with it is noted."""
    sizes = strict.sizes_of(config, "d_in", "d_sae", *architecture.counts)
    config.only(*sorted(_KNOWN), *architecture.counts, *architecture.flags)
    norm = config.read("normalize_activations", choice(NORMS), "none")
    config.read("reshape_activations", choice(_RESHAPES), "none")
    config.read(FINETUNED, null_or(FLAG), False)
    subtracts = config.read("apply_b_dec_to_input", FLAG, False)
    if "d_out" in architecture.counts and norm != "none":
        config.note(f"normalize_activations is {norm!r}, which a transcoder cannot undo")
    if "d_out" in architecture.counts and subtracts:
        config.note("apply_b_dec_to_input is true, but a transcoder's b_dec is not of its input")
    architecture.check(config)
    if "d_sae" in sizes and (k := sizes.pop("k", 1)) > sizes["d_sae"]:
        config.note(f"k = {k} for {sizes['d_sae']} latents")
    return sizes


def _in_dtype(config: Fields, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In the type that the config states, as SAELens reads them, if they are of one type; else that is noted."""
    dtype = config.read("dtype", TEXT, "float32").removeprefix("torch.")
    found = {name: str(a.dtype) for name, a in tensors.items()}
    if dtype not in _DTYPES:
        config.note(f"dtype is {quoted(dtype)}, one of {', '.join(_DTYPES)} is read")
    elif len(set(found.values())) > 1:
        config.note(f"tensors of several types ({', '.join(f'{n} {d}' for n, d in found.items())}) are not read")
    elif set(found.values()) < set(_DTYPES):
        with np.errstate(over="ignore"):  # what overflows is infinite, which `strict.check` refuses
            return {name: a.astype(jnp.dtype(dtype)) for name, a in tensors.items()}
    return {}


def _spelled(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Older names: log_threshold is the logarithm of threshold; a finetuning scale of ones scales nothing."""
    out = dict(tensors)
    if "log_threshold" in out and "threshold" not in out:
        log = out.pop("log_threshold")
        finite = np.isfinite(log).all()  # else `strict.check` refuses it: exp(-inf) would be 0
        out["threshold"] = np.exp(log.astype(np.float32)).astype(log.dtype) if finite else log
    if "scaling_factor" in out:
        out[FINETUNED] = out.pop("scaling_factor")
    if FINETUNED in out and (out[FINETUNED] == 1).all():
        del out[FINETUNED]
    return out


def _factor(folder: Path, config: Mapping[str, Any], given: float | None) -> float:
    """What the inputs were multiplied by."""
    scaled = config.get("normalize_activations") == SCALED
    if given is not None and not scaled:
        raise UserError(f"{folder / CONFIG} says nothing of a scaling factor. Leave scaling_factor={given} out.")
    if scaled and given is None:
        if not (folder / SCALER).exists():
            raise UserError(
                f"{folder / CONFIG}: inputs were multiplied by a factor ({SCALED}) that it does not hold. "
                f"Give scaling_factor=, sqrt(d_in) / their mean norm in training, or {SCALER}."
            )
        with strict.config_of(folder / SCALER) as scaler:
            given = scaler.read("scaling_factor", null_or(_FACTOR), None)
    return 1.0 if given is None else _FACTOR.of(given, f"{folder}: scaling_factor")


_FACTOR: Final = number(above=0, high=strict.LARGEST_ACTIVATION)
