# SPDX-License-Identifier: Apache-2.0
"""Cross-layer transcoders: gradients, a planted one, counters per layer, scales."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from jaxneuro.dictionaries import Training
from jaxneuro.dictionaries.clt import cross_layer_transcoder
from jaxneuro.errors import UserError

from .conftest import matched, rows, train

L, D_IN, D_OUT, M, BATCH = 3, 6, 4, 12, 64
KINDS = {"jumprelu": {"sparsity": 0.2, "bandwidth": 0.5}, "topk": {"k": 3}}


def sgd(rate):
    """Plain descent at rate 1, whatever the schedule: an update is minus the gradient."""
    del rate
    return optax.sgd(1.0)


def pairs(n=BATCH, seed=0, scales=(1.0, 1.0, 1.0)):
    """x [n, L D_IN] and y [n, L D_OUT], each layer of its own size."""
    rng = np.random.default_rng(seed)
    size = np.asarray(scales, np.float32)[:, None]
    x = rng.normal(0.3, 1, (n, L, D_IN)) * size
    y = rng.normal(-0.2, 1, (n, L, D_OUT)) * size[::-1]
    return {name: a.reshape(n, -1).astype(np.float32) for name, a in (("x", x), ("y", y))}


def descending(kind, mesh=None):
    training = Training(optimiser=sgd, learning_rate=1.0, clip_norm=None, mesh=mesh)
    return cross_layer_transcoder(M, L, **KINDS[kind], training=training)


@functools.cache
def descent(kind):
    """(init, step, finish): one compiled step for all tests of numbers."""
    m = descending(kind)
    return m._replace(step=jax.jit(m.step))


def started(m, batch):
    """Away from symmetric values."""
    state = jax.tree.map(np.asarray, m.init(jax.random.key(0), batch))
    rng = np.random.default_rng(5)
    p = {
        name: a + np.float32(0.1) * rng.normal(size=a.shape).astype(np.float32) for name, a in state.parameters.items()
    }
    p |= {name: a / np.linalg.norm(a, axis=1, keepdims=True) for name, a in p.items() if name.startswith("w_dec")}
    return state._replace(parameters=p)


def dense_loss(p, x, y, variance, dead, kind):
    """The formula of the docstring on dense arrays; thresholds are constants here."""
    n = x.shape[0]
    y_hat, penalty = jnp.tile(p["b_dec"], (n, 1)).reshape(n, L, D_OUT), 0.0
    for s in range(L):
        pre = x.reshape(n, L, D_IN)[:, s] @ p[f"w_enc.{s}"].T + p[f"b_enc.{s}"][None]
        w = p[f"w_dec.{s}"].reshape(M, L - s, D_OUT)
        norm = jnp.sqrt(jnp.square(w).sum((1, 2)))
        if kind == "topk":
            chosen = jax.nn.one_hot(jax.lax.top_k(pre, KINDS["topk"]["k"])[1], pre.shape[1]).sum(1)
            z = chosen * jax.nn.relu(pre)
        else:
            theta = jax.lax.stop_gradient(jnp.exp(p[f"log_threshold.{s}"]))
            z = jnp.where(pre > theta[None], pre, 0)
            penalty += KINDS["jumprelu"]["sparsity"] * jnp.tanh(4 * norm[None] * z).sum()
            below = jax.nn.relu(jnp.exp(p[f"log_threshold.{s}"])[None] - pre) * norm[None]
            penalty += 3e-6 * jnp.where(dead[None, :, s], below, 0).sum()
        y_hat = y_hat.at[:, s:].add(jnp.einsum("nm,mtd->ntd", z, w))
    return (jnp.square(y - y_hat.reshape(n, -1)).sum() + penalty) / (n * variance)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_dense_autodiff(kind):
    m, batch = descent(kind), pairs(scales=(1, 10, 100))
    state = started(m, batch)
    dead = np.arange(M * L).reshape(M, L) % 4 == 0
    state = state._replace(silent=np.where(dead, 10_000_000, 0).astype(np.int32))
    p = state.parameters
    args = batch["x"] * state.scale_x, batch["y"] * state.scale_y, state.variance, dead
    loss, want = jax.jit(jax.value_and_grad(dense_loss), static_argnums=5)(p, *args, kind)
    new, info = m.step(state, batch)
    assert float(info["loss"]) == pytest.approx(float(loss), rel=1e-5)
    for name, g in want.items():
        if name.startswith("log_threshold"):
            continue  # its pseudo-derivative is below
        got, g = np.asarray(new.parameters[name]), np.asarray(g, np.float64)
        if kind == "topk" and name.startswith("w_dec"):  # rows stay on the sphere
            w = np.asarray(p[name], np.float64)
            moved = w - (g - (g * w).sum(1, keepdims=True) * w)
            wanted = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        else:
            wanted = np.asarray(p[name]) - g
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(np.abs(g).max(), 1), err_msg=name)


def test_thresholds_learn_by_the_published_pseudo_derivative():
    """dz/dtheta = -(theta / h) [|pre - theta| < h / 2], of error and penalty alike."""
    width = KINDS["jumprelu"]["bandwidth"]
    m, batch = descent("jumprelu"), pairs()
    state = started(m, batch)
    p, at = state.parameters, L - 1
    x, y = (np.asarray(batch[n] * s, np.float64) for n, s in (("x", state.scale_x), ("y", state.scale_y)))

    def latents(s):
        pre = x.reshape(BATCH, L, D_IN)[:, s] @ np.asarray(p[f"w_enc.{s}"]).T + np.asarray(p[f"b_enc.{s}"])
        theta = np.exp(np.asarray(p[f"log_threshold.{s}"], np.float64))
        return pre, theta, np.where(pre > theta, pre, 0)

    error = (y - np.asarray(p["b_dec"]))[:, -D_OUT:]
    for s in range(L):
        error = error - latents(s)[2] @ np.asarray(p[f"w_dec.{s}"])[:, -D_OUT:]
    pre, theta, z = latents(at)
    w = np.asarray(p[f"w_dec.{at}"], np.float64)
    norm = np.linalg.norm(w, axis=1)
    dz = -2 * error @ w.T + KINDS["jumprelu"]["sparsity"] * 4 * norm / np.cosh(4 * norm * z) ** 2
    dtheta = (dz * -(theta / width) * (np.abs(pre - theta) < width / 2)).sum(0)
    want = dtheta * theta / (BATCH * float(state.variance))
    new, _ = m.step(state, batch)
    got = np.asarray(p[f"log_threshold.{at}"]) - np.asarray(new.parameters[f"log_threshold.{at}"])
    assert np.abs(want).max() > 3e-4
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


TRUE, STEPS = 8, 1000


@functools.cache
def planted(steps=STEPS, size=128):
    """(batches, encoders [L, TRUE, D_IN], decoders by layer): one latent on per layer, written to all layers above."""
    rng = np.random.default_rng(3)
    enc = np.stack([rows(rng, TRUE, D_IN) for _ in range(L)])
    dec = [rows(rng, TRUE, (L - s) * D_OUT) for s in range(L)]
    n = steps * size
    y = np.zeros((n, L * D_OUT), np.float32)
    x = np.zeros((n, L, D_IN), np.float32)
    for s in range(L):
        z = np.zeros((n, TRUE), np.float32)
        z[np.arange(n), rng.integers(0, TRUE, n)] = rng.uniform(1, 2, n)
        x[:, s] = z @ enc[s]
        y[:, s * D_OUT :] += z @ dec[s]
    batches = {"x": x.reshape(steps, size, -1), "y": y.reshape(steps, size, -1)}
    return batches, enc, dec


@pytest.mark.parametrize("kind", KINDS)
def test_finds_a_planted_cross_layer_transcoder(kind):
    batches, encoders, decoders = planted()
    # With more sparsity or a higher rate thresholds settle before encoders have turned to what they read.
    choices = {"jumprelu": {"sparsity": 0.03, "bandwidth": 1.0}, "topk": {"k": 1}}[kind]
    training = Training(learning_rate=5e-3, steps=STEPS, warmup_steps=10, normalise="none")
    m = cross_layer_transcoder(4 * TRUE, L, **choices, training=training)
    state, infos = train(m, batches)
    learned = m.finish(state)
    assert infos["fvu"][-20:].mean() < 0.05 < infos["fvu"][0]
    assert 0.8 * L < infos["l0"][-20:].mean() < 1.5 * L  # one latent per layer is true
    for s in range(L):
        w = np.moveaxis(np.asarray(learned.W_dec[s]), 0, 1).reshape(4 * TRUE, -1)  # all that a latent writes
        cosine = matched(w, decoders[s])
        assert cosine.mean() > 0.9
        assert (cosine > 0.9).mean() >= 0.75
        at = (decoders[s] @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T).argmax(1)
        read = np.asarray(learned.W_enc[s]).T[at]
        assert np.median((read * encoders[s]).sum(1) / np.linalg.norm(read, axis=1)) > 0.7  # and reads what it should


@pytest.mark.parametrize("kind", KINDS)
def test_what_finish_returns_takes_raw_activations(kind):
    m, batch = descent(kind), pairs(scales=(0.01, 1, 100))
    state = started(m, batch)
    x, y = (np.asarray(batch[name]).reshape(BATCH, L, -1) for name in ("x", "y"))
    for scale, a, d in ((state.scale_x, x, D_IN), (state.scale_y, y, D_OUT)):
        want = np.sqrt(d) / np.linalg.norm(a, axis=2).mean(0)
        np.testing.assert_allclose(scale.reshape(L, d), np.tile(want[:, None], (1, d)), rtol=1e-5)
    learned = m.finish(state)
    z, decoded = jax.jit(lambda d, x: (d.encode(x), d.decode(d.encode(x))))(learned, x)
    error = (y - np.asarray(decoded)) * np.asarray(state.scale_y).reshape(L, D_OUT)
    scaled = y * np.asarray(state.scale_y).reshape(L, D_OUT)
    _, info = m.step(state, batch)
    assert float(info["fvu"]) == pytest.approx(
        np.square(error).sum() / np.square(scaled - scaled.mean(0)).sum(), rel=1e-4
    )
    assert float(info["l0"]) == pytest.approx((np.asarray(z) > 0).sum() / BATCH, rel=1e-6)
    assert 1 < float(info["l0"]) <= (L * KINDS["topk"]["k"] if kind == "topk" else L * M)


@pytest.mark.parametrize("kind", KINDS)
def test_silence_is_counted_for_the_latents_of_every_layer(kind):
    m = cross_layer_transcoder(M, L, **KINDS[kind], training=Training(learning_rate=0.0, dead_after_tokens=100))
    batch = pairs()
    state = m.init(jax.random.key(0), batch)
    silenced = [(0, 1), (2, 0), (2, 11)]
    p = dict(state.parameters)
    for s in range(L):
        b = np.full(M, 1e3 if kind == "jumprelu" else 0, np.float32)
        b[[i for layer, i in silenced if layer == s]] = -1e3
        p[f"b_enc.{s}"] = b
    state, step = state._replace(parameters=p), jax.jit(m.step)
    for _ in range(2):
        state, _ = step(state, batch | {"mask": np.arange(BATCH) < 60})
    _, info = step(state, batch | {"mask": np.ones(BATCH, bool)})
    silent = np.asarray(state.silent)
    assert silent.shape == (M, L)
    assert sorted((s, i) for i, s in np.argwhere(silent == 120)) == silenced
    assert (silent == 0).sum() == M * L - len(silenced)
    assert float(info["dead_fraction"]) == pytest.approx(len(silenced) / (M * L))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_mesh_as_on_one_device(kind):
    mesh = jax.make_mesh((2, 2), ("data", "latent"), axis_types=(AxisType.Auto,) * 2)
    batch, ends = pairs(), []
    spread = descending(kind, mesh)
    for m in (descent(kind), spread._replace(step=jax.jit(spread.step))):
        state, info = m.step(m.init(jax.random.key(0), batch), batch)
        ends.append((state.parameters, state.silent, info))
    for one, two in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": None, "sparsity": None}, "sparsity = None, k = None"),
        ({"sparsity": 1.0}, "sparsity = 1.0, k = 3"),
        ({"k": M + 1}, f"k = {M + 1} <= {M}"),
        ({"bandwidth": 0.0}, "bandwidth = 0.0"),
        ({"training": Training(widths=(6, 6, 6))}, "leave out Training.widths"),
    ],
)
def test_wrong_choices(change, message):
    with pytest.raises(UserError, match=message):
        cross_layer_transcoder(**({"n_latents": M, "n_layers": L, "k": 3} | change))


def test_widths_that_the_layers_do_not_divide():
    m = cross_layer_transcoder(M, 4, k=3)
    with pytest.raises(UserError, match=r"widths \(4, 4, 4, 4\) make 16, but x is \[64, 18\]"):
        m.init(jax.random.key(0), pairs())
