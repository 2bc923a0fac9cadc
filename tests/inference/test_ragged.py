# SPDX-License-Identifier: Apache-2.0
"""Prompts of unequal length: every row is what it would be alone, whatever the padding and the positions of edits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.inference import complete, generate, steer_sweep
from jaxneuro.models import Bdh, Config, Mamba, Mamba2, RelativeBias, Rope, Transformer, positions
from jaxneuro.taps import add, capture, intervene, scale, set_to, zero

from .conftest import CFG, begin_tokenizer, random_weights

PLAIN = {"n_layers": 2, "d_model": 16, "d_vocab": 40}
GPT = {"gated": False, "act": "gelu_tanh", "norm": "layer", "rope": None, "learned_positions": True}
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
SIZES = {"n_heads": 4, "n_kv_heads": 4, "d_head": 4, "d_mlp": 24, "n_ctx": 32}
POST = {"norm": "plain", "norm_placement": "post", "embed_norm": True, "act": "relu", "norm_eps": 1e-5}
RELATIVE = {"rope": None, "relative": RelativeBias(buckets=8, max_distance=16)}
CONFIGS = {
    "windows": CFG,
    "learned": Config(**PLAIN, **SIZES, **GPT, **BIASED, family="gpt2", tied=True),
    "learned, counted": Config(
        **PLAIN, **SIZES, **GPT, **BIASED, family="opt", masked_positions=True, position_offset=2
    ),
    "relative": Config(**PLAIN, **SIZES, **RELATIVE),
    "rope of a part": Config(**PLAIN, **SIZES, rope=Rope(dims=2, theta=50.0)),
    "mamba": Config(**PLAIN, family="mamba", mixer=Mamba(d_inner=16, d_state=4, dt_rank=2, bias=True)),
    "mamba2": Config(**PLAIN, family="mamba2", mixer=Mamba2(n_heads=4, d_head=4, n_groups=2, d_state=4, bias=True)),
    "bdh": Config(**PLAIN, **POST, family="bdh", mixer=Bdh(n_heads=2, n_neurons=16)),
}
NEW = 3
ROWS = [[7, 8, 9, 10, 11, 12], [13, 14]]
VECTOR = np.random.default_rng(3).normal(0, 2, 16).astype(np.float32)


def side_by_side(rows, side):
    width = max(map(len, rows))
    tokens, mask = np.full((len(rows), width), 39, np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[i, at], mask[i, at] = row, True
    return tokens, mask


def edits_of(cfg):
    """From the end of every row and from its beginning, in the prompt and in what is generated."""
    mixed = cfg.mixer is not None
    return [
        add("blocks.1.resid_post", VECTOR, pos=-1),
        add("blocks.0.resid_post", -VECTOR, pos=[-2, 1]),
        scale("blocks.0.mixer.out" if mixed else "blocks.0.mlp_out", 3.0, pos=[0, 3]),
        add("embed", 0.5 * VECTOR, pos=3),
        *([] if mixed else [add("blocks.1.attn.scores", 2.0, query=-1, key=-2), zero("blocks.0.attn.v", pos=0)]),
        *([] if mixed else [add("blocks.1.attn.scores", -2.0, key=[0, 3]), scale("blocks.1.attn.k", 2.0, pos=-1)]),
    ]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    cfg = CONFIGS[request.param]
    return Transformer(cfg, random_weights(cfg))


@pytest.mark.parametrize("name", ["windows", "learned", "mamba2"])
def test_a_row_is_generated_as_if_it_were_alone(name):
    model = Transformer(CONFIGS[name], random_weights(CONFIGS[name]))
    edits = edits_of(model.cfg)
    rows = [generate(model, np.array([row]), max_new=NEW, edits=edits) for row in ROWS]
    for side in ("right", "left"):
        tokens, mask = side_by_side(ROWS, side)
        found = generate(model, tokens, mask=mask, max_new=NEW, edits=edits)
        for i, wanted in enumerate(rows):
            np.testing.assert_array_equal(found.tokens[i], wanted.tokens[0])
            np.testing.assert_allclose(found.log_probs[i], wanted.log_probs[0], atol=2e-5)
    free = generate(model, tokens, mask=mask, max_new=NEW)
    assert (np.abs(free.log_probs - found.log_probs).max(1) > 1e-2).all(), "the edits do something in every row"


@pytest.mark.parametrize(("side", "at"), [("left", -2), ("right", [1, -1])])
def test_a_sweep_of_doses_is_a_sweep_of_each_row(side, at):
    """The first edited position is another column in every row."""
    model, doses = Transformer(CFG, random_weights(CFG)), np.float32([0, 2, 4])
    tokens, mask = side_by_side(ROWS, side)
    edits = lambda d: [add("blocks.1.resid_post", d * VECTOR, pos=at)]  # noqa: E731
    found = steer_sweep(model, tokens, edits, doses, mask=mask, max_new=2, chunk=3)
    for i, row in enumerate(ROWS):
        wanted = steer_sweep(model, np.array([row]), edits, doses, max_new=2, chunk=3)
        np.testing.assert_allclose(found.generated.log_probs[:, i], wanted.generated.log_probs[:, 0], atol=2e-5)
        assert np.ptp(np.asarray(wanted.generated.log_probs), axis=0).max() > 1e-3


def test_edits_of_a_whole_text(model):
    """Without a cache: `intervene` on a padded batch, and `positions` numbers the columns that come out."""
    edits = edits_of(model.cfg)[:2]
    if model.cfg.mixer is None:
        edits += [
            scale("blocks.1.attn.scores", -3.0, query=-1, key=-2),
            scale("blocks.1.attn.pattern", 2.0, key=[0, 1]),
        ]
    run = jax.jit(lambda t, m: capture(intervene(model.apply, edits), "blocks.1.resid_post")(model.weights, t, m))
    lengths = {len(row): run(np.array([row]), None) for row in ROWS}
    for side in ("right", "left"):
        tokens, mask = side_by_side(ROWS, side)
        logits, resid = run(tokens, mask)
        numbers = np.asarray(positions(mask))
        for i, row in enumerate(ROWS):
            wanted, inner = lengths[len(row)]
            assert numbers[i][mask[i]].tolist() == list(range(len(row)))
            assert (numbers[i][~mask[i]] == -1).all()
            np.testing.assert_allclose(logits[i][mask[i]], wanted[0], atol=3e-5)
            np.testing.assert_allclose(
                resid["blocks.1.resid_post"][i][mask[i]], inner["blocks.1.resid_post"][0], atol=3e-5
            )


def test_texts_of_unequal_length_steered_at_their_last_token():
    model, tokenizer = Transformer(CFG, random_weights(CFG)), begin_tokenizer(40)
    steer = [add("blocks.1.resid_post", VECTOR, pos=-1), set_to("blocks.0.mlp.post", 1.0, neuron=3, pos=[-2, 0])]
    prompts = ["w7 w8 w9 w10 w11", "w12", "<bos> w13 w14 w7 w8 w3", ""]
    together = complete(model, tokenizer, prompts, max_new=3, edits=steer)
    for prompt, found in zip(prompts[:3], together, strict=False):  # an empty one has no position -2
        wanted = complete(model, tokenizer, [prompt], max_new=3, edits=steer)[0]
        assert found.tokens == wanted.tokens
        np.testing.assert_allclose(found.log_probs, wanted.log_probs, atol=2e-5)
    assert not np.allclose(
        together[1].log_probs, complete(model, tokenizer, prompts, max_new=3)[1].log_probs, atol=1e-2
    )


def test_positions_are_those_of_the_longest_row():
    model = Transformer(CFG, random_weights(CFG))
    tokens, mask = side_by_side(ROWS, "left")
    tokens, mask = np.pad(tokens, ((0, 0), (3, 0))), np.pad(mask, ((0, 0), (3, 0)))
    generate(model, tokens, mask=mask, max_new=2, edits=[add("embed", VECTOR, pos=-6)])
    for at in (-7, 7):
        with pytest.raises(UserError, match=rf"at pos={at}: the prompt has 6 positions and 7 are run in all"):
            generate(model, tokens, mask=mask, max_new=2, edits=[add("embed", VECTOR, pos=at)])


def test_learned_positions_of_an_encoder_count_from_the_first_real_token():
    """CLIP's text tower and BERT: left padding changes nothing."""
    for change in ({"causal": True}, {"causal": False, "embed_norm": True, "norm_placement": "post"}):
        cfg = dataclasses.replace(CONFIGS["learned"], has_head=False, tied=False, **change)
        model = Transformer(cfg, random_weights(cfg))
        tokens, mask = side_by_side(ROWS, "left")
        found = model(jnp.asarray(tokens), jnp.asarray(mask))
        for i, row in enumerate(ROWS):
            np.testing.assert_allclose(found[i][mask[i]], model(jnp.array([row]))[0], atol=2e-5)
