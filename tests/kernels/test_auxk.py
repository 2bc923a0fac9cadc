# SPDX-License-Identifier: Apache-2.0
"""AuxK on the dead alone: its definition for every number of dead, without recompiling, in small memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxneuro_kernels import Rows, add_auxk
from jaxneuro_kernels.auxk import api, reference

from .conftest import normal

T, D, OUT, N, K_AUX = 40, 6, 5, 512, 7
CHOICES = {"k_aux": K_AUX, "cap": N, "weight": 0.5}

run = jax.jit(add_auxk, static_argnames=("k_aux", "cap", "weight"))
dense = jax.jit(jax.value_and_grad(reference.auxk), static_argnames="k_aux")


@pytest.fixture(scope="module")
def case():
    parameters, gradients = (
        Rows(normal(N, D, seed=s + 1), normal(N, seed=s + 2), normal(N, OUT, seed=s + 3)) for s in (0, 3)
    )
    valid = jnp.asarray(np.arange(T) % 5 != 0)
    return parameters, gradients, normal(T, D, seed=7), normal(T, OUT, seed=8) + 0.5, valid


def some_dead(n_dead):
    return jnp.asarray(np.random.default_rng(n_dead).permutation(N) < n_dead)


def test_equals_its_definition_for_every_number_of_dead_without_recompiling(case):
    parameters, gradients, x, e, valid = case
    traced = []

    @functools.partial(jax.jit, static_argnames=("k_aux", "cap", "weight"))
    def run(*args, **kw):  # its own: another test may have compiled the shared one already
        traced.append(args[2].shape)
        return add_auxk(*args, **kw)

    for n_dead in (1, 5, 16, 17, 64, 100, 300, N):  # every compacted size and its borders
        dead = some_dead(n_dead)
        got, aux = run(gradients, parameters, dead, x, e, valid, turn=jnp.int32(3), **CHOICES)
        want, grad = dense(parameters, dead, x, e, valid, k_aux=K_AUX)
        assert float(aux) == pytest.approx(float(want), rel=1e-5), n_dead
        for name, a, g, b in zip(got._fields, got, gradients, grad, strict=True):
            np.testing.assert_allclose(a, g + 0.5 * b, rtol=1e-4, atol=1e-4, err_msg=f"{name} {n_dead}")
    assert run._cache_size() == len(traced) == 1
    assert api.sizes(N, K_AUX) == (64, 512)


def test_of_no_dead_latent_is_nothing(case):
    parameters, gradients, x, e, valid = case
    got, aux = run(gradients, parameters, jnp.zeros(N, bool), x, e, valid, turn=jnp.int32(0), **CHOICES)
    assert float(aux) == 0
    for a, b in zip(got, gradients, strict=True):
        np.testing.assert_array_equal(a, b)


def test_above_its_cap_takes_turns(case):
    parameters, gradients, x, e, valid = case
    dead, touched = jnp.ones(N, bool), np.zeros(N, int)
    for turn in range(8):
        got, _ = run(gradients, parameters, dead, x, e, valid, k_aux=64, cap=64, weight=1.0, turn=jnp.int32(turn))
        changed = (np.asarray(got.w_dec) != np.asarray(gradients.w_dec)).any(1)
        assert changed.sum() <= 64
        touched += changed
    assert (touched <= 1).all()
    assert touched.mean() > 0.9


def test_in_blocks_of_tokens(case):
    parameters, _, x, e, valid = case
    there = jnp.ones(N, bool)
    whole, parts = (
        jax.jit(jax.value_and_grad(lambda p, n=n: api._in_blocks(p, (x, e, valid), there, K_AUX, n)))(parameters)
        for n in (1 << 30, N * 4 * 9)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_a_residual_without_spread_gives_nothing(case):
    parameters, gradients, x, e, valid = case
    got, aux = run(gradients, parameters, jnp.ones(N, bool), x, e * 0, valid, turn=jnp.int32(0), **CHOICES)
    assert float(aux) == 0
    assert np.isfinite(np.asarray(got.w_enc)).all()


def test_leading_axes_empties_and_types(case):
    parameters, gradients, x, e, valid = case
    dead, turn = some_dead(17), jnp.int32(0)
    want, aux = run(gradients, parameters, dead, x, e, valid, turn=turn, **CHOICES)
    parts = [a.reshape(2, 4, 5, *a.shape[1:]) for a in (x, e, valid)]
    deep, same = run(gradients, parameters, dead, *parts, turn=turn, **CHOICES)
    assert float(same) == float(aux)
    for a, b in zip(deep, want, strict=True):
        np.testing.assert_array_equal(a, b)
    for empty in ([a[:0] for a in parts], [x, e, jnp.zeros(T, bool)]):
        got, aux = run(gradients, parameters, dead, *empty, turn=turn, **CHOICES)
        assert float(aux) == 0
        np.testing.assert_array_equal(got.w_enc, gradients.w_enc)
    _, rounded = run(gradients, parameters, dead, x.astype(jnp.bfloat16), e, valid, turn=turn, **CHOICES)
    assert float(rounded) == pytest.approx(float(same), rel=1e-2)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("n_dead", [0, 17])
def test_parts_of_shards_add_up(case, mesh, check, n_dead):
    parameters, gradients, x, e, valid = case
    dead = some_dead(n_dead)
    zeros = jax.tree.map(jnp.zeros_like, gradients)

    def local(*args):
        return jax.lax.psum(add_auxk(*args, turn=1, axis_name="data", **CHOICES), "data")

    specs = (P(), P(), P(), P("data"), P("data"), P("data"))
    split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check))
    got, aux = split(zeros, parameters, dead, x, e, valid)
    want, whole = run(zeros, parameters, dead, x, e, valid, turn=1, **CHOICES)
    assert float(aux) == pytest.approx(float(whole), rel=1e-5)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_vmap_and_remat(case):
    parameters, gradients, x, e, valid = case
    both = jnp.stack([some_dead(17), some_dead(0)])

    def total(x, dead):
        return add_auxk(gradients, parameters, dead, x, e, valid, turn=0, **CHOICES)

    mapped, _ = jax.jit(jax.vmap(total, (None, 0)))(x, both)
    again, _ = jax.jit(jax.checkpoint(total))(x, both[0])
    want, _ = jax.jit(total)(x, both[0])
    for a, b, c, g in zip(mapped, want, again, gradients, strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(a[1], g)
        np.testing.assert_array_equal(b, c)


@pytest.mark.usefixtures("this_machine")
def test_nothing_of_all_latents_in_memory():
    tokens, d, n, cap = 2048, 16, 65536, 1024
    rows = Rows(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (n,), (n, d))))
    tokenwise = [jax.ShapeDtypeStruct((tokens, d), jnp.float32)] * 2
    flags = [jax.ShapeDtypeStruct((m,), bool) for m in (n, tokens)]
    lowered = run.lower(rows, rows, flags[0], *tokenwise, flags[1], k_aux=8, cap=cap, weight=1.0, turn=0)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < tokens * n * 4 / 20  # a dense [tokens, n_latents] is 537 MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((T, 3))}, r"add_auxk: dead bool\[512\], x float32\[40, 3\], residual float32\[40, 5\]"),
        ({"dead": jnp.zeros(N)}, "dead is bool"),
        ({"valid": jnp.zeros(3, bool)}, r"valid bool\[3\]"),
        ({"k_aux": 0}, "k_aux = 0: it is an int of at least 1"),
        ({"cap": 0}, "cap = 0"),
    ],
)
def test_wrong_requests(case, change, message):
    parameters, gradients, x, e, valid = case
    args = {"gradients": gradients, "parameters": parameters, "dead": some_dead(3), "x": x, "residual": e}
    with pytest.raises(ValueError, match=message):
        add_auxk(**args | {"valid": valid, "turn": 0, **CHOICES} | change)
