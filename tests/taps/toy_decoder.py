# SPDX-License-Identifier: Apache-2.0
"""A small decoder with stacked weights, in several forms, and the same decoder as a plain loop without the library."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro.taps import tap

L, D, H, F, V = 3, 8, 2, 12, 20
B, T = 2, 4
RESID = ("batch", "pos", "d_model")
HEADS = ("batch", "pos", "head", "d_head")
AXES = {
    "resid_pre": RESID,
    "attn.q": HEADS,
    "attn.pattern": ("batch", "head", "query", "key"),
    "attn.z": HEADS,
    "resid_mid": RESID,
    "mlp.pre": ("batch", "pos", "neuron"),
    "mlp.post": ("batch", "pos", "neuron"),
    "mlp_out": RESID,
    "resid_post": RESID,
}
NAMES = tuple(f"blocks.{n}" for n in AXES)


def weights(dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) * 0.25, dtype)

    k = D // H
    blocks = {"wq": normal(L, D, H, k), "wk": normal(L, D, H, k), "wv": normal(L, D, H, k), "wo": normal(L, H, k, D)}
    blocks |= {"w1": normal(L, D, F), "b1": normal(L, F), "w2": normal(L, F, D)}
    return {"embed": normal(V, D), "blocks": blocks}


def tokens(batch=B):
    return jnp.asarray(np.random.default_rng(1).integers(0, V, (batch, T)), jnp.int32)


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + jnp.asarray(1e-5, x.dtype))


def block(x, p, site):
    """One layer; `site(value, name)` names a value."""
    x = site(x, "resid_pre")
    h = norm(x)
    q = site(jnp.einsum("btd,dhk->bthk", h, p["wq"]), "attn.q")
    scores = jnp.einsum("bthk,bshk->bhts", q, jnp.einsum("btd,dhk->bthk", h, p["wk"]))
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    pattern = site(jax.nn.softmax(jnp.where(causal, scores, jnp.asarray(-1e9, x.dtype)), -1), "attn.pattern")
    z = site(jnp.einsum("bhts,bshk->bthk", pattern, jnp.einsum("btd,dhk->bthk", h, p["wv"])), "attn.z")
    x = site(x + jnp.einsum("bthk,hkd->btd", z, p["wo"]), "resid_mid")
    pre = site(norm(x) @ p["w1"] + p["b1"][None, None], "mlp.pre")
    post = site(jax.nn.gelu(pre), "mlp.post")
    return site(x + site(post @ p["w2"], "mlp_out"), "resid_post")


def tapped(layer):
    return lambda value, name: tap(value, f"blocks.{name}", layer=layer, axes=AXES[name])


def layer_of(p, i):
    return jax.tree.map(lambda a: a[i], p)


def forward(w, toks, *, mode="scan", policy=None, taps=True):
    """Logits. Modes: scan, unrolled, remat (scan of a checkpointed block), jit (scan of a jitted block), fori."""
    site = tapped if taps else (lambda layer: lambda value, name: value)
    name = tap if taps else (lambda value, name, **_: value)

    def one(x, p_i):
        return block(x, p_i[0], site(p_i[1])), None

    x = name(w["embed"][toks], "embed", axes=RESID)
    if mode == "unrolled":
        for i in range(L):
            x = block(x, layer_of(w["blocks"], i), site(i))
    elif mode == "fori":
        x = jax.lax.fori_loop(0, L, lambda i, x: one(x, (layer_of(w["blocks"], i), i))[0], x)
    else:
        body = {"remat": partial(jax.checkpoint, policy=policy), "jit": jax.jit}.get(mode, lambda f: f)(one)
        x, _ = jax.lax.scan(body, x, (w["blocks"], jnp.arange(L)))
    return name(norm(x) @ w["embed"].T, "logits", axes=("batch", "pos", "d_vocab"))


def loss(w, toks, fwd=forward):
    logp = jax.nn.log_softmax(fwd(w, toks)[:, :-1])
    return -jnp.take_along_axis(logp, toks[:, 1:, None], -1).mean()


def reference(w, toks, edit=lambda value, name, layer: value):
    """(logits, {site: [L, ...]}) by a Python loop. `edit(value, name, layer)` changes a value on the way."""
    seen = {n: [] for n in AXES}

    def site(layer, value, name):
        value = edit(value, name, layer)
        seen[name].append(value)
        return value

    x = w["embed"][toks]
    for i in range(L):
        x = block(x, layer_of(w["blocks"], i), partial(site, i))
    return norm(x) @ w["embed"].T, {f"blocks.{n}": jnp.stack(v) for n, v in seen.items()}


def close(a, b, tol=1e-5):
    """Trees are equal within float32 rounding of a reordered sum."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), atol=tol, rtol=tol)


# A chain of three-operation layers, for what is about the transformations and not about the model.

UNITS = ("batch", "unit")


def chain_weights():
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.normal(size=(L, D, D)) * 0.4, jnp.float32), jnp.asarray(rng.normal(size=(B, D)), jnp.float32)


def chain_layer(x, w, i, name=tap):
    post = name(jnp.tanh(x @ w), "blocks.post", layer=i, axes=UNITS)
    return name(x + post, "blocks.resid", layer=i, axes=UNITS)


def chain(ws, x, *, scanned=True, wrap=lambda f: f):
    """[B, D] -> [B, D] with the sites blocks.post, blocks.resid and out."""
    if scanned:
        x, _ = jax.lax.scan(wrap(lambda x, p: (chain_layer(x, *p), None)), x, (ws, jnp.arange(L)))
    else:
        for i in range(L):
            x = wrap(partial(chain_layer, i=i))(x, ws[i])
    return tap(x * 2, "out", axes=UNITS)


def chain_reference(ws, x, edit=lambda value, name, layer: value):
    """(out, {site: [L, B, D]}) without the library, after the edits."""
    posts, resids = [], []
    for i in range(L):
        posts.append(edit(jnp.tanh(x @ ws[i]), "blocks.post", i))
        x = edit(x + posts[-1], "blocks.resid", i)
        resids.append(x)
    return edit(x * 2, "out", None), {"blocks.post": jnp.stack(posts), "blocks.resid": jnp.stack(resids)}
