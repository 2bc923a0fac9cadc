# SPDX-License-Identifier: Apache-2.0
"""Methods at sites, inside the forward pass, see what a harvest would have stored, and cost what they must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.activations import at_site, harvest, moments, reader, run
from jaxneuro.activations.site import at_sites, stop_at
from jaxneuro.errors import UserError
from jaxneuro.models import Config, Transformer, init
from jaxneuro.protocols import Method
from jaxneuro.taps import capture, tap


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
        ("unembed.hook_in", None),
        ("blocks.2.mlp.hook_in", 3),
        ("blocks.0,2,1.mlp.post", 3),
        ("blocks.*.mlp.post", None),
    ],
)
def test_no_more_layers_than_the_site_needs(site, layers):
    assert stop_at(site) == layers


def test_no_more_layers_than_the_highest_site_needs():
    assert stop_at("blocks.3.mlp.post", "embed", "blocks.5.ln2.normalized") == 6
    assert stop_at("blocks.3.mlp.post", "logits") is None


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


# ---- several sites

SEEN = Method(init=lambda key, b: b, step=lambda s, b: (b, {}), finish=lambda s: jax.tree.map(np.asarray, s))


@pytest.fixture
def values(toy, toy_windows):
    """(batch, {site: [80, d], a row for each token})."""
    batch = toy_windows.rows(np.arange(18, 26))
    names = ["embed", "blocks.0.mlp.post", "blocks.1.mlp.post", "blocks.0.attn.z", "blocks.1.resid_post"]
    _, found = capture(toy.apply, names)(toy.weights, batch["tokens"])
    return batch, {name: np.asarray(a).reshape(80, -1) for name, a in found.items()}


def seen(toy, batch, site):
    method = at_site(toy.apply, site, SEEN)
    return run(method, [batch], key=jax.random.key(0), constants={"weights": toy.weights})


def same(a, b):
    """Values of two programs: equal up to the rounding of matmuls of this size."""
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_inputs_and_targets_from_two_sites(toy, values):
    batch, expected = values
    got = seen(toy, batch, {"x": "blocks.0.mlp.post", "y": "blocks.1.resid_post"})
    same(got["x"], expected["blocks.0.mlp.post"])
    same(got["y"], expected["blocks.1.resid_post"])
    assert np.array_equal(got["window"], np.repeat(batch["window"], 10))


def test_sites_of_a_list_stand_side_by_side(toy, values):
    batch, expected = values
    sites = ["blocks.1.mlp.post", "embed", "blocks.0.attn.z"]
    same(seen(toy, batch, sites)["x"], np.concatenate([expected[s] for s in sites], -1))


def test_layers_are_an_axis_between_rows_and_features(toy, values):
    batch, expected = values
    both = [expected[f"blocks.{layer}.mlp.post"] for layer in (0, 1)]
    same(seen(toy, batch, "blocks.*.mlp.post")["x"], np.stack(both, 1))
    got = seen(toy, batch, {"x": "blocks.1,0.mlp.post", "y": ["blocks.*.mlp.post", "blocks.*.attn.z"]})
    same(got["x"], np.stack(both[::-1], 1))
    assert got["y"].shape == (80, 2, 12)
    same(got["y"][:, :, :6], np.stack(both, 1))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            ["embed", "blocks.*.mlp.post"],
            r"equal numbers of layers; these are 'embed': \[80, 6\], 'blocks.\*.mlp.post'",
        ),
        ({"y": "embed"}, "a method learns from a site, a list of sites"),
        ({"x": "embed", "z": "embed"}, "a method learns from a site, a list of sites"),
        ([], "a method learns from a site, a list of sites"),
        ("blocks.0.attn.pattern", "per pair of positions"),
        ({"x": "embed", "y": "blocks.0.mlp.post@grad"}, "is a gradient"),
        ({"x": "embed", "y": "blocks.0.mlp.pst"}, "Did you mean 'blocks.mlp.post'"),
    ],
)
def test_requests_that_cannot_be_met(toy, values, site, message):
    with pytest.raises(UserError, match=message):
        seen(toy, values[0], site)


def test_methods_at_sites_of_their_own_equal_their_solo_runs(toys, toy_windows):
    toy, products = toys.Toy(d=toys.D), Method(
        init=lambda key, b: jnp.zeros((toys.D, toys.D), jnp.float32),
        step=lambda s, b: (s + b["x"].T @ b["y"], {}),
        finish=np.asarray,
    )  # fmt: skip
    methods = {
        "early": ("blocks.0.resid_post", toys.learner()),
        "late": ("blocks.1.resid_post", toys.learner()),
        "across": ({"x": "blocks.0.mlp.post", "y": "blocks.1.mlp.post"}, products),
        "moments": ("blocks.*.mlp.post", moments()),
    }
    batches = [toy_windows.rows(np.arange(i, i + 8)) for i in range(0, 32, 4)]
    options = {"key": jax.random.key(0), "constants": {"weights": toy.weights}}
    found = run(at_sites(toy.apply, methods), batches, **options)
    assert found["moments"].mean.shape == (2, toys.D)
    for name in ("late", "across"):
        alone = run(at_site(toy.apply, *methods[name]), batches, **options)
        for one, two in zip(jax.tree.leaves(found[name]), jax.tree.leaves(alone), strict=True):
            one, two = one.astype(np.float64), two.astype(np.float64)
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-6 * max(1, np.abs(two).max(initial=0)))


# ---- cost


def cost(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def large(weights, tokens, mask=None, *, stop_at=None):
    """Four layers, not in a scan: XLA counts the body of a loop once."""
    x = weights["embed"][tokens]
    for layer in range(4 if stop_at is None else stop_at):
        h = tap(jax.nn.relu(x @ weights["up"][layer]), "blocks.mlp.post", layer=layer, axes=("batch", "pos", "neuron"))
        x = tap(x + h @ weights["down"][layer], "blocks.resid_post", layer=layer, axes=("batch", "pos", "d_model"))
    return x @ weights["embed"].T


def autoencoder(width):
    """Gradient descent on |x - x W W^T|^2."""

    def step(w, batch):
        loss, grad = jax.value_and_grad(lambda w: jnp.mean(jnp.square(batch["x"] - batch["x"] @ w @ w.T)))(w)
        return w - jnp.float32(0.01) * grad, {"loss": loss}

    return Method(lambda key, b: jax.random.normal(key, (b["x"].shape[1], width)), step, np.asarray)


@pytest.mark.usefixtures("this_machine")
def test_the_program_costs_the_layers_below_the_site_and_the_method():
    """To 3 %; and one pass of the model for all methods at this site and below it."""
    d, m, shape, site = 64, 512, (4, 32), "blocks.1.resid_post"
    weights = {"embed": jnp.ones((50, d)), "up": jnp.ones((4, d, m)), "down": jnp.ones((4, m, d))}
    ones = jnp.ones(shape, bool)
    batch = {"tokens": jnp.zeros(shape, jnp.int32), "mask": ones, "counted": ones, "weights": weights}
    x, method = jnp.ones((ones.size, d)), autoencoder(128)
    state = method.init(jax.random.key(1), {"x": x})

    def below(weights, tokens):
        return capture(lambda w, t: large(w, t, stop_at=2), [site])(weights, tokens)[1]

    model, one = cost(below, weights, batch["tokens"]), cost(method.step, state, {"x": x})
    assert model > 2 * one  # so that 3 % of the sum is much less than half a layer
    assert cost(at_site(large, site, method).step, state, batch) == pytest.approx(model + one, rel=0.03)
    wide = autoencoder(256)
    states = {"a": state, "b": wide.init(jax.random.key(1), {"x": x}), "c": state}
    two = cost(wide.step, states["b"], {"x": x})
    sites = {"a": (site, method), "b": (site, wide), "c": ("blocks.0.resid_post", method)}
    assert cost(at_sites(large, sites).step, states, batch) == pytest.approx(model + 2 * one + two, rel=0.03)


def test_the_models_of_the_library_run_no_layer_above_the_site():
    cfg = Config(n_layers=5, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=16, d_vocab=20, n_ctx=16)
    model = Transformer(cfg, init(cfg, jax.random.key(0)))
    ones = jnp.ones((2, 6), bool)
    batch = {"tokens": jnp.zeros((2, 6), jnp.int32), "mask": ones, "counted": ones, "weights": model.weights}
    for site, layers in (("blocks.2.mlp.post", 3), (["blocks.0.resid_post", "blocks.3.mlp_out"], 4)):
        jaxpr = jax.make_jaxpr(at_site(model.apply, site, SEEN).step)(None, batch).jaxpr
        scans = [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]
        assert scans == [layers]
