# SPDX-License-Identifier: Apache-2.0
"""The room on the library's own models, in bfloat16, through the driver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.activations import run
from jaxneuro.data import shuffled_labels
from jaxneuro.models import Config, Transformer
from jaxneuro.neurons import (
    LabelledStream,
    decode_neurons,
    dose_response,
    effect_matrix,
    group_statistics,
    matched_random_sets,
    selectivity,
)

SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 2, "n_kv_heads": 2, "d_head": 8, "d_mlp": 24}
LLAMA = Config(**SIZES, d_vocab=40, n_ctx=32)
BERT = Config(
    **SIZES, d_vocab=40, n_ctx=32, gated=False, norm="layer", norm_placement="post", causal=False, rope=None,
    learned_positions=True, has_head=False, embed_norm=True, act="gelu",
)  # fmt: skip


@pytest.mark.parametrize("cfg", [LLAMA, BERT], ids=["llama", "bert"])
def test_statistics_selection_effect_decoding_and_dose(toy, cfg, tmp_path):
    model = Transformer(cfg, toy.random_weights(cfg, jnp.bfloat16))
    site = "blocks.mlp.gate" if cfg.gated else "blocks.mlp.post"
    batches = toy.batches[:2]
    table = run(
        group_statistics(model.apply, site, toy.K, bins=8, n_examples=2, responses_per_group=2),
        LabelledStream(batches, shuffled_labels(toy.group, 2, seed=0)),
        key=jax.random.key(0),
        constants={"weights": model.weights},
        steps=2,
        checkpoint_dir=tmp_path / "state",
    )
    assert table.rate.shape == (2, 24, toy.K)
    assert np.isfinite(table.mean).all()
    assert selectivity(table.rates, top_rate=0.1).lape_member.any()
    chosen = matched_random_sets(np.arange(24)[None, None] == np.arange(2)[None, :, None], toy.K, seed=0)[0]
    measure = "loss" if cfg.has_head else "embedding_shift"
    effect = effect_matrix(model.apply, model.weights, site, chosen, batches, n_random=2, measure=measure, chunk=10)
    assert effect.matrix.shape == (toy.K, toy.K)
    assert (effect.matrix != 0).any()
    if not cfg.has_head:
        return  # clamping an encoder is tested on the toy
    promoted = np.asarray(decode_neurons(model.weights, cfg, [0, 1], [3, 4], k=2).promoted)
    curves = dose_response(
        model.apply, model.weights, "blocks.mlp.post", [0, 1], [3, 4], [0.0, 5.0], batches, toy.K, promoted=promoted,
        measure=measure, chunk=4,
    )  # fmt: skip
    assert np.ptp(curves.measured, axis=1).max() > 0
