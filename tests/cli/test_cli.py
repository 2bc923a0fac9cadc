# SPDX-License-Identifier: Apache-2.0
"""The command as a person meets it: a process of its own, its exit code, what it says and what it leaves."""

import re
import signal
import subprocess
import sys

import pytest

from jaxneuro.cli import main

FULL = {
    "before": "import shutil; u = shutil.disk_usage('/'); shutil.disk_usage = lambda p: u._replace(free=1000)",
    "meanwhile": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))",
}
"""Found full before a write; filled by somebody else during one (a limit on the size of files stands for it)."""
COMMAND = "import sys; from jaxneuro.cli import main; sys.exit(main({arguments!r}))"


def start(arguments, before=""):
    """The command in a process of its own."""
    code = f"{before}\n{COMMAND.format(arguments=[str(a) for a in arguments])}"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def study(tmp_path):
    """Arguments of a reduced study in a new folder, and the folder."""
    out = tmp_path / "study"
    sizes = ["--window", "32", "--max-tokens-per-group", "128", "--batch", "8"]  # a preset overrides them
    return ["study", *sizes, "--out", out], out


@pytest.mark.parametrize("when", FULL)
def test_a_full_disk(study, when):
    arguments, out = study
    process = start(arguments, before=FULL[when])
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 2, said
    before, found, line = said.partition("jaxneuro: ")
    assert found
    assert str(out) in line
    if when == "before":
        assert "1,000 (0.00 GB) are free there. Make room" in line
        assert len(line.splitlines()) == 1
        assert "Traceback" not in before
    else:
        assert "Traceback" not in said  # of TensorStore's threads, which report to an event loop that is closed
        assert "could not be written" in line
        assert "run the same command again" in line
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp") or p.name in ("statistics.npz", "results.json")]


def test_ctrl_c_while_it_runs(study):
    arguments, out = study
    with start([*arguments, "--max-tokens-per-group", "4096"]) as process:
        assert process.stderr
        try:
            for line in process.stderr:  # until the first step of the statistics is done
                if re.match(r"1/6 statistics \d", line):
                    break
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=100)[1]
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert not (out / "statistics.npz").exists()
    assert list((out / "unfinished" / "statistics").glob("[0-9]*")), "a checkpoint to go on from"
    assert said.splitlines()[-1] == "jaxneuro: interrupted. Run the same command again to go on where it stopped."
    assert "Traceback" not in said


def test_an_unknown_model_is_one_line(tmp_path, capsys):
    assert main(["study", "--model", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("jaxneuro: ")
    assert "nothing" in said


def test_sites_lists_them(capsys):
    assert main(["sites", "bundled"]) == 0
    shown = capsys.readouterr().out
    assert "blocks.mlp.gate" in shown
    assert "1 8 512" in shown
