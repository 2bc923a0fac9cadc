# SPDX-License-Identifier: Apache-2.0
"""The rules' numbers are compared with transformers in tests/parity; here is what must hold by algebra."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Rope
from jaxneuro.models.rope import Dynamic, Linear, LongRope, RopeKeys, Yarn, ropes_from_hf, ropes_to_hf, rotate


def test_rotation_keeps_lengths_and_sees_only_distances():
    q, k = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 1, 2, 8)), jnp.float32)
    cos, sin = Rope(theta=50.0).tables(8, 12)

    def product(i, j):
        turned = [rotate(x, cos[p : p + 1], sin[p : p + 1]) for x, p in ((q, i), (k, j))]
        return jnp.sum(turned[0] * turned[1])

    np.testing.assert_allclose(product(7, 3), product(11, 7), rtol=1e-5)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3
    np.testing.assert_allclose(jnp.square(rotate(q, cos[5:6], sin[5:6])).sum(), jnp.square(q).sum(), rtol=1e-5)


def test_rotation_keeps_the_dtype():
    x = jnp.ones((1, 3, 2, 8), jnp.bfloat16)
    assert rotate(x, *Rope().tables(8, 3)).dtype == jnp.bfloat16


def test_linear_scaling_is_slower_positions():
    plain, slow = (rope.tables(8, 9) for rope in (Rope(), Rope(scaling=Linear(factor=4.0))))
    np.testing.assert_allclose(plain[0][:2], slow[0][::4][:2], atol=1e-6)


def test_yarn_keeps_fast_waves_and_stretches_slow_ones():
    rule = Yarn(factor=4.0, original_max_position_embeddings=4096)
    freqs = 1e4 ** -(np.arange(32) / 32)
    out, attention = rule(freqs, 1e4, 1)
    np.testing.assert_allclose(out[:5], freqs[:5])
    np.testing.assert_allclose(out[-3:], freqs[-3:] / 4)
    assert attention == pytest.approx(0.1 * np.log(4) + 1)


def test_longrope_needs_a_factor_for_every_pair():
    rule = LongRope(short_factor=(1.0,), long_factor=(1.0,), original_max_position_embeddings=8, factor=2.0)
    with pytest.raises(UserError, match="lists 1 factors; heads of 8 have 4 pairs"):
        Rope(scaling=rule).tables(8, 4)


V4 = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
V5 = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}


KEYS = RopeKeys()


def read(hf, keys=KEYS, d_head=8):
    return ropes_from_hf(hf, keys, d_head)["rope"]


def test_both_spellings_are_read():
    assert read(V4) == read(V5) == Rope(theta=5e5, scaling=Linear(factor=2.0))
    assert read({}) == read({"rope_scaling": None, "rope_theta": 10000.0}) == Rope()


RULES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "truncate": False},
    "longrope": {"short_factor": [1.0], "long_factor": [2.0], "original_max_position_embeddings": 64, "factor": 2.0},
}


@pytest.mark.parametrize("kind", RULES)
def test_what_is_written_is_read(kind):
    rope = read({"rope_theta": 77.0, "rope_scaling": {"rope_type": kind, **RULES[kind]}})
    assert read(ropes_to_hf(rope, None, KEYS, 8)) == rope
    hash(rope)


@pytest.mark.parametrize("kind", RULES)
def test_of_both_spellings_the_old_one_counts(kind):
    """As transformers 4 and 5: theta and the part of the head are not taken from rope_parameters either."""
    rule, plain = {"rope_type": kind, **RULES[kind]}, {"rope_type": "default", "rope_theta": 7.0}
    alone = read({"rope_scaling": rule, "max_position_embeddings": 128})
    assert type(alone.scaling).__name__.lower() == kind
    assert alone.theta == 10000.0
    longest = {"max_position_embeddings": 128}
    assert read({"rope_parameters": plain, "rope_scaling": rule, **longest}) == alone
    assert read({"rope_parameters": rule, "rope_scaling": plain}) == Rope(theta=7.0)
    for nothing in ({}, None):
        assert read({"rope_parameters": rule, "rope_scaling": nothing, **longest}) == alone
    for wrong in (-3, True, "2", float("nan"), []):
        with pytest.raises(UserError, match="rope_scaling"):
            read({"rope_parameters": plain, "rope_scaling": {**rule, "factor": wrong}})


def test_of_two_ropes_the_old_spelling_stretches_the_one_without_a_window():
    keys = RopeKeys(default_theta=1e6, local_theta="rope_local_base_freq")
    kinds = {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 50.0}}
    hf = {"rope_parameters": kinds, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 9.0}
    both = {"rope": Rope(theta=5e5, scaling=Linear(factor=2.0)), "local_rope": Rope(theta=50.0)}
    assert ropes_from_hf(hf, keys, 8) == both
    with pytest.raises(UserError, match="factor = -3 is not"):
        ropes_from_hf(hf | {"rope_scaling": {"type": "linear", "factor": -3}}, keys, 8)
    for flat in (hf | {"rope_parameters": {"rope_theta": 5e5}}, {"rope_scaling": kinds}):
        with pytest.raises(UserError, match="one rope per kind of layer in rope_parameters"):
            ropes_from_hf(flat, keys, 8)


def test_the_length_of_pretraining_is_found_where_it_may_be():
    given = {k: v for k, v in RULES["yarn"].items() if k != "original_max_position_embeddings"}
    hf = {"max_position_embeddings": 256, "rope_scaling": {"rope_type": "yarn", **given}}
    assert read(hf).scaling.original_max_position_embeddings == 256
    outside = {**hf, "original_max_position_embeddings": 64}
    assert read(outside).scaling.original_max_position_embeddings == 64
    del outside["rope_scaling"]["factor"]
    assert read(outside).scaling.factor == 4.0


def test_a_part_of_the_head_is_turned_as_each_family_says():
    percent = RopeKeys(part="rotary_pct", default_part=0.25)
    assert read({}, percent).dims == 2
    assert (
        read({"rotary_pct": 0.5}, percent).dims
        == read({"rope_parameters": {"partial_rotary_factor": 0.5}}, percent).dims
    )
    count = RopeKeys(part="rotary_dim", default_part=64, interleaved=True)
    assert read({"rotary_dim": 6}, count) == Rope(dims=6, interleaved=True)
    for keys, dims in ((percent, 4), (count, 6)):
        rope = Rope(dims=dims, interleaved=keys.interleaved)
        assert read(ropes_to_hf(rope, None, keys, 8), keys) == rope


def test_layers_with_a_window_have_a_rope_of_their_own():
    keys = RopeKeys(default_theta=1e6, local_theta="rope_local_base_freq")
    stretched = Rope(theta=1e6, scaling=Linear(factor=8.0))
    old = {"rope_theta": 1e6, "rope_local_base_freq": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    whole = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    new = {"rope_parameters": {"full_attention": whole, "sliding_attention": {"rope_theta": 50.0}}}
    for hf in (old, new, ropes_to_hf(stretched, Rope(theta=50.0), keys, 8)):
        assert ropes_from_hf(hf, keys, 8) == {"rope": stretched, "local_rope": Rope(theta=50.0)}
    assert ropes_from_hf({}, keys, 8) == {"rope": Rope(theta=1e6), "local_rope": Rope()}


def test_interleaved_pairs_are_neighbours():
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    cos, sin = jnp.zeros((1, 2)), jnp.ones((1, 2))  # a quarter turn of the first four coordinates
    assert rotate(x, cos, sin, interleaved=True).ravel().tolist() == [-1, 0, -3, 2, 4, 5, 6, 7]
    assert rotate(x, cos, sin).ravel().tolist() == [-2, -3, 0, 1, 4, 5, 6, 7]


def test_dynamic_scaling_changes_longer_texts_only():
    plain, stretched = (
        Rope(theta=100.0),
        Rope(theta=100.0, scaling=Dynamic(factor=2.0, original_max_position_embeddings=8)),
    )
    np.testing.assert_array_equal(plain.tables(8, 8)[0], stretched.tables(8, 8)[0])
    raised = Rope(theta=100.0 * (2 * 16 / 8 - 1) ** (8 / 6))
    np.testing.assert_allclose(raised.tables(8, 16)[0], stretched.tables(8, 16)[0], atol=1e-5)


WRONG = {
    "an unknown type": ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "no rope type 'ntk'.*longrope"),
    "a typing mistake": ({"rope_scaling": {"rope_type": "yarm"}}, "Did you mean 'yarn'"),
    "no type": ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor is given without a rope_type"),
    "a missing key": ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'llama3' needs low_freq_factor, high"),
    "a part of the head": ({"partial_rotary_factor": 0.5}, "only 0.5 of each head"),
    "kinds of layers": ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "one rope per kind of layer"),
}


@pytest.mark.parametrize(("hf", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_not_ported_is_named(hf, message):
    with pytest.raises(UserError, match=message):
        read(hf)
