# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of fixtures, copied and changed."""

import json
import shutil

import numpy as np

from jaxneuro.io import read_safetensors, write_safetensors
from jaxneuro.models.layout import flatten


def copy(fixtures, case, folder, **config):
    """A fixture's folder, with config keys changed; None takes one away."""
    shutil.copytree(fixtures / case, folder, dirs_exist_ok=True)
    hf = json.loads((folder / "config.json").read_text()) | config
    kept = {k: v for k, v in hf.items() if k not in config or v is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def rewrite(folder, change):
    """Replace the tensors of a folder by change(dict of them)."""
    path = folder / "model.safetensors"
    tensors = change({name: np.array(a) for name, a in read_safetensors(path).items()})
    write_safetensors(path, tensors, {"format": "pt"})
    return folder


def drop(*names):
    return lambda tensors: {n: a for n, a in tensors.items() if n not in names}


def put(name, array):
    return lambda tensors: {**tensors, name: np.asarray(array)}


def equal(a, b):
    """The weights of two models are the same numbers of the same dtypes."""
    a, b = flatten(a.weights), flatten(b.weights)
    assert set(a) == set(b)
    for leaf in a:
        assert a[leaf].dtype == b[leaf].dtype
        np.testing.assert_array_equal(a[leaf], b[leaf])


def keeps(before, after, *, but):
    """Whatever stood in one folder's config.json stands in the other's."""
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (before, after))
    kept = {k: v for k, v in old.items() if k not in but and v is not None}  # None: may be written out
    assert kept == {k: new[k] for k in kept}
