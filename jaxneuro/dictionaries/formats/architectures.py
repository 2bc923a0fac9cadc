# SPDX-License-Identifier: Apache-2.0
"""SAELens' architectures: the tensors that files of each hold, and the dictionary that they mean, scales folded in."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ...io.fields import FLAG, Fields, null_or, number, whole
from ..activations import AbsTopK, Activation, Gated, JumpReLU, Relu, TopK
from ..dictionary import SparseCoder
from ..matching_pursuit import MatchingPursuit
from . import strict
from .strict import Axes

_SAE: Final = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
_TRANSCODER: Final = {**_SAE, "W_dec": ("d_sae", "d_out"), "b_dec": ("d_out",)}
_PLAIN: Final = {name: _SAE[name] for name in ("W_enc", "W_dec", "b_dec")}
_TIED: Final = {name: _SAE[name] for name in ("W_dec", "b_dec")}
FINETUNED: Final = "finetuning_scaling_factor"
_SKIP: Final = {"W_skip": ("d_out", "d_in")}
_THRESHOLD: Final = {"threshold": ("d_sae",)}
_GATES: Final = dict.fromkeys(("b_gate", "b_mag", "r_mag"), ("d_sae",))
SCALED: Final = "expected_average_only_in"
NORMS: Final = {"none": "none", SCALED: "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
_RESCALED: Final = "rescale_acts_by_decoder_norm"

type Parameters = dict[str, Array]


class Architecture(NamedTuple):
    """What files of one architecture hold, and the dictionary that they mean."""

    tensors: Axes
    build: Callable[[Mapping[str, Any], Parameters, float], SparseCoder | MatchingPursuit]
    """From the config, the tensors, and the factor that inputs were multiplied by, which it folds."""
    counts: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    check: Callable[[Fields], Any] = lambda config: None
    """Reads the values of its flags, by kind."""


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


def _folded(config: Mapping[str, Any], p: Parameters, s: float) -> Parameters:
    """Scales into the weights, in float32; a decoder row of zeros decodes to nothing either way."""
    p = dict(p)
    if FINETUNED in p:
        p["W_dec"] = strict.scaled(p["W_dec"], p.pop(FINETUNED)[:, None])
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


def _check_pursuit(config: Fields) -> None:
    config.read("residual_threshold", number(low=0, high=1e6), 0.0)
    config.read("max_iterations", null_or(whole(1, 1 << 16)), None)
    config.read("stop_on_duplicate_support", FLAG, True)


def _check_rescaled(config: Fields) -> None:
    config.read(_RESCALED, FLAG, False)


_BATCHTOPK: Final = Architecture(
    {**_SAE, "topk_threshold": ()}, _coder(_one_jump), flags=("k", _RESCALED), check=_check_rescaled
)
ARCHITECTURES: Final = {
    "standard": Architecture(_SAE, _coder(_relu)),
    "topk": Architecture(_SAE, _coder(_topk), ("k",), (_RESCALED,), _check_rescaled),
    "abstopk": Architecture(_SAE, _coder(_abs_topk), ("k",), (_RESCALED,), _check_rescaled),
    "jumprelu": Architecture({**_SAE, **_THRESHOLD}, _coder(_jump)),
    "gated": Architecture({**_PLAIN, **_GATES}, _coder(_gated)),
    "batchtopk": _BATCHTOPK,
    "matryoshka_batchtopk": _BATCHTOPK,
    "matching_pursuit": Architecture(_TIED, _pursuit, flags=tuple(_PURSUIT), check=_check_pursuit),
    "transcoder": Architecture(_TRANSCODER, _coder(_relu), ("d_out",)),
    "skip_transcoder": Architecture({**_TRANSCODER, **_SKIP}, _coder(_relu), ("d_out",)),
    "jumprelu_transcoder": Architecture({**_TRANSCODER, **_THRESHOLD}, _coder(_jump), ("d_out",)),
    "jumprelu_skip_transcoder": Architecture({**_TRANSCODER, **_THRESHOLD, **_SKIP}, _coder(_jump), ("d_out",)),
}
