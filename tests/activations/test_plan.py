# SPDX-License-Identifier: Apache-2.0
"""Memory is known before it is taken: the numbers, the refusal, and that the program is compiled once."""

import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneuro.activations import moments, run
from jaxneuro.activations.buffer import shuffled
from jaxneuro.activations.plan import Plan, check_state, free_bytes, planned, size
from jaxneuro.dictionaries import topk
from jaxneuro.errors import UserError
from jaxneuro.protocols import Method

KEY = jax.random.key(0)


def heavy(width, temporary):
    """A state of 4 * width bytes, and a product that needs as much as `temporary` numbers for a while."""

    def step(state, batch):
        outer = jnp.sort(jnp.sin(batch["x"][:, :1] * jnp.arange(temporary, dtype=jnp.float32)[None]), axis=1)
        return state + outer.sum() * batch.get("scale", jnp.float32(1)), {}

    return Method(lambda key, batch: jnp.zeros(width), step, np.asarray)


def test_the_parts_of_a_plan():
    x = jax.ShapeDtypeStruct((1, 16), jnp.float32)
    plan = planned(heavy(1000, 1 << 16), {"x": x}, key=KEY, constants={"scale": np.float32(2)})
    assert (plan.state, plan.constants, plan.batches) == (4000, 4, 4 * 64)
    assert 4 << 16 <= plan.temporary < 40 << 16, "the array that is sorted, and a small number of copies"
    assert plan.total == plan.state + plan.constants + plan.batches + plan.temporary


def test_what_fits_passes_and_what_does_not_is_said_with_numbers():
    plan = Plan(state=3_000_000_000, constants=2_000_000_000, batches=5_000_000, temporary=0)
    plan.check(None)
    plan.check(plan.total)
    plan.check(plan.total - 2_000_000_000, there=2_000_000_000)
    with pytest.raises(UserError, match=r"5 GB .*state 3 GB, constants 2 GB, batches 5 MB.*2 GB are there.*Halve it"):
        plan.check(plan.total - 2_000_000_001, there=2_000_000_000, advice="Halve it.")


def compilations(caplog):
    """Of the driver's step: what the log says of each, its arguments' layout included."""
    return [line for line in caplog.text.splitlines() if "Compiling jit(one)" in line]


def test_nothing_is_computed_and_run_finds_the_program(caplog):
    method, batch = heavy(64, 256), {"x": np.ones((1, 16), np.float32)}
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        planned(method, batch, key=KEY)
        (plan,) = compilations(caplog)
        run(method, [batch], key=KEY)
        assert compilations(caplog) == [plan]


def test_several_devices_as_run_lays_them_out(caplog):
    """Replicated state and a buffer split over the devices: the plan is of the same program."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    method, batch = shuffled(moments(), 64), {"x": np.ones((16, 4), np.float32), "mask": np.ones(16, bool)}
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        plan = planned(method, batch, key=KEY, sharding=sharding)
        (program,) = compilations(caplog)
        run(method, [batch] * 6, key=KEY, sharding=sharding)
        assert compilations(caplog) == [program]
    assert plan.state < 64 * 17 // 4 + 400, "a quarter of the buffer's rows, and moments of 4 numbers"


def test_wrong_shapes_are_found_here_too():
    with pytest.raises(UserError, match="batches are dicts of arrays with one row per token"):
        planned(shuffled(moments(), 8), {"x": np.ones(()), "mask": np.ones(3, bool)}, key=KEY)


def test_a_state_that_cannot_fit_is_refused_before_anything_is_compiled(caplog):
    rows = {"x": jax.ShapeDtypeStruct((64, 8), "float32")}
    method = topk(n_latents=10**9, k=4)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"needs \d+ GB on each device \(state \d+ GB\).*Fewer\."):
        check_state(method, rows, 10**9, key=jax.random.key(0), advice="Fewer.")
    assert time.monotonic() - began < 20  # compiling took minutes
    check_state(method, rows, 10**15, key=jax.random.key(0))
    check_state(method, rows, None, key=jax.random.key(0))


def test_what_is_free():
    there = free_bytes()
    assert there is not None
    assert 1 << 20 < there < 1 << 50
    assert size(950) == "950 B"
