# SPDX-License-Identifier: Apache-2.0
"""README's Python runs as it stands there, and its commands name what exists."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest

from jaxneuro.cli import main

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


(GENERATE,) = re.findall(r"^    jaxneuro (generate .*)$", README, re.MULTILINE)


def test_python_blocks_run(tmp_path, monkeypatch, optimised, capsys):
    """One after the other, as a reader would."""
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["acts"]["blocks.*.mlp.post"].shape[0] == names["model"].cfg.n_layers
    few = names["ablations"](names["model"].weights, names["tokens"], names["jax"].numpy.arange(3))
    assert few.shape == (3, names["model"].cfg.d_vocab)
    said = re.findall(r'^(complete.*\[0\]\.text)  # (".*")$', README, re.MULTILINE)
    assert len(said) == 2
    for call, text in said:
        assert repr(eval(call, names)) == repr(eval(text)), call
    capsys.readouterr()
    assert main(shlex.split(GENERATE)) == 0
    assert capsys.readouterr().out == f"Die folgenden{eval(said[1][1])}\n"
    assert names["learned"].encode(names["x"][:3]).shape == (3, 512)


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is of the extra dev")
def test_python_blocks_pass_a_type_checker(tmp_path):
    """In an editor nothing of README is underlined, and a misspelled selector is."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    wrong = 'from jaxneuro import zero\nzero("blocks.3.mlp.post", neurn=3)\n'
    for name, text in (("blocks.py", "\n".join(blocks)), ("wrong.py", wrong)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    settings = {"extraPaths": [str(ROOT), str(ROOT / "kernels")], "reportPrivateImportUsage": "none"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(["pyright", "--outputjson", "-p", tmp_path], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [d["message"] for d in found if d["file"].endswith("blocks.py")] == []
    assert any("neurn" in d["message"] for d in found if d["file"].endswith("wrong.py"))


def test_both_commands_stand_on_the_first_screen():
    first = "\n".join(README.splitlines()[:25])
    assert "pip install -e . && .venv/bin/jaxneuro study" in first
    assert 'pip install -e ".[test]" && .venv/bin/pytest' in first


def test_rooms_and_extras_exist():
    for room in re.findall(r"`jaxneuro\.(\w+)`", README):
        assert (ROOT / "jaxneuro" / room).is_dir(), room
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for asked in re.findall(r"extra `(\w+)`", README):
        assert asked in extras, asked


def test_measured_ratios_are_those_of_the_committed_tables():
    results = ROOT / "benchmarks" / "results"
    found = []
    tables = {
        "capture": "time / ",
        "sweep": "speed-up",
        "topk_step": "speed-up",
        "kernels": "speed-up",
        "dictionaries": "times ours",
        "hooks": "times ours",
        "ablations": "speed-up",
    }
    for name, key in tables.items():
        (path,) = results.glob(f"{name}-cpu-*.json")
        rows = json.loads(path.read_text())["rows"]
        values = [value for row in rows for k, value in row.items() if k.startswith(key)]
        found += [v for value in values for v in (value.values() if isinstance(value, dict) else [value])]
    claimed = re.findall(r"\| (\d\.\d+) x ", README)
    assert len(claimed) >= 7
    for said in claimed:
        digits = len(said.partition(".")[2])
        assert any(abs(float(said) - value) < 0.6 * 10**-digits for value in found), said
