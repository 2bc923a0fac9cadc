# SPDX-License-Identifier: Apache-2.0
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxneuro.cli import main
from jaxneuro.errors import UserError
from jaxneuro.io import read_safetensors
from jaxneuro.models import load, save_pretrained
from jaxneuro.models.convnet import ConvModel, ConvNet, Dense, Residual, fold_batch_norm, load_convnet

from .. import folders
from ..folders import drop, equal, keeps, put, rewrite
from .conftest import random_weights

FIXTURES = Path(__file__).parents[2] / "parity" / "convnets"
CASES = sorted(p.parent.name for p in FIXTURES.glob("*/config.json"))
copy = functools.partial(folders.copy, FIXTURES)


@pytest.mark.parametrize("case", CASES)
def test_what_was_loaded_is_saved_byte_for_byte(case, tmp_path):
    model = load(FIXTURES / case)
    save_pretrained(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (FIXTURES / case / "model.safetensors").read_bytes()
    again = load(tmp_path)
    assert again.cfg == model.cfg
    equal(again, model)
    keeps(FIXTURES / case, tmp_path, but={"dtype", "transformers_version"})


NEW = {
    "resnet": Residual(bottleneck=True, widths=(8, 16), mids=(2, 4), stride_in_conv1=True, first_stride=2),
    "resnext50_32x4d": Residual(bottleneck=True, widths=(16, 32), mids=(8, 16), groups=2),
    "densenet121": Dense(growth=2, mid=6),
}


@pytest.mark.parametrize("family", NEW)
def test_a_model_made_here_is_saved(family, tmp_path):
    stem = {"resnet": 4, "resnext50_32x4d": 64, "densenet121": 4}[family]
    cfg = ConvNet(family=family, channels=1, stem=stem, depths=(2, 1), blocks=NEW[family], n_classes=3)
    model = ConvModel(cfg, random_weights(cfg))
    save_pretrained(model, tmp_path / "new" / "folder")
    again = load(tmp_path / "new" / "folder")
    assert again.cfg == cfg
    equal(again, model)


CANNOT = {
    "another stem": ("resnet18", {"stem": 8}, "a resnet18 cannot express stem=8"),
    "strides": ("resnet50", {"blocks": Residual(bottleneck=True, widths=(4,), mids=(1,), stride_in_conv1=True)}, "blo"),
    "groups": ("resnet", {"blocks": Residual(bottleneck=True, widths=(8,), mids=(2,), groups=2)}, "cannot express blo"),
    "other blocks": ("resnet", {"blocks": Dense(growth=2, mid=2)}, "resnet has other blocks than Dense"),
    "no such family": ("resnet51", {}, "no model family 'resnet51'. Did you mean 'resnet50'"),
}


@pytest.mark.parametrize(("family", "change", "message"), CANNOT.values(), ids=list(CANNOT))
def test_what_a_family_cannot_express_is_not_saved(family, change, message, tmp_path):
    given = {"stem": 64, "depths": (1,), "blocks": Residual(bottleneck=False, widths=(4,), mids=(4,)), "n_classes": 2}
    cfg = ConvNet(family=family, **{**given, **change})
    with pytest.raises(UserError, match=message):
        save_pretrained(ConvModel(cfg, {}), tmp_path)


def test_folded_weights_are_not_saved(tmp_path):
    folder = FIXTURES / "resnet-basic"
    model = load_convnet(folder, json.loads((folder / "config.json").read_text()))
    folded = ConvModel(model.cfg, fold_batch_norm(model.weights, model.cfg), model.hf_config)
    with pytest.raises(UserError, match=r"these weights lack .*norm1.mean.* folded. Save the model that was loaded"):
        save_pretrained(folded, tmp_path)


def test_names_of_classes_are_kept(tmp_path):
    names = {"0": "cat", "1": "dog", "2": "owl"}
    folder = copy("resnet-bottleneck", tmp_path / "in", id2label=names)
    save_pretrained(load(folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == names


def test_dtypes_and_a_mesh(tmp_path):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    stored, half = load(FIXTURES / "resnet-basic"), load(FIXTURES / "resnet-basic", dtype=jnp.bfloat16, mesh=mesh)
    for a, b in zip(jax.tree.leaves(stored.weights), jax.tree.leaves(half.weights), strict=True):
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)
        assert b.sharding.spec == PartitionSpec()
        assert len(b.sharding.device_set) == 2
    save_pretrained(half, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    equal(load(tmp_path), half)


def test_counters_of_batches_are_ignored_and_kept(tmp_path):
    names = [name for name in read_safetensors(FIXTURES / "resnet-basic" / "model.safetensors") if "tracked" in name]
    folder = rewrite(copy("resnet-basic", tmp_path / "in"), drop(*names))
    equal(load(folder), load(FIXTURES / "resnet-basic"))
    save_pretrained(load(folder), tmp_path / "out")
    saved = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert {int(saved[name]) for name in names} == {0}


def test_a_base_model_has_no_head(tmp_path):
    assert json.loads(load(FIXTURES / "resnet-base").hf_config)["architectures"] == ["ResNetModel"]
    assert "head" not in load(FIXTURES / "resnet-base").weights
    # A head that the config promises must be there.
    folder = copy("resnet-basic", tmp_path)
    with pytest.raises(UserError, match=r"missing: classifier.1.weight, classifier.1.bias"):
        load(rewrite(folder, drop("classifier.1.weight", "classifier.1.bias")))


CONV, VAR = "layer1.1.conv2.weight", "layer1.0.bn1.running_var"
NAN = np.full(4, np.nan, np.float32)
WRONG_TENSORS = {
    "missing": (drop(VAR, CONV), rf"missing: {VAR}, {CONV}"),
    "extra": (put("layer2.0.se.fc1.weight", np.zeros((2, 4, 1, 1), np.float32)), "not part of .*: layer2.0.se.fc1"),
    "a block too many": (put("layer1.2.conv1.weight", NAN), "not part of this architecture: layer1.2.conv1.weight"),
    "a bias too many": (put("conv1.bias", NAN), "not part of this architecture: conv1.bias"),
    "wrong shape": (put(CONV, np.zeros((4, 4, 1, 1), np.float32)), r"\[4, 4, 1, 1\], the config needs \[4, 4, 3, 3\]"),
    "integers": (put(VAR, np.zeros(4, np.int32)), "running_var has dtype int32"),
    "NaN": (put("layer1.1.bn2.bias", NAN), "NaN or infinity in layer1.1.bn2.bias"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_TENSORS.values(), ids=list(WRONG_TENSORS))
def test_weights_that_do_not_fit(tmp_path, change, message):
    folder = copy("timm-resnet-basic", tmp_path)
    rewrite(folder, change)
    with pytest.raises(UserError, match=message) as e:
        load(folder)
    assert str(folder) in str(e.value)


def test_numbers_that_are_not_finite_can_be_looked_at(tmp_path):
    folder = rewrite(copy("timm-resnet-basic", tmp_path), put("layer1.1.bn2.bias", NAN))
    weights = load(folder, allow_nonfinite=True).weights
    assert jnp.isnan(weights["stages"]["0"]["rest"]["norm2"]["bias"][0]).all()


WRONG_CONFIGS = {
    "resnet-d": ({"architecture": "resnet50d"}, r"no architecture 'resnet50d'. Did you mean 'resnet50'.*another stem"),
    "squeeze and excitation": ({"architecture": "seresnet50"}, r"no architecture 'seresnet50'"),
    "another network": ({"architecture": "vit_base_patch16_224"}, "no architecture 'vit_base_patch16_224'"),
    "an argument": ({"model_args": {"stem_type": "deep"}}, r"no key 'model_args.stem_type'"),
    "a pool": ({"global_pool": "max"}, r"global_pool='max' of resnet18 is not supported"),
    "groups of basic blocks": ({"model_args": {"cardinality": 2}}, "resnet18 has basic blocks"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_CONFIGS.values(), ids=list(WRONG_CONFIGS))
def test_what_is_not_ported_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load(copy("timm-resnet-basic", tmp_path, **change))


def test_wrong_words_of_transformers(tmp_path):
    with pytest.raises(UserError, match="no hidden_act 'mish'"):
        load(copy("resnet-basic", tmp_path / "a", hidden_act="mish"))
    with pytest.raises(UserError, match="no layer_type 'plain'"):
        load(copy("resnet-basic", tmp_path / "b", layer_type="plain"))


def test_a_tag_and_arguments_of_training_change_nothing(tmp_path):
    config = json.loads((FIXTURES / "timm-densenet" / "config.json").read_text())
    arguments = {**config["model_args"], "drop_rate": 0.1, "global_pool": "avg"}
    folder = copy("timm-densenet", tmp_path, architecture="densenet121.ra_in1k", model_args=arguments)
    assert load(folder).cfg == load(FIXTURES / "timm-densenet").cfg


def test_the_command_lists_the_sites(capsys):
    assert main(["sites", str(FIXTURES / "timm-densenet")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (text for text in lines if text.startswith("stage1.blocks.conv2 "))
    assert " ".join(line.split()).startswith(
        "stage1.blocks.conv2 layers 0 to 2 batch row column channel 1 8 8 4 float32 convolution"
    )
    assert any(text.startswith("stage0.transition") for text in lines)
