# SPDX-License-Identifier: Apache-2.0
# pyright: reportArgumentType=false, reportCallIssue=false
"""A method's numbers: what is none is one sentence when the method is made, not a traceback in its first step."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro import dictionaries as d
from jaxneuro.errors import UserError

METHODS = {
    "topk": {"k": 2},
    "batch_topk": {"k": 2},
    "matryoshka": {"k": 2},
    "group_max": {"k": 2},
    "multi_topk": {"k": 1},
    "transcoder": {"k": 2},
    "crosscoder": {"k": 2, "widths": (3, 3)},
    "matching_pursuit": {"k": 2},
    "cross_layer_transcoder": {"n_layers": 2, "k": 2},
    "relu": {"l1": 0.1},
    "gated": {"l1": 0.1},
    "jumprelu": {"target_l0": 2.0},
    "atoms": {"target_l0": 2.0},
    "semi_nmf": {"sparsity": 0.2},
    "kmeans": {},
    "pca": {},
}
NO_NUMBER = ("4", True, None, float("nan"), [2])


def made(name, **given):
    return getattr(d, name)(**{"n_latents": 8, **METHODS[name], **given})


@pytest.mark.parametrize("name", METHODS)
def test_what_is_no_number_is_refused_by_its_name(name):
    made(name)
    for option in ("n_latents", *(o for o in METHODS[name] if o != "widths")):
        for value in NO_NUMBER:
            if value is not None or option in ("n_latents", "l1"):
                with pytest.raises(UserError, match=option):
                    made(name, **{option: value})


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_whole_and_of_32_bits(name):
    for option in {"n_latents", "k"} & {"n_latents", *METHODS[name]}:
        for value in (2.5, 2.0, 2**40):
            with pytest.raises(UserError, match=rf"{option} = .* is not a whole number"):
                made(name, **{option: value})


def test_numbers_of_numpy_and_jax_are_numbers():
    made("topk", n_latents=np.int64(8), k=jnp.int32(2))
    made("relu", l1=np.float32(0.1))
    made("relu", l1=1)
    made("topk", k_start=None)
    with pytest.raises(UserError, match=r"k_steps = 2\.5"):
        made("topk", k_start=4, k_steps=2.5)


@pytest.mark.parametrize(
    "option", ["steps", "warmup_steps", "accumulate", "dead_after_tokens", "max_norm", "learning_rate"]
)
def test_numbers_of_the_training_too(option):
    d.Training(**{option: 3})
    for value in ("3", True, float("nan"), [3], *(() if option in ("max_norm", "learning_rate") else (2.5,))):
        with pytest.raises(UserError, match=f"Training: {option} = "):
            d.Training(**{option: value})


def test_numbers_of_the_auxiliary_loss_too():
    d.AuxK(weight=0.5, k=None)
    for option in ("weight", "k"):
        with pytest.raises(UserError, match=f"AuxK: {option} = "):
            d.AuxK(**{option: "3"})
