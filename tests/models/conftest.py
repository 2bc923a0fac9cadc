# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from jaxneuro.models import Config, Rope, Transformer, shapes
from jaxneuro.models.layout import nest

SMALL = {
    "n_layers": 3,
    "d_model": 16,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_head": 4,
    "d_mlp": 24,
    "d_vocab": 40,
    "n_ctx": 64,
}
LAYERNORM = {"norm": "layer", "qkv_bias": True, "out_bias": True, "mlp_bias": True, "gated": False, "rope": None}
CONFIGS = {
    "llama": Config(**SMALL, tied=True),
    "mistral": Config(**SMALL, family="mistral", windows=(5, 5, 5)),
    "qwen3": Config(**SMALL, family="qwen3", qk_norm=True, windows=(None, 4, None), rope=Rope(theta=100.0)),
    "gpt2": Config(
        **{**SMALL, "n_kv_heads": 4}, **LAYERNORM, family="gpt2", act="gelu_tanh", learned_positions=True, tied=True
    ),
    "bert": Config(
        **{**SMALL, "n_kv_heads": 4},
        **LAYERNORM,
        family="bert",
        act="gelu",
        norm_placement="post",
        causal=False,
        learned_positions=True,
        n_token_types=2,
        embed_norm=True,
        tied=True,
        has_head=False,
        head_transform=True,
        head_bias=True,
        pooler=True,
    ),
}


def random_weights(cfg, seed=0):
    """Weights in which nothing is 0 or 1: norms and biases are far from where they start."""
    rng = np.random.default_rng(seed)
    around = {leaf: 1.0 if leaf.endswith("scale") else 0.0 for leaf in shapes(cfg)}
    leaves = {leaf: rng.normal(around[leaf], 0.3, shape).astype(np.float32) for leaf, shape in shapes(cfg).items()}
    return nest(jax.device_put(leaves))


@pytest.fixture(scope="session", params=CONFIGS)
def model(request):
    """One small random model of each kind."""
    cfg = CONFIGS[request.param]
    return Transformer(cfg, random_weights(cfg))


@pytest.fixture(scope="session", params=["qwen3", "bert"])
def decoder_or_encoder(request):
    """The two that differ most: a windowed, rotated, gated decoder and a post-norm encoder."""
    return Transformer(CONFIGS[request.param], random_weights(CONFIGS[request.param]))


@pytest.fixture(scope="session")
def llama():
    return Transformer(CONFIGS["llama"], random_weights(CONFIGS["llama"]))


@pytest.fixture(scope="session")
def tokens():
    return jax.device_put(np.random.default_rng(5).integers(0, SMALL["d_vocab"], (2, 9)).astype(np.int32))
