# SPDX-License-Identifier: Apache-2.0
"""The TPU kernels through XLA and Mosaic for v5e and v6e, without one: they fit, and nothing is as large as pre."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest
from jaxneuro_kernels import aot
from jaxneuro_kernels.encode_topk import mosaic_tpu as encode_tpu
from jaxneuro_kernels.shapes import SHAPES
from jaxneuro_kernels.topk import mosaic_tpu as topk_tpu
from jaxneuro_kernels.topk.bins import REPAIR_ROWS
from jaxneuro_kernels.topk_mask import mosaic_tpu as mask_tpu

pytestmark = pytest.mark.skipif(
    aot.missing_wheels("tpu") is not None and "JAXNEURO_REQUIRE_COMPILERS" not in os.environ,
    reason=str(aot.missing_wheels("tpu")),
)


def temp_bytes(f, generation, *operands):
    compiled = aot.compile_tpu(f, *(jax.ShapeDtypeStruct(*o) for o in operands), generation=generation)
    assert "tpu_custom_call" in compiled.as_text()
    return compiled.memory_analysis().temp_size_in_bytes


def encoder(name, dtype=jnp.bfloat16, **larger):
    tokens, d, n, k = SHAPES[name]
    d = larger.get("d", d)
    return ((tokens, d), dtype), ((n, d), dtype), ((n,), jnp.float32), k


@pytest.mark.parametrize(
    ("name", "generation"),
    [("gpt2-32k", "v6e"), ("gemma2-131k", "v5e"), ("gemma2-131k", "v6e"), ("llama3-131k", "v5e")],
)
def test_encoder_memory_is_a_block_to_repair(name, generation):
    """Two blocks of pre-activations, where all of them would be 32 blocks at 8,192 tokens."""
    *operands, k = encoder(name)
    temp = temp_bytes(functools.partial(encode_tpu.encode_topk, k=k), generation, *operands)
    n = SHAPES[name][2]
    assert temp < 2.5 * REPAIR_ROWS * n * 4 < operands[0][0][0] * n * 4 / 8


@pytest.mark.parametrize(
    ("operands", "generation"),
    [
        (encoder("gemma2-131k-128"), "v6e"),
        (encoder("gpt2-32k", jnp.float32), "v5e"),
        (encoder("gpt2-32k", d=32768), "v5e"),
    ],
    ids=["k 128", "float32", "d in parts"],
)
def test_encoder_kernels_fit(operands, generation):
    *operands, k = operands
    assert temp_bytes(functools.partial(encode_tpu.select, k=k), generation, *operands) < 32 << 20


@pytest.mark.parametrize(("dtype", "generation"), [("float32", "v5e"), ("bfloat16", "v6e")])
def test_topk_memory_is_a_block_to_repair(dtype, generation):
    temp = temp_bytes(lambda x: topk_tpu.topk(x, 32), generation, ((8192, 32768), jnp.dtype(dtype)))
    assert temp < 6 * REPAIR_ROWS * 32768 * 4  # x itself is not copied


@pytest.mark.parametrize(("dtype", "generation"), [("float32", "v5e"), ("bfloat16", "v6e")])
@pytest.mark.parametrize(("n", "k"), [(3072, 300), (14336, 1400)])
def test_mask_takes_no_memory(n, k, dtype, generation):
    def masked(h):
        return jnp.where(mask_tpu.topk_mask(h, k), h, jnp.zeros((), h.dtype))

    assert temp_bytes(masked, generation, ((8192, n), jnp.dtype(dtype))) < 32 << 20
