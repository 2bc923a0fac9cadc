# SPDX-License-Identifier: Apache-2.0
"""A refused command leaves nothing: no folder is made for it, nor one around it; what was there before stays."""

import numpy as np
import pytest

from jaxneuro.cli import main

TOPK = "topk --n-latents 8 --k 2"
REFUSED = {
    "train, no file": f"train-dictionary --out OUT array --path none.npy {TOPK}",
    "train, too few rows": f"train-dictionary --out OUT array --path a.npy {TOPK}",
    "train, no store": f"train-dictionary --out OUT store --path none {TOPK}",
    "train, no site": f"train-dictionary --out OUT --batch 256 live --site nosite {TOPK}",
    "train, no model": f"train-dictionary --out OUT live --model none --site embed {TOPK}",
    "train, bad option": "train-dictionary --out OUT array --path a.npy topk --n-latents 2 --k 20",
    "capture, no site": "capture --out OUT --site nosite",
    "capture, no text": "capture --out OUT --site embed --groups none",
    "capture, few tokens": "capture --out OUT --site embed --groups texts --keep moments",
    "study, no text": "study --out OUT --groups none",
    "study, no model": "study --out OUT --model none",
    "show-dictionary, none": "show-dictionary none --out OUT --model bundled",
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_left(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    np.save("a.npy", np.zeros((4, 3), np.float32))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x\n")
    before = sorted(tmp_path.rglob("*"))
    assert main([{"OUT": "deep/er"}.get(w, w) for w in REFUSED[name].split()]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("jaxneuro: ")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "mine").mkdir()
    assert main([{"OUT": "mine"}.get(w, w) for w in REFUSED[name].split()]) == 2
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "mine"])


FOREIGN = {".gitkeep": "", "notes": "", "config.json": '{"a": 1}', "run.json": "[1]", "results.json": "{}"}


@pytest.mark.parametrize("name", ["train, no site", "capture, no site", "study, no text"])
def test_files_of_somebody_else_stay(name, tmp_path, monkeypatch, capsys):
    """Empty ones, and those that are called like a run's own."""
    monkeypatch.chdir(tmp_path)
    for file, text in FOREIGN.items():
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / file).write_text(text)
        assert main([{"OUT": "mine"}.get(w, w) for w in REFUSED[name].split()]) == 2
        assert {p.name: p.read_text() for p in mine.iterdir()} == {file: text}, file
        (mine / file).unlink()
        mine.rmdir()


def test_a_path_over_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["capture", "--out", "x/../y", "--site", "nosite"]) == 2
    assert main(["study", "--out", "x/../y", "--groups", "none"]) == 2
    assert not list(tmp_path.iterdir())
