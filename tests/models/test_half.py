# SPDX-License-Identifier: Apache-2.0
"""Half precision: what float16 cannot hold is said, with bfloat16; what it holds is as near to float32 as can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.inference import generate, steer_sweep
from jaxneuro.models import load
from jaxneuro.models.half import check_half
from jaxneuro.models.transformer import ACTS
from jaxneuro.taps import add

from ..parity.conftest import FIXTURES, open_case
from . import folders

INTO_AND_OUT = {  # of every MLP: what makes the neurons large, and what writes them to the residual stream
    "t5": ("DenseReluDense.wi.weight", "DenseReluDense.wo.weight"),
    "t5-encoder": ("DenseReluDense.wi.weight", "DenseReluDense.wo.weight"),
    "umt5": ("DenseReluDense.wi_1.weight", "DenseReluDense.wo.weight"),
    "llama-gqa": ("mlp.up_proj.weight", "mlp.down_proj.weight"),
    "vit": ("intermediate.dense.weight", "output.dense.weight"),
}
DOWN = "model.layers.0.mlp.down_proj.weight"


def scaled(case, folder):
    """Weights that float16 holds, and a residual stream that it does not."""
    into, out = INTO_AND_OUT[case]

    def change(tensors):
        new = {
            n: a * 50 if n.endswith(into) else np.sign(a) * 6e4 for n, a in tensors.items() if n.endswith((into, out))
        }
        return {**tensors, **{n: a.astype(np.float32) for n, a in new.items()}}

    return folders.rewrite(folders.copy(FIXTURES, case, folder), change)


@pytest.mark.parametrize("case", ["t5", "t5-encoder", "umt5", "llama-gqa", "vit"])
def test_a_residual_stream_beyond_float16_is_refused_at_load(case, tmp_path):
    folder = scaled(case, tmp_path)
    with pytest.raises(UserError, match=r"overflows in float16.*dtype='bfloat16'"):
        load(folder, dtype="float16")
    load(folder, dtype="bfloat16")
    load(folder, dtype="float16", allow_nonfinite=True)  # to look at it as it is


PEER_RMS = {"t5": 9.03e-4, "umt5": 9.32e-4, "llama-gqa": 1.227e-3, "vit": 6.59e-4}
"""Root mean square of transformers 5.24's float16 less its float32, over that of its float32, on the same inputs
(attention "eager", on a CPU)."""


@pytest.mark.parametrize("case", PEER_RMS)
def test_what_float16_holds_is_as_near_to_float32_as_transformers_is(case):
    """A number in 16 bits is off by up to 2^-11 of itself, so no small multiple of that is passed, and none is met.

    The largest difference is at most 1.75e-3 of the largest output. transformers has 1.02e-3 to 1.19e-3, so one
    thousandth is what float16 does not hold there either; the mean square is compared, as the largest of a few hundred
    roundings is chance. A quarter of it is left to chance, a half in T5, whose second matrix of an MLP, and with it the
    residual stream, transformers keeps in float32 whatever was asked for.
    """
    golden = open_case(case)
    tokens = golden.inputs[0]
    half = load(FIXTURES / case, dtype="float16")(
        tokens.astype(jnp.float16) if case == "vit" else tokens, golden.inputs[1], **golden.types
    )
    assert half.dtype == jnp.float16
    whole = np.asarray(load(FIXTURES / case, dtype="float32")(tokens, golden.inputs[1], **golden.types))[golden.mask]
    difference = np.abs(np.asarray(half, np.float32)[golden.mask] - whole)
    assert 2**-12 < difference.max() / np.abs(whole).max() < 1.75e-3
    rms = np.sqrt(np.square(difference).mean() / np.square(whole).mean())
    assert 0.5 < rms / PEER_RMS[case] < (1.5 if "t5" in case else 1.25)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ACTS)
def test_an_activation_in_16_bits_is_rounded_once(name, dtype):
    x = jnp.linspace(-8, 8, 4001, dtype=dtype)
    exact = np.asarray(ACTS[name](x.astype(jnp.float32)))
    error = np.abs(np.asarray(jax.jit(ACTS[name])(x), np.float32) - exact)
    half_a_step = float(jnp.finfo(dtype).eps) / 2 * np.abs(exact)
    assert (error <= 1.01 * half_a_step + 1e-6).all()  # 1 + tanh is off by as much where it is next to nothing


@pytest.fixture(scope="module")
def hot():
    """A decoder whose residual stream passes 65,504 at one token alone, which the look at load would not meet."""
    model = load(FIXTURES / "llama-gqa", dtype="float16")
    weights = jax.tree.map(lambda a: a, model.weights)
    weights["embed"]["tok"] = weights["embed"]["tok"].at[HOT].set(65504)
    weights["blocks"]["mlp"]["down"] = 200 * weights["blocks"]["mlp"]["down"]
    model = type(model)(model.cfg, weights)
    check_half(model.apply, weights, model.cfg, "")  # the look at load finds nothing
    return model


HOT = 4
NAMED = r"this llama model.* overflows in float16.*dtype='bfloat16'"


def test_text_that_overflows_later(hot):
    """What load does not meet is said where something is concrete: an output, what was generated, statistics."""
    cold, prompts = np.array([[1, 2, 3]], np.int32), np.array([[1, HOT, 3]], np.int32)
    generate(hot, cold, max_new=1)
    dose = lambda d: [add("blocks.0.resid_post", d * jnp.full(hot.cfg.d_model, 6e4, jnp.float16))]  # noqa: E731
    for call in (
        lambda: hot(prompts),
        lambda: generate(hot, prompts, max_new=2),
        lambda: generate(hot, cold, max_new=2, edits=dose(jnp.float16(2))),
        lambda: steer_sweep(hot, cold, dose, jnp.array([0, 2], jnp.float16)),
    ):
        with pytest.raises(UserError, match=NAMED):
            call()


def test_outputs_that_overflow_later_are_said_where_they_are_concrete(tmp_path):
    model = load(FIXTURES / "llama-gqa", dtype="float16")
    weights = jax.tree.map(lambda a: a, model.weights)
    mlp = weights["blocks"]["mlp"]
    mlp["up"], mlp["down"] = 50 * mlp["up"], jnp.sign(mlp["down"]) * jnp.float16(6e4)
    hot = type(model)(model.cfg, weights)
    with pytest.raises(UserError, match="this llama model overflows in float16"):
        hot(jnp.arange(6)[None])
    assert not bool(jnp.isfinite(jax.jit(hot.apply)(hot.weights, jnp.arange(6)[None])).all())


@pytest.mark.parametrize(("value", "dtype"), [(1e5, "float16"), (3.4028e38, "bfloat16"), (65519.0, "float16")])
def test_a_cast_that_overflows_names_the_tensor_its_largest_value_and_the_way_out(value, dtype, tmp_path):
    name = DOWN
    case = folders.copy(FIXTURES, "llama-gqa", tmp_path)
    big = folders.rewrite(case, lambda t: {**t, name: np.full_like(t[name], value)})
    if value == 65519.0:  # rounds to the largest
        with pytest.raises(UserError, match="overflows in float16"):
            load(big, dtype=dtype)
        return
    with pytest.raises(UserError) as e:
        load(big, dtype=dtype)
    for part in (name, f"{np.float32(value):g}", dtype, "float32"):
        assert part in str(e.value)
    assert "Download" not in str(e.value)
    load(big, dtype="float32")


def test_a_file_that_is_not_finite_is_still_one(tmp_path):
    name = DOWN
    case = folders.copy(FIXTURES, "llama-gqa", tmp_path)
    folders.rewrite(case, lambda t: {**t, name: np.full_like(t[name], np.inf)})
    with pytest.raises(UserError, match=f"NaN or infinity in {name}. Download it again"):
        load(case, dtype="float16")


def test_float64_is_not_taken_for_float32():
    with pytest.raises(UserError, match="no weights of dtype 'float64'"):
        load(FIXTURES / "gpt2", dtype="float64")


CONVNETS = FIXTURES.parent / "convnets"


@pytest.mark.parametrize("case", ["resnet-basic", "timm-densenet"])
def test_a_convolutional_network_beyond_float16_is_refused_too(case, tmp_path):
    folder = folders.copy(CONVNETS, case, tmp_path)
    folders.rewrite(folder, lambda tensors: {n: a * np.float32(300) if a.ndim == 4 else a for n, a in tensors.items()})
    with pytest.raises(UserError, match=r"overflows in float16.*dtype='bfloat16'"):
        load(folder, dtype="float16")
    pixels = load(folder).example() + jnp.float32(1)
    assert jnp.isfinite(load(folder, dtype="bfloat16")(pixels)).all()
    raw = load(folder, dtype="float16", allow_nonfinite=True)  # to look at it as it is
    with pytest.raises(UserError, match=r"this \w+ model overflows in float16"):
        raw(pixels)
    plain = [load(CONVNETS / case, dtype=dtype)(pixels).astype(jnp.float32) for dtype in ("float16", "float32")]
    np.testing.assert_allclose(*plain, atol=1e-2 * float(jnp.abs(plain[1]).max()))
