# SPDX-License-Identifier: Apache-2.0
"""Half precision: what float16 cannot hold is said, with bfloat16; what it holds is within 1e-3 of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import load

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


@pytest.mark.parametrize("case", ["t5", "llama-gqa", "vit"])
def test_what_float16_holds_is_near_float32(case):
    golden = open_case(case)
    tokens = golden.inputs[0].astype(jnp.float16) if case == "vit" else golden.inputs[0]
    out = load(FIXTURES / case, dtype="float16")(tokens, golden.inputs[1], **golden.types)
    assert out.dtype == jnp.float16
    difference = np.abs(np.asarray(out, np.float32) - golden.golden["out"])[golden.mask]
    assert difference.max() < 2e-3 * np.abs(golden.golden["out"]).max()  # eleven bits, a few layers


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
