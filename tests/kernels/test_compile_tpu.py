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
    """A few blocks of pre-activations, of 32 at 8,192 tokens (XLA pads groups of 16 to 128 lanes)."""
    *operands, k = encoder(name)
    temp = temp_bytes(functools.partial(encode_tpu.encode_topk, k=k), generation, *operands)
    tokens, _, n, _ = SHAPES[name]
    assert temp < tokens * n * 4 / 7


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
    assert temp < 8192 * 32768 * 4 / 7  # x itself is not copied


@pytest.mark.parametrize(("dtype", "generation"), [("float32", "v5e"), ("bfloat16", "v6e")])
@pytest.mark.parametrize(("n", "k"), [(3072, 300), (14336, 1400)])
def test_mask_takes_no_memory(n, k, dtype, generation):
    def masked(h):
        return jnp.where(mask_tpu.topk_mask(h, k), h, jnp.zeros((), h.dtype))

    assert temp_bytes(masked, generation, ((8192, n), jnp.dtype(dtype))) < 32 << 20


def test_under_vmap():
    temp_bytes(jax.vmap(lambda x: topk_tpu.topk(x, 7)), "v5e", ((3, 100, 1024), jnp.float32))
    temp_bytes(jax.vmap(lambda x: mask_tpu.topk_mask(x, 300)), "v5e", ((3, 100, 1024), jnp.float32))
    encode = jax.vmap(functools.partial(encode_tpu.encode_topk, k=7), (0, None, None))
    temp_bytes(encode, "v5e", ((3, 100, 256), jnp.bfloat16), ((1024, 256), jnp.bfloat16), ((1024,), jnp.float32))
