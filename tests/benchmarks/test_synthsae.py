# SPDX-License-Identifier: Apache-2.0
"""Rows of SynthSAEBench are kept, trainings go on where they stopped, and the published table is what they are held to.

What the architectures score is in tests/dictionaries/test_ranking.py.
"""

import dataclasses

import pytest

from benchmarks import harness, synthsae
from benchmarks.synthsae import PUBLISHED, SCORES, SMALL, WHOLE, against, once
from jaxneuro.dictionaries.synthetic import SyntheticConfig

TINY = dataclasses.replace(
    SMALL,
    config=SyntheticConfig(n_features=12, d=6, n_roots=0, p_max=0.5, p_min=0.05, orthogonal_steps=0),
    n_latents=8,
    l0s=(1, 2),
    steps=12,
    batch=32,
    inner_steps=3,
    judged=64,
    l1s=(0.5, 2.0),
)


def test_what_is_finished_is_kept_and_what_was_stopped_goes_on(tmp_path, monkeypatch):
    row = once(TINY, "MP", 2, tmp_path)
    assert row["seconds"] is not None
    assert row["L0"] <= 2
    harness.show("synthsae", [row])
    (tmp_path / "MP-2.json").unlink()
    again = once(TINY, "MP", 2, tmp_path)  # only judged: the training is done
    assert again == row | {"seconds": None}
    monkeypatch.setattr(synthsae, "trained", None)
    assert once(TINY, "MP", 2, tmp_path) == again


def test_both_l0_choose_from_one_training_of_l1(tmp_path):
    rows = [once(TINY, "L1", l0, tmp_path) for l0 in TINY.l0s]
    assert rows[0]["seconds"] is not None
    assert rows[1]["seconds"] is None
    assert abs(rows[0]["L0"] - 1) <= abs(rows[1]["L0"] - 1)
    assert abs(rows[1]["L0"] - 2) <= abs(rows[0]["L0"] - 2)


def test_the_deviation_is_that_of_the_worst_score():
    published = dict(zip(SCORES, PUBLISHED["MP", 20], strict=True))
    assert against("MP", 20, published)["worst deviation / sd"] == 0
    assert against("MP", 20, published | {"EV": 0.807, "F1": 0.449})["worst deviation / sd"] == pytest.approx(4)
    assert {l0 for _, l0 in PUBLISHED} == set(WHOLE.l0s)


def test_the_whole_benchmark_is_the_published_one():
    assert WHOLE.steps * WHOLE.batch == pytest.approx(200e6, rel=1e-4)
    assert WHOLE.steps % WHOLE.inner_steps == 0
    assert WHOLE.prefixes == (128, 512, 2048, 4096)
