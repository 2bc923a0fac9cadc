# SPDX-License-Identifier: Apache-2.0
"""The Hopper kernels through XLA, Mosaic and ptxas for an H100, without one: registers, spills, memory."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest
from jaxneuro_kernels import aot, encode_topk, sae_adam, sparse_decode
from jaxneuro_kernels.shapes import OPS, SHAPES, case

from jaxneuro import dictionaries

pytestmark = pytest.mark.skipif(
    aot.missing_wheels("cuda") is not None and "JAXNEURO_REQUIRE_COMPILERS" not in os.environ,
    reason=str(aot.missing_wheels("cuda")),
)
KERNEL = 'custom_call_target="mosaic_gpu_v2"'
LARGE = ("gpt2-32k", "gemma2-131k-128", "llama3-131k")


def compiled(f, *operands):
    """The report. A kernel that this process compiled before has none, and was looked at then."""
    program, report = aot.compile_gpu(f, *operands)
    assert KERNEL in program.as_text()
    assert report.spilled_bytes == 0
    assert not report.serialized
    assert max(report.registers, default=0) <= 255
    return report


@pytest.mark.parametrize("op", OPS)
def test_no_spills_at_real_sizes(op):
    reported = 0
    for shape in LARGE:
        call, operands, _ = case(op, SHAPES[shape])
        reported += len(compiled(functools.partial(call, implementation="mosaic_gpu"), *operands).registers)
    assert reported >= 3


@pytest.mark.parametrize("op", ["sparse_decode", "sae_backward", "sae_adam", "topk"])
def test_float32_operands_too(op):
    call, operands, _ = case(op, SHAPES["gemma2-131k"], "float32")
    compiled(functools.partial(call, implementation="mosaic_gpu"), *operands)


@pytest.mark.parametrize("pre_dtype", ["float32", "bfloat16"])
def test_encoder_memory_is_one_block(pre_dtype):
    tokens, _, n, k = shape = SHAPES["gemma2-131k"]
    x, w, b = case("encode_topk", shape).operands
    call = functools.partial(encode_topk, pre_dtype=pre_dtype, implementation="mosaic_gpu")
    report = compiled(lambda x, w, b: call(x, w, b, k), x, w, b)
    assert report.temp_bytes < tokens * n * jnp.dtype(pre_dtype).itemsize / 3


def test_row_pass_memory_is_the_partial_sums():
    """No [tokens, n_latents] and no [tokens * k, d]: what sorting takes, and the parts of long latents."""
    tokens, d, _, k = shape = SHAPES["gemma2-131k"]
    call, operands, _ = case("sae_adam", shape)
    report = compiled(functools.partial(call, implementation="mosaic_gpu"), *operands)
    assert report.temp_bytes < tokens * k * d * 2 / 8


def test_a_whole_training_step():
    """Encode, decode, then every gradient and Adam in one pass; nothing dense is left."""
    tokens, d, n, k = shape = (8192, 768, 32768, 32)
    x = case("encode_topk", shape).operands[0]
    state = case("sae_adam", shape).operands[-3:]

    def step(x, parameters, first, second):
        w_enc, w_dec = (a.astype(jnp.bfloat16) for a in (parameters.w_enc, parameters.w_dec))
        vals, idx = encode_topk(x, w_enc, parameters.b_enc, k, implementation="mosaic_gpu")
        error = sparse_decode(vals, idx, w_dec, implementation="mosaic_gpu") - x.astype(jnp.float32)
        g = (2 / tokens * error).astype(jnp.bfloat16)
        out = sae_adam(
            *(vals, idx, g, x, parameters, first, second, 1),
            learning_rate=1e-3,
            w_dec=w_dec,
            unit_norm=True,
            implementation="mosaic_gpu",
        )
        return out[:3], jnp.sum(jnp.square(error))

    program, report = aot.compile_gpu(step, x, *state)
    assert report.temp_bytes < 1.5 * (1 << 30) + 2 * n * d * 2 + 4 * tokens * d * 4
    assert program.as_text().count(KERNEL) == 5  # matmul, selection, decode, parts, latents


def test_the_dictionaries_step():
    """jaxneuro's own TopK training step, AuxK included, with every sparse part a kernel."""
    method = dictionaries.topk(32768, 32, training=dictionaries.Training(dtype="bfloat16", implementation="mosaic_gpu"))
    batch = {"x": jax.ShapeDtypeStruct((8192, 768), jnp.float32)}
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    program, report = aot.compile_gpu(method.step, state, batch)
    assert program.as_text().count(KERNEL) == 5
    assert report.spilled_bytes == 0
    assert report.temp_bytes < 1.5 * (1 << 30)


def test_xla_selects_without_a_sort():
    """What runs where no kernel does: groups, and RAFT's selection. (The k chosen are sorted, and a fallback would.)"""
    call, operands, _ = case("topk", SHAPES["gpt2-32k"])
    report = aot.compile_gpu(functools.partial(call, implementation="xla"), *operands)[1]
    assert "__gpu$TopK" in report.targets
    tokens, _, n, _ = SHAPES["gpt2-32k"]
    assert report.temp_bytes < tokens * n * 4 * 1.2  # the row in float32 at most


def test_naive_gradients_are_dense():
    """The tests above could fail: what a JAX user writes first holds [tokens, n_latents] several times."""
    shape = (1024, 768, 32768, 32)
    x, w, b = case("encode_topk", shape).operands

    def loss(x, w, b):
        vals, idx = jax.lax.top_k(jnp.dot(x, w.T, preferred_element_type=jnp.float32) + b[None], 32)
        rows = jnp.arange(1024, dtype=jnp.int32)[:, None]
        z = jnp.zeros((1024, 32768), jnp.float32).at[rows, idx].set(jax.nn.relu(vals))
        return jnp.sum(jnp.square(z @ w.astype(jnp.float32)))

    report = aot.compile_gpu(jax.grad(loss, (0, 1, 2)), x, w, b)[1]
    assert report.temp_bytes > 2 * 1024 * 32768 * 4
    assert "mosaic_gpu_v2" not in report.targets
