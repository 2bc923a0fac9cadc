# SPDX-License-Identifier: Apache-2.0
"""A run's folder: whose it is, who writes it, what is done."""

import json
import subprocess
import sys

import pytest

from jaxneuro.errors import UserError
from jaxneuro.study import RunFolder
from jaxneuro.study import folder as folder_module


def test_a_step_runs_once(tmp_path):
    ran = []

    def compute():
        ran.append(1)
        (tmp_path / "run" / "a.txt").write_text("a")

    for _ in range(2):
        with RunFolder(tmp_path / "run", {"seed": 0}).opened() as folder:
            folder.step("first", ("a.txt",), compute)
    assert ran == [1]
    assert folder.records()["first"]["files"] == ["a.txt"]


def test_a_step_whose_file_is_gone_runs_again(tmp_path):
    with RunFolder(tmp_path, {}).opened() as folder:
        folder.step("first", ("a.txt",), lambda: (tmp_path / "a.txt").write_text("a"))
        (tmp_path / "a.txt").unlink()
        assert folder.step("first", ("a.txt",), lambda: (tmp_path / "a.txt").write_text("b"))
    assert (tmp_path / "a.txt").read_text() == "b"


def test_a_claim_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(path, value):
        raise UserError(f"cannot write {path}: No space left on device.")

    monkeypatch.setattr(folder_module, "write_json", full)
    with pytest.raises(UserError, match="No space left"), RunFolder(tmp_path / "a" / "run", {}).opened():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_failed_step_is_not_done(tmp_path):
    def fail():
        raise RuntimeError("broken")

    with RunFolder(tmp_path, {}).opened() as folder:
        with pytest.raises(RuntimeError, match="broken"):
            folder.step("first", (), fail)
        assert folder.done("first") is None


def test_a_step_must_write_what_it_promised(tmp_path):
    with RunFolder(tmp_path, {}).opened() as folder, pytest.raises(RuntimeError, match=r"did not write \['a.txt'\]"):
        folder.step("first", ("a.txt",), lambda: None)


def test_another_run_is_refused_and_named(tmp_path):
    with RunFolder(tmp_path, {"seed": 0, "model": "a"}).opened() as folder:
        folder.step("first", (), lambda: None)
    with (
        pytest.raises(UserError, match=r"belongs to another run: model was 'a', now 'b'"),
        RunFolder(tmp_path, {"seed": 0, "model": "b"}).opened(),
    ):
        pass


def test_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(UserError, match="holds something that is not a study"), RunFolder(tmp_path, {}).opened():
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"), RunFolder(tmp_path / "out", {}).opened():
        pass


def test_two_processes_do_not_share_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from jaxneuro.study import RunFolder\n"
        "try:\n"
        "    with RunFolder(Path(sys.argv[1]), {}).opened(): print('opened')\n"
        "except ValueError as e: print(e)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with RunFolder(tmp_path, {}).opened():
        held = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    free = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "another process is writing" in held
    assert free.strip() == "opened"


def test_changed_inputs_are_refused(tmp_path):
    with RunFolder(tmp_path, {}).opened() as folder:
        folder.same_inputs({"text": "1", "model": "2"})
        folder.same_inputs({"text": "1", "model": "2"})
        with pytest.raises(UserError, match="the text changed since the run"):
            folder.same_inputs({"text": "9", "model": "2"})
        assert json.loads((tmp_path / "run.json").read_text())["inputs"]["text"] == "1"


def test_a_start_that_computed_nothing_claims_nothing(tmp_path):
    with RunFolder(tmp_path / "run", {"model": "typo"}).opened():
        pass
    with RunFolder(tmp_path / "run", {"model": "right"}).opened() as folder:
        assert folder.identity == {"model": "right"}
        assert json.loads((folder / "run.json").read_text())["identity"] == {"model": "right"}


def test_a_start_that_computed_nothing_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError), RunFolder(tmp_path / "a" / "b", {}).opened():
        raise UserError("no such model")
    with pytest.raises(UserError), RunFolder(tmp_path / "there" / "c", {}).opened():
        raise UserError("no such model")
    assert [p.name for p in tmp_path.rglob("*")] == ["there"]
    with RunFolder(tmp_path / "there", {}).opened() as folder:
        folder.step("first", (), lambda: None)
    assert (tmp_path / "there" / "run.json").exists()


def test_a_folder_inside_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used as a folder: Not a directory"):
        RunFolder(tmp_path / "file" / "run", {}).opened().__enter__()
