# SPDX-License-Identifier: Apache-2.0
"""A method at a site, inside the forward pass, sees what a harvest would have stored."""

import jax
import numpy as np
import pytest

from jaxneuro.activations import at_site, harvest, moments, reader, run
from jaxneuro.activations.site import stop_at
from jaxneuro.errors import UserError
from jaxneuro.protocols import Method


@pytest.mark.parametrize(
    ("site", "layers"),
    [
        ("blocks.3.mlp.post", 4),
        ("blocks.0.hook_resid_post", 1),
        ("blocks.2.attn.hook_z", 3),
        ("embed", 0),
        ("hook_embed", 0),
        ("pos_embed", 0),
        ("ln_final.hook_normalized", None),
        ("logits", None),
    ],
)
def test_no_more_layers_than_the_site_needs(site, layers):
    assert stop_at(site) == layers


def test_moments_in_the_forward_pass_equal_those_of_stored_activations(tmp_path, toy, toy_windows):
    site = "blocks.1.resid_post"
    x = harvest(toy, toy_windows, site, tmp_path / "acts", batch_size=8).x.astype(np.float64)
    batches = [toy_windows.rows(np.arange(i, i + 8)) for i in range(0, 40, 8)]
    m = run(at_site(toy.apply, site, moments()), batches, key=jax.random.key(0), constants={"weights": toy.weights})
    assert m.count == len(x)
    np.testing.assert_allclose(m.mean, x.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(m.variance, x.var(0), rtol=1e-4)


def test_rows_come_with_their_group(toy, toy_windows):
    seen = Method(init=lambda key, b: b, step=lambda s, b: (b, {}), finish=lambda s: jax.tree.map(np.asarray, s))
    batch = toy_windows.rows(np.arange(18, 26))
    got = run(at_site(toy.apply, "embed", seen), [batch], key=jax.random.key(0), constants={"weights": toy.weights})
    assert np.array_equal(got["mask"], batch["counted"].ravel())
    assert np.array_equal(got["group"], np.repeat(batch["group"], 10))
    assert np.array_equal(got["x"], np.asarray(toy.weights["embed"])[batch["tokens"].ravel()])


def test_one_reader_per_site_and_wrong_shapes(toy):
    assert reader(toy.apply, "embed") is reader(toy.apply, "embed")

    def odd(weights, tokens, mask=None, *, stop_at=None):
        return toy.apply(weights, tokens.T, mask)

    with pytest.raises(UserError, match=r"'embed' has shape \(3, 2, 6\), not one row for each of the \(2, 3\) tokens"):
        reader(odd, "embed")(toy.weights, np.zeros((2, 3), np.int32))
