# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import token_loss
from jaxneuro.neurons import dose_response, observed_doses
from jaxneuro.neurons.dose import _sums
from jaxneuro.taps import intervene, set_to

LAYERS, NEURONS, VALUES = [2, 2, 0, 2], [5, 20, 2, 11], [0.0, 2.0, 8.0, 24.0]
PROMOTED = np.stack([np.arange(12), np.arange(24, 36), np.arange(12), np.arange(12)])  # the planted groups' tokens


@pytest.fixture(scope="module")
def curves(toy):
    return dose_response(
        toy.apply, toy.weights, toy.site, LAYERS, NEURONS, VALUES, toy.batches[:3], toy.K, promoted=PROMOTED, chunk=5
    )


def test_a_planted_column_has_a_monotone_curve_and_another_has_none(curves):
    own = curves.probability[:2].mean(-1)
    assert (np.diff(own, axis=1) > 0).all()
    assert (own[:, -1] > 0.9).all()
    other = curves.probability[2].mean(-1)
    assert np.ptp(other) < 0.5 * np.ptp(own[0])
    # saying group 0's tokens helps on group 0's text, at first, and hurts on the others
    assert (curves.measured[0, -1, 1:] > curves.measured_base[1:] + 0.5).all()
    np.testing.assert_array_equal(curves.values, np.broadcast_to(np.float32(VALUES), (4, 4)))


def test_equals_a_python_loop(toy, curves):
    @jax.jit
    def clamped(weights, edits, b):
        return intervene(toy.apply, edits)(weights, b["tokens"], b["mask"])

    for i, j in [(0, 1), (1, 3)]:
        edits = [set_to(f"blocks.{LAYERS[i]}.mlp.post", VALUES[j], neuron=NEURONS[i])]
        loss, n, mass, m = (np.zeros(toy.K) for _ in range(4))
        for b in toy.batches[:3]:
            logits = clamped(toy.weights, edits, b)
            nll, valid = (np.asarray(a) for a in token_loss(logits, b["tokens"], b["mask"]))
            valid = valid & b["counted"][:, 1:]
            p = np.asarray(jax.nn.softmax(logits))[..., PROMOTED[i]].sum(-1)
            for row, k in enumerate(b["group"]):
                loss[k] += nll[row][valid[row]].sum()
                n[k] += valid[row].sum()
                mass[k] += p[row][b["counted"][row]].sum()
                m[k] += b["counted"][row].sum()
        np.testing.assert_allclose(curves.measured[i, j], loss / n, rtol=1e-5)
        np.testing.assert_allclose(curves.probability[i, j], mass / m, rtol=1e-5)


def test_base_is_the_model_itself(curves):
    """Layer 2's neuron 11 is dead: clamping it to 0 is no clamp."""
    np.testing.assert_allclose(curves.measured[3, 0], curves.measured_base, atol=1e-6)
    np.testing.assert_allclose(curves.probability[3, 0], curves.probability_base[3], atol=1e-6)
    assert np.abs(curves.measured[3, -1] - curves.measured_base).max() > 1e-3


def test_values_and_neurons_are_arguments(toy, curves):
    before = _sums._cache_size()
    other = dose_response(
        toy.apply, toy.weights, toy.site, [0, 1, 1, 1], [9, 9, 1, 2], np.float32(VALUES)[::-1], toy.batches[:3], toy.K,
        promoted=PROMOTED + 1, chunk=5,
    )  # fmt: skip
    assert _sums._cache_size() == before
    assert np.abs(other.measured - curves.measured).max() > 1e-3


def test_counted_positions_only(toy):
    """Every row's first token is not counted; clamping only counted positions is another edit than clamping all."""
    both = [
        dose_response(
            toy.apply,
            toy.weights,
            toy.site,
            [0],
            [3],
            [30.0],
            toy.batches[:1],
            toy.K,
            positions=p,
            promoted=PROMOTED[:1],
        ).measured
        for p in ("all", "counted")
    ]
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_an_encoder_has_a_shift_and_no_probability(toy):
    weights = toy.make_weights(True, head=False)
    got = dose_response(
        toy.apply, weights, toy.site, [2], [5], [0.0, 5.0, 50.0], toy.batches[:2], toy.K, measure="embedding_shift"
    )
    assert got.probability is None
    assert got.unit == "1 - cosine"
    assert (np.diff(got.measured[0, :, 1]) > 0).all()
    with pytest.raises(UserError, match="needs logits"):
        dose_response(
            toy.apply, weights, toy.site, [2], [5], [0.0], toy.batches, toy.K, promoted=PROMOTED[:1],
            measure="embedding_shift",
        )  # fmt: skip


def test_observed_doses_and_errors(toy):
    doses = observed_doses(np.array([[1.0, 2.0], [0.5, 0.1]]), np.array([[-3.0, 0.0], [0.0, 0.0]]), (-1, 0, 2))
    np.testing.assert_allclose(doses, [[-3, 0, 6], [-0.5, 0, 1]])
    with pytest.raises(UserError, match="one row of tokens"):
        dose_response(toy.apply, toy.weights, toy.site, [0], [0, 1], [0.0], toy.batches, toy.K)
    with pytest.raises(UserError, match="no batches"):
        dose_response(toy.apply, toy.weights, toy.site, [0], [0], [0.0], [], toy.K)


@pytest.mark.parametrize(
    ("layer", "neuron", "token", "message"),
    [
        (9, 5, 0, "no layer 9 at 'blocks.mlp.post'"),
        (2, 1000, 0, r"'blocks.\*?.?mlp.post'\): neuron=1000 is out of range"),
        (2, 5, 1000, r"d_vocab=1000 is out of range"),
    ],
)
def test_what_is_not_there_has_no_curve(toy, layer, neuron, token, message):
    with pytest.raises(UserError, match=message):
        dose_response(
            toy.apply, toy.weights, toy.site, [2, layer], [5, neuron], [0.0], toy.batches[:1], toy.K,
            promoted=np.array([[0], [token]]),
        )  # fmt: skip
