# SPDX-License-Identifier: Apache-2.0
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import token_loss
from jaxneuro.neurons import MEASURES, effect_matrix, matched_random_sets, silence
from jaxneuro.neurons.effect import _sums
from jaxneuro.taps import intervene, set_to


@pytest.fixture(scope="module")
def effect(toy):
    return effect_matrix(toy.apply, toy.weights, toy.site, toy.chosen, toy.batches, seed=1, chunk=6)


def test_random_sets_match_every_layer_and_avoid_the_set(toy):
    sets = matched_random_sets(toy.chosen, 10, seed=0)
    assert sets.shape == (toy.K, 10, toy.L, toy.F)
    assert (sets.sum(-1) == toy.chosen.sum(-1)[:, None]).all()
    assert not (sets & toy.chosen[:, None]).any()
    np.testing.assert_array_equal(sets, matched_random_sets(toy.chosen, 10, seed=0))
    assert (sets != matched_random_sets(toy.chosen, 10, seed=1)).any()
    most = np.arange(8)[None, None] < 6
    assert (matched_random_sets(most, 3, seed=0).sum(-1) == 6).all()
    with pytest.raises(UserError, match="at least 2"):
        matched_random_sets(toy.chosen, 1, seed=0)


def test_silencing_the_planted_neurons_hurts_their_own_group(toy, effect):
    off_diagonal = effect.matrix[~np.eye(toy.K, dtype=bool)]
    assert effect.matrix.diagonal().min() > 0.2
    assert np.abs(off_diagonal).max() < 0.05
    assert (effect.z.diagonal() > 5).all()
    assert effect.random.shape == (toy.K, 10, toy.K)
    np.testing.assert_array_equal(effect.set_size, toy.chosen.sum(-1))
    assert (effect.measure, effect.unit) == ("increase of loss", "nats per token")


def test_the_same_sets_are_nothing_special_in_an_unplanted_model(toy):
    got = effect_matrix(toy.apply, toy.plain, toy.site, toy.chosen, toy.batches, seed=1, chunk=6)
    assert np.abs(got.matrix).max() < 0.05
    assert np.abs(got.z).max() < 5


def test_equals_a_python_loop(toy, effect):
    random = matched_random_sets(toy.chosen, 10, seed=1)

    @jax.jit
    def losses(weights, edits, batch):
        logits = intervene(toy.apply, edits)(weights, batch["tokens"], batch["mask"])
        nll, valid = token_loss(logits, batch["tokens"], batch["mask"])
        return nll, valid & batch["counted"][:, 1:]

    def measure(off):
        total, n = np.zeros(toy.K), np.zeros(toy.K, int)
        for b in toy.batches:
            edits = [set_to(f"blocks.{i}.mlp.post", 0.0, neuron=off[i]) for i in range(toy.L)]
            nll, valid = (np.asarray(a) for a in losses(toy.weights, edits, b))
            for i, k in enumerate(b["group"]):
                total[k] += nll[i][valid[i]].astype(float).sum()
                n[k] += valid[i].sum()
        return total / n, n

    base, n = measure(np.zeros((toy.L, toy.F), bool))
    np.testing.assert_allclose(effect.base, base, rtol=1e-6)
    np.testing.assert_array_equal(effect.weight, n)
    for k in (0, 2):
        np.testing.assert_allclose(effect.matrix[k], measure(toy.chosen[k])[0] - base, atol=2e-6)
    np.testing.assert_allclose(effect.random[1, 4], measure(random[1, 4])[0] - base, atol=2e-6)


def test_other_sets_do_not_compile_again_and_chunks_agree(toy, effect):
    before = _sums._cache_size()
    again = effect_matrix(toy.apply, toy.weights, toy.site, toy.chosen[::-1], toy.batches, seed=7, chunk=6)
    assert _sums._cache_size() == before
    np.testing.assert_allclose(again.matrix, effect.matrix[::-1], atol=1e-6)
    one, _ = silence(toy.apply, toy.weights, toy.site, toy.chosen, toy.batches, toy.K, chunk=1)
    np.testing.assert_allclose(one - effect.base, effect.matrix, atol=1e-6)


@pytest.mark.usefixtures("this_machine")
def test_memory_is_bounded_by_the_chunk(toy):
    batch = {k: toy.batches[0][k] for k in ("tokens", "mask", "counted", "group")}
    batch = {k: np.repeat(np.repeat(v, 8, 0), 8, 1) if v.ndim == 2 else np.repeat(v, 8) for k, v in batch.items()}
    n_sets = 64
    options = {"apply": toy.apply, "site": toy.site, "measure": MEASURES["loss"], "n_groups": toy.K, "chunk": 2}
    off, fill = jnp.zeros((n_sets, toy.L, toy.F), bool), jnp.zeros((toy.L, toy.F), jnp.float32)
    compiled = _sums.lower(toy.weights, off, fill, batch, **options).compile()
    logits = batch["tokens"].size * toy.V * 4
    assert compiled.memory_analysis().temp_size_in_bytes < n_sets / 2 * logits


def test_a_model_that_gives_its_loss_is_measured_the_same(toy):
    def losses(weights, tokens, mask):
        return token_loss(toy.apply(weights, tokens, mask), tokens, mask)[0]

    given = (toy.weights, toy.site, toy.chosen, toy.batches[:2], toy.K)
    (ours, n), (theirs, m) = silence(losses, *given, measure="given_loss"), silence(toy.apply, *given)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_array_equal(n, m)


def test_an_empty_set_is_not_run_and_has_no_number(toy, monkeypatch):
    module, asked = sys.modules["jaxneuro.neurons.effect"], []
    real = module.silence

    def counted(apply, weights, site, sets, *rest, **how):
        asked.append(len(sets))
        return real(apply, weights, site, sets, *rest, **how)

    monkeypatch.setattr(module, "silence", counted)
    empty = toy.chosen.copy()
    empty[1] = False
    got = effect_matrix(toy.apply, toy.weights, toy.site, empty, toy.batches[:2], n_random=2, chunk=4)
    others = np.arange(len(empty)) != 1
    for numbers in (got.matrix, got.z, got.random_mean, got.random_std):
        assert np.isnan(numbers[1]).all()
        assert np.isfinite(numbers[others]).all()
    assert asked == [1 + 3 * others.sum()], "the model as it is, and of each other set itself and two random ones"
    monkeypatch.undo()
    full = effect_matrix(toy.apply, toy.weights, toy.site, toy.chosen, toy.batches[:2], n_random=2, chunk=4)
    np.testing.assert_allclose(got.matrix[others], full.matrix[others], atol=1e-6)


def test_mean_ablation_fills_instead_of_zeroing(toy):
    """Filling with the value that the neuron has anyway changes nothing; filling with another does."""
    weights = jax.tree.map(jnp.array, toy.weights)
    weights["blocks"]["up"] = weights["blocks"]["up"].at[0, :, 0].set(0)
    weights["blocks"]["b"] = weights["blocks"]["b"].at[0, 0].set(1.5)
    weights["blocks"]["down"] = weights["blocks"]["down"].at[0, 0].set(1.0)
    sets = np.zeros((2, toy.L, toy.F), bool)
    sets[1, 0, 0] = True
    fill = np.zeros((toy.L, toy.F), np.float32)
    fill[0, 0] = 1.5
    run = lambda f: silence(toy.apply, weights, toy.site, sets, toy.batches[:1], toy.K, fill=f, chunk=2)[0]  # noqa: E731
    np.testing.assert_allclose(*run(fill), atol=1e-5)  # the bias itself is exact, the losses' sums are not
    assert np.abs(np.subtract(*run(None))).max() > 1e-3


def test_an_encoder_is_measured_by_the_shift_of_its_embedding(toy):
    weights = toy.make_weights(True, head=False)
    got = effect_matrix(
        toy.apply, weights, toy.site, toy.chosen, toy.batches[:4], n_random=3, measure="embedding_shift", chunk=6
    )
    np.testing.assert_allclose(got.base, 0, atol=1e-6)
    assert got.matrix.diagonal().min() > 5 * np.abs(got.matrix[~np.eye(toy.K, dtype=bool)]).max()
    assert got.weight.sum() == 4 * toy.B  # windows
    off = jnp.asarray(toy.chosen[0])
    b = toy.batches[0]
    edits = [set_to(f"blocks.{i}.mlp.post", 0.0, neuron=off[i]) for i in range(toy.L)]
    outs = [np.asarray(f(weights, b["tokens"], b["mask"])) for f in (toy.apply, intervene(toy.apply, edits))]
    a, c = (np.stack([o[i][b["mask"][i]].mean(0) for i in range(toy.B)]) for o in outs)
    shift = 1 - (a * c).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(c, axis=1)
    alone, _ = silence(toy.apply, weights, toy.site, toy.chosen[:1], [b], toy.K, measure="embedding_shift")
    np.testing.assert_allclose(alone[0], [shift[b["group"] == k].mean() for k in range(toy.K)], atol=1e-5)


def test_errors_say_what_to_do(toy):
    sets = toy.chosen[:1]
    with pytest.raises(UserError, match=r"no measure 'los'\. Did you mean 'loss'"):
        silence(toy.apply, toy.weights, toy.site, sets, toy.batches, toy.K, measure="los")
    with pytest.raises(UserError, match="Use measure='embedding_shift'"):
        silence(toy.apply, toy.make_weights(True, head=False), toy.site, sets, toy.batches, toy.K)
    with pytest.raises(UserError, match="no batches"):
        silence(toy.apply, toy.weights, toy.site, sets, [], toy.K)
    with pytest.raises(UserError, match=r"nothing to measure in group number \[3\]"):
        silence(toy.apply, toy.weights, toy.site, sets, toy.batches[:1], toy.K + 1)
    with pytest.raises(UserError, match="groups, layers, neurons"):
        effect_matrix(toy.apply, toy.weights, toy.site, toy.chosen[0], toy.batches)


def test_progress_is_reported(toy):
    seen = []
    silence(
        toy.apply, toy.weights, toy.site, toy.chosen[:1], toy.batches[:2], toy.K, progress=lambda *a: seen.append(a)
    )
    assert seen == [(1, 2, "silencing 1 sets"), (2, 2, "silencing 1 sets")]
