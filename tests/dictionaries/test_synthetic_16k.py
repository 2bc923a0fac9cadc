# SPDX-License-Identifier: Apache-2.0
"""The synthetic benchmark at its real size: programs that run for longer than they compile."""

import dataclasses
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxneuro.dictionaries.synthetic import SyntheticConfig, synthetic, synthetic_batches

pytestmark = pytest.mark.usefixtures("optimised")
GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "synthsaebench.json").read_text())


def test_the_16k_model_has_34_active_features_and_as_many_at_each_level_as_the_original():
    golden = GOLDEN["benchmark"]
    config = dataclasses.replace(SyntheticConfig(), d=4, orthogonal_steps=0)  # firing does not depend on directions
    features = synthetic(config, key=jax.random.key(42))
    batches = synthetic_batches(features, batch_size=512, steps=2, truth=True)
    active = sum(np.asarray((batch["z"] > 0).sum(0)) for batch in batches) / 1024
    by_level = [active[a:b].sum() for a, b in itertools.pairwise(golden["bounds"])]
    np.testing.assert_allclose(by_level, golden["l0_by_level"], atol=0.4)  # standard error 0.1, factors differ
    assert abs(active.sum() - golden["l0"]) < 0.8
    assert abs(active.sum() - 34) < 1.2  # "about 34" in arXiv:2602.14687
