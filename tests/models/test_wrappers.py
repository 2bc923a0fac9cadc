# SPDX-License-Identifier: Apache-2.0
"""The text model of a wrapper with pictures is the text model's own folder, whichever transformers wrote the names."""

import json

import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.io import read_safetensors, write_safetensors
from jaxneuro.models import load, save_pretrained
from jaxneuro.models.families.wrappers import _SIZES

from ..parity.conftest import FIXTURES
from .folders import equal

OLD = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
NEW = {"model.": "model.language_model.", "lm_head.": "lm_head."}
PICTURES = ("vision_tower.encoder.w", "multi_modal_projector.linear.weight")
CASES = [("gemma3", "gemma3_text"), ("mistral3", "mistral-windowed"), ("llava", "llama-gqa"), ("llava", "mistral-full")]


def wrapped(kind, case, folder, spelled, prefix="", **outer):
    hf = json.loads((FIXTURES / case / "config.json").read_text())
    tensors = dict(read_safetensors(FIXTURES / case / "model.safetensors"))
    names = {n: next(new + n.removeprefix(old) for old, new in spelled.items() if n.startswith(old)) for n in tensors}
    there = {names[n]: a for n, a in tensors.items()} | {prefix + n: np.ones(3, np.float32) for n in PICTURES}
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", there, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "text_config": hf, **outer}))
    return folder


@pytest.mark.parametrize(("kind", "case"), CASES)
@pytest.mark.parametrize("spelled", ["old", "new"])
def test_the_text_model_is_that_of_its_own_folder(kind, case, spelled, tmp_path, capsys):
    names, prefix = (OLD, "") if spelled == "old" else (NEW, "model.")
    model = load(wrapped(kind, case, tmp_path / "a", names, prefix))
    alone = load(FIXTURES / case)
    assert model.cfg == alone.cfg
    equal(model, alone)
    assert f"passed over: {prefix}multi_modal_projector, {prefix}vision_tower" in capsys.readouterr().err
    save_pretrained(model, tmp_path / "b")
    equal(load(tmp_path / "b"), alone)


def test_what_is_not_its_text_model_is_an_error(tmp_path):
    folder = wrapped("gemma3", "gemma3_text", tmp_path / "a", NEW)
    hf = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"text_config": {**hf["text_config"], "model_type": "gemma2"}}, "no text model 'gemma2'"),
        ({"text_config": None}, "text_config = null"),
        ({"text_config": {**hf["text_config"], "rms_norm_eps": -1}}, "rms_norm_eps = -1"),
        ({"tie_word_embeddings": "true"}, "tie_word_embeddings = 'true'"),
    ):
        (folder / "config.json").write_text(json.dumps({**hf, **change}))
        with pytest.raises(UserError, match=said):
            load(folder)
    (folder / "config.json").write_text(json.dumps(hf))
    tensors = dict(read_safetensors(folder / "model.safetensors"))
    write_safetensors(folder / "model.safetensors", {**tensors, "audio_tower.w": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"not part of a gemma3's text or picture model: audio_tower\.w"):
        load(folder)


@pytest.mark.parametrize("family", ["gemma3_text", "mistral", "llama"])
def test_sizes_that_are_left_out_are_those_of_transformers(family):
    usual = json.loads((FIXTURES / "about.json").read_text())["defaults"][family]
    assert {name: usual[name] for name in _SIZES[family]} == _SIZES[family]
