# SPDX-License-Identifier: Apache-2.0
"""Models with an encoder: what the decoder takes from it, by which names, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxneuro.cli import main
from jaxneuro.errors import UserError
from jaxneuro.io.safetensors import read_safetensors, write_safetensors
from jaxneuro.models import (
    Config,
    RelativeBias,
    encode,
    forward,
    init_cache,
    load,
    positions,
    quantise,
    save_pretrained,
    shardings,
)
from jaxneuro.models.layout import flatten, shapes
from jaxneuro.taps import add, capture, intervene, sites, zero

from ..by_numpy import by_numpy
from ..parity.conftest import FIXTURES, open_case
from .conftest import SMALL

SOURCE = np.random.default_rng(1).integers(0, 40, (2, 7)).astype(np.int32)
TARGET = np.random.default_rng(2).integers(0, 40, (2, 5)).astype(np.int32)
REAL = np.array([[True] * 7, [False] * 2 + [True] * 5])
PATTERN, LAST = "blocks.*.cross_attn.pattern", "encoder.blocks.1.resid_post"


@pytest.fixture(scope="module")
def t5():
    return open_case("t5").model


@pytest.fixture(scope="module")
def run(t5):
    """The whole function with a capture and edits, one program for each structure of edits."""

    @by_numpy
    def run(source=SOURCE, target=TARGET, real=REAL, edits=()):
        whole = capture(intervene(t5.apply, edits), [PATTERN, LAST])
        return whole(t5.weights, target, context=source, context_mask=real)

    return run


def test_both_stacks_have_their_sites(t5):
    found = {s.name: s for s in sites(t5.apply, t5.weights, TARGET, context=SOURCE)}
    cross = {name for name in found if "cross" in name}
    of_attention = {name.partition("blocks.attn.")[2] for name in found if name.startswith("blocks.attn.")}
    assert {name.partition("blocks.cross_attn.")[2] for name in cross} - {""} == of_attention
    assert {"blocks.cross_attn_out", "blocks.resid_mid_cross", "blocks.ln_cross.normalized"} < cross
    below = {name for name in found if not name.startswith("encoder.")}
    assert {f"encoder.{name}" for name in below - cross - {"logits", "unembed.in"}} == {*found} - below
    assert (found["encoder.blocks.mlp.post"].layers, found["blocks.mlp.post"].layers) == ((0, 1), (0, 1, 2))
    assert (found["blocks.cross_attn.scores"].shape, found["blocks.cross_attn.k"].shape) == ((2, 3, 5, 7), (2, 7, 3, 4))
    assert found["blocks.cross_attn.k"].axes == ("batch", "key", "head", "d_head")


def test_padding_of_the_context_is_not_seen(run):
    out, acts = run()
    pattern = np.asarray(acts[PATTERN])
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-6)
    assert pattern[:, 1, :, :, :2].max() == 0
    assert pattern[:, 1, :, :, 2:].min() > 0
    other, _ = run(np.where(REAL, SOURCE, 3))
    np.testing.assert_array_equal(other, out)
    assert np.abs(run(np.where(REAL, 3, SOURCE))[0] - out).max() > 1e-3


def test_later_tokens_are_not_seen_and_all_of_the_context_is(run):
    out, _ = run()
    later = run(target=np.where(np.arange(5) < 3, TARGET, 9))[0]
    np.testing.assert_array_equal(later[:, :3], out[:, :3])
    ahead = run(np.where(np.arange(7) < 6, SOURCE, 9))[0]
    assert np.abs(ahead - out).max(-1).min() > 1e-5  # the last token of the context, at every position


def test_an_edit_of_the_encoder_is_another_context(t5, run):
    out, acts = run()
    edited, after = run(edits=[add(LAST, np.ones(10, np.float32), pos=3)])
    moved = np.float32(positions(REAL) == 3)[..., None]
    np.testing.assert_allclose(after[LAST], np.asarray(acts[LAST]) + moved, atol=1e-6)
    assert np.abs(edited - out).max() > 1e-3


def test_without_what_it_writes_the_encoder_does_not_matter(run):
    cut = [zero("blocks.cross_attn_out")]
    np.testing.assert_array_equal(run(edits=cut)[0], run(SOURCE[:, ::-1], edits=cut)[0])


def test_an_encoded_context_is_the_same_in_parts_and_kept(t5, run):
    """Ids or hidden states, the stack in two parts, keys and values of a cache in two parts."""
    cfg, expected = t5.cfg, run()[0]

    @by_numpy
    def parts(weights):
        given = {"context": encode(weights, SOURCE, cfg=cfg, mask=REAL), "context_mask": REAL}
        below = forward(weights, TARGET, cfg=cfg, stop_at=2, **given)
        above = forward(weights, TARGET, cfg=cfg, start_at=2, resid=below, **given)
        first, cache = forward(weights, TARGET[:, :3], cfg=cfg, stop_at=1, cache=init_cache(cfg, 2, 5), **given)
        cache = cache._replace(at=0)
        one, cache = forward(weights, TARGET[:, :3], cfg=cfg, start_at=1, resid=first, cache=cache)
        two, _ = forward(weights, TARGET[:, 3:], cfg=cfg, cache=cache)
        return above, jnp.concatenate([one, two], axis=1)

    for found in parts(t5.weights):
        np.testing.assert_allclose(found, expected, atol=1e-6)  # the same sums in another order


def test_a_cached_step_makes_no_keys_of_the_context(t5):
    cfg = t5.cfg
    _, cache = jax.eval_shape(
        lambda w: forward(w, TARGET[:, :1], cfg=cfg, context=SOURCE, cache=init_cache(cfg, 2, 5)), t5.weights
    )
    step = jax.make_jaxpr(lambda w, c: forward(w, TARGET[:, :1], cfg=cfg, cache=c))(t5.weights, cache)
    whole = jax.make_jaxpr(lambda w: forward(w, TARGET[:, :1], cfg=cfg, context=SOURCE))(t5.weights)
    products = [str(program).count("dot_general") for program in (step, whole)]
    encoder = 6 + 2  # q, k, v, o, up, down; scores and their mixture
    assert products[1] - products[0] == encoder + 2


def test_gradients_reach_both_stacks(t5):
    def loss(weights):
        return jnp.square(forward(weights, TARGET, cfg=t5.cfg, context=SOURCE, remat="block")).sum()

    for leaf, gradient in flatten(by_numpy(jax.grad(loss))(t5.weights)).items():
        assert np.abs(gradient).max() > 0, leaf


def test_a_mesh_places_every_leaf_of_both(t5):
    mesh = jax.make_mesh((2, 2), ("model", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    placed = flatten(shardings(t5.cfg, mesh))
    assert placed.keys() == flatten(t5.weights).keys()
    assert placed["encoder.blocks.mlp.up"].spec == placed["blocks.mlp.up"].spec == P(None, "fsdp", "model")
    model = load(FIXTURES / "t5", mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, model.weights, t5.weights)


def test_eight_bits_reach_both_stacks(t5):
    model = load(FIXTURES / "t5", dtype="int8")
    shaped = jax.eval_shape(lambda weights: quantise(weights, "int8"), t5.weights)
    assert jax.tree.map(jnp.shape, model.weights) == jax.tree.map(jnp.shape, shaped)
    few = {leaf for leaf, a in flatten(model.weights).items() if not isinstance(a, jax.Array)}
    assert few == {
        leaf for leaf in flatten(t5.weights) if leaf.rsplit(".", 1)[1] in ("wq", "wk", "wv", "wo", "up", "down")
    }
    assert jax.eval_shape(model.apply, model.weights, TARGET, context=SOURCE).shape == (2, 5, 40)


def test_without_its_head_it_ends_in_the_last_hidden_state(t5, run, tmp_path):
    shutil.copytree(FIXTURES / "t5", tmp_path / "bare", dirs_exist_ok=True)
    hf = json.loads((tmp_path / "bare/config.json").read_text())
    (tmp_path / "bare/config.json").write_text(json.dumps({**hf, "architectures": ["T5Model"]}))
    bare = load(tmp_path / "bare")
    hidden = by_numpy(bare.apply)(bare.weights, TARGET, context=SOURCE, context_mask=REAL)
    np.testing.assert_allclose(10**-0.5 * hidden @ np.asarray(t5.weights["embed"]["tok"]).T, run()[0], atol=1e-6)
    save_pretrained(bare, tmp_path / "again")
    assert load(tmp_path / "again").cfg == bare.cfg
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] == ["T5Model"]


def test_an_encoder_saved_alone_is_the_encoder(tmp_path):
    whole = open_case("umt5").model
    tensors = read_safetensors(FIXTURES / "umt5/model.safetensors")
    own = {name: np.array(a) for name, a in tensors.items() if name.startswith(("shared.", "encoder."))}
    write_safetensors(tmp_path / "model.safetensors", own, {"format": "pt"})
    hf = json.loads((FIXTURES / "umt5/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**hf, "architectures": ["UMT5EncoderModel"]}))
    alone = load(tmp_path)
    assert alone.cfg == whole.cfg.encoder
    expected = by_numpy(lambda weights: encode(weights, SOURCE, cfg=whole.cfg, mask=REAL))(whole.weights)
    np.testing.assert_allclose(by_numpy(alone.apply)(alone.weights, SOURCE, REAL), expected, atol=1e-6)


def test_what_early_files_repeat_or_never_use_is_no_weight(t5, tmp_path):
    tensors = {name: np.array(a) for name, a in read_safetensors(FIXTURES / "t5/model.safetensors").items()}
    copies = {f"{side}.embed_tokens.weight": tensors["shared.weight"] for side in ("encoder", "decoder")}
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((8, 3), np.float32)}
    write_safetensors(tmp_path / "model.safetensors", tensors | copies | unused, {"format": "pt"})
    shutil.copy(FIXTURES / "t5/config.json", tmp_path)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).weights, t5.weights)


# (config keys) -> (tied, scaled), as the files of the families say it, with and without an unembedding in the file.
SAYS = {
    "t5-small": ("t5", {}, True, True),
    "flan-t5": ("t5-gated", {"tie_word_embeddings": False, "scale_decoder_outputs": None}, False, False),
    "flan-t5, saved by transformers 5": ("t5-gated", {}, False, False),
    "mt5": ("mt5", {"tie_word_embeddings": False}, False, False),
    "umt5": ("umt5", {"tie_word_embeddings": False}, False, False),
    "umt5, saved by transformers 5": ("umt5", {}, False, True),
}


@pytest.mark.parametrize("name", SAYS)
def test_tying_is_read_from_the_tensors_and_scaling_from_the_config(name, tmp_path):
    case, change, tied, scaled = SAYS[name]
    shutil.copytree(FIXTURES / case, tmp_path, dirs_exist_ok=True)
    hf = {**json.loads((tmp_path / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in hf.items() if v is not None}))
    model = load(tmp_path)
    assert (model.cfg.tied, model.cfg.head_scale) == (tied, scaled)
    save_pretrained(model, tmp_path / "again")
    assert load(tmp_path / "again").cfg == model.cfg


STATES = np.ones((2, 7, 10), np.float32)
MASKED = r"the mask of context \[2, 7\] is boolean and of the same shape, True at real tokens; this is {}"
WRONG = {
    "no context": ("t5", {}, "attends to what its encoder read: give forward a context="),
    "a mask alone": ("t5", {"context_mask": REAL}, "context_mask belongs to a context"),
    "another width": (
        "t5",
        {"context": np.ones((2, 7, 8), np.float32)},
        r"\[batch, pos, 10\]; this one is float32 \[2, 7, 8\]",
    ),
    "ids as floats": ("t5", {"context": SOURCE.astype(np.float32)}, r"this one is float32 \[2, 7\]"),
    "other rows": ("t5", {"context": SOURCE[:1]}, "2 rows of tokens, but a context of 1 rows"),
    "another mask": ("t5", {"context": SOURCE, "context_mask": REAL[:, 1:]}, MASKED.format(r"bool \[2, 6\]")),
    "another mask of states": ("t5", {"context": STATES, "context_mask": REAL[:, 1:]}, MASKED.format(r"bool \[2, 6\]")),
    "a mask of numbers": ("t5", {"context": SOURCE, "context_mask": 1 * REAL}, MASKED.format(r"int64 \[2, 7\]")),
    "a mask of numbers, of states": ("t5", {"context": STATES, "context_mask": 1.0 * REAL}, MASKED.format("float64")),
    "an encoder alone": (
        "t5-encoder",
        {"context": SOURCE},
        "this t5 model has no encoder and attends to its own tokens",
    ),
    "a decoder alone": ("gpt2", {"context": SOURCE}, "this gpt2 model has no encoder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_context_is_refused(name):
    case, given, message = WRONG[name]
    model = open_case(case).model
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: model(TARGET, **given))


def test_a_decoder_has_nothing_to_encode_with():
    model = open_case("gpt2").model
    with pytest.raises(UserError, match="this gpt2 model has no encoder of its own"):
        encode(model.weights, SOURCE, cfg=model.cfg)


ENCODER = Config(**SMALL, causal=False, has_head=False)
REFUSED = {
    "a causal encoder": ({"encoder": dataclasses.replace(ENCODER, causal=True)}, "both ways"),
    "an encoder with a head": ({"encoder": dataclasses.replace(ENCODER, has_head=True)}, "ends in its hidden state"),
    "another width": (
        {"encoder": dataclasses.replace(ENCODER, d_model=8)},
        "share the embedding, so they have one d_model",
    ),
    "both ways": ({"encoder": ENCODER, "causal": False}, "a model with an encoder has causal=True"),
    "parallel blocks": ({"encoder": ENCODER, "parallel": True}, "a model with an encoder has parallel=False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stacks_that_do_not_go_together_are_refused(name):
    change, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        Config(**SMALL, **change)


def test_stacks_may_differ_in_all_but_the_embedding():
    other = dataclasses.replace(ENCODER, n_layers=2, n_heads=2, n_kv_heads=1, relative=RelativeBias())
    found = shapes(Config(**SMALL, encoder=other))
    assert (found["encoder.blocks.attn.wq"], found["blocks.cross_attn.wk"]) == ((2, 16, 2, 4), (3, 16, 2, 4))
    assert "encoder.embed.tok" not in found
    assert found["encoder.relative.table"] == (32, 2)


def test_the_command_lists_the_sites_of_both(capsys):
    assert main(["sites", str(FIXTURES / "umt5")]) == 0
    shown = capsys.readouterr().out
    assert "encoder.blocks.attn.pattern" in shown
    assert "blocks.cross_attn.pattern" in shown
