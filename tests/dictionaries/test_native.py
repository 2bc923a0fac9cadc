# SPDX-License-Identifier: Apache-2.0
"""Every dictionary class goes into two files and comes back bitwise; anything else there is refused."""

import dataclasses
import json
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import AbsTopK, CrossLayerTranscoder, Gated, GroupMax, JumpReLU, Relu, SparseCoder, TopK
from jaxneuro.dictionaries.kmeans import KMeansDictionary
from jaxneuro.dictionaries.matching_pursuit import MatchingPursuit
from jaxneuro.dictionaries.native import CLASSES, load_native, save_native
from jaxneuro.dictionaries.pca import PCADictionary
from jaxneuro.dictionaries.semi_nmf import SemiNMFDictionary
from jaxneuro.errors import UserError

RNG = np.random.default_rng(0)


def a(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def coder(activation, **more):
    return SparseCoder(W_enc=a(3, 5), W_dec=a(5, 3), b_enc=a(5), b_dec=a(3), activation=activation, **more)


def filled(kind):
    """Any of our dataclasses with arrays in all its array fields."""
    values = {}
    for f in dataclasses.fields(kind):
        static = f.metadata.get("static", False)
        axes = get_type_hints(kind)[f.name].dim_str.split() if not static else ()
        values[f.name] = (
            (1 if f.default is dataclasses.MISSING else f.default) if static else a(*(SIZES[n] for n in axes))
        )
    return kind(**values)


SIZES = {"d_in": 3, "n_latents": 5}


DICTIONARIES = {
    "topk": lambda: coder(TopK(2)),
    "abs_topk": lambda: coder(AbsTopK(2)),
    "group_max": lambda: coder(GroupMax(1), apply_b_dec_to_input=False),
    "jumprelu": lambda: coder(JumpReLU(a(5)), input_norm="layer_norm"),
    "one threshold": lambda: coder(JumpReLU(jnp.float32(0.1))),
    "relu": lambda: coder(Relu(), W_skip=a(3, 3)),
    "gated": lambda: coder(filled(Gated)),
    "bfloat16": lambda: coder(TopK(1), W_skip=a(3, 3, dtype=jnp.bfloat16)),
    "clt": lambda: CrossLayerTranscoder(
        W_enc=a(2, 3, 4), b_enc=a(2, 4), W_dec=(a(2, 4, 3), a(1, 4, 3)), b_dec=a(2, 3), activation=TopK(2)
    ),
    "matching_pursuit": lambda: dataclasses.replace(filled(MatchingPursuit), tolerance=0.5, stop_on_repeat=True),
    "pca": lambda: filled(PCADictionary),
    "kmeans": lambda: filled(KMeansDictionary),
    "semi_nmf": lambda: filled(SemiNMFDictionary),
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_there_and_back_is_the_same(tmp_path, name):
    dictionary = DICTIONARIES[name]()
    found = load_native(save_native(dictionary, tmp_path))
    assert jax.tree.structure(found) == jax.tree.structure(dictionary)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(dictionary), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_every_class_is_tried():
    seen = set()
    for make in DICTIONARIES.values():
        d = make()
        seen |= {type(d).__name__, type(getattr(d, "activation", d)).__name__}
    assert seen == set(CLASSES)


def edited(folder, edit):
    record = json.loads((folder / "dictionary.json").read_text())
    edit(record)
    (folder / "dictionary.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda r: r.update(format=2), "has format 2; this version of jaxneuro reads 1"),
        (lambda r: r["dictionary"].update({"class": "SparseCode"}), "Did you mean 'SparseCoder'"),
        (lambda r: r["dictionary"]["fields"].pop("b_dec"), "SparseCoder lacks b_dec"),
        (lambda r: r["dictionary"]["fields"].update(b_pre=1), "has no b_pre"),
        (
            lambda r: r["dictionary"]["fields"]["b_dec"].update(shape=[4]),
            r"recorded as float32\[4\], but .* float32\[3\]",
        ),
        (lambda r: r["dictionary"]["fields"]["b_dec"].update(array="b"), "'b' is not in dictionary.safetensors"),
        (lambda r: r["dictionary"]["fields"].update(W_skip={"pickle": ""}), "nothing that save_native writes"),
        (
            lambda r: r["dictionary"]["fields"].update(b_dec=None),
            "b_dec = None is nothing that save_native",
        ),
        (lambda r: r["dictionary"]["fields"].update(W_skip=None), "does not name: W_skip"),
        (lambda r: r["dictionary"]["fields"].update(b_dec=r["dictionary"]["fields"]["b_enc"]), "b_enc' is not in"),
        (lambda r: r["dictionary"]["fields"].update(apply_b_dec_to_input="false"), "= 'false' is not true or false"),
        (lambda r: r["dictionary"]["fields"].update(apply_b_dec_to_input=0), "= 0 is not true or false"),
        (lambda r: r["dictionary"]["fields"].update(input_norm="batch"), "input_norm = 'batch' is not one of"),
        (lambda r: r["dictionary"].update(fields=[]), "nothing that save_native writes there"),
        (lambda r: r["dictionary"].update({"class": ["Relu"]}), "no class"),
        (
            lambda r: r["dictionary"]["fields"].update(activation={"class": "SparseCoder", "fields": {}}),
            "no class 'SparseCoder'",
        ),
        (
            lambda r: r["dictionary"]["fields"].update(activation={"class": "TopK", "fields": {"k": 6}}),
            "TopK: k = 6 of 5 latents",
        ),
        (lambda r: r.update(dictionary=3), "dictionary = 3 is not an object"),
        (lambda r: r.update(more=3), "no key 'more'"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path, edit, says):
    save_native(DICTIONARIES["relu"](), tmp_path)
    edited(tmp_path, edit)
    with pytest.raises(UserError, match=says):
        load_native(tmp_path)


def test_what_is_not_ours_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no dictionary of ours"):
        load_native(tmp_path)
    with pytest.raises(UserError, match="in 'activation': no class 'builtin_function_or_method'"):
        save_native(coder(abs), tmp_path)
    with pytest.raises(UserError, match="no class 'NoneType'"):
        save_native(None, tmp_path)
    assert not list(tmp_path.iterdir())
