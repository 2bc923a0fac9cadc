# SPDX-License-Identifier: Apache-2.0
"""A model called outside of jit, as in a notebook: one program per function and shapes, and never an old answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from jaxneuro.activations.reducers import firing_moments
from jaxneuro.dictionaries import topk
from jaxneuro.dictionaries.judges import kl_divergence
from jaxneuro.models import Config, Transformer, encode, forward, init, loss_fn, pooled
from jaxneuro.models.convnet import ConvModel, ConvNet, Residual, init_convnet
from jaxneuro.taps import capture, compiled

SMALL = {
    "n_layers": 2,
    "d_model": 8,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_head": 4,
    "d_mlp": 12,
    "d_vocab": 9,
    "n_ctx": 16,
}
CFG = Config(**SMALL)
PAIRED = Config(**SMALL, encoder=Config(**SMALL, causal=False, has_head=False))
POOLED = Config(**SMALL, has_head=False, pool_from="last")
CONV = ConvNet(stem=8, depths=(2,), blocks=Residual(bottleneck=False, widths=(8,), mids=(8,)), n_classes=5)
TOKENS = jnp.zeros((1, 5), "int32")
COMPILED: list[str] = []


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


monitoring.register_event_duration_secs_listener(_count)


def calls():
    w, paired, pool = (init(cfg, jax.random.key(0)) for cfg in (CFG, PAIRED, POOLED))
    model, conv = Transformer(CFG, w), ConvModel(CONV, init_convnet(CONV, jax.random.key(0)))
    picture, x = jnp.zeros((1, 32, 32, 3)), jax.random.normal(jax.random.key(1), (32, 8))
    method = topk(n_latents=16, k=2)
    state = method.init(jax.random.key(0), {"x": x})
    on = {"mask": jnp.ones((1, 5), bool), "counted": jnp.ones((1, 5), bool)}
    logits = jnp.ones((1, 5, 9))
    return {
        "model": lambda: model(TOKENS),
        "apply": lambda: model.apply(w, TOKENS),
        "forward": lambda: forward(w, TOKENS, cfg=CFG),
        "remat": lambda: model.apply(w, TOKENS, remat="block"),
        "encode": lambda: encode(paired, TOKENS, cfg=PAIRED),
        "context": lambda: forward(paired, TOKENS, cfg=PAIRED, context=TOKENS),
        "pooled": lambda: pooled(pool, TOKENS, POOLED),
        "loss": lambda: loss_fn(CFG)(w, TOKENS),
        "grad of loss": lambda: jax.grad(lambda w: loss_fn(CFG)(w, TOKENS).sum())(w),
        "convnet": lambda: conv(picture),
        "step of a learner": lambda: method.step(state, {"x": x}),
        "judge": lambda: kl_divergence(logits, logits, on),
        "reducer": lambda: firing_moments(on["mask"], logits),
        "capture of the module": lambda: capture(lambda t: model(t), "blocks.*.mlp.post")(TOKENS),
    }


@pytest.fixture(scope="module")
def every():
    return calls()


NAMES = (
    *("model", "apply", "forward", "remat", "encode", "context", "pooled", "loss", "grad of loss", "convnet"),
    *("step of a learner", "judge", "reducer", "capture of the module"),
)


@pytest.mark.parametrize("name", NAMES)
def test_twenty_equal_calls_compile_once(name, every):
    for _ in range(2):
        every[name]()
    before = len(COMPILED)
    for _ in range(20):
        every[name]()
    assert len(COMPILED) == before


def test_changed_weights_are_read(every):
    model = Transformer(CFG, init(CFG, jax.random.key(0)))
    look = capture(lambda t: model(t), "logits")
    first, acts = look(TOKENS)
    model.params["embed"]["tok"].set_value(2 * model.params["embed"]["tok"].get_value())
    second, acts = look(TOKENS)
    np.testing.assert_allclose(second, model.apply(model.weights, TOKENS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(TOKENS), second, rtol=1e-5, atol=1e-6)
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_array_equal(acts["logits"], second)


def test_new_lengths_do_not_grow_the_table(monkeypatch, every):
    monkeypatch.setattr(compiled, "KEPT", 3)
    w = init(CFG, jax.random.key(0))
    for n in range(1, 7):
        out = forward(w, jnp.zeros((1, n), "int32"), cfg=CFG)
        assert out.shape == (1, n, 9)
    assert len(compiled._kept) == 3
