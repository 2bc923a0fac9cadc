# SPDX-License-Identifier: Apache-2.0
"""A state belongs to its run, stays where it is, and is compiled for once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneuro.activations.placement import compiled, everywhere, own, placed


@pytest.fixture
def mesh():
    return jax.make_mesh((2, 2), ("data", "latent"), axis_types=(AxisType.Auto,) * 2)


def test_a_state_stays_where_it_is_whatever_the_compiler_would_prefer(mesh):
    """`rows` would come out sharded like the batch, and `w`, given sharded, replicated."""
    spread = NamedSharding(mesh, P())
    w = jax.device_put(np.ones((4, 3), np.float32), NamedSharding(mesh, P("latent")))
    state = own({"rows": np.zeros(8, np.float32), "w": w}, spread, borrowed=())
    step = compiled(lambda s, b: ({"rows": b["x"].sum(1), "w": s["w"] + b["x"].sum()}, {}), state)
    batch = {"x": jax.device_put(np.ones((8, 3), np.float32), NamedSharding(mesh, P("data")))}
    for _ in range(3):
        state, _, _ = step(state, batch, {})
    assert state["rows"].sharding.is_equivalent_to(spread, 1)
    assert state["w"].sharding.is_equivalent_to(w.sharding, 2)
    assert step._cache_size() == 1
    assert float(state["w"][0, 0]) == 1 + 3 * 24


def test_what_is_spread_stays_and_the_rest_follows(mesh):
    weights = {"w": jax.device_put(np.ones((4, 3), np.float32), NamedSharding(mesh, P(None, None))), "b": np.ones(3)}
    spread = everywhere(None, weights)
    assert spread.mesh == mesh
    out = placed(weights, spread)
    assert out["w"] is weights["w"]
    assert out["b"].sharding == spread
    assert everywhere(None, {"b": jnp.ones(3)}) is None


def test_owned_leaves_are_typed_arrays_that_share_no_memory():
    x = jnp.arange(4.0)
    view = jax.device_put(x)
    key = jax.random.key(0)
    state = own({"n": 0, "f": 1.5, "np": np.ones(2, np.int8), "x": x, "y": view, "k": key}, None, borrowed=(x, key))
    assert {n: str(a.dtype) for n, a in state.items()} == {
        "n": "int32",
        "f": "float32",
        "np": "int8",
        "x": "float32",
        "y": "float32",
        "k": "key<fry>",
    }
    assert not any(jax.typeof(a).weak_type for a in state.values())
    jax.jit(lambda s: jax.tree.map(lambda a: a, s), donate_argnums=0)(state)
    assert x.sum() == 6
    assert jax.random.key_data(key).tolist() == [0, 0]


def test_one_program_for_one_method_over_equal_states():
    def step(s, b):
        return s + b["x"], {}

    a, b = (compiled(step, jnp.zeros(3)) for _ in range(2))
    assert a is b
    assert compiled(lambda s, b: step(s, b), jnp.zeros(3)) is not a
