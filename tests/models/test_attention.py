# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.models import attention
from jaxneuro.models.attention import Visible, attend
from jaxneuro.taps import capture


def reference(q, k, v, allowed, scale):
    """Attention head by head, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros_like(q)
    for head in range(q.shape[2]):
        kv = head // (q.shape[2] // k.shape[2])
        scores = np.einsum("bth,bsh->bts", q[:, :, head], k[:, :, kv]) * scale
        scores = np.where(allowed, scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, :, head] = weights / weights.sum(-1, keepdims=True) @ v[:, :, kv]
    return out


def inputs(length, heads, kv_heads, dtype=jnp.float32):
    rng = np.random.default_rng(length)
    return [jnp.asarray(rng.normal(size=(2, length, n, 8)), dtype) for n in (heads, kv_heads, kv_heads)]


def masked(length):
    """Row 0 padded on the left, row 1 on the right."""
    mask = np.ones((2, length), bool)
    mask[0, : length // 3], mask[1, length - length // 4 :] = False, False
    return mask


SHAPES = [(1, 4, 4), (7, 4, 1), (130, 4, 2), (300, 2, 2)]
KINDS = {"causal": (True, None), "windowed": (True, 5), "both ways": (False, None)}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("causal", "window"), KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize(("length", "heads", "kv_heads"), SHAPES)
def test_fused_and_explicit_agree_with_the_definition(length, heads, kv_heads, causal, window, padded):
    q, k, v = inputs(length, heads, kv_heads)
    mask = masked(length) if padded else np.ones((2, length), bool)
    distance = np.arange(length)[:, None] - np.arange(length)
    allowed = np.broadcast_to(mask[:, None, :], (2, length, length))
    allowed = allowed & (distance >= 0) if causal else allowed
    allowed = allowed & (distance < window) if window else allowed
    visible = Visible(causal, None if window is None else jnp.int32(window), jnp.asarray(mask) if padded else None)

    def run(q, k, v):
        return attend(q, k, v, visible, 0.3, jnp.int32(0))

    seen = np.broadcast_to(allowed.any(-1)[..., None, None], q.shape)  # rows that see no key mean nothing
    expected = reference(q, k, v, allowed, 0.3)
    with jax.default_matmul_precision("highest"):
        fused = jax.jit(run)(q, k, v)
    np.testing.assert_allclose(np.where(seen, fused, 0), np.where(seen, expected, 0), atol=2e-6)
    assert np.isfinite(fused).all()
    if length == 7:
        with jax.default_matmul_precision("highest"):
            explicit, acts = jax.jit(capture(run, ["blocks.*.attn.scores", "blocks.*.attn.pattern"]))(q, k, v)
        np.testing.assert_allclose(np.where(seen, explicit, 0), np.where(seen, expected, 0), atol=2e-6)
        np.testing.assert_allclose(acts["blocks.*.attn.pattern"].sum(-1), 1, atol=1e-6)


def test_gradients_of_the_fused_form_are_those_of_the_definition():
    q, k, v = inputs(130, 4, 2)
    visible = Visible(True, None, jnp.asarray(masked(130)))
    real = jnp.asarray(masked(130))[:, :, None, None]

    def total(attention):
        return lambda q, k, v: jnp.sum(jnp.sin(attention(q, k, v, visible, 0.3, jnp.int32(0))), where=real)

    def plain(q, k, v, visible, scale, layer):
        k, v = (jnp.repeat(a, 2, axis=2) for a in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) * scale
        at = jnp.arange(q.shape[1])
        scores = jnp.where((at[:, None] >= at) & visible.mask[:, None, None, :], scores, -1e30)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v)

    with jax.default_matmul_precision("highest"):
        ours, theirs = (jax.jit(jax.grad(total(f), (0, 1, 2)))(q, k, v) for f in (attend, plain))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_sixteen_bit_values_stay_sixteen_bit():
    q, k, v = inputs(130, 4, 2, jnp.bfloat16)
    run = jax.jit(lambda q, k, v: attend(q, k, v, Visible(True, None, None), 0.3, jnp.int32(0)))
    out = run(q, k, v)
    assert out.dtype == jnp.bfloat16
    exact = run(*(a.astype(jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.parametrize("kind", ["plain", "padded and windowed", "of a padded context"])
def test_cudnn_is_asked_for_the_same_attention(kind, monkeypatch):
    """cuDNN itself needs a GPU: here its arguments go to XLA's implementation of the same function."""
    padded = kind != "plain"
    mask, window = (jnp.asarray(masked(70)), jnp.int32(9)) if padded else (None, None)
    visible = Visible(True, window, mask)
    q, k, v = inputs(70, 4, 2)
    if "context" in kind:  # fewer queries than keys
        q, visible = q[:, :40], Visible(False, None, mask)

    def run():
        return jax.jit(lambda q, k, v: attend(q, k, v, visible, 0.3, jnp.int32(0)))(q, k, v)

    chunked, asked = run(), []

    def as_cudnn(q, k, v, visible):
        asked.append(visible)
        return cudnn(q, k, v, visible, "xla")

    cudnn = attention._cudnn
    monkeypatch.setattr(attention, "_cudnn_takes", lambda q: True)
    monkeypatch.setattr(attention, "_cudnn", as_cudnn)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args))
    same = run()
    assert asked
    real = np.asarray(masked(70)) if visible.window is not None else np.ones(q.shape[:2], bool)
    np.testing.assert_allclose(same[real], chunked[real], atol=2e-6)


def test_without_cudnn_it_falls_back_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attention._cudnn_works.cache_clear()
    with caplog.at_level("WARNING", logger="jaxneuro.models"):
        assert not attention._cudnn_takes(jnp.zeros((1, 8, 1, 64), jnp.bfloat16))
    assert "cuDNN attention does not run here" in caplog.text
    attention._cudnn_works.cache_clear()
    assert not attention._cudnn_takes(jnp.zeros((1, 8, 1, 64), jnp.float32))
