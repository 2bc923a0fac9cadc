# SPDX-License-Identifier: Apache-2.0
"""The study's settings."""

import dataclasses
from pathlib import Path

import numpy as np
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


def test_the_small_preset_can_judge(monkeypatch):
    """Every bundled group is left with enough measured windows for a verdict, of several documents."""
    from jaxneuro.data import draw_windows, load_tokenizer, read_groups, windows
    from jaxneuro.reports.findings import FEWEST_WINDOWS
    from jaxneuro.study.inputs import _split

    def measured(config):
        text = config.text
        rows = windows(read_groups("bundled"), load_tokenizer("bundled"), length=text.window, packing="apart")
        used = draw_windows(rows, text.max_tokens_per_group, config.seed)
        _, kept = _split(used, config.seed, text.measured, config.effect.tokens_per_group)
        return np.bincount(kept.group), [len(np.unique(kept.block[kept.group == k])) for k in range(9)]

    small = StudyConfig(preset="small").resolved()
    found, documents = measured(small)
    assert len(found) == 9
    assert found.min() >= FEWEST_WINDOWS
    assert min(documents) >= 2
    assert small.picture.measured_per_group >= FEWEST_WINDOWS
    before = dataclasses.replace(small, text=dataclasses.replace(small.text, window=128))
    before = dataclasses.replace(before, effect=dataclasses.replace(small.effect, tokens_per_group=256))
    assert measured(before)[0].max() < FEWEST_WINDOWS, "what this test is for"
