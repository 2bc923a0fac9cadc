# SPDX-License-Identifier: Apache-2.0
"""Mutated files against every loader: a short fixed run of scripts/fuzz_loaders.py, and the fuzzer itself."""

import json
import pathlib
import re
import subprocess
import sys

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


def fuzz(*args):
    command = [sys.executable, "-W", "ignore", SCRIPTS / "fuzz_loaders.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_no_mutant_of_a_fixed_run_gives_a_traceback_a_hang_or_wrong_values(tmp_path):
    """And a run that goes on makes no mutant again."""
    records = tmp_path / "fuzz.jsonl"
    options = ("--seed", 5, "--cases", 4, "--resume", records, "--timeout-s", 10, "--seconds", 240)
    done = fuzz("--mutants", 300, *options)
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert [r for r in found if r["outcome"] not in ("clear error", "same values", "undetectable")] == []
    assert done.returncode == 0, done.stderr
    assert sorted(r["i"] for r in found) == list(range(300))
    assert len({r["kind"] for r in found}) == 10
    assert sum(r["outcome"] == "clear error" for r in found) > 150
    assert re.search(r"\| all \| 300 \| \d+ \| \d+ \| \d+ \| 0 \| 0 \| 0 \| 0 \| 0 \| 0 \|", done.stdout)


_PLANTED = """
import ctypes, json, os, signal, sys, time
sys.path.insert(0, {scripts!r})
from fuzz import seeds
from fuzz.pool import Limits, run


def load(path):
    kind = load.turn[hash(path.parent.name) % len(load.turn)]
    if kind == "raw": raise KeyError("a")
    if kind == "hang": time.sleep(60)
    if kind == "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGALRM}})
        time.sleep(60)
    if kind == "memory": return bytes(1 << 40)
    if kind == "crash": ctypes.string_at(0)
    if kind == "unsafe text":
        from jaxneuro.errors import UserError
        e = UserError("a"); e.args = ("\\x1b[2J",); raise e
    return kind
"""


def test_what_a_loader_can_do_wrong_is_told_apart(tmp_path):
    """Planted loaders, each in a process that is killed where it must be."""
    script = tmp_path / "planted.py"
    script.write_text(
        _PLANTED.format(scripts=str(SCRIPTS))
        + """
KINDS = ["raw", "hang", "deaf", "memory", "crash", "unsafe text", "wrong"]


def planted(name):
    def either(path):
        if "mutants" not in str(path): return "whole"
        load.turn = [name]
        return load(path)

    return seeds.Kind(1, seeds._safetensors, either)


seeds.KINDS.clear()
seeds.KINDS.update({name: planted(name) for name in KINDS})
if __name__ == "__main__":
    found = run(3, range(14), workers=1, limits=Limits(timeout_s=0.3, memory_mb=2000), until=time.monotonic() + 100)
    print(json.dumps([(r["kind"], r["outcome"]) for r in found]))
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 14
    for kind, outcome in found:
        assert outcome in {"deaf": ("hang",), "wrong": ("wrong", "undetectable")}.get(kind, (kind,)), (kind, outcome)
    assert len({kind for kind, _ in found}) >= 5
