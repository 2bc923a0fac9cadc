# SPDX-License-Identifier: Apache-2.0
"""The synthetic benchmark: its generator against formulas and SAELens, its scores on cases known by algebra."""

import dataclasses
import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxneuro.activations import run
from jaxneuro.dictionaries.synthetic import (
    REDUCED,
    SyntheticConfig,
    drawn_probabilities,
    firing_probabilities,
    mean_cosine,
    on_synthetic,
    parents,
    recovery,
    sample,
    synthetic,
    synthetic_batches,
    synthetic_steps,
)
from jaxneuro.dictionaries.synthetic import features as generator
from jaxneuro.errors import UserError
from jaxneuro.protocols import Method

from .conftest import rows

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "synthsaebench.json").read_text())
SMALL = SyntheticConfig(n_features=100, d=32, n_roots=4, correlation_scale=0.0, p_max=0.5, branching=2, p_min=0.05)
TINY = SyntheticConfig(n_features=20, d=8, n_roots=0, p_min=0.05)
N = 8000


@functools.cache
def drawn(config=SMALL):
    """(features, z [N, n_features])."""
    features = synthetic(config, key=jax.random.key(42))
    return features, np.asarray(sample(features, jax.random.key(0), N)[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A dictionary that knows the latents of one set of samples."""

    W_dec: jax.Array
    latents: jax.Array
    b_dec: jax.Array | float = 0.0

    def encode(self, x):
        return self.latents

    def decode(self, z):
        return z @ self.W_dec + (self.b_dec[None] if jnp.ndim(self.b_dec) else self.b_dec)

    def __call__(self, x):
        return self.decode(self.latents)


# --- the generator against SAELens ------------------------------------------------------------------------------------


def test_probabilities_trees_and_sizes_are_those_of_the_original():
    golden = GOLDEN["generator"]
    config = SyntheticConfig(**golden["config"])
    features = synthetic(config, key=jax.random.key(0))
    np.testing.assert_array_equal(parents(config), golden["parent"])
    np.testing.assert_array_equal(features.parent, golden["parent"])
    # float32 there, float64 here: the rare ones are differences of nearly equal numbers
    np.testing.assert_allclose(firing_probabilities(config), golden["probabilities"], rtol=1e-6, atol=3e-8)
    np.testing.assert_allclose(drawn_probabilities(config), golden["drawn_probabilities"], rtol=1e-5)
    np.testing.assert_allclose(features.thresholds, golden["thresholds"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(features.size, golden["size"], rtol=1e-6)


def test_trees_act_as_in_the_original():
    golden = GOLDEN["generator"]
    config = SyntheticConfig(**golden["config"])
    before, size = jnp.asarray(golden["before_trees"]), jnp.asarray(golden["size"])
    after = generator._through_the_trees(before, size, jax.random.key(0), config)
    np.testing.assert_allclose(after, golden["after_trees"], rtol=1e-6)  # 7 digits are kept in the file
    assert not np.allclose(before, golden["after_trees"])


def test_directions_are_pushed_apart_as_in_the_original():
    golden = GOLDEN["directions"]
    found = generator.orthogonalised(jnp.asarray(golden["vectors"]), steps=golden["steps"], rate=golden["rate"])
    np.testing.assert_allclose(found, golden["orthogonalised"], atol=1e-5)  # 50 Adam steps in float32
    factor, own = generator._unit_diagonal(jnp.asarray(golden["factor"]))
    np.testing.assert_allclose(factor, golden["shortened"], rtol=1e-5)
    np.testing.assert_allclose(own**2, golden["diagonal"], atol=1e-5)


# --- the generator against its formulas -------------------------------------------------------------------------------


def expected_rates(config, features):
    """P(z > 0) where features are independent: level by level, every combination of active siblings enumerated."""
    positive = norm.cdf(np.asarray(features.size, np.float64) / np.asarray(features.spread, np.float64))
    alone = drawn_probabilities(config) * positive
    rate, parent = alone.copy(), parents(config)
    for c in np.flatnonzero(parent >= 0):
        rivals = alone[(parent == parent[c]) & (np.arange(len(parent)) != c)]
        wins = sum(
            np.prod([r if on else 1 - r for r, on in zip(rivals, combination, strict=True)]) / (1 + sum(combination))
            for combination in itertools.product([0, 1], repeat=len(rivals))
        )
        rate[c] = rate[parent[c]] * alone[c] * wins
    return rate


def test_every_feature_fires_as_often_as_computed_by_hand():
    features, z = drawn()
    expected = expected_rates(SMALL, features)
    sd = np.sqrt(expected * (1 - expected) / N)
    assert np.abs((z > 0).mean(0) - expected).max() < (4.5 * sd).max()
    assert (np.abs((z > 0).mean(0) - expected) / sd).max() < 4.5  # 100 features: beyond 4.5 sd once in 1,500 runs
    free = parents(SMALL) < 0
    np.testing.assert_allclose(expected[free] / firing_probabilities(SMALL)[free], 1, atol=0.05)


def test_shared_causes_leave_rates_and_correlate_firing():
    factor, own = generator._unit_diagonal(0.15 * jax.random.normal(jax.random.key(5), (100, SMALL.rank)))
    features = dataclasses.replace(drawn()[0], factor=factor, own=own)
    free = np.flatnonzero(features.parent < 0)  # a child's rate depends on its family's correlations
    on = np.asarray(sample(features, jax.random.key(0), N)[1])[:, free] > 0
    expected = expected_rates(SMALL, features)[free]
    assert (np.abs(on.mean(0) - expected) / np.sqrt(expected * (1 - expected) / N)).max() < 4.5
    shared = np.asarray(factor @ factor.T)
    np.testing.assert_allclose(np.asarray(own) ** 2 + np.diag(shared), 1, atol=1e-6)
    slope = norm.pdf(np.asarray(features.thresholds)[free]) / np.sqrt(expected * (1 - expected))
    pairs = np.triu_indices(len(free), 1)  # correlation of firing, to first order in that of the Gaussians
    wanted, found = (np.outer(slope, slope) * shared[np.ix_(free, free)])[pairs], np.corrcoef(on.T)[pairs]
    assert np.corrcoef(wanted, found)[0, 1] > 0.9
    assert wanted @ found / (wanted @ wanted) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("config", [SMALL, REDUCED], ids=["small", "reduced"])
def test_no_child_without_its_parent_and_never_two_siblings(config):
    features, z = drawn(config)
    parent = features.parent
    child = np.flatnonzero(parent >= 0)
    on = z > 0
    assert not (on[:, child] & ~on[:, parent[child]]).any()
    for p in np.unique(parent[child]):
        assert on[:, parent == p].sum(1).max() <= 1
    assert on[:, child].any()


def test_a_child_is_scaled_by_its_parent():
    """With sizes that do not vary of their own, every child has size times parent's value over parent's size."""
    features = dataclasses.replace(drawn()[0], spread=jnp.where(jnp.arange(100) < SMALL.n_roots, 1.0, 0.0))
    z, parent, size = np.asarray(sample(features, jax.random.key(0), N)[1]), features.parent, np.asarray(features.size)
    assert z[z[:, 0] > 0, 0].std() > 0.5
    for c in np.flatnonzero(parent >= 0):
        on = z[:, c] > 0
        np.testing.assert_allclose(z[on, c], size[c] * z[on, parent[c]] / size[parent[c]], rtol=1e-6)


def test_directions_bias_and_samples():
    features = synthetic(REDUCED, key=jax.random.key(42))
    loose = synthetic(dataclasses.replace(REDUCED, orthogonal_steps=0), key=jax.random.key(42))
    off = ~np.eye(REDUCED.n_features, dtype=bool)
    close, before = (np.square(np.asarray(f.vectors @ f.vectors.T))[off].mean() for f in (features, loose))
    bound = (1 / REDUCED.d - 1 / REDUCED.n_features) * REDUCED.n_features / (REDUCED.n_features - 1)  # Welch
    assert bound < close < before
    assert close < 0.5 * bound + 0.5 * before
    np.testing.assert_allclose(np.linalg.norm(features.vectors, axis=1), 1, atol=1e-6)
    assert float(jnp.linalg.norm(features.bias)) == pytest.approx(0.5, abs=1e-6)
    x, z = sample(features, jax.random.key(1), 64)
    np.testing.assert_allclose(x, np.asarray(z) @ np.asarray(features.vectors) + np.asarray(features.bias), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n_features": 300}, "340 nodes, but there are 300 features"),
        ({"branching": 1}, "branching = 1 is below 2"),
        ({"p_min": 0.5}, "p_min <= p_max"),
        ({"exponent": 0.0}, "exponent = 0.0 is not above 0"),
        ({"bias_norm": -1.0}, "bias_norm = -1.0 is below 0"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(change, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(REDUCED, **change)


# --- streams ----------------------------------------------------------------------------------------------------------


def total() -> Method:
    """Sums and keeps the last row, so that order and values both show."""

    def step(state, batch):
        total, _ = state
        return (total + batch["x"].sum(0), batch["x"][-1]), {"norm": jnp.linalg.norm(batch["x"])}

    return Method(
        init=lambda key, batch: (jnp.zeros_like(batch["x"][0]), jnp.zeros_like(batch["x"][0])),
        step=step,
        finish=lambda state: np.stack([np.asarray(a) for a in state]),
    )


@functools.cache
def tiny():
    return synthetic(TINY, key=jax.random.key(42))


def test_samples_drawn_in_the_step_are_the_samples_of_the_stream():
    key, batches = jax.random.key(0), synthetic_batches(tiny(), batch_size=16, seed=3, steps=12)
    outside = run(total(), batches, key=key)
    fused = on_synthetic(total(), batch_size=16, inner_steps=4)
    inside = run(fused, synthetic_steps(seed=3, steps=3), key=key, constants={"features": tiny()})
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-4)  # fused sums round differently
    other = np.sum([b["x"].sum(0) for b in synthetic_batches(tiny(), batch_size=16, seed=4, steps=12)], 0)
    assert not np.allclose(other, outside[0], atol=0.1)


def test_a_run_stopped_and_resumed_is_the_run(tmp_path):
    given = {"key": jax.random.key(0), "constants": {"features": tiny()}}
    method = on_synthetic(total(), batch_size=16)
    whole = run(method, synthetic_steps(seed=3, steps=9), **given)
    run(method, synthetic_steps(seed=3), steps=4, checkpoint_dir=tmp_path, **given)
    resumed = run(method, synthetic_steps(seed=3, steps=9), checkpoint_dir=tmp_path, **given)
    np.testing.assert_array_equal(resumed, whole)
    with pytest.raises(UserError, match="seed 3; this one's is 5"):
        run(method, synthetic_steps(seed=5, steps=20), checkpoint_dir=tmp_path, **given)


def test_a_stream_goes_where_it_is_put():
    batches = synthetic_batches(tiny(), batch_size=16, steps=3)
    first = next(batches)["x"]
    state = batches.get_state()
    second = next(batches)["x"]
    batches.set_state(state)
    np.testing.assert_array_equal(next(batches)["x"], second)
    assert len(list(batches)) == 1
    assert not np.array_equal(first, second)
    with pytest.raises(UserError, match="batch_size is at least 1"):
        synthetic_batches(tiny(), batch_size=0)
    with pytest.raises(UserError, match="inner_steps = 0"):
        on_synthetic(total(), batch_size=2, inner_steps=0)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_original():
    golden = GOLDEN["scores"]
    arrays = {name: jnp.asarray(golden[name]) for name in ("vectors", "W_dec", "z", "latents", "x", "x_hat")}
    dictionary = Table(W_dec=arrays["W_dec"], latents=arrays["latents"], b_dec=0.5)
    np.testing.assert_allclose(dictionary(arrays["x"]), arrays["x_hat"], atol=1e-5)
    found = recovery(dictionary, arrays["vectors"], [{"x": arrays["x"], "z": arrays["z"]}])
    for name in ("mcc", "uniqueness", "precision", "recall", "f1"):
        assert getattr(found, name) == pytest.approx(golden[name], abs=1e-6), name
    assert found.reconstruction.l0 == pytest.approx(golden["l0"])
    assert found.reconstruction.dead_fraction == pytest.approx(golden["dead"] / 12)
    assert found.reconstruction.explained_variance == pytest.approx(golden["explained_variance"], abs=1e-5)


def test_the_truth_scores_one_and_chance_scores_as_chance():
    features, z = drawn()
    z = z[:2000]
    x = jnp.asarray(z) @ features.vectors + features.bias[None]
    batch = [{"x": x, "z": jnp.asarray(z)}]
    oracle = Table(W_dec=3 * features.vectors, latents=jnp.asarray(z) / 3, b_dec=features.bias)
    found = recovery(oracle, features.vectors, batch)
    scores = (found.mcc, found.uniqueness, found.f1, found.precision, found.recall)
    assert scores == pytest.approx((1, 1, 1, 1, 1), abs=1e-6)
    assert found.reconstruction.explained_variance == pytest.approx(1, abs=1e-6)
    assert found.true_l0 == pytest.approx((z > 0).sum(1).mean())
    np.testing.assert_array_equal(found.nearest, np.arange(100))
    rng = np.random.default_rng(0)
    fires = jnp.asarray(rng.random((2000, 100)) < 0.1, jnp.float32)
    chance = recovery(Table(W_dec=jnp.asarray(rows(rng, 100, 32)), latents=fires), features.vectors, batch)
    other = mean_cosine(np.abs(rows(rng, 100, 32) @ np.asarray(features.vectors).T))
    assert chance.mcc == pytest.approx(other, abs=0.03)  # two draws of chance: sd of each about 0.005
    assert chance.mcc < 0.5
    assert chance.precision == pytest.approx((z > 0).mean(0)[chance.nearest].mean(), abs=0.02)
    assert chance.recall == pytest.approx(0.1, abs=0.02)
    assert chance.uniqueness < 0.8


def test_scores_by_hand():
    """Latent 0 is feature 0 and fires where it does and once too often; latents 1 and 2 are both feature 1."""
    z = jnp.array([[1.0, 0, 0], [1, 2, 0], [0, 1, 0], [0, 0, 1]])
    latents = jnp.array([[1.0, 0, 0], [1, -1, 0], [1, 0, 0], [0, 0, 0]])
    w = jnp.array([[2.0, 0, 0], [0, -1, 0], [0, 0.8, 0.6]])
    found = recovery(Table(W_dec=w, latents=latents), jnp.eye(3), [{"x": z, "z": z}])
    np.testing.assert_array_equal(found.nearest, [0, 1, 1])
    np.testing.assert_allclose(found.f1_by_latent, [4 / 5, 2 / 3, 0], rtol=1e-6)
    assert found.precision == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.recall == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found.uniqueness == pytest.approx(2 / 3)
    assert found.mcc == pytest.approx((1 + 1 + 0.6) / 3)
    assert found.true_l0 == pytest.approx(5 / 4)


def test_masked_samples_do_not_count():
    features, z = drawn()
    z = z[:50]
    x = z @ np.asarray(features.vectors)
    mask = np.arange(50) < 30
    latents = np.random.default_rng(1).random((50, 100)).astype(np.float32) - 0.5
    w = features.vectors

    def scores(rows, **mask):
        return recovery(Table(W_dec=w, latents=jnp.asarray(latents[rows])), w, [{"x": x[rows], "z": z[rows], **mask}])

    every, some = slice(None), slice(30)
    part, masked = scores(some), scores(every, mask=mask)
    assert (masked.f1, masked.true_l0) == (part.f1, part.true_l0)
    assert masked.f1 != scores(every).f1


def test_matching_is_one_to_one_and_what_is_missing_is_said():
    assert mean_cosine(np.array([[1.0, 0.9], [0.95, 0.0]])) == pytest.approx((0.9 + 0.95) / 2)
    assert mean_cosine(np.array([[0.2, 0.3, 0.9]])) == pytest.approx(0.9)
    eye = jnp.eye(3)
    with pytest.raises(UserError, match="no 'z'"):
        recovery(Table(W_dec=eye, latents=eye), eye, [{"x": eye}])
    with pytest.raises(UserError, match=r"W_dec \[3, 3\] has no direction in R\^4"):
        recovery(Table(W_dec=eye, latents=eye), jnp.eye(4), [{"x": eye, "z": eye}])
