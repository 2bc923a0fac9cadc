# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Config, Transformer, config_from_hf, config_to_hf, load
from jaxneuro.models.relative import RelativeBias
from jaxneuro.taps import capture

from .conftest import SMALL, random_weights

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
T5 = json.loads((FIXTURES / "t5-encoder" / "config.json").read_text())
RELATIVE = RelativeBias(buckets=8, max_distance=6)

# Where transformers' T5Attention._relative_position_bucket(-distance), 32 buckets up to 128, takes the next bucket.
STEPS = {
    False: [*range(1, 9), 12, 16, 23, 32, 46, 64, 91],
    True: [*range(1, 17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113],
}


@pytest.mark.parametrize("causal", STEPS)
def test_buckets_are_those_of_transformers(causal):
    found = RelativeBias().bucket_of(200, causal=causal)
    assert (np.flatnonzero(np.diff(found)) + 1).tolist() == STEPS[causal]
    assert set(np.diff(found)) == {0, 1}


@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_entries_of_the_table(causal):
    table = jnp.arange(16, dtype=jnp.bfloat16).reshape(8, 2)  # 2 * bucket + head
    scores = RELATIVE.scores(table, 9, causal=causal)
    assert (scores.shape, scores.dtype) == ((2, 9, 9), jnp.float32)
    bucket = np.asarray(scores[0]) / 2
    np.testing.assert_array_equal(scores[1], scores[0] + 1)
    back = RELATIVE.bucket_of(9, causal=causal)
    for query in range(9):
        np.testing.assert_array_equal(bucket[query, : query + 1], back[: query + 1][::-1])
        np.testing.assert_array_equal(bucket[query, query + 1 :], 0 if causal else back[1 : 9 - query] + 4)


@pytest.mark.parametrize("causal", [True, False])
def test_scores_hold_the_bias_in_every_form_of_attention(causal):
    cfg = Config(**SMALL, rope=None, relative=RELATIVE, causal=causal)
    model = Transformer(cfg, random_weights(cfg))
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, 40, (2, 130)), jnp.int32)  # two chunks of queries
    names = [f"blocks.1.attn.{n}" for n in ("q", "k", "scores")]
    out, acts = jax.jit(capture(model.apply, names))(model.weights, tokens)
    q, k, scores = (np.asarray(acts[n], np.float64) for n in names)
    expected = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, 2, axis=2)) * cfg.d_head**-0.5
    expected += np.asarray(RELATIVE.scores(model.weights["relative"]["table"], 130, causal=causal))
    seen = np.tril(np.ones((130, 130), bool)) if causal else np.ones((130, 130), bool)
    np.testing.assert_allclose(scores[:, :, seen], expected[:, :, seen], atol=1e-4)
    np.testing.assert_allclose(jax.jit(model.apply)(model.weights, tokens), out, atol=2e-5)


def test_positions_are_relative():
    model = load(FIXTURES / "t5-encoder")
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, 40, (1, 6)), jnp.int32)
    later = jnp.pad(tokens, ((0, 0), (3, 0)))
    run = jax.jit(model.apply)
    shifted = run(model.weights, later, jnp.arange(9)[None] >= 3)[:, 3:]
    np.testing.assert_allclose(shifted, run(model.weights, tokens), atol=1e-5)
    assert not np.allclose(run(model.weights, tokens[:, ::-1])[:, ::-1], shifted, atol=1e-2)


def test_every_activation_is_written_as_it_is_read():
    for name, act, gated in (
        ("relu", "relu", False),
        ("gelu", "gelu", False),
        ("gelu_new", "gelu_tanh", False),
        ("gated-gelu", "gelu_tanh", True),
        ("gated-silu", "silu", True),
        ("gated-relu", "relu", True),
    ):
        cfg = config_from_hf({**T5, "feed_forward_proj": name})
        assert (cfg.act, cfg.gated) == (act, gated)
        assert config_to_hf(cfg)["feed_forward_proj"] == name


WRONG = {
    "a classifier": ({"architectures": ["T5ForSequenceClassification"]}, "not supported for t5, only .*T5ForCond"),
    "an activation": ({"feed_forward_proj": "gated-mish"}, "no feed_forward_proj 'gated-mish'"),
    "odd buckets": ({"relative_attention_num_buckets": 7}, r"relative\.buckets=7 is not a multiple of four"),
    "near only": ({"relative_attention_max_distance": 4}, r"relative\.max_distance=4 must be over half of 8 buckets"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_not_ported_is_named(change, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**T5, **change})


def test_another_number_of_buckets_does_not_fit(tmp_path):
    shutil.copytree(FIXTURES / "t5-encoder", tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({**T5, "relative_attention_num_buckets": 16}))
    with pytest.raises(
        UserError, match=r"relative_attention_bias.weight has shape \[8, 4\], the config needs \[16, 4\]"
    ):
        load(tmp_path)
