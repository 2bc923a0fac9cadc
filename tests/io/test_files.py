# SPDX-License-Identifier: Apache-2.0
"""A file is whole or absent, whoever writes it beside whom."""

import ast
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import jaxneuro
from jaxneuro.errors import UserError
from jaxneuro.io.files import atomic_write, clear_temporary, json_text, or_null, write_text


def test_threads_that_write_one_file_do_not_write_into_each_other(tmp_path):
    """Each has a temporary file of its own; the one that ends last stays, whole."""
    path, turns = tmp_path / "a.json", threading.Barrier(2, timeout=30)

    def write(letter):
        with atomic_write(path) as f:
            f.write(letter * 100)
            f.flush()
            turns.wait()
            f.write(letter * 100)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 200, b"b" * 200)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_temporary_files_of_the_dead_go_and_ours_stay(tmp_path):
    dead = [tmp_path / ".a.json.999999999.tmp", tmp_path / ".a.json.999999999-17.tmp"]
    ours = [tmp_path / f".a.json.{os.getpid()}.tmp", tmp_path / f".a.json.{os.getpid()}-3.tmp", tmp_path / ".a.tmp"]
    for path in (*dead, *ours):
        path.write_text("")
    clear_temporary(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(ours)
    below = tmp_path / "a" / "b" / ".a.json.999999999-1.tmp"
    below.parent.mkdir(parents=True)
    below.write_text("")
    clear_temporary(tmp_path)
    assert below.exists()
    clear_temporary(tmp_path, deep=True)
    assert not below.exists()


def test_a_name_that_is_too_long_is_said(tmp_path):
    with pytest.raises(UserError, match=r"x{80}.*the name is too long\. Choose a shorter one\.") as e:
        write_text(tmp_path / ("x" * 300), "a")
    assert "space" not in str(e.value)


def test_numbers_that_json_has_not_are_null_or_refused():
    strict = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    for value in (float("nan"), float("inf"), -float("inf"), np.float32("nan")):
        assert json.loads(json_text({"v": or_null(value)}), **strict) == {"v": None}
        with pytest.raises(ValueError, match="not JSON compliant"):
            json_text({"v": value})
    assert json_text({"v": or_null(np.float32(0.5))}) == '{"v": 0.5}'


def test_json_is_written_by_one_function():
    """What else makes JSON keeps it in memory: a fingerprint, a model's configuration until it is saved, a header of
    names and whole numbers."""
    kept = {"activations/identity.py", "cli/capture.py", "data/pieces.py", "data/picture_rows.py", "data/store.py"}
    kept |= {"data/tokenizer.py", "data/windows.py", "models/checkpoint.py", "models/convnet/checkpoint.py"}
    kept |= {"models/pair.py", "training/options.py", "training/watch.py", "io/safetensors.py"}
    package = Path(jaxneuro.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("dumps", "dump") and ast.unparse(node.value) == "json"
    }
    assert found - kept == {"io/files.py"}
    assert kept <= found
