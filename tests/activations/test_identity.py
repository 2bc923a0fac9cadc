# SPDX-License-Identifier: Apache-2.0
"""What a run is: any changed bit is seen, on any number of devices."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneuro.activations.identity import describe, differences, fingerprint, key_name, plain, table

DTYPES = ["float32", "bfloat16", "float16", "int8", "uint8", "int32", "bool", "float8_e4m3fn", "complex64", "int4"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_changed_or_moved_element_is_seen(dtype):
    a = np.arange(64).reshape(8, 8) % 2
    variants = [a, a.T, np.roll(a, 1), a ^ (np.arange(64).reshape(8, 8) == 63)]
    prints = [fingerprint({"w": jnp.asarray(v).astype(dtype)}) for v in variants]
    assert len(set(prints)) == 4
    assert prints[0] == fingerprint({"w": jnp.asarray(a).astype(dtype)})


def test_leaves_are_told_apart():
    w = np.ones(3, np.float32)
    assert len({fingerprint(t) for t in ([w], [w, w], [w, 2 * w], [2 * w, w], [-w], [], [w[:2]])}) == 7
    assert fingerprint([np.float32(0.0)]) != fingerprint([np.float32(-0.0)])
    assert fingerprint([jax.random.key(0)]) != fingerprint([jax.random.key(1)])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_same_wherever_the_arrays_lie(kind):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))
    w = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    for spec in (P("a", "b"), P(None, "a"), P(("a", "b"))):
        assert fingerprint([jax.device_put(w, NamedSharding(mesh, spec))]) == fingerprint([w])


def test_keys_tables_and_differences():
    assert key_name(jax.random.key(1)) != key_name(jax.random.key(2))
    assert key_name(jax.random.PRNGKey(1)) == "raw [0, 1]"
    assert describe("text") == "str"
    assert table({"a": (ml_dtypes.bfloat16(1), 2)}) == {"a/0": "bfloat16[]", "a/1": "int64[]"}
    assert plain({"t": (1, 2), "p": {"x": None}}) == {"t": [1, 2], "p": {"x": None}}
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c: there 2, here absent",
        "a.d: there absent, here 3",
    ]
    many = differences({str(i): 0 for i in range(20)}, {str(i): 1 for i in range(20)})
    assert many[-1] == "... and 12 more"
