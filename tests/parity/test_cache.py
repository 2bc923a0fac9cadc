# SPDX-License-Identifier: Apache-2.0
"""Every causal family with a cache: a padded prompt and then token by token gives the logits of the whole text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import forward, init_cache
from jaxneuro.models.attention import Visible
from jaxneuro.models.rope import Dynamic, LongRope

from ..by_numpy import by_numpy
from .conftest import CASES, open_case

CFGS = {c: open_case(c).model.cfg for c in CASES}


def kind(cfg):
    """What a cache depends on: whose layers, whether they see all of it, whether angles depend on its length."""
    rule = None if cfg.rope is None else cfg.rope.scaling
    return cfg.family, bool(cfg.windows), type(rule) if isinstance(rule, Dynamic | LongRope) else None


KINDS = {kind(cfg): c for c, cfg in CFGS.items() if cfg.causal and cfg.image is None and cfg.mixer is None}
BOTH_WAYS = sorted(c for c, cfg in CFGS.items() if not cfg.causal or cfg.image is not None)
LENGTH, PROMPT, SHORT = 20, 16, 18
# Two orders of the same sums. On one machine float32 rounding of these models' logits, up to 9 in size, is up to 6e-6;
# with --reordered two programs were 2.2e-5 apart in one of 1,680 logits. The smallest known mistake is 9e-5.
TOLERANCE = 4e-5


@pytest.mark.parametrize("name", KINDS.values())
def test_a_cache_changes_nothing(name):
    """Row 0 is padded on the left, row 1 on the right of the prompt, row 2 not at all. A context is read once."""
    case, rng = open_case(name), np.random.default_rng(0)
    tokens = rng.integers(0, case.model.cfg.d_vocab, (3, SHORT)).astype(np.int32)
    mask = np.ones((3, SHORT), bool)
    mask[0, :3] = False
    prompt_mask = mask[:, :PROMPT].copy()
    prompt_mask[1, 13:] = False
    run = functools.partial(forward, cfg=case.model.cfg)
    # Frequencies that depend on the length of the text are those of the whole text here.
    empty, weights = init_cache(case.model.cfg, 3, SHORT, shortest=SHORT), case.model.weights
    whole = by_numpy(run)(weights, tokens, mask=mask, **case.types)
    prompt = by_numpy(functools.partial(run, cache=empty))  # it is known to be empty when the program is made
    first, cache = prompt(weights, tokens[:, :PROMPT], mask=prompt_mask, **case.types)
    next_token = by_numpy(run)
    np.testing.assert_allclose(first[prompt_mask], whole[:, :PROMPT][prompt_mask], atol=TOLERANCE)
    np.testing.assert_array_equal(cache.at, [PROMPT, 13, PROMPT])
    for _ in range(SHORT - PROMPT):
        at = cache.at
        logits, cache = next_token(weights, tokens[np.arange(3), at][:, None], cache=cache)
        np.testing.assert_allclose(logits[:, 0], whole[np.arange(3), at], atol=TOLERANCE)
    np.testing.assert_array_equal(cache.real[0], mask[0])
    np.testing.assert_array_equal(cache.real[1], np.arange(SHORT) < SHORT - 3)


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "opt"])
def test_rows_in_step_and_several_tokens_at_a_time(name):
    """Without padding all rows are at the same position, which may be known when the program is made."""
    case = open_case(name)
    cfg, (tokens, _) = case.model.cfg, case.inputs

    @by_numpy
    def run(weights):
        cache = init_cache(cfg, len(tokens), LENGTH)
        a, cache = forward(weights, tokens[:, :7], cfg=cfg, cache=cache)
        b, cache = forward(weights, tokens[:, 7:PROMPT], cfg=cfg, cache=cache)
        c, last = forward(weights, tokens[:, PROMPT:], cfg=cfg, cache=cache._replace(at=jnp.int32(cache.at)))
        return forward(weights, tokens, cfg=cfg), jnp.concatenate([a, b, c], axis=1), cache.at, last

    whole, parts, at, last = run(case.model.weights)
    np.testing.assert_allclose(parts, whole, atol=TOLERANCE)
    assert (int(at), int(last.at)) == (PROMPT, LENGTH)
    assert bool(last.real.all())


def test_nothing_is_computed_for_slots_known_to_be_empty():
    cfg, weights = open_case("llama-gqa").model.cfg, open_case("llama-gqa").model.weights
    tokens = jnp.zeros((1, 5), jnp.int32)
    cache = init_cache(cfg, 1, 64)
    known = str(jax.make_jaxpr(lambda w: forward(w, tokens, cfg=cfg, cache=cache)[0])(weights))
    scores = f"f32[1,{cfg.n_kv_heads},{cfg.n_heads // cfg.n_kv_heads},5,"
    assert f"{scores}5]" in known
    assert f"{scores}64]" not in known
    later = cache._replace(at=jnp.int32(0))
    assert f"{scores}64]" in str(jax.make_jaxpr(lambda c: forward(weights, tokens, cfg=cfg, cache=c)[0])(later))


@pytest.mark.parametrize("name", ["qwen3-alternating", "qwen3_moe-mixed"])
def test_parts_of_the_stack_share_a_cache(name):
    """Layers below 2 once, layers from 2 on later: the cache of both is that of the whole stack."""
    case = open_case(name)
    cfg, tokens = case.model.cfg, case.inputs[0]

    @by_numpy
    def run(weights):
        empty = init_cache(cfg, len(tokens), LENGTH)
        below, cache = forward(weights, tokens, cfg=cfg, cache=empty, stop_at=2)
        out, cache = forward(weights, tokens, cfg=cfg, cache=cache._replace(at=0), start_at=2, resid=below)
        return (out, cache), forward(weights, tokens, cfg=cfg, cache=empty)

    (out, cache), (whole, expected) = run(case.model.weights)
    np.testing.assert_allclose(out, whole, atol=TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), cache, expected)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_what_sees_both_ways_has_no_cache(name):
    with pytest.raises(UserError, match="sees both ways"):
        init_cache(open_case(name).model.cfg, 1, 8)


@pytest.mark.parametrize(("name", "same", "other"), [("llama-dynamic", 8, 9), ("llama-longrope-short", 32, 33)])
def test_a_rope_that_changes_with_the_length_is_refused(name, same, other):
    cfg = open_case(name).model.cfg
    assert init_cache(cfg, 1, same).k.shape[2] == same
    with pytest.raises(UserError, match=f"texts of 1 and of {other} tokens by different angles"):
        init_cache(cfg, 1, other)
    if name == "llama-longrope-short":
        assert init_cache(cfg, 1, other + 9, shortest=other).k.shape[2] == other + 9


def test_learned_positions_end():
    with pytest.raises(UserError, match="room for 33 positions, but this model has learned only 32"):
        init_cache(open_case("gpt2").model.cfg, 1, 33)


def test_visibility_is_by_position():
    """Queries of two rows that start at 2 and at 4: 3 keys back, real ones only."""
    real = np.array([[True] * 6, [True, True, True, False, True, True]])
    pairs = by_numpy(lambda *where: Visible(True, *where).pairs(jnp.arange(2), jnp.arange(6)))
    seen = pairs(np.int32(3), real, np.int32([2, 4]))
    assert seen[0].astype(int).tolist() == [[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0]]
    assert seen[1].astype(int).tolist() == [[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1]]
