# SPDX-License-Identifier: Apache-2.0
"""The rules' numbers are compared with transformers in tests/parity; here is what must hold by algebra."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Rope
from jaxneuro.models.rope import Linear, LongRope, Yarn, rope_from_hf, rope_to_hf, rotate


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


def test_both_spellings_are_read():
    assert rope_from_hf(V4) == rope_from_hf(V5) == Rope(theta=5e5, scaling=Linear(factor=2.0))
    assert rope_from_hf({}) == rope_from_hf({"rope_scaling": None, "rope_theta": 10000.0}) == Rope()


RULES = {
    "linear": {"factor": 2.0},
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
    rope = rope_from_hf({"rope_theta": 77.0, "rope_scaling": {"rope_type": kind, **RULES[kind]}})
    assert rope_from_hf(rope_to_hf(rope)) == rope
    hash(rope)


def test_the_length_of_pretraining_is_found_where_it_may_be():
    given = {k: v for k, v in RULES["yarn"].items() if k != "original_max_position_embeddings"}
    hf = {"max_position_embeddings": 256, "rope_scaling": {"rope_type": "yarn", **given}}
    assert rope_from_hf(hf).scaling.original_max_position_embeddings == 256
    outside = {**hf, "original_max_position_embeddings": 64}
    assert rope_from_hf(outside).scaling.original_max_position_embeddings == 64
    del outside["rope_scaling"]["factor"]
    assert rope_from_hf(outside).scaling.factor == 4.0


WRONG = {
    "an unknown type": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "no rope type 'dynamic'.*longrope"),
    "a typing mistake": ({"rope_scaling": {"rope_type": "yarm"}}, "Did you mean 'yarn'"),
    "a missing key": ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'llama3' needs low_freq_factor, high"),
    "a part of the head": ({"partial_rotary_factor": 0.5}, "only 0.5 of each head"),
    "kinds of layers": ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "one rope per kind of layer"),
}


@pytest.mark.parametrize(("hf", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_not_ported_is_named(hf, message):
    with pytest.raises(UserError, match=message):
        rope_from_hf(hf)
