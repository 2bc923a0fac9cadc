# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro train-dictionary` as a person meets it: a process, its exit code, what it says and what it leaves."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import jaxneuro
from jaxneuro.cli import main

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(jaxneuro.__file__)), "scripts", "train_dictionary.py")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The arguments of a run of 400 steps, but for --out; compiled as in the processes of these tests."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(512, 8)).astype(np.float32))
    return [
        *("train-dictionary", "--steps", "400", "--batch", "32", "--evaluate-tokens", "64", "--log-every", "10"),
        *("--checkpoint-every", "20", "array", "--path", str(tmp_path / "x.npy"), "relu", "--n-latents", "16"),
        *("--l1", "0.1"),
    ]


def with_out(command, out):
    return [command[0], "--out", str(out), *command[1:]]


@pytest.mark.usefixtures("this_machine")
def test_killed_anywhere_it_goes_on_to_the_same_result(command, tmp_path, capsys):
    """The script is killed in the middle, the command goes on in another process; a third was never interrupted."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(
        [sys.executable, SCRIPT, *with_out(command, killed)[1:]], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        while not (killed / "checkpoints" / "60").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        said = process.stderr.read()
    assert process.returncode == -signal.SIGKILL, said
    assert re.search(r"compiled in [\d.]+ s; a device needs [\d.]+ kB of", said)
    assert not (killed / "results.json").exists()
    assert main(with_out(command, killed)) == 0
    assert main(with_out(command, whole)) == 0
    for name in ("dictionary/dictionary.safetensors", "metrics.jsonl", "results.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    shown = capsys.readouterr()
    assert "FVU" in shown.out
    assert "tokens/s" in shown.err


def test_errors_are_one_line_and_code_2(command, tmp_path, capsys):
    assert main(with_out([*command, "--training.optimiser", "adamm"], tmp_path / "out")) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [
        "jaxneuro: Training: no optimiser 'adamm'. Did you mean 'adam' or 'adamw'? Known: adam, adamw, muon, signum, "
        "schedule_free."
    ]
    assert main(["train-dictionary", "--config", str(tmp_path / "none.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_names_sources_and_methods(capsys):
    with pytest.raises(SystemExit) as e:
        main(["train-dictionary", "--help"])
    assert e.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("live", "store", "array", "batch-topk", "--sweep", "--config FILE"))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "train-dictionary" in capsys.readouterr().out


def test_the_script_is_the_command():
    command = [sys.executable, SCRIPT, "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "usage: jaxneuro train-dictionary" in said
