# SPDX-License-Identifier: Apache-2.0
"""Methods that share a stream are each what they would be alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.activations import at_site, moments, run
from jaxneuro.activations.buffer import shuffled
from jaxneuro.activations.mixing import mixing
from jaxneuro.activations.placement import compiled, own
from jaxneuro.activations.together import replicas, together
from jaxneuro.dictionaries import Training, topk
from jaxneuro.errors import UserError
from jaxneuro.protocols import Method

KEY = jax.random.key(1)
WINDOWS = np.arange(16, dtype=np.int32) // 4


@pytest.fixture
def stream():
    """Batches for the learner of conftest."""
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(16, 8)).astype(np.float32), "window": WINDOWS} for _ in range(12)]


def close(a, b):
    """Equal to 1e-6 of the largest value: another program rounds differently."""
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        one, two = np.asarray(one).astype(np.float64), np.asarray(two).astype(np.float64)
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6 * max(1, np.abs(two).max(initial=0)))


def test_a_sweep_equals_its_solo_runs(toys, stream):
    sweep = {"narrow": toys.learner(), "wide": toys.learner(24)}
    found = run(together(sweep), stream, key=KEY)
    for name, method in sweep.items():
        close(found[name], run(method, stream, key=KEY))


def test_dictionaries_of_a_sweep_equal_their_solo_runs(stream):
    """Without AuxK, which takes longer to compile than all the rest."""
    how = {k: Training(learning_rate=0.03 / k, b_dec_start="mean") for k in (2, 4)}
    sweep = {f"k{k}": topk(8 * k, k, auxk=None, training=training) for k, training in how.items()}

    def learned(method):
        step = jax.jit(lambda s: jax.lax.scan(method.step, s, jax.tree.map(lambda *a: jnp.stack(a), *stream)))
        return method.finish(step(method.init(KEY, stream[0]))[0])

    found = learned(together(sweep))
    for name, method in sweep.items():
        close(found[name], learned(method))


def test_any_methods_and_their_numbers_by_name(tmp_path, stream):
    path = tmp_path / "m.jsonl"
    nested = together({"mixed": mixing(100, 10), "more": together({"moments": moments()})})
    found = run(nested, stream, key=KEY, metrics=path)
    assert found["more"]["moments"].count == 12 * 16
    assert json.loads(path.read_text().splitlines()[-1]).keys() >= {"mixed/mixing", "more/moments/tokens"}


def test_replicas_equal_their_solo_runs(toys, stream):
    found = run(replicas(toys.learner(), 3), stream, key=KEY)
    for i, one in enumerate(found):
        close(one, run(toys.learner(), stream, key=jax.random.fold_in(KEY, i)))
    assert np.abs(found[0]["['w']"] - found[1]["['w']"]).max() > 0.01


@pytest.mark.usefixtures("this_machine")
def test_replicas_are_one_program_with_one_state_each():
    """Traced once however many; the program needs what one step needs, not a second set of states."""
    traces = []

    def step(state, batch):
        traces.append(1)
        return {"w": state["w"] + jnp.sum(batch["x"]), "n": state["n"] + 1}, {"n": state["n"]}

    one = Method(lambda key, b: {"w": jax.random.normal(key, (1 << 14,)), "n": 0}, step, lambda s: s)
    method = replicas(one, 16)
    state = own(method.init(KEY, None), None, borrowed=())
    batch = {"x": jnp.ones(3)}
    program = compiled(method.step, state).lower(state, batch, {}).compile()
    assert len(traces) == 1
    assert program.memory_analysis().temp_size_in_bytes < state["w"].nbytes / 4
    _, info, _ = compiled(method.step, state)(state, batch, {})
    assert info["15"]["n"] == 0


def test_one_buffer_and_one_pass_of_the_model_for_all(toys, toy_windows):
    """The buffer delivers the same rows to every method, those that each would get alone."""
    toy = toys.Toy(d=toys.D)
    batches = [toy_windows.rows(np.arange(i * 8, i * 8 + 8) % 40) for i in range(8)]

    def found(method):
        live = at_site(toy.apply, "blocks.0.resid_post", shuffled(method, 160))
        return run(live, batches, key=KEY, constants={"weights": toy.weights})

    shared = found(together({"learner": toys.learner(), "mixing": mixing(160, 10), "moments": moments()}))
    close(shared["learner"], found(toys.learner()))
    assert shared["moments"].count > 100
    assert 0 < shared["mixing"] < 3


def test_nothing_to_run_is_refused():
    with pytest.raises(UserError, match="no method to run"):
        together({})
    with pytest.raises(UserError, match="n is at least 1"):
        replicas(moments(), 0)
