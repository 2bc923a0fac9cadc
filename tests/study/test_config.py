# SPDX-License-Identifier: Apache-2.0
"""The study's settings."""

import dataclasses
from pathlib import Path

import pytest

from jaxneuro.errors import UserError
from jaxneuro.study import StudyConfig
from jaxneuro.study.config import DictionaryConfig, EffectConfig, TextConfig


def test_identity_is_flat_and_leaves_out_where_it_goes():
    identity = StudyConfig(out=Path("elsewhere")).identity()
    assert identity["text.window"] == 128
    assert identity == StudyConfig().identity()
    assert "out" not in identity


def test_small_is_smaller_and_a_run_of_its_own():
    small = StudyConfig(preset="small").resolved()
    assert small.dictionary.steps < StudyConfig().dictionary.steps
    assert small.identity() != StudyConfig().resolved().identity()
    assert small.resolved() == small


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StudyConfig(batch=0), "batch = 0 is out of range: it must be at least 1"),
        (StudyConfig(text=TextConfig(measured=1.5)), "text.measured = 1.5 is out of range: it must be between"),
        (StudyConfig(effect=EffectConfig(random_sets=3)), "effect.random_sets = 3 .* at least 10"),
        (StudyConfig(dictionary=DictionaryConfig(k=0)), "dictionary.k = 0"),
    ],
)
def test_numbers_out_of_range(config, message):
    with pytest.raises(UserError, match=message):
        config.resolved()


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        StudyConfig().seed = 1  # type: ignore[misc]
