# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.models import init, layout, shapes
from jaxneuro.models.layout import flatten, nest

from .conftest import CONFIGS


def test_nesting_is_undone_by_flattening():
    flat = {"a.b.c": 1, "a.d": 2, "e": 3}
    assert nest(flat) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flatten(nest(flat)) == flat


def test_the_documented_shapes():
    table = shapes(CONFIGS["llama"])
    assert table["blocks.attn.wq"] == (3, 16, 4, 4)
    assert table["blocks.attn.wk"] == table["blocks.attn.wv"] == (3, 16, 2, 4)
    assert table["blocks.attn.wo"] == (3, 4, 4, 16)
    assert table["blocks.mlp.gate"] == table["blocks.mlp.up"] == (3, 16, 24)
    assert table["blocks.mlp.down"] == (3, 24, 16)
    assert (table["embed.tok"], table["final_norm.scale"]) == ((40, 16), (16,))
    assert "head.w" not in table
    assert shapes(CONFIGS["mistral"])["head.w"] == (16, 40)
    assert set(shapes(CONFIGS["bert"])) >= {"embed.type", "embed.norm.bias", "pooler.w", "blocks.attn.bk"}
    assert all(axes[0] == "layer" for leaf, axes in layout(CONFIGS["bert"]).items() if leaf.startswith("blocks."))


def test_init_starts_as_hugging_face_does():
    cfg = CONFIGS["gpt2"]
    weights = flatten(init(cfg, jax.random.key(0)))
    assert {leaf: a.shape for leaf, a in weights.items()} == shapes(cfg)
    std = {leaf: float(a.std()) for leaf, a in weights.items()}
    for leaf, a in weights.items():
        if leaf.endswith(".scale"):
            np.testing.assert_array_equal(a, 1)
        elif leaf.split(".")[-1] in ("bias", "bq", "bk", "bv", "bo", "b_up", "b_down"):
            np.testing.assert_array_equal(a, 0)
        else:
            to_residual = leaf in ("blocks.attn.wo", "blocks.mlp.down")
            assert std[leaf] == pytest.approx(0.02 / 6**0.5 if to_residual else 0.02, rel=0.1)


def test_init_follows_key_and_dtype():
    cfg = CONFIGS["llama"]
    a, b, c = (init(cfg, jax.random.key(k), jnp.bfloat16) for k in (0, 0, 1))
    assert {x.dtype for x in jax.tree.leaves(a)} == {jnp.dtype(jnp.bfloat16)}
    assert a["blocks"]["attn"]["wo"].astype(jnp.float32).std() == pytest.approx(0.02, rel=0.1)
    assert (a["embed"]["tok"] == b["embed"]["tok"]).all()
    assert (a["embed"]["tok"] != c["embed"]["tok"]).any()
