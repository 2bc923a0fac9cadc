# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models.convnet import (
    ConvModel,
    ConvNet,
    Dense,
    Residual,
    convnet,
    convnet_shapes,
    fold_batch_norm,
    init_convnet,
)
from jaxneuro.models.convnet.forward import _conv
from jaxneuro.models.convnet.layout import Conv
from jaxneuro.models.layout import flatten
from jaxneuro.taps import capture, intervene, set_to, sites, zero

from .conftest import random_weights

CONFIGS = {
    "basic": ConvNet(stem=4, depths=(3, 1), blocks=Residual(bottleneck=False, widths=(4, 6), mids=(4, 6)), n_classes=3),
    "bottleneck": ConvNet(
        stem=4, depths=(2,), blocks=Residual(bottleneck=True, widths=(8,), mids=(4,), groups=2), n_classes=3
    ),
    "dense": ConvNet(stem=4, depths=(2, 1), blocks=Dense(growth=2, mid=4), n_classes=3),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    """A small network in which no statistic is 0 or 1."""
    cfg = CONFIGS[request.param]
    return ConvModel(cfg, random_weights(cfg))


@pytest.fixture(scope="module")
def pixels():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 13, 18, 3)), jnp.float32)


def test_jit_and_vmap_are_the_plain_call(model, pixels):
    out = jax.jit(model.apply)(model.weights, pixels)
    assert out.shape == (2, 3)
    # Another order of sums at every layer: a few ulps of the largest logit, whatever the smallest one is.
    close = {"rtol": 0, "atol": 2e-5 * float(jnp.abs(out).max())}
    np.testing.assert_allclose(model(pixels), out, **close)
    each = jax.jit(jax.vmap(model.apply, in_axes=(None, 0)))(model.weights, pixels[:, None])
    np.testing.assert_allclose(each[:, 0], out, **close)


def test_saliency_reaches_the_pixels_and_every_weight(model, pixels):
    def score(weights, pixels):
        return model.apply(weights, pixels)[:, 0].sum()

    by_weights, by_pixels = jax.jit(jax.grad(score, argnums=(0, 1)))(model.weights, pixels)
    assert by_pixels.shape == pixels.shape
    assert (jnp.abs(by_pixels).sum((1, 2, 3)) > 0).all()
    silent = [leaf for leaf, g in flatten(by_weights).items() if not jnp.abs(g).max() > 0]
    assert silent == []


def test_saliency_is_the_slope(model, pixels):
    def score(pixels):
        return model.apply(model.weights, pixels)[0, 0]

    # Along the gradient itself, where rounding is smallest; kinks of relu and max pool leave a percent.
    g = jax.jit(jax.grad(score))(pixels)
    step = 1e-3 * g / jnp.linalg.norm(g)
    slope = (jax.jit(score)(pixels + step) - jax.jit(score)(pixels - step)) / jnp.float32(2e-3)
    np.testing.assert_allclose(slope, jnp.linalg.norm(g), rtol=0.05)


def test_sites_and_their_axes(model, pixels):
    table = {s.name: s for s in sites(model.apply, model.weights, pixels)}
    inner = [f"{kind}{n}" for n in (1, 2) for kind in ("conv", "norm", "act")]
    if isinstance(model.cfg.blocks, Residual):
        inner = [*inner, "sum"] if model.cfg.blocks.bottleneck else [*inner[:-1], "sum"]
    for s, depth in enumerate(model.cfg.depths):
        for name in ("pre", *inner, "post"):
            assert table[f"stage{s}.blocks.{name}"].layers == tuple(range(depth))
            assert table[f"stage{s}.blocks.{name}"].axes == ("batch", "row", "column", "channel")
    assert {"stem.conv", "stem.norm", "stem.act", "stem", "final", "pooled", "logits"} <= set(table)
    assert table["pooled"].axes == ("batch", "channel")
    assert table["logits"].axes == ("batch", "class")
    assert table["stem"].shape == (2, 4, 5, 4)


def test_blocks_are_captured_one_by_one_and_together(model, pixels):
    name = "conv2" if isinstance(model.cfg.blocks, Dense) else "post"
    names = [f"stage0.blocks.*.{name}", f"stage0.blocks.1.{name}", "stage0.blocks.1.pre", "stage0.blocks.0.post"]
    _, acts = jax.jit(capture(model.apply, names))(model.weights, pixels)
    together, one, pre, post = (acts[n] for n in names)
    assert together.shape[0] == model.cfg.depths[0]
    np.testing.assert_array_equal(together[1], one)
    np.testing.assert_array_equal(pre, post)


def test_gradients_are_captured_at_every_block(model, pixels):
    name = "conv2" if isinstance(model.cfg.blocks, Dense) else "post"
    site = f"stage0.blocks.*.{name}@grad"

    def score(weights):
        return model.apply(weights, pixels)[:, 0].sum()

    _, acts = jax.jit(capture(jax.grad(score), [site]))(model.weights)
    assert (jnp.abs(acts[site]).max((1, 2, 3, 4)) > 0).all()


def test_a_channel_that_is_set_changes_the_logits(model, pixels):
    out = jax.jit(model.apply)(model.weights, pixels)
    for edit in (
        zero("stage0.blocks.1.norm1", channel=1),
        set_to("stem", 2.0, channel=0),
        set_to("pooled", 2.0, channel=0),
    ):
        edited = jax.jit(intervene(model.apply, [edit]))(model.weights, pixels)
        assert (jnp.abs(edited - out).max(1) > 1e-4).all(), edit.site
        assert jnp.isfinite(edited).all()


def test_a_captured_map_patched_in_gives_the_same(model, pixels):
    _, acts = jax.jit(capture(model.apply, ["stage0.blocks.1.post"]))(model.weights, pixels)
    patched = intervene(model.apply, [set_to("stage0.blocks.1.post", acts["stage0.blocks.1.post"])])
    other = jax.jit(patched)(model.weights, pixels[::-1])
    np.testing.assert_allclose(other, jax.jit(model.apply)(model.weights, pixels), rtol=1e-5, atol=1e-6)


def test_half_precision_stays_half(model, pixels):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.weights)
    out = jax.jit(model.apply)(half, pixels)
    assert out.dtype == jnp.bfloat16
    whole = jax.jit(model.apply)(model.weights, pixels)
    # bfloat16 has 8 bits: a few in a thousand at each of a dozen roundings
    np.testing.assert_allclose(out.astype(jnp.float32), whole, atol=0.1 * float(jnp.abs(whole).max()))


def test_folded_weights_compute_the_same_with_fewer_leaves(model, pixels):
    folded = fold_batch_norm(model.weights, model.cfg)
    assert len(jax.tree.leaves(folded)) < len(jax.tree.leaves(model.weights))
    out = jax.jit(model.apply)(model.weights, pixels)
    np.testing.assert_allclose(jax.jit(model.apply)(folded, pixels), out, rtol=1e-4, atol=1e-5)


def test_convolution_pads_symmetrically():
    # By hand: a 3x3 kernel of ones counts the pixels it covers; at stride 2 it starts at the corner.
    ones = jnp.ones((1, 4, 4, 1))
    covered = np.array([[4, 6], [6, 9]], np.float32)
    np.testing.assert_array_equal(_conv(ones, jnp.ones((3, 3, 1, 1)), Conv(3, 1, 1, 2))[0, :, :, 0], covered)


def test_max_pool_pads_with_less_than_any_number():
    # All that comes in is negative: a pool that pads with zeros would give zeros at the border.
    cfg = ConvNet(stem=1, channels=1, depths=(1,), blocks=Dense(growth=1, mid=1), act="silu", n_classes=0)
    weights = random_weights(cfg)
    weights["stem"]["norm"] |= {"scale": jnp.zeros(1)}
    weights["stem"]["norm"]["bias"] = jnp.full(1, -1.0)
    _, acts = capture(lambda w, x: convnet(w, x, cfg=cfg), ["stem"])(weights, jnp.zeros((1, 5, 7, 1)))
    np.testing.assert_allclose(acts["stem"], np.full((1, 2, 2, 1), -1 / (1 + np.e)), rtol=1e-6)


def test_pictures_that_do_not_fit(model):
    with pytest.raises(UserError, match=r"takes pictures \[batch, row, column, 3\]; these are \[1, 3, 32, 32\]"):
        model(jnp.zeros((1, 3, 32, 32)))
    with pytest.raises(UserError, match=r"these are \[32, 32, 3\]"):
        model(jnp.zeros((32, 32, 3)))
    least = model.cfg.min_pixels
    assert jnp.isfinite(model(jnp.zeros((1, least, least, 3)))).all()
    with pytest.raises(UserError, match=f"{least - 1} x 40 pixels are too small .* at least {least} x {least}"):
        model(jnp.zeros((1, least - 1, 40, 3)))


def test_the_smallest_picture_is_the_smallest_that_leaves_something():
    cfg = CONFIGS["dense"]
    (s,) = (s for s in sites(lambda w, x: convnet(w, x, cfg=cfg), *_picture(cfg, 5)) if s.name == "final")
    assert s.shape[1:3] == (1, 1)
    assert ConvNet(stem=8, depths=(6, 12, 24, 16), blocks=Dense(growth=4, mid=16)).min_pixels == 29


def _picture(cfg, size):
    return random_weights(cfg), jnp.zeros((1, size, size, 3))


def test_a_new_network_keeps_the_size_of_what_it_reads():
    cfg = CONFIGS["basic"]
    weights = jax.jit(lambda key: init_convnet(cfg, key))(jax.random.key(0))
    assert {leaf: a.shape for leaf, a in flatten(weights).items()} == convnet_shapes(cfg)
    assert (weights["stem"]["norm"]["var"] == 1).all()
    assert (weights["head"]["b"] == 0).all()
    kernel = jax.jit(lambda key: init_convnet(dataclasses.replace(cfg, stem=256), key))(jax.random.key(0))["stem"][
        "conv"
    ]
    # sqrt(2 / (7 * 7 * 256)) over 37,632 numbers: the standard error is 0.4 percent
    np.testing.assert_allclose(kernel.std(), 0.012627, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": 0}, r"stem=\(0,\)"),
        ({"depths": ()}, r"depths=\(\)"),
        ({"depths": (1, 1)}, "have an entry per stage"),
        ({"blocks": Residual(bottleneck=True, widths=(8,), mids=(4,), groups=3)}, "groups=3 does not divide"),
        ({"blocks": Dense(growth=0, mid=1)}, r"growth=\(0,\)"),
    ],
)
def test_sizes_that_are_none(change, message):
    given = {"stem": 4, "depths": (1,), "blocks": Residual(bottleneck=False, widths=(4,), mids=(4,))}
    with pytest.raises(UserError, match=message):
        ConvNet(**{**given, **change})
