# SPDX-License-Identifier: Apache-2.0
"""The toy decoder and the chain, and what plain loops get out of them."""

import sys
from functools import partial
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import toy_decoder as toy


@pytest.fixture(scope="session")
def w():
    return toy.weights()


@pytest.fixture(scope="session")
def toks():
    return toy.tokens()


@pytest.fixture(scope="session")
def plain(w, toks):
    """(logits, every site's values [L, ...]) of the decoder by the plain loop."""
    return jax.jit(toy.reference)(w, toks)


@pytest.fixture(scope="session")
def acts(plain):
    return plain[1]


@pytest.fixture(params=["scan", "unrolled", "remat", "jit", "fori"])
def any_fwd(request):
    """Every form of the decoder."""
    return partial(toy.forward, mode=request.param)


@pytest.fixture(params=[True, False], ids=["scanned", "unrolled"])
def chain(request):
    """The two forms of the chain, for which everything must hold."""
    return partial(toy.chain, scanned=request.param)


@pytest.fixture(scope="session")
def ws():
    return toy.chain_weights()[0]


@pytest.fixture(scope="session")
def x():
    return toy.chain_weights()[1]


@pytest.fixture(scope="session")
def chain_acts(ws, x):
    return toy.chain_reference(ws, x)[1]
