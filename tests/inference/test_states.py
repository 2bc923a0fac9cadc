# SPDX-License-Identifier: Apache-2.0
"""Models that go on from a state: generation is the loop over whole texts, as with keys and values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.inference import Sampler, generate, steer_sweep
from jaxneuro.models import Bdh, Config, Mamba, Mamba2, Transformer
from jaxneuro.taps import add, scale

from .conftest import naive, random_weights

PLAIN = {"n_layers": 2, "d_model": 8, "d_vocab": 40}
POST = {"norm": "plain", "norm_placement": "post", "embed_norm": True, "act": "relu", "norm_eps": 1e-5}
CONFIGS = {
    "mamba": Config(**PLAIN, family="mamba", mixer=Mamba(d_inner=16, d_state=4, dt_rank=2, bias=True)),
    "mamba2": Config(
        **PLAIN, family="mamba2", mixer=Mamba2(n_heads=4, d_head=4, n_groups=2, d_state=4, dt_limits=(0.01, 2.0))
    ),
    "bdh": Config(**PLAIN, **POST, family="bdh", mixer=Bdh(n_heads=2, n_neurons=16)),
}
NEW = 8
PROMPTS = np.random.default_rng(5).integers(0, 40, (3, 7)).astype(np.int32)
MASK = np.ones((3, 7), bool)  # padding on the left, on the right, and none
MASK[0, :3] = MASK[1, 4:] = False
VECTORS = np.random.default_rng(3).normal(0, 2, (3, 1, 8)).astype(np.float32)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    cfg = CONFIGS[request.param]
    return Transformer(cfg, random_weights(cfg))


def edits(dose):
    """Each row in its own way; in the prompt, in what is generated, across both; none below layer 1 and position 4."""
    return [
        add("blocks.1.resid_pre", dose * VECTORS, pos=range(5, 9)),
        add("blocks.1.mixer.state", 0.5 * dose, pos=[4, 9]),
        scale("blocks.1.mixer.out", 1 + 0.5 * dose, pos=10),
        add("logits", 4 * dose * jnp.eye(40)[7], pos=11),
    ]


def agree(found, model, dose):
    expected, logits = naive(model, PROMPTS, NEW, MASK, edits(jnp.float32(dose)))
    np.testing.assert_array_equal(found.tokens, expected)
    assert len(np.unique(expected)) > 4, "not a loop of one token"
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), expected[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.log_probs, chosen, atol=2e-5)  # float32, sums in another order


def test_a_state_goes_on_as_whole_texts_do_and_so_under_edits(model):
    """Row 0 has padding on the left, which Mamba's convolution sees; row 1 on the right, which nothing may see."""
    plain = generate(model, PROMPTS, mask=MASK, max_new=NEW)
    agree(plain, model, 0)
    found = generate(model, PROMPTS, mask=MASK, max_new=NEW, edits=edits(jnp.float32(1)))
    agree(found, model, 1)
    assert (jnp.abs(found.log_probs - plain.log_probs).max(1) > 1e-2).all(), "the edits do something in every row"


def test_a_sweep_reuses_the_state_of_what_no_edit_changes(model):
    """Layer 0, and the first three positions: in row 0 they are all padding, before it begins."""
    swept = steer_sweep(model, PROMPTS, edits, jnp.arange(2.0), mask=MASK, max_new=NEW).generated
    for dose in range(2):
        agree(jax.tree.map(lambda a, i=dose: a[i], swept), model, dose)


def test_chunks_samplers_and_a_callback():
    cfg = CONFIGS["mamba"]
    model, how = Transformer(cfg, random_weights(cfg)), {"sampler": Sampler(temperature=1.5, top_p=0.9), "max_new": NEW}
    whole, seen = generate(model, PROMPTS, **how), []
    found = generate(model, PROMPTS, **how, on_token=lambda step, tokens, finished: seen.append(step), every=3)
    jax.tree.map(np.testing.assert_array_equal, whole, found)
    assert seen == [1, 4, 7, 8]
