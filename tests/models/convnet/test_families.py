# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from jaxneuro.errors import UserError
from jaxneuro.models.convnet import CONVNETS, Residual, convnet_from_hf, convnet_shapes, convnet_to_hf

# Parameters (running statistics are none) as torchvision's and timm's documentation lists them.
MILLIONS = {
    "resnet18": 11.69,
    "resnet26": 16.00,
    "resnet34": 21.80,
    "resnet50": 25.56,
    "resnet101": 44.55,
    "resnet152": 60.19,
    "resnet200": 64.67,
    "wide_resnet50_2": 68.88,
    "wide_resnet101_2": 126.89,
    "resnext50_32x4d": 25.03,
    "resnext101_32x4d": 44.18,
    "resnext101_32x8d": 88.79,
    "resnext101_64x4d": 83.46,
    "densenet121": 7.98,
    "densenet161": 28.68,
    "densenet169": 14.15,
    "densenet201": 20.01,
}


def test_every_architecture_has_its_published_size():
    assert set(MILLIONS) == set(CONVNETS) - {"resnet"}
    for name, millions in MILLIONS.items():
        shapes = convnet_shapes(convnet_from_hf({"architecture": name}))
        counted = sum(math.prod(s) for leaf, s in shapes.items() if not leaf.endswith((".mean", ".var")))
        assert round(counted / 1e6, 2) == millions, name


@pytest.mark.parametrize("name", MILLIONS)
def test_an_architecture_needs_no_arguments_to_be_written(name):
    cfg = convnet_from_hf({"architecture": name, "num_classes": 7})
    assert convnet_to_hf(cfg) == {"architecture": name, "num_classes": 7, "num_features": cfg.width}


def test_transformers_defaults_are_resnet_50():
    cfg, timm = convnet_from_hf({"model_type": "resnet"}), convnet_from_hf({"architecture": "resnet50"})
    assert (cfg.stem, cfg.depths, cfg.blocks, cfg.act, cfg.n_classes) == (64, timm.depths, timm.blocks, "relu", 2)
    assert convnet_from_hf(convnet_to_hf(cfg)) == cfg


def test_only_a_bottleneck_has_a_place_for_its_stride():
    hf = {"model_type": "resnet", "layer_type": "basic", "downsample_in_bottleneck": True}
    blocks = convnet_from_hf(hf).blocks
    assert isinstance(blocks, Residual)
    assert not blocks.stride_in_conv1


def test_a_size_that_is_none():
    with pytest.raises(UserError, match=r"embedding_size = '64' is not a positive whole number"):
        convnet_from_hf({"model_type": "resnet", "embedding_size": "64"})
    with pytest.raises(UserError, match=r"layers = \[2, 0\] is not a list"):
        convnet_from_hf({"architecture": "resnet18", "model_args": {"layers": [2, 0], "channels": [4, 4]}})
