# SPDX-License-Identifier: Apache-2.0
"""Every kind of call traces where numpy's rank promotion is an error and leaks no tracer; help texts under -OO."""

import os
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parents[1]
STRICT = runpy.run_path(str(ROOT / "scripts" / "strict_modes.py"))


@pytest.mark.parametrize("name", STRICT["CASES"])
def test_every_kind_traces_without_rank_promotion(name):
    with jax.numpy_rank_promotion("raise"):
        STRICT["check"](name)


@pytest.mark.parametrize("name", [*STRICT["KINDS"], "topk"])
def test_no_kind_leaks_a_tracer(name):
    """Of the methods one, as each costs seconds: caches are off. scripts/strict_modes.py runs all so."""
    with jax.checking_leaks():
        STRICT["check"](name)


def test_a_leak_is_an_error_there():
    kept = []
    with jax.checking_leaks(), pytest.raises(Exception, match="Leaked"):
        jax.jit(lambda x: kept.append(x) or x)(1.0)


def test_rank_promotion_is_an_error_there():
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


CODE = """
import sys
from jaxneuro.cli import main
for words in ([], ["study"], ["sites"], ["train-dictionary"], ["train-dictionary", "live", "--site", "x", "topk"]):
    try:
        main([*words, "--help"])
    except SystemExit:
        pass
"""


def test_help_is_the_same_under_oo():
    said = []
    for flags in ([], ["-OO"]):
        command, env = [sys.executable, *flags, "-c", CODE], {**os.environ, "COLUMNS": "110"}
        said.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert said[0] == said[1]
    assert "How text becomes windows of tokens." in said[0]
    assert "StudyConfig(" not in said[0]
