# SPDX-License-Identifier: Apache-2.0
"""Every example in a docstring runs, and shows what it says."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import jaxneuro_kernels
import numpy as np
import pytest

import jaxneuro


def modules():
    """Every module of both packages."""
    for package in (jaxneuro, jaxneuro_kernels):
        yield package.__name__
        yield from (m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + "."))


@pytest.mark.parametrize("name", sorted(modules()))
def test_examples(name):
    module = importlib.import_module(name)
    room = importlib.import_module(".".join(name.split(".")[:2]))  # an example may use what its room exports
    public = {k: v for k, v in vars(room).items() if not k.startswith("_")}
    names = {"jax": jax, "jnp": jnp, "np": np} | public | vars(module)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    found = doctest.testmod(module, extraglobs=names, optionflags=flags)
    assert found.failed == 0
