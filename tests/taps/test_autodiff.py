# SPDX-License-Identifier: Apache-2.0
"""Gradients through edits, gradients at sites, and rematerialisation."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
import toy_decoder as toy

from jaxneuro.errors import UserError
from jaxneuro.taps import add, apply_fn, capture, intervene, scale, zero

POLICIES = jax.checkpoint_policies
FORMS = {
    "scanned": toy.chain,
    "unrolled": partial(toy.chain, scanned=False),
    "scanned remat": partial(toy.chain, wrap=jax.checkpoint),
    "unrolled remat": partial(toy.chain, scanned=False, wrap=jax.checkpoint),
    "dots saved": partial(toy.chain, wrap=partial(jax.checkpoint, policy=POLICIES.dots_saveable)),
    "all saved": partial(toy.chain, wrap=partial(jax.checkpoint, policy=POLICIES.everything_saveable)),
    "remat of all": jax.checkpoint(toy.chain),
    "jitted remat": partial(toy.chain, wrap=lambda f: jax.checkpoint(jax.jit(f), prevent_cse=False)),
}


SOME = ["scanned", "unrolled", "scanned remat", "remat of all"]


@pytest.fixture(params=SOME)
def form(request):
    return FORMS[request.param]


def loss_of(fn):
    return lambda ws, x: (fn(ws, x) ** 3).sum()


def shifted(ws, x, z):
    """The reference loss with z [L, B, D] added at blocks.post."""
    out, _ = toy.chain_reference(ws, x, lambda v, name, i: v + z[i] if name == "blocks.post" else v)
    return (out**3).sum()


@pytest.fixture(scope="module")
def at_zero(ws, x):
    """(gradient with respect to the weights, gradient at blocks.post) of the unedited reference."""
    return jax.jit(jax.grad(shifted, (0, 2)))(ws, x, jnp.zeros((toy.L, toy.B, toy.D)))


@pytest.mark.parametrize("name", FORMS)
def test_gradients_at_sites(name, ws, x, at_zero, chain_acts):
    """One backward pass gives every layer's gradient, and forward values are reported once, not in recomputations."""
    asked = ["blocks.post@grad", "blocks.1.post@grad", "blocks.2,0.post@grad", "blocks.post", "blocks.1.resid"]
    grad, got = jax.jit(capture(jax.grad(loss_of(FORMS[name])), asked))(ws, x)
    at_site = at_zero[1]
    toy.close(grad, at_zero[0], 1e-4)
    toy.close(got["blocks.post@grad"], at_site, 1e-4)
    toy.close(got["blocks.1.post@grad"], at_site[1], 1e-4)
    toy.close(got["blocks.2,0.post@grad"], at_site[jnp.array([2, 0])], 1e-4)
    toy.close(got["blocks.post"], chain_acts["blocks.post"])
    toy.close(got["blocks.1.resid"], chain_acts["blocks.resid"][1])


def test_the_coming_rematerialisation(ws, x, at_zero, chain_acts):
    """JAX_REMAT3=1, off by default, writes checkpoints in another way."""
    jax.config.update("jax_remat3", True)
    try:
        f = partial(toy.chain, wrap=lambda f: jax.checkpoint(f))
        _, got = capture(jax.grad(loss_of(f)), ["blocks.1.post@grad", "blocks.post", "blocks.2.post@grad"])(ws, x)
        edited = intervene(f, zero("blocks.2.resid"))(ws, x)
    finally:
        jax.config.update("jax_remat3", False)
    toy.close(got["blocks.1.post@grad"], at_zero[1][1], 1e-4)
    toy.close(got["blocks.post"], chain_acts["blocks.post"])
    assert (edited == 0).all()


def test_gradients_of_edited_functions(form, ws, x, at_zero):
    """Steering vectors at one layer, at every layer, and the parameters of the edited function."""

    @jax.jit
    def grads(ws, z):
        f = lambda ws, z: intervene(loss_of(form), add("blocks.post", z, per_layer=True))(ws, x)  # noqa: E731
        one = jax.grad(lambda v: intervene(loss_of(form), add("blocks.1.post", v))(ws, x))(z[0, 0])
        return jax.grad(f, (0, 1))(ws, z), one

    toy.close(grads(ws, jnp.zeros((toy.L, toy.B, toy.D))), (at_zero, at_zero[1][1].sum(0)), 1e-4)
    z = jnp.linspace(-1, 1, toy.L * toy.B * toy.D).reshape(toy.L, toy.B, toy.D)
    toy.close(grads(ws, z)[0], jax.jit(jax.grad(shifted, (0, 2)))(ws, x, z), 1e-4)


def test_gradient_of_a_scale_is_activation_times_gradient(ws, x, at_zero, chain_acts, chain):
    f = lambda s: intervene(loss_of(chain), scale("blocks.post", s, per_layer=True))(ws, x)  # noqa: E731
    got = jax.jit(jax.grad(f))(jnp.ones((toy.L, toy.D)))
    toy.close(got, (chain_acts["blocks.post"] * at_zero[1]).sum(1), 1e-4)


def test_edits_of_gradients(form, ws, x):
    """Zeroing the gradient at a layer's output is stopping the gradient there: its own weights get none."""
    got = jax.jit(intervene(jax.grad(loss_of(form)), zero("blocks.1.post@grad")))(ws, x)
    assert (got[1] == 0).all()

    def stopped(ws):
        stop = lambda v, name, i: jax.lax.stop_gradient(v) if (name, i) == ("blocks.post", 1) else v  # noqa: E731
        return (toy.chain_reference(ws, x, stop)[0] ** 3).sum()

    toy.close(got, jax.jit(jax.grad(stopped))(ws), 1e-4)


def test_editing_a_differentiated_program_is_straight_through(form, ws, x):
    """The values change, the derivative stays that of the unedited function: of rounding, the identity's."""
    rounded = apply_fn("blocks.1.post", jnp.round)

    def through(ws):
        def edit(v, site, i):
            return v + jax.lax.stop_gradient(jnp.round(v) - v) if (site, i) == ("blocks.post", 1) else v

        return (toy.chain_reference(ws, x, edit)[0] ** 3).sum()

    got = jax.jit(intervene(jax.grad(loss_of(form)), rounded))(ws, x)
    toy.close(got, jax.jit(jax.grad(through))(ws), 1e-4)
    assert (jax.jit(jax.grad(intervene(loss_of(form), rounded)))(ws, x)[1] == 0).all()


def score(acts):
    return (acts["blocks.2,0.post"] ** 2).sum() + acts["blocks.resid"][1].sum() + acts["blocks.1.post"].sum()


def test_differentiating_what_was_captured(chain, ws, x):
    """Through rows kept in buffers and through stacks."""

    def plain(x):
        acts = toy.chain_reference(ws, x)[1]
        posts = acts["blocks.post"]
        return score({"blocks.2,0.post": posts[::-2], "blocks.resid": acts["blocks.resid"], "blocks.1.post": posts[1]})

    asked = ["blocks.2,0.post", "blocks.resid", "blocks.1.post"]
    got = jax.jit(jax.grad(lambda x: score(capture(chain, asked)(ws, x)[1])))(x)
    toy.close(got, jax.jit(jax.grad(plain))(x), 1e-4)


def test_has_aux(chain, ws, x, at_zero, chain_acts):
    aux = lambda ws, x: capture(loss_of(chain), "blocks.1.post")(ws, x)  # noqa: E731
    (_, got), grad = jax.jit(jax.value_and_grad(aux, has_aux=True))(ws, x)
    toy.close(grad, at_zero[0], 1e-4)
    toy.close(got["blocks.1.post"], chain_acts["blocks.post"][1])


def test_forward_mode(chain, ws, x, at_zero):
    dz = jnp.ones((toy.L, toy.B, toy.D))
    f = lambda z: intervene(loss_of(chain), add("blocks.post", z, per_layer=True))(ws, x)  # noqa: E731
    toy.close(jax.jit(lambda: jax.jvp(f, (0 * dz,), (dz,)))()[1], at_zero[1].sum(), 1e-3)
    tangents = capture(lambda dx: jax.jvp(partial(chain, ws), (x,), (dx,))[1], "blocks.post@tangent")(x)[1]
    expected = jax.jvp(lambda x: toy.chain_reference(ws, x)[1]["blocks.post"], (x,), (x,))[1]
    toy.close(tangents["blocks.post@tangent"], expected)


def test_hessian_vector_products(chain, ws, x):
    v = jnp.ones(toy.D)

    def hvp(f, z):
        return jax.jvp(jax.grad(f), (z,), (v,))[1]

    edited = lambda z: intervene(loss_of(chain), add("blocks.1.post", z))(ws, x)  # noqa: E731
    plain = lambda z: shifted(ws, x, jnp.zeros((toy.L, toy.B, toy.D)).at[1].set(z))  # noqa: E731
    toy.close(jax.jit(partial(hvp, edited))(0 * v), jax.jit(partial(hvp, plain))(0 * v), 1e-3)


def test_a_gradient_that_is_not_there(ws, x):
    with pytest.raises(UserError, match=r"no site 'blocks.post@grad'.*capture\(jax.grad\(loss\)"):
        capture(toy.chain, "blocks.post@grad")(ws, x)


def test_second_gradients_of_a_site_have_no_name(ws, x):
    """Reverse over reverse reaches the gradient site twice: refused, not mixed up."""
    twice = jax.grad(lambda ws: jax.grad(loss_of(toy.chain))(ws, x).sum())
    with pytest.raises(UserError, match="reached 2 times"):
        capture(twice, "blocks.1.post@grad")(ws)
