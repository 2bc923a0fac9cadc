# SPDX-License-Identifier: Apache-2.0
"""What does not fit a dictionary is said, whatever the dictionary; heads apart give the same numbers as joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro import dictionaries as d
from jaxneuro.errors import UserError

D_IN, N_LATENTS = 32, 16
RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(N_LATENTS, D_IN)) / 6, jnp.float32)
BIAS = jnp.zeros(D_IN)


def coder(activation):
    return d.SparseCoder(W_enc=W.T, W_dec=W, b_enc=jnp.zeros(N_LATENTS), b_dec=BIAS, activation=activation)


ALL = {
    "relu": coder(d.Relu()),
    "topk": coder(d.TopK(4)),
    "matching_pursuit": d.MatchingPursuit(W_dec=W, b_dec=BIAS, max_steps=4),
    "pca": d.PCADictionary(
        W_enc=W.T, W_dec=W, b_dec=BIAS, variance=jnp.ones(N_LATENTS), total_variance=jnp.float32(N_LATENTS)
    ),
    "kmeans": d.KMeansDictionary(W_dec=W),
    "semi_nmf": d.SemiNMFDictionary(W_dec=W, steps=3),
}
SPARSE = ("topk", "matching_pursuit", "kmeans")
each = pytest.mark.parametrize("name", ALL)


@each
def test_heads_are_joined_in_what_capture_gives(name):
    x = jnp.asarray(RNG.normal(size=(2, 3, 4, 8)), jnp.float32)
    one, flat = ALL[name], x.reshape(2, 3, D_IN)
    np.testing.assert_array_equal(one.encode(x), one.encode(flat))
    np.testing.assert_array_equal(one(x), one(flat).reshape(x.shape))
    if name in SPARSE:
        np.testing.assert_array_equal(one.encode_sparse(x)[1], one.encode_sparse(flat)[1])


@each
@pytest.mark.parametrize("shape", [(4, 8), (3, 4, 8), (1, 32, 1)], ids=str)
def test_tokens_of_another_model_are_not_taken_for_heads(name, shape):
    for read in (ALL[name], ALL[name].encode, jax.jit(ALL[name].encode)):
        with pytest.raises(UserError, match=r"If their last two axes are heads, join them first, .*, 32\)"):
            read(jnp.zeros(shape))


@each
@pytest.mark.parametrize("shape", [(), (33,), (2, 16), (2, 3, 5, 8), (2, 0)], ids=str)
def test_another_width_is_said(name, shape):
    reads = [ALL[name], ALL[name].encode, *([ALL[name].encode_sparse] if name in SPARSE else [])]
    for read in reads:
        with pytest.raises(UserError, match="reads values of width 32; these have the shape"):
            read(jnp.zeros(shape))


@each
@pytest.mark.parametrize("shape", [(), (15,), (2, 17), (2, 32), (4, 4)], ids=str)
def test_another_number_of_latents_is_said(name, shape):
    with pytest.raises(UserError, match=r"latents to decode have the shape \[\.\.\., 16\]; these have"):
        ALL[name].decode(jnp.zeros(shape))
    assert ALL[name].decode(jnp.zeros((2, N_LATENTS))).shape == (2, D_IN)


@each
def test_values_are_floating(name):
    for wrong in (jnp.zeros((2, D_IN), jnp.int32), jnp.zeros((2, D_IN), jnp.complex64), "x", [["a"]]):
        with pytest.raises(UserError, match="the dictionary reads values: th"):
            ALL[name].encode(wrong)


@pytest.mark.parametrize("name", SPARSE)
def test_an_index_of_no_latent_is_said(name):
    one, vals = ALL[name], jnp.ones((1, 2))
    for index in (99, -1, N_LATENTS):
        with pytest.raises(UserError, match=f"index {index} is of no latent: the dictionary has 16, from 0"):
            one.decode_sparse(vals, jnp.array([[0, index]]))
    none = one.decode_sparse(jnp.array([[1.0, 0.0]]), jnp.array([[3, N_LATENTS]]))  # as `encode_sparse` may say it
    np.testing.assert_allclose(none, W[3:4], atol=1e-6)
    code = one.encode_sparse(jnp.ones((3, D_IN)))
    np.testing.assert_array_equal(one.decode_sparse(*code), jax.jit(one.decode_sparse)(*code))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize(("vals", "idx"), [((2, 3), (2, 2)), ((), ())], ids=str)
def test_a_code_has_one_shape(name, vals, idx):
    for dtype in (jnp.int32, jnp.float32):
        with pytest.raises(UserError, match="floating values and whole indices of one shape"):
            ALL[name].decode_sparse(jnp.zeros(vals), jnp.zeros(idx, dtype))


def test_layers_of_a_cross_layer_transcoder_are_counted():
    arrays = {"W_enc": jnp.ones((2, 3, 4)), "b_enc": jnp.zeros((2, 4)), "b_dec": jnp.zeros((2, 3))}
    t = d.CrossLayerTranscoder(**arrays, W_dec=(jnp.ones((2, 4, 3)), jnp.ones((1, 4, 3))), activation=d.Relu())
    for read, what in ((t, "values of a"), (t.encode, "values of a"), (t.decode, "latents to decode")):
        for shape in ((3,), (3, 3), (5, 2, 5)):
            with pytest.raises(UserError, match=what):
                read(jnp.zeros(shape))


@each
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": np.zeros((6, 2, 4), np.float32)}, r"this one: x float32\[6, 2, 4\]"),
        ({"x": np.zeros((6, 4), np.float32)}, "reads values of width 32"),
        ({"x": np.zeros((6, 32), np.float32), "y": np.zeros((6, 31), np.float32)}, r"targets of this dictionary have"),
        ({"x": np.zeros((6, 32), np.float32), "mask": np.ones(5, bool)}, r"mask bool\[5\]"),
        ({"x": np.zeros((6, 32), np.int32)}, r"x int32\[6, 32\]"),
        ({"y": np.zeros((6, 32), np.float32)}, "this one is"),
    ],
)
def test_reconstruction_says_what_a_batch_is(name, batch, message):
    with pytest.raises(UserError, match=message):
        d.reconstruction(ALL[name], [batch])
