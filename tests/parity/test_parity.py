# SPDX-License-Identifier: Apache-2.0
"""Every family and switch against transformers: output and each layer's residual stream, at real tokens, at 1e-5."""

import jax
import numpy as np

from jaxneuro.models import FAMILIES, pool
from jaxneuro.taps import capture

from .conftest import CASES, open_case

TOLERANCE = 1e-5  # float32 rounding of these models is 1e-6 to 3e-6; the smallest known real mistake is 9e-5


def test_there_are_cases_for_every_family():
    assert {open_case(c).model.cfg.family for c in CASES} == set(FAMILIES)


def test_output_and_every_residual(case):
    sites = ["blocks.*.resid_pre", "blocks.*.resid_post"]

    def run(weights, tokens, mask):
        return case.model.apply(weights, tokens, mask, **case.types)

    with jax.default_matmul_precision("highest"):
        out, acts = jax.jit(capture(run, sites))(case.model.weights, *case.inputs)
    assert case.error(out) < TOLERANCE
    ours = np.concatenate([acts[sites[0]][:1], acts[sites[1]]])
    difference = np.abs(ours - case.golden["resid"])[:, case.mask].max((1, 2))
    np.testing.assert_array_less(difference, TOLERANCE)
    np.testing.assert_array_equal(acts[sites[0]][1:], acts[sites[1]][:-1])


def test_pooled_output():
    case = open_case("bert")
    hidden = case.golden["out"]
    np.testing.assert_allclose(pool(case.model.weights, hidden), case.golden["pooled"], atol=TOLERANCE)
