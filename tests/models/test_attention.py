# SPDX-License-Identifier: Apache-2.0
import functools
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Config, Transformer, attention, fused, init
from jaxneuro.models.attention import MASKED, Visible, attend
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
        scores, pattern = (acts[f"blocks.*.attn.{name}"][0] for name in ("scores", "pattern"))  # [batch, head, t, s]
        there = np.broadcast_to(allowed[:, None], scores.shape)
        assert (scores[~there] == np.float32(MASKED)).all(), "one finite number, as its definition says"
        assert (np.abs(scores[there]) < 1e3).all()
        assert (pattern[~there & there.any(-1, keepdims=True)] == 0).all()


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
        scores = jnp.where((at[:, None] >= at[None])[None, None] & visible.mask[:, None, None, :], scores, -1e30)
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
def test_cudnn_is_asked_for_the_same_attention(kind):
    """cuDNN itself needs a GPU: here its arguments go to XLA's implementation of the same function."""
    padded = kind != "plain"
    mask, window = (jnp.asarray(masked(70)), jnp.int32(9)) if padded else (None, None)
    visible = Visible(True, window, mask)
    q, k, v = inputs(70, 4, 2)
    if "context" in kind:  # fewer queries than keys
        q, visible = q[:, :40], Visible(False, None, mask)
    same = jax.jit(lambda q, k, v: fused.cudnn(q * jnp.float32(0.3), k, v, visible, None, None, "xla"))(q, k, v)
    chunked = jax.jit(lambda q, k, v: attend(q, k, v, visible, 0.3, jnp.int32(0)))(q, k, v)
    real = np.asarray(masked(70)) if visible.window is not None else np.ones(q.shape[:2], bool)
    np.testing.assert_allclose(same[real], chunked[real], atol=2e-6)


SPLASH = {"causal, padded, soft-capped": (True, True, 2.0), "both ways": (False, False, None)}


@pytest.mark.parametrize(("causal", "padded", "softcap"), SPLASH.values(), ids=list(SPLASH))
def test_splash_and_its_gradient_are_those_of_the_explicit_form(causal, padded, softcap):
    """The kernel itself, interpreted."""
    q, k, v = inputs(128, 4, 2)
    real = jnp.asarray(masked(128)) if padded else jnp.ones((2, 128), bool)
    visible = Visible(causal, None, real if padded else None, form="explicit")

    def run(form):
        def total(q, k, v):
            out = form(q, k, v)
            return jnp.sum(jnp.sin(out), where=real[:, :, None, None]), out

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)

    def splash(q, k, v):
        return fused.splash(q * jnp.float32(0.9), k, v, visible, softcap, None, interpret=True)

    ours, expected = run(lambda q, k, v: attend(q, k, v, visible, 0.9, jnp.int32(0), softcap=softcap))
    grads, out = run(splash)
    # of magnitude 1: 128 float32 products in another order differ by some ten ulps
    np.testing.assert_allclose(out[real], expected[real], atol=5e-6)
    assert np.isfinite(out).all()
    for a, b in zip(grads, ours, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def lowered(form, visible, platform, length=256, d_head=64, **options):
    shapes = [jax.ShapeDtypeStruct((2, length, n, d_head), jnp.bfloat16) for n in (4, 2, 2)]
    run = jax.jit(lambda q, k, v: form(q, k, v, visible, None, None, **options))
    return run.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("d_head", [64, 128])
def test_splash_lowers_for_a_tpu(d_head):
    mask = jnp.ones((2, 256), bool)
    assert "tpu_custom_call" in lowered(fused.splash, Visible(True, None, mask), "tpu", d_head=d_head)


def test_cudnn_lowers_for_a_gpu(monkeypatch):
    """With what it asks of the device answered for it."""
    module = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    for name, answer in {"check_cudnn_version": 91000, "is_cuda_compute_capability_equal": False}.items():
        monkeypatch.setattr(module, name, lambda *_, answer=answer: answer)
    text = lowered(fused.cudnn, Visible(True, None, None), "cuda")
    assert "__cudnn$fmhaSoftmax" in text


def test_tokamax_gives_the_explicit_form():
    pytest.importorskip("tokamax", reason="an extra")
    q, k, v = inputs(70, 4, 2)
    for visible in (Visible(True, None, None), Visible(True, jnp.int32(9), jnp.asarray(masked(70)))):

        def run(form, visible=visible):
            seen = visible._replace(form=form)
            return jax.jit(lambda q, k, v: attend(q, k, v, seen, 0.3, jnp.int32(0), softcap=2.0))(q, k, v)

        a, b = np.asarray(run("tokamax")), np.asarray(run("explicit"))
        real = np.ones((2, 70), bool) if visible.mask is None else masked(70)
        np.testing.assert_allclose(a[real], b[real], atol=2e-6)
        assert np.isfinite(a).all()


def choice(needs=None, *, form=None, softcap=None, dtype=jnp.bfloat16, length=128, d_head=64):
    q = jnp.zeros((1, length, 2, d_head), dtype)
    return attention.chosen(q, q, Visible(True, None, None, form=form)._replace(**(needs or {})), softcap)


@pytest.fixture
def device(monkeypatch):
    """As if this were another device."""

    def be(platform, kind):
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)])
        monkeypatch.setattr(fused, "_cudnn_works", lambda: True)

    return be


MASK = {"mask": jnp.ones((1, 128), bool)}


def test_a_device_takes_its_preferred_form_where_that_can_do_what_is_needed(device, monkeypatch):
    assert choice() == "chunked"
    device("gpu", "NVIDIA H100 80GB HBM3")
    assert choice() == choice(MASK) == choice({"window": jnp.int32(4)}) == "cudnn"
    assert choice(softcap=5.0) == choice({"start": 3}) == choice({"bias": jnp.zeros((2, 128, 128))}) == "chunked"
    assert choice(dtype=jnp.float32) == choice(d_head=256) == "chunked"
    monkeypatch.setitem(attention.PREFERRED, "tpu v5", ("splash",))
    device("tpu", "TPU v5 lite")
    assert choice() == choice(MASK, softcap=5.0) == "splash"
    assert choice({"window": jnp.int32(4)}) == choice(length=100) == "chunked"
    device("tpu", "TPU v6")
    assert choice() == "chunked"


def test_what_is_asked_for_and_cannot_be_says_why(device, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"'splash' cannot be used here: it is for tpu, this is cpu\. Able are: explicit, chunked"
    ):
        choice(form="splash")
    with pytest.raises(UserError, match="tokamax is not installed: pip install"):
        choice(form="tokamax")
    with pytest.raises(UserError, match="Did you mean 'cudnn'"):
        choice(form="cudn")
    device("gpu", "NVIDIA H100 80GB HBM3")
    with pytest.raises(UserError, match="it does not know a soft-cap"):
        choice(form="cudnn", softcap=5.0)
    with pytest.raises(UserError, match="16-bit values, these are float32"):
        choice(form="cudnn", dtype=jnp.float32)
    device("tpu", "TPU v6")
    with pytest.raises(UserError, match="multiple of 128 positions, these are 100"):
        choice(form="splash", length=100)


def test_a_model_uses_the_form_that_is_asked_for(monkeypatch):
    cfg = Config(n_layers=1, d_model=8, n_heads=2, n_kv_heads=1, d_head=4, d_mlp=8, d_vocab=16, n_ctx=8)
    model, tokens = Transformer(cfg, init(cfg, jax.random.key(0))), jnp.zeros((1, 5), jnp.int32)
    used = []
    for name, form in attention.FORMS.items():

        def run(*args, name=name, form=form):
            used.append(name)
            return form.run(*args)

        monkeypatch.setitem(attention.FORMS, name, form._replace(run=run))
    with jax.default_matmul_precision("highest"):
        outs = [model(tokens, attention=name) for name in (None, "chunked", "explicit")]
        acts = capture(model.apply, ["blocks.0.attn.pattern"])(model.weights, tokens)[1]
    assert used == ["chunked", "chunked", "explicit", "explicit"]
    np.testing.assert_allclose(outs[2], outs[0], atol=1e-6)
    assert acts["blocks.0.attn.pattern"].shape == (1, 2, 5, 5)
    asked = functools.partial(model.apply, attention="chunked")
    with pytest.raises(UserError, match=r"it does not know the sites blocks\.attn\.scores and blocks\.attn\.pattern"):
        capture(asked, ["blocks.0.attn.pattern"])(model.weights, tokens)


def test_without_cudnn_it_falls_back_and_says_so(caplog, device, monkeypatch):
    works = fused._cudnn_works
    works.cache_clear()
    device("gpu", "NVIDIA A100")
    monkeypatch.setattr(fused, "_cudnn_works", works)
    with caplog.at_level("WARNING", logger="jaxneuro.models"):
        assert choice() == "chunked"
    assert "cuDNN attention does not run here" in caplog.text
    works.cache_clear()
