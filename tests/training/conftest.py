# SPDX-License-Identifier: Apache-2.0
"""Planted activations in files, and the smallest run there is."""

import dataclasses
import functools

import numpy as np
import pytest

from jaxneuro.training import OPTIONS, Array, TrainConfig


def planted(n, seed=0):
    """Sparse sums of 16 directions in R^8."""
    rng = np.random.default_rng(seed)
    rows = np.random.default_rng(7).normal(size=(16, 8))
    return (rng.exponential(size=(n, 16)) * (rng.random((n, 16)) < 0.1) @ rows + 0.1).astype(np.float32)


@pytest.fixture(scope="session")
def x_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, planted(768))
    return path


@pytest.fixture(scope="session")
def xy_file(tmp_path_factory):
    path, x = tmp_path_factory.mktemp("data") / "xy.npz", planted(768)
    np.savez(path, x=x, y=x[:, :6] + 1)
    return path


@pytest.fixture(scope="session")
def six_steps(x_file):
    """Folder -> six steps of a ReLU dictionary, the quickest to compile; `with_` replaces fields."""
    return functools.partial(
        TrainConfig,
        source=Array(path=x_file),
        method=OPTIONS["relu"](n_latents=16, l1=0.1),
        steps=6,
        batch=64,
        evaluate_tokens=128,
        log_every=2,
    )


@pytest.fixture
def config(six_steps, tmp_path):
    return six_steps(out=tmp_path / "out")


def with_(value, **changes):
    """A dataclass with other values; "source__path" is the path of its source."""
    for name, new in changes.items():
        owner, _, inner = name.partition("__")
        if inner:
            new = with_(getattr(value, owner), **{inner: new})
        value = dataclasses.replace(value, **{owner: new})
    return value


@pytest.fixture(scope="session")
def changed():
    return with_


@pytest.fixture(scope="session")
def planted_rows():
    return planted
