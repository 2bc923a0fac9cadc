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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...errors import UserError, unknown
from ...io import read_safetensors
from ..activations import AbsTopK, Activation, Gated, JumpReLU, Relu, TopK
from ..dictionary import SparseCoder
from ..matching_pursuit import MatchingPursuit
from . import strict
from .flat import to_v6
from .strict import Axes

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
SCALER: Final = "activation_scaler.json"
FILES: Final = (CONFIG, WEIGHTS, SCALER)

_DTYPES: Final = tuple(str(d) for d in strict.FLOATS)
_SAE: Final = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
_TRANSCODER: Final = {**_SAE, "W_dec": ("d_sae", "d_out"), "b_dec": ("d_out",)}
_PLAIN: Final = {name: _SAE[name] for name in ("W_enc", "W_dec", "b_dec")}
_TIED: Final = {name: _SAE[name] for name in ("W_dec", "b_dec")}
_FINETUNED: Final = "finetuning_scaling_factor"
_SKIP: Final = {"W_skip": ("d_out", "d_in")}
_THRESHOLD: Final = {"threshold": ("d_sae",)}
_GATES: Final = dict.fromkeys(("b_gate", "b_mag", "r_mag"), ("d_sae",))

type Parameters = dict[str, Array]


class _Architecture(NamedTuple):
    """What files of one architecture hold, and the dictionary that they mean."""

    tensors: Axes
    build: Callable[[Mapping[str, Any], Parameters, float], SparseCoder | MatchingPursuit]
    """From the config, the tensors, and the factor that inputs were multiplied by, which it folds."""
    counts: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    wrong: Callable[[Mapping[str, Any]], list[str]] = lambda config: []
    """What is wrong with the values of its flags."""


def _relu(config: Mapping[str, Any], p: Parameters) -> Activation:
    return Relu()


def _topk(config: Mapping[str, Any], p: Parameters) -> Activation:
    return TopK(config["k"])


def _abs_topk(config: Mapping[str, Any], p: Parameters) -> Activation:
    return AbsTopK(config["k"])


def _jump(config: Mapping[str, Any], p: Parameters) -> Activation:
    return JumpReLU(p["threshold"])


def _one_jump(config: Mapping[str, Any], p: Parameters) -> Activation:
    return JumpReLU(jnp.full_like(p["b_enc"], p["topk_threshold"].astype(p["b_enc"].dtype)))


def _gated(config: Mapping[str, Any], p: Parameters) -> Activation:
    return Gated(r_mag=p["r_mag"], b_mag=p["b_mag"], b_gate=p["b_gate"])


def _coder(
    activation: Callable[[Mapping[str, Any], Parameters], Activation],
) -> Callable[[Mapping[str, Any], Parameters, float], SparseCoder]:
    def build(config: Mapping[str, Any], p: Parameters, factor: float) -> SparseCoder:
        p = _folded(config, p, factor)
        return SparseCoder(
            W_enc=p["W_enc"],
            W_dec=p["W_dec"],
            b_enc=p["b_enc"] if "b_enc" in p else jnp.zeros_like(p["b_gate"]),
            b_dec=p["b_dec"],
            activation=activation(config, p),
            W_skip=p.get("W_skip"),
            apply_b_dec_to_input=config.get("apply_b_dec_to_input", "d_out" not in config),
            input_norm=NORMS[config.get("normalize_activations", "none")],
        )

    return build


_PURSUIT: Final = {"residual_threshold": 1e-2, "max_iterations": None, "stop_on_duplicate_support": True}
"""What SAELens takes where a config does not say."""


def _pursuit(config: Mapping[str, Any], p: Parameters, factor: float) -> MatchingPursuit:
    """Rows read and write, so a factor cancels in them; without apply_b_dec_to_input, b_dec is not added either."""
    says = {**_PURSUIT, **config}
    b_dec = p["b_dec"] if config.get("apply_b_dec_to_input", True) else jnp.zeros_like(p["b_dec"])
    return MatchingPursuit(
        W_dec=p["W_dec"],
        b_dec=strict.scaled(b_dec, 1 / factor),
        max_steps=says["max_iterations"] or config["d_in"],
        tolerance=says["residual_threshold"] / factor,
        stop_on_repeat=says["stop_on_duplicate_support"],
        input_norm=NORMS[config.get("normalize_activations", "none")],
    )


def _wrong_pursuit(config: Mapping[str, Any]) -> list[str]:
    threshold, steps, repeats = ({**_PURSUIT, **config}[key] for key in _PURSUIT)
    number = type(threshold) in (int, float) and 0 <= threshold < float("inf")
    problems = [] if number else [f"residual_threshold = {threshold!r} is no number of at least 0"]
    problems += [] if steps is None else strict.positive(config, "max_iterations")[1]
    return problems + (
        [] if type(repeats) is bool else [f"stop_on_duplicate_support = {repeats!r} is not true or false"]
    )


_RESCALED: Final = "rescale_acts_by_decoder_norm"
_BATCHTOPK: Final = _Architecture({**_SAE, "topk_threshold": ()}, _coder(_one_jump), flags=("k", _RESCALED))
ARCHITECTURES: Final = {
    "standard": _Architecture(_SAE, _coder(_relu)),
    "topk": _Architecture(_SAE, _coder(_topk), ("k",), (_RESCALED,)),
    "abstopk": _Architecture(_SAE, _coder(_abs_topk), ("k",), (_RESCALED,)),
    "jumprelu": _Architecture({**_SAE, **_THRESHOLD}, _coder(_jump)),
    "gated": _Architecture({**_PLAIN, **_GATES}, _coder(_gated)),
    "batchtopk": _BATCHTOPK,
    "matryoshka_batchtopk": _BATCHTOPK,
    "matching_pursuit": _Architecture(_TIED, _pursuit, flags=tuple(_PURSUIT), wrong=_wrong_pursuit),
    "transcoder": _Architecture(_TRANSCODER, _coder(_relu), ("d_out",)),
    "skip_transcoder": _Architecture({**_TRANSCODER, **_SKIP}, _coder(_relu), ("d_out",)),
    "jumprelu_transcoder": _Architecture({**_TRANSCODER, **_THRESHOLD}, _coder(_jump), ("d_out",)),
    "jumprelu_skip_transcoder": _Architecture({**_TRANSCODER, **_THRESHOLD, **_SKIP}, _coder(_jump), ("d_out",)),
}
SCALED: Final = "expected_average_only_in"
NORMS: Final = {"none": "none", SCALED: "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
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
    if config.get("architecture") not in ARCHITECTURES:
        raise unknown("architecture", config.get("architecture"), ARCHITECTURES, where=str(folder / CONFIG))
    architecture = ARCHITECTURES[config["architecture"]]
    tensors = _spelled(read_safetensors(folder / WEIGHTS))
    finetuned = config.get(_FINETUNED) and _FINETUNED in tensors and "W_enc" in architecture.tensors
    axes = {**architecture.tensors, **({_FINETUNED: ("d_sae",)} if finetuned else {})}
    sizes, problems = _checked(config, architecture)
    problems += _wrong_dtypes(config, {n: a for n, a in tensors.items() if n in axes})
    strict.check(folder, tensors, axes, sizes, says=f"{CONFIG} says", problems=problems)
    factor = _factor(folder, config, scaling_factor)
    return architecture.build(config, {n: jnp.asarray(a) for n, a in tensors.items()}, factor)


def v6_config(folder: Path) -> dict[str, Any]:
    """cfg.json as v6 writes it. Its "metadata" holds model_name, hook_name and what else SAELens keeps there."""
    config = strict.config_of(folder / CONFIG)
    if not isinstance(config.get("metadata", {}), dict):
        raise UserError(f"{folder / CONFIG}: metadata is not an object.")
    return config if "metadata" in config else to_v6(config)


def _checked(config: Mapping[str, Any], architecture: _Architecture) -> tuple[dict[str, int], list[str]]:
    """(sizes that the config states, what is wrong with it)."""
    known = {*_KNOWN, *architecture.counts, *architecture.flags}
    sizes, problems = strict.positive(config, "d_in", "d_sae", *architecture.counts)
    problems += [f"unknown key {key!r}" for key in sorted(set(config) - known)]
    norm, reshape = config.get("normalize_activations", "none"), config.get("reshape_activations", "none")
    if norm not in NORMS:
        problems.append(f"normalize_activations is {norm!r}, one of {', '.join(NORMS)} is read")
    if reshape not in _RESHAPES:
        problems.append(f"reshape_activations is {reshape!r}, one of {', '.join(_RESHAPES)} is read")
    if "d_out" in architecture.counts and norm != "none":
        problems.append(f"normalize_activations is {norm!r}, which a transcoder cannot undo")
    if "d_out" in architecture.counts and config.get("apply_b_dec_to_input"):
        problems.append("apply_b_dec_to_input is true, but a transcoder's b_dec is not of its input")
    problems += architecture.wrong(config)
    if "d_sae" in sizes and (k := sizes.pop("k", 1)) > sizes["d_sae"]:
        problems.append(f"k = {k} for {sizes['d_sae']} latents")
    return sizes, problems


def _wrong_dtypes(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> list[str]:
    dtype = str(config.get("dtype", "float32")).removeprefix("torch.")
    if dtype not in _DTYPES:
        return [f"dtype is {dtype!r}, one of {', '.join(_DTYPES)} is read"]
    named = [n for n in tensors if n != "topk_threshold"]  # a float64 scalar, whatever the others are
    return [f"{n} is {tensors[n].dtype}, {CONFIG} says {dtype}" for n in named if str(tensors[n].dtype) != dtype]


def _spelled(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Older names: log_threshold is the logarithm of threshold; a finetuning scale of ones scales nothing."""
    out = dict(tensors)
    if "log_threshold" in out and "threshold" not in out:
        log = out.pop("log_threshold")
        out["threshold"] = np.exp(log.astype(np.float32)).astype(log.dtype)
    if "scaling_factor" in out:
        out[_FINETUNED] = out.pop("scaling_factor")
    if _FINETUNED in out and (out[_FINETUNED] == 1).all():
        del out[_FINETUNED]
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
        given = strict.config_of(folder / SCALER).get("scaling_factor")
    factor = 1.0 if given is None else given
    if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise UserError(f"{folder}: scaling_factor is {factor!r}, not a number above 0.")
    return factor


def _folded(config: Mapping[str, Any], p: Parameters, s: float) -> Parameters:
    """Scales into the weights, in float32; a decoder row of zeros decodes to nothing either way."""
    p = dict(p)
    if _FINETUNED in p:
        p["W_dec"] = strict.scaled(p["W_dec"], p.pop(_FINETUNED)[:, None])
    if s != 1:
        p |= {"W_enc": strict.scaled(p["W_enc"], s)} | {n: strict.scaled(p[n], 1 / s) for n in ("W_dec", "b_dec")}
    if config.get(_RESCALED):
        norm = jnp.linalg.norm(p["W_dec"].astype(jnp.float32), axis=1)
        back = 1 / jnp.where(norm > 0, norm, jnp.float32(1))
        p |= {n: strict.scaled(p[n], norm) for n in ("W_enc", "b_enc")} | {
            "W_dec": strict.scaled(p["W_dec"], back[:, None])
        }
        if "topk_threshold" in p:  # in units of pre-activation times norm, which the division by s has changed
            p["topk_threshold"] = strict.scaled(p["topk_threshold"], 1 / s)
    return p
