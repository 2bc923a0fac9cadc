# SPDX-License-Identifier: Apache-2.0
"""Every implementation lowers for its accelerator on a machine that has none, at real sizes, through the public ops."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from jaxneuro_kernels import aot, encode_topk, shapes, sparse_decode, tuned
from jaxneuro_kernels.aot import H100
from jaxneuro_kernels.dispatch import target
from jaxneuro_kernels.shapes import OPS, SHAPES, case

KERNEL = {"cuda": "mosaic_gpu", "tpu": "tpu_custom_call"}
LARGE = [name for name, shape in SHAPES.items() if shape[0] == 8192]


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("op", OPS)
def test_hopper_kernels_lower(op, shape):
    call, operands, _ = case(op, SHAPES[shape])
    text = aot.lower(functools.partial(call, implementation="mosaic_gpu"), *operands, platform="cuda")
    assert KERNEL["cuda"] in text


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("op", OPS)
def test_xla_lowers_everywhere(op, platform):
    call, operands, _ = case(op, SHAPES["gpt2-32k"])
    text = aot.lower(functools.partial(call, implementation="xla"), *operands, platform=platform)
    assert KERNEL[platform] not in text


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Write a table for an H100."""

    def write(*rows):
        monkeypatch.setattr(tuned, "FOLDER", tmp_path)
        tuned.rows.cache_clear()
        tuned.path(H100).write_text(json.dumps({"rows": rows}))

    yield write
    tuned.rows.cache_clear()


def row(implementation, ms, config=None, **size):
    tokens, d, n, k = SHAPES["gpt2-32k"]
    sizes = {"dtype": "bfloat16", "tokens": tokens, "d": d, "n": n, "k": k} | size
    return {"op": "sparse_decode", "implementation": implementation, "config": config or {}, "ms": ms, **sizes}


def lowered(shape="gpt2-32k", platform="cuda", **kw):
    call, operands, _ = case("sparse_decode", SHAPES[shape])
    return aot.lower(functools.partial(call, **kw), *operands, platform=platform)


def test_nothing_unmeasured_is_dispatched(measured):
    measured()
    assert KERNEL["cuda"] not in lowered()


def test_what_was_measured_to_win_is_dispatched(measured):
    measured(row("mosaic_gpu", 1.0, {"slots": 3}), row("mosaic_gpu", 1.5, {"slots": 5}), row("xla", 2.0))
    asked = {k: v for k, v in row("", 0).items() if k in ("dtype", "tokens", "d", "n", "k")}
    assert tuned.configuration("sparse_decode", "mosaic_gpu", H100, **asked) == {"slots": 3}
    best = lowered()
    assert KERNEL["cuda"] in best
    assert KERNEL["tpu"] not in lowered(platform="tpu")
    assert KERNEL["cuda"] not in lowered("llama3-131k")  # not near any measurement
    assert KERNEL["cuda"] not in lowered(implementation="xla")
    measured(row("mosaic_gpu", 1.0, {"slots": 5}), row("xla", 2.0))
    assert lowered() != best  # the configuration reaches the kernel


def test_what_was_measured_to_lose_is_not(measured):
    measured(row("mosaic_gpu", 2.0), row("xla", 1.0))
    assert KERNEL["cuda"] not in lowered()
    assert KERNEL["cuda"] in lowered(implementation="mosaic_gpu")


def test_another_platform_gets_xla_from_the_same_trace(measured):
    """Traced for a GPU, lowered for a CPU: a jit whose arguments lie on the host."""
    measured(row("mosaic_gpu", 1.0), row("xla", 2.0))
    call, operands, _ = case("sparse_decode", SHAPES["gpt2-32k"])
    with aot.pretend():
        assert target().kind == H100
        traced = jax.jit(call).trace(*operands)
    assert KERNEL["cuda"] not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_a_whole_step_lowers():
    """Encoder, decoder and every derivative of both on kernels."""
    shape = (1024, 768, 32768, 32)
    x, w, b = case("encode_topk", shape).operands

    def loss(x, w, b, w_dec):
        vals, idx = encode_topk(x, w, b, shape[3], implementation="mosaic_gpu")
        return jnp.sum(jnp.square(sparse_decode(vals, idx, w_dec, implementation="mosaic_gpu")))

    text = aot.lower(jax.grad(loss, (0, 1, 2, 3)), x, w, b, w, platform="cuda")
    assert text.count("call @mosaic_gpu") + text.count("@mosaic_gpu_v2") >= 4


def test_the_same_operands_every_time():
    call, operands, _ = case("sae_backward", (64, 16, 640, 4), "float32")
    first, again = (shapes.fill(operands, 640, seed=1) for _ in range(2))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    assert call(*first).dw_dec.shape == (640, 16)
    counts = jnp.bincount(first[1].ravel(), length=640)
    assert int(counts[:64].sum()) > int(counts[64:].sum()) / 2  # skewed
