# SPDX-License-Identifier: Apache-2.0
"""Do the architectures rank as in SynthSAEBench's published table (arXiv:2602.14687), on a small sister of it?

Numbers in comments are means and standard deviations over seeds 0, 1, 2. Not asserted, because not clear at this size:
that MP is last in F1 and uniqueness and ahead of L1 in MCC (its F1, MCC and uniqueness vary by .02 to .1 between seeds;
published, its F1 is half of the others'), and that JumpReLU has BatchTopK's F1 (here .03 less).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.synthsae import METHODS, SMALL, features, judged, trained
from jaxneuro.activations import together
from jaxneuro.dictionaries.parts.decoder import unit_rows
from jaxneuro.dictionaries.synthetic import mean_cosine

from .conftest import rows

pytestmark = pytest.mark.usefixtures("optimised")  # a thousand steps: running takes longer than compiling
(L0,) = SMALL.l0s
READ = {
    "f1": lambda r: r.f1,
    "mcc": lambda r: r.mcc,
    "uniqueness": lambda r: r.uniqueness,
    "ev": lambda r: r.reconstruction.explained_variance,
    "l0": lambda r: r.reconstruction.l0,
    "dead": lambda r: r.reconstruction.dead_fraction,
}


@functools.cache
def dictionaries():
    """All architectures, trained on the same samples in one program."""
    methods = {name: make(SMALL, L0) for name, make in METHODS.items()}
    return trained(SMALL, together(methods), features(SMALL))[0]


@functools.cache
def recoveries():
    truth = features(SMALL)
    return {name: judged(SMALL, found, truth, truth.vectors, L0) for name, found in dictionaries().items()}


def scores(name):
    """BatchTopK's, Matryoshka's, JumpReLU's, L1's, MP's."""
    return [READ[name](r) for r in recoveries().values()]


def test_every_method_reaches_its_l0_and_keeps_its_latents_alive():
    *targeted, lasso, pursuit = scores("l0")
    assert targeted == pytest.approx([L0] * 3, rel=0.1)
    assert lasso == pytest.approx(L0, rel=0.2)  # the nearest of a few coefficients
    assert 0.9 * L0 < pursuit <= L0
    assert max(scores("dead")) < 0.1


def test_scores_are_those_of_other_seeds():
    """A method that learns worse, or otherwise, than it did: 5 sd and more, two-sided."""
    assert scores("ev") == pytest.approx([0.854, 0.828, 0.854, 0.781, 0.866], abs=0.025)  # sd .001 to .005
    assert scores("mcc") == pytest.approx([0.697, 0.741, 0.698, 0.634, 0.661], abs=0.09)  # sd .001 to .023


def test_explained_variance_is_highest_of_mp_and_lowest_of_l1():
    batch, matryoshka, jumprelu, lasso, pursuit = scores("ev")
    assert 0.004 < pursuit - max(batch, jumprelu) < 0.03  # .011, sd .003
    assert batch == pytest.approx(jumprelu, abs=0.01)  # sd .002
    assert 0.01 < min(batch, jumprelu) - matryoshka < 0.05  # .026, sd .005
    assert 0.02 < matryoshka - lasso < 0.08  # .048, sd .005


def test_mcc_is_lowest_of_l1():
    *selecting, lasso, _ = scores("mcc")
    assert 0.02 < min(selecting) - lasso < 0.12  # .055, sd .010


def test_latents_of_l1_share_features():
    *selecting, lasso, _ = scores("uniqueness")
    assert min(selecting) > 0.85  # .93, sd .02
    assert lasso < min(selecting) - 0.05  # .19, sd .10


def test_f1_is_highest_of_matryoshka_and_low_of_l1_and_mp():
    batch, matryoshka, jumprelu, lasso, pursuit = scores("f1")
    assert 0.04 < matryoshka - batch < 0.2  # .105, sd .018
    assert 0.01 < jumprelu - lasso < 0.1  # .036, sd .008
    assert 0.01 < batch - lasso < 0.15  # .069, sd .024
    assert 0.08 < matryoshka - pursuit < 0.4  # .22, sd .065


def test_directions_that_did_not_make_the_data_are_not_found():
    """Judged by other directions, scores are those of chance."""
    truth, rng = features(SMALL), np.random.default_rng(0)
    other = unit_rows(jax.random.normal(jax.random.key(7), truth.vectors.shape, jnp.float32))
    chance = mean_cosine(np.abs(rows(rng, SMALL.n_latents, SMALL.config.d) @ np.asarray(other).T))
    for name in ("Matryoshka", "MP"):
        r = judged(SMALL, dictionaries()[name], truth, other, L0)
        assert r.mcc == pytest.approx(chance, abs=0.03), name  # sd .004
        assert r.f1 < 0.06, name  # .016 to .033: how often two features fire together that have nothing in common
