# SPDX-License-Identifier: Apache-2.0
"""Token ids and masks: checked where they are known, and what is behind a mask reaches nobody."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import (
    Bdh,
    Config,
    Experts,
    Mamba,
    Mamba2,
    RelativeBias,
    Transformer,
    init,
    init_cache,
    load,
    token_loss,
)
from jaxneuro.models.pooling import pool
from jaxneuro.taps import add, capture, intervene, set_to, zero

from ..by_numpy import by_numpy
from ..parity.conftest import FIXTURES

PLAIN = {"n_layers": 2, "d_model": 16, "d_vocab": 20}
SIZES = {"n_heads": 4, "n_kv_heads": 2, "d_head": 4, "d_mlp": 24, "n_ctx": 32}
POST = {"norm": "plain", "norm_placement": "post", "embed_norm": True, "act": "relu", "norm_eps": 1e-5}
WHOLE = {**PLAIN, **SIZES, "n_kv_heads": 4}
BOTH = Config(**WHOLE, causal=False, has_head=False)
CONFIGS = {
    "attention": Config(**PLAIN, **SIZES, windows=(None, 3)),
    "learned": Config(**WHOLE, family="gpt2", rope=None, learned_positions=True),
    "relative": Config(**WHOLE, rope=None, relative=RelativeBias(buckets=8, max_distance=16)),
    "experts": Config(**PLAIN, **SIZES, experts=Experts(n=3, per_token=2)),
    "both ways": BOTH,
    "encoder": Config(**WHOLE, encoder=BOTH),
    "mamba": Config(**PLAIN, mixer=Mamba(d_inner=16, d_state=4, dt_rank=2, bias=True)),
    "mamba2": Config(**PLAIN, mixer=Mamba2(n_heads=4, d_head=4, n_groups=2, d_state=4, bias=True)),
    "bdh": Config(**PLAIN, **POST, mixer=Bdh(n_heads=2, n_neurons=16)),
}
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 6)).astype(np.int32)
LEFT, RIGHT = np.ones((2, 6), bool), np.ones((2, 6), bool)
LEFT[0, :3] = RIGHT[0, 3:] = False
MASKS = {"left": LEFT, "right": RIGHT}


def model_of(name):
    cfg = CONFIGS[name]
    return Transformer(cfg, init(cfg, jax.random.key(0)))


def given(name, mask):
    return {"context": TOKENS, "context_mask": mask} if name == "encoder" else {}


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_behind_a_mask_reaches_other_positions(name, side):
    """Ids that the table lacks, and NaN put there at whatever reads or writes the residual stream."""
    model, mask = model_of(name), MASKS[side]
    run = by_numpy(model.apply)
    clean = np.asarray(run(model.weights, TOKENS, mask, **given(name, mask)))
    assert np.isfinite(clean).all()
    wild = np.where(mask, TOKENS, [[-1], [99]]).astype(np.int32)
    part = {"context": np.where(mask, TOKENS, 99), "context_mask": mask} if name == "encoder" else {}
    found = np.asarray(run(model.weights, wild, mask, **part))
    # Which rows of an expert's matrix are padding's depends on what padding says, and sums on the rows.
    within = {"rtol": 0, "atol": 1e-6 * np.abs(clean).max() if name == "experts" else 0}
    np.testing.assert_allclose(found[mask], clean[mask], **within)
    assert np.isfinite(found).all()  # padding itself means nothing, and is finite
    nan = np.where(mask, 0, np.nan).astype(np.float32)
    mixed = CONFIGS[name].mixer is not None
    names = ["embed", "blocks.0.resid_post", *(["blocks.mixer.x"] if mixed else ["blocks.attn.k", "blocks.attn.v"])]
    if name in ("mamba", "mamba2"):
        names += ["blocks.mixer.conv", "blocks.mixer.dt", "blocks.mixer.B", "blocks.mixer.C"]
    if name == "encoder":
        names += ["encoder.embed", "blocks.cross_attn.v", "blocks.cross_attn.k", "encoder.blocks.attn.v"]

    ranks = {site: RANKS.get((name, site), 4 if "attn" in site else 3) for site in names}
    hurt = [add(site, nan.reshape(*nan.shape, *[1] * (rank - 2))) for site, rank in ranks.items()]
    found = np.asarray(by_numpy(intervene(model.apply, hurt))(model.weights, TOKENS, mask, **given(name, mask)))
    np.testing.assert_allclose(found[mask], clean[mask], **within)


RANKS = {("bdh", "blocks.mixer.x"): 4, **{("mamba2", f"blocks.mixer.{n}"): 4 for n in ("conv", "B", "C")}}


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("name", [name for name, cfg in CONFIGS.items() if cfg.causal])
def test_nothing_reaches_earlier_positions(name, value):
    """A value that is not finite at a real position is felt from there on in its row, and nowhere else."""
    model = model_of(name)
    run = by_numpy(lambda edits: intervene(model.apply, edits)(model.weights, TOKENS, **given(name, None)))
    clean = np.asarray(run([add("embed", np.float32(0), batch=1, pos=3)]))
    found = np.asarray(run([add("embed", np.float32(value), batch=1, pos=3)]))
    np.testing.assert_array_equal(found[0], clean[0])
    np.testing.assert_array_equal(found[1, :3], clean[1, :3])
    assert not np.isfinite(found[1, 3:]).any()


@pytest.mark.parametrize("site", ["q", "k", "v"])
@pytest.mark.parametrize("form", ["explicit", "chunked"])
def test_no_form_of_attention_reads_later_keys(form, site):
    """In one head, of either kind of number; a group of queries shares it, the other group does not feel it there."""
    model, at = model_of("attention"), f"blocks.1.attn.{site}"

    def run(value):
        f = lambda w, t: model.apply(w, t, attention=form)  # noqa: E731
        edited = intervene(f, [add(at, np.float32(value), head=1, pos=[2, 4])])
        logits, acts = by_numpy(capture(edited, ["blocks.1.attn.z"]))(model.weights, TOKENS)
        return np.asarray(logits), np.asarray(acts["blocks.1.attn.z"])

    (logits, z), (clean, clean_z) = run(np.nan), run(0)
    np.testing.assert_array_equal(logits[:, :2], clean[:, :2])
    own = [1] if site == "q" else [2, 3]  # two query heads read one head of keys and values
    others = [h for h in range(4) if h not in own]
    np.testing.assert_array_equal(z[:, :, others], clean_z[:, :, others])
    assert np.isnan(z[:, [2, 4]][:, :, own]).all()
    assert (np.isnan(z[:, [3, 5]][:, :, own]).all()) == (site != "q")


def test_later_tokens_of_a_cache_do_not_reach_earlier_ones():
    """Also where a cache holds what came before: three tokens at once, the last of them not finite."""
    model = model_of("attention")
    cache = init_cache(model.cfg, 2, 6)
    _, cache = model.apply(model.weights, TOKENS[:, :3], cache=cache)
    last = lambda w, t: model.apply(w, t, cache=cache)[0]  # noqa: E731
    rest = lambda v: intervene(last, [add("embed", np.float32(v), pos=5)])(model.weights, TOKENS[:, 3:])  # noqa: E731
    found, clean = np.asarray(rest(np.nan)), np.asarray(rest(0))
    np.testing.assert_array_equal(found[:, :2], clean[:, :2])
    assert np.isnan(found[:, 2]).all()


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("name", ["attention", "learned", "mamba2"])
def test_nothing_behind_a_mask_is_kept_by_a_cache(name, side):
    model, mask = model_of(name), MASKS[side]
    cfg, nan = model.cfg, np.where(mask, 0, np.nan).astype(np.float32)[..., None]

    def go(weights, tokens, nan):
        cache = init_cache(cfg, 2, 7)
        edits = [add("embed", nan), add("blocks.0.resid_post", nan)]
        _, cache = intervene(model.apply, edits)(weights, tokens, mask, cache=cache)
        return model.apply(weights, TOKENS[:, :1], cache=cache)[0]

    wild = np.where(mask, TOKENS, [[-1], [99]]).astype(np.int32)
    clean = by_numpy(go)(model.weights, TOKENS, np.zeros_like(nan))
    found = by_numpy(go)(model.weights, wild, nan)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, clean)


def test_an_id_without_a_row_is_nan_where_it_is_seen():
    """Under jit, where nothing can be raised; and in no other row of the batch."""
    model = model_of("attention")
    for bad in (-1, -20, 20, 2**30):
        tokens = TOKENS.copy()
        tokens[0, 3] = bad
        embed = jax.jit(capture(model.apply, "embed"))(model.weights, tokens)[1]["embed"]
        assert np.isnan(embed).any(-1).tolist() == [[False, False, False, True, False, False], [False] * 6]
        assert np.isfinite(jax.jit(model.apply)(model.weights, tokens)[1]).all()


NO_TOKENS = {
    "a list": [1, 2],
    "lists": [[1, 2]],
    "a text": "text",
    "one row": TOKENS[0],
    "floats": TOKENS.astype(np.float32),
    "booleans": TOKENS > 3,
    "objects": np.array([["a"]], object),
    "no rows": TOKENS[:0],
    "no positions": TOKENS[:, :0],
    "too high": TOKENS + 20,
    "below 0": TOKENS - 20,
}


@pytest.mark.parametrize("name", NO_TOKENS)
def test_what_is_no_tokens(name):
    model, tokens = model_of("attention"), NO_TOKENS[name]
    calls = {
        "model": lambda: model(tokens),
        "apply": lambda: model.apply(model.weights, tokens),
        "capture": lambda: capture(model.apply, "embed")(model.weights, tokens),
        "both": lambda: capture(intervene(model.apply, zero("embed", pos=0)), "embed")(model.weights, tokens),
    }
    for call in calls.values():
        with pytest.raises(UserError, match=r"tokens .*load_tokenizer"):
            call()


def test_what_is_no_mask():
    model = model_of("attention")
    for mask in (LEFT[:, :5], LEFT.astype(np.float32), LEFT.astype(np.int32), LEFT.tolist()):
        with pytest.raises(UserError, match=r"the mask of tokens .* is boolean and of the same shape"):
            model(TOKENS, mask)
    encoder = model_of("encoder")
    with pytest.raises(UserError, match="context holds the id 20"):
        encoder(TOKENS, context=TOKENS * 0 + 20)
    with pytest.raises(UserError, match="tokens holds the id 20"):
        encoder.encode(encoder.weights, TOKENS * 0 + 20)
    typed = dataclasses.replace(BOTH, n_token_types=2)
    with pytest.raises(UserError, match="token_types holds the id 2; this model has 2"):
        Transformer(typed, init(typed, jax.random.key(0)))(TOKENS, token_types=TOKENS * 0 + 2)


def test_labels():
    """-100 is none; another id below 0 or beyond is refused where it is known, NaN where it is not."""
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 20)), jnp.float32)
    wanted, _ = token_loss(logits, TOKENS)
    for masked in (None, LEFT):
        labels = TOKENS.copy()
        labels[1, 2] = -100
        nll, valid = token_loss(logits, labels, masked)
        assert not valid[1, 1]
        np.testing.assert_array_equal(np.asarray(nll)[valid], np.asarray(wanted)[valid])
        assert np.isfinite(nll).all()
    for bad in (-1, 20):
        labels = TOKENS.copy()
        labels[0, 3] = bad
        with pytest.raises(UserError, match=f"tokens holds the id {bad}"):
            token_loss(logits, labels)
        found = jax.jit(token_loss)(logits, labels)[0]
        assert np.isnan(found).tolist() == [[False, False, True, False, False], [False] * 5]
        hidden = np.arange(6) != np.array([[3], [9]])
        assert np.isfinite(token_loss(logits, labels, hidden)[0]).all()


def test_a_gradient_does_not_read_what_is_masked():
    logits = np.random.default_rng(1).normal(size=(2, 6, 20)).astype(np.float32)
    logits[0, :3] = np.nan

    def mean(logits):
        nll, valid = token_loss(logits, TOKENS, LEFT)
        return nll.mean(where=valid)

    gradient = jax.grad(mean)(jnp.asarray(logits))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).sum() > 0


@pytest.mark.parametrize("where", ["first", "eos"])
def test_padding_is_not_pooled(where):
    """Of SigLIP's texts it is: their padding is read as any other token (tests/parity/test_pairs.py)."""
    cfg = dataclasses.replace(BOTH, pool_from=where, eos=7)
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 16)), jnp.float32)
    tokens = np.array([[4, 7, 5]], np.int32)
    weights = {} if where != "first" else {"pooler": {}}
    alone = pool(weights, hidden, cfg, tokens)
    for pad in ((2, 0), (0, 2)):
        mask = np.pad(np.ones((1, 3), bool), ((0, 0), pad))
        wide = jnp.pad(hidden, ((0, 0), pad, (0, 0)), constant_values=np.nan)
        found = pool(weights, wide, cfg, np.pad(tokens, ((0, 0), pad), constant_values=7), mask)
        np.testing.assert_array_equal(found, alone)


def test_an_edit_that_is_selected_by_no_row(monkeypatch):
    """Negative positions that a short row does not have select nothing in it."""
    model = model_of("attention")
    found = by_numpy(capture(intervene(model.apply, set_to("embed", 9.0, pos=-5)), "embed"))(
        model.weights, TOKENS, LEFT
    )
    hit = (np.asarray(found[1]["embed"]) == 9).all(-1)
    assert hit.tolist() == [[False] * 6, [False, True, False, False, False, False]]


PICTURES = {"no pictures": 0, "text": "a.jpg", "objects": object, "complex": np.complex64}


@pytest.mark.parametrize("case", ["fixtures/vit", "convnets/resnet-basic"])
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_real_numbers_of_one_at_least(case, kind):
    model, wrong = load(FIXTURES.parent / case), PICTURES[kind]
    example = model.example()
    pixels = wrong if kind == "text" else example[:0] if wrong == 0 else np.asarray(example).astype(wrong)
    with pytest.raises(UserError, match=r"pictures are real numbers \[batch, row, column, channel\], of one"):
        model(pixels)
    assert model(example).shape[0] == 1
