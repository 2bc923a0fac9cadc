# SPDX-License-Identifier: Apache-2.0
"""Small models of pictures whose neurons are known, and drawn pictures that they tell apart."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image as Pillow

from jaxneuro.models import Config, ConvModel, Transformer, init, save_pretrained
from jaxneuro.models.config import Image
from jaxneuro.models.convnet import ConvNet, Residual, init_convnet

GROUPS = ("green", "red", "striped")
"""In order of their classes: green squares, red squares, stripes."""
PLANTED = {"green": 5, "red": 11, "striped": 17}
"""The neuron of layer 0 that fires on patches of the group, and whose output is all that the class is told by."""


def draw(folder: Path, per_group: int = 16, side: int = 16, seed: int = 0) -> Path:
    """Pictures of each group on a dark ground with noise, four to six patches of 4 x 4 of what the group has."""
    rng = np.random.default_rng(seed)
    for name in GROUPS:
        (folder / name).mkdir(parents=True)
        for i in range(per_group):
            a = rng.integers(0, 40, (side, side, 3), np.uint8)
            for at in rng.choice(16, rng.integers(4, 7), replace=False):
                patch = a[at // 4 * 4 :, at % 4 * 4 :][:4, :4]
                if name == "striped":
                    patch[:, ::2], patch[:, 1::2] = 255, 0
                else:
                    patch[:] = {"red": (255, 0, 0), "green": (0, 255, 0)}[name]
            Pillow.fromarray(a).save(folder / name / f"{i:02}.png")
    return folder


def processor(folder: Path, side: int) -> None:
    """A preprocessor_config.json: [-1, 1], no resizing of pictures of this side."""
    config = {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def vit(folder: Path, *, head: bool = True) -> Path:
    """A ViT of two layers with a planted neuron per group; without a head it ends in its last hidden state.

    Dimensions 0 to 2 of a patch are how green, red and striped it is, 6 to 8 the negatives, 12 and 13 plus and minus 1
    (so that no norm blows up what is nearly nothing). The planted neurons read 0 to 2 and write 3 to 5 (9 to 11
    negative); attention of layer 1 gives their mean to the class token, which the head reads. The other neurons read
    and write noise: 14 and 15 are how rows of pixels differ, which no group says anything about.
    """
    cfg = Config(
        family="vit", n_layers=2, d_model=16, n_heads=2, n_kv_heads=2, d_head=8, d_mlp=40, d_vocab=3 if head else 0,
        n_ctx=17, image=Image(size=16, patch=4), gated=False, norm="layer", norm_eps=1e-6, causal=False, rope=None,
        learned_positions=True, qkv_bias=True, out_bias=True, mlp_bias=True, act="gelu", has_head=head,
        classify="cls", head_bias=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    w = jax.tree.map(lambda a: np.zeros_like(a) if a.ndim > 1 else np.array(a), init(cfg, jax.random.key(0)))
    w = jax.tree.map(lambda a, b: np.array(b) if np.all(b == 1) else a, w, init(cfg, jax.random.key(0)))
    colour = np.zeros((4, 4, 3, 3), np.float32)
    for k, c in enumerate((1, 0)):
        colour[..., k] = np.where(np.arange(3) == c, 1, -0.5) / 16
    colour[..., 2] = np.where(np.arange(4) % 2, -1, 1)[None, :, None] / 48
    w["embed"]["patch"][..., :3], w["embed"]["patch"][..., 6:9] = colour, -colour
    rows = np.array([1, -1, 1, -1])[:, None, None, None]  # nothing of a square or of upright stripes
    w["embed"]["patch"][..., 14:] = rows * rng.normal(0, 0.5, (1, 4, 3, 2))
    for leaf in ("cls", "patch_bias"):
        w["embed"][leaf][12:14] = 1, -1
    up, down, b_up = (w["blocks"]["mlp"][leaf] for leaf in ("up", "down", "b_up"))
    up[:, 14:], down[:] = rng.normal(0, 1, up[:, 14:].shape), rng.normal(0, 0.02, down.shape)
    down[..., :14] *= 0.1
    b_up[:] = -0.1  # squares and stripes give these neurons nothing: that is below 0, not about 0
    for k, neuron in enumerate(PLANTED.values()):
        up[0, :, neuron], down[0, neuron] = 0, 0
        up[0, k, neuron], b_up[0, neuron] = 5, -6  # what does not fire gives nothing
        down[0, neuron, 3 + k], down[0, neuron, 9 + k] = 1, -1
        w["blocks"]["attn"]["wv"][1, 3 + k, 0, k] = 1
        w["blocks"]["attn"]["wo"][1, 0, k, [3 + k, 9 + k]] = 4, -4
        if head:
            w["head"]["w"][3 + k, k] = 3
    save_pretrained(Transformer(cfg, jax.tree.map(jnp.asarray, w)), folder)
    processor(folder, 16)
    return folder


def resnet(folder: Path) -> Path:
    """A random ResNet of two stages, of which the second has two blocks."""
    cfg = ConvNet(stem=8, depths=(1, 2), blocks=Residual(bottleneck=False, widths=(8, 12), mids=(8, 12)), n_classes=3)
    save_pretrained(ConvModel(cfg, init_convnet(cfg, jax.random.key(1))), folder)
    processor(folder, 32)
    return folder
