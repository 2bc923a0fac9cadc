# SPDX-License-Identifier: Apache-2.0
"""The TopK method: its gradients, its counters, its scales, and what it does with broken input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneuro.dictionaries import AuxK, Training, topk
from jaxneuro.errors import UserError

from .conftest import D_IN, planted, rows, train

N, K, BATCH = 96, 4, 64
OWN = {"k", "k_start", "k_steps", "auxk"}


def tokens(n=BATCH, d=D_IN, seed=0):
    return np.random.default_rng(seed).normal(0.7, 1.3, (n, d)).astype(np.float32)


def sgd(rate):
    """Plain descent at rate 1, whatever the schedule: an update is minus the gradient."""
    del rate
    return optax.sgd(1.0)


DESCENT = {"optimiser": sgd, "clip_norm": None}


@functools.cache
def method(**kw):
    """Without AuxK unless asked: a third of the program. Cached, so that tests share compiled steps."""
    own = {"n_latents": N, "k": K, "auxk": None} | {name: kw.pop(name) for name in OWN & kw.keys()}
    return topk(**own, training=Training(**({"learning_rate": 1e-2, "warmup_steps": 1} | kw)))


@functools.cache
def stepper(**kw):
    return jax.jit(method(**kw).step)


def whole(x=None):
    """A batch of which every token counts."""
    return {"x": tokens() if x is None else x, "mask": np.ones(BATCH, bool)}


def started(m, batch, seed=0):
    state = jax.tree.map(np.asarray, m.init(jax.random.key(seed), batch))
    w_enc = state.parameters["w_enc"]  # untied, biased: no zeros to hide in
    move = np.float32(0.1) * rows(np.random.default_rng(1), N, w_enc.shape[1])
    p = state.parameters | {"w_enc": w_enc + move, "b_enc": np.linspace(-0.3, 0.3, N, dtype=np.float32)}
    return state._replace(parameters=p)


def dense_loss(p, x, y, variance, tied):
    pre = (x - p["b_dec"][None] if tied else x) @ p["w_enc"].T + p["b_enc"][None]
    vals, idx = jax.lax.top_k(pre, K)
    at = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
    z = jnp.zeros_like(pre).at[at, idx].set(jax.nn.relu(vals))
    return jnp.sum(jnp.square(y - z @ p["w_dec"] - p["b_dec"][None])) / (x.shape[0] * variance)


@pytest.mark.parametrize("d_out", [None, 5])
def test_gradients_equal_dense_autodiff(d_out):
    m = method(**DESCENT)
    batch = {"x": tokens()} | ({} if d_out is None else {"y": tokens(d=d_out, seed=4)})
    state = started(m, batch)
    p = state.parameters
    x, y = batch["x"] * state.scale_x, batch.get("y", batch["x"]) * state.scale_y
    loss, gradient = jax.jit(jax.value_and_grad(dense_loss), static_argnums=4)(p, x, y, state.variance, d_out is None)
    new, info = stepper(**DESCENT)(state, batch)
    assert float(info["loss"]) == pytest.approx(float(loss), rel=1e-5)
    for name in ("w_enc", "b_enc", "b_dec"):
        want = np.asarray(gradient[name])
        got = np.asarray(p[name]) - np.asarray(new.parameters[name])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(np.abs(want).max(), 1), err_msg=name)
    g, w = np.asarray(gradient["w_dec"], np.float64), np.asarray(p["w_dec"], np.float64)
    moved = w - (g - (g * w).sum(1, keepdims=True) * w)
    np.testing.assert_allclose(new.parameters["w_dec"], moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-5)


def test_bfloat16_products_are_close():
    batch = whole()
    infos = [stepper(**kw)(started(method(**kw), batch), batch)[1] for kw in ({}, {"dtype": "bfloat16"})]
    assert float(infos[1]["fvu"]) == pytest.approx(float(infos[0]["fvu"]), rel=2e-2)


def test_what_finish_returns_takes_raw_activations():
    """Scales are folded: the dictionary reconstructs unscaled input as well as the state did scaled input."""
    x = 30 * tokens()
    for kw in ({}, {"y": 0.01 * tokens(d=5, seed=2)}):
        m, batch = method(**DESCENT), {"x": x, **kw}
        state = started(m, batch)
        assert float(state.scale_x) == pytest.approx(np.sqrt(D_IN) / np.linalg.norm(x, axis=1).mean(), rel=1e-5)
        y = np.asarray(batch.get("y", x), np.float64)
        dictionary = m.finish(state)
        x_hat = np.asarray(jax.jit(type(dictionary).__call__)(dictionary, x))
        error = np.square(y - x_hat).sum() / np.square(y - y.mean(0)).sum()
        _, info = stepper(**DESCENT)(state, batch)
        assert float(info["fvu"]) == pytest.approx(error, rel=1e-4)
        assert dictionary.apply_b_dec_to_input == ("y" not in kw)
        if "y" not in kw:
            np.testing.assert_allclose(np.linalg.norm(dictionary.W_dec, axis=1), 1, rtol=1e-5)


def test_without_normalisation_scales_are_one():
    state = method(normalise="none").init(jax.random.key(0), {"x": jnp.asarray(30 * tokens())})
    assert (float(state.scale_x), float(state.scale_y)) == (1, 1)


@pytest.mark.parametrize(("start", "want"), [("mean", np.mean), ("median", np.median), ("zeros", lambda a, axis: 0)])
def test_where_b_dec_starts(start, want):
    x = tokens(301)
    x[0] = 1e4  # one huge token
    state = method(b_dec_start=start, normalise="none").init(jax.random.key(0), {"x": jnp.asarray(x)})
    np.testing.assert_allclose(state.parameters["b_dec"], want(x, axis=0), atol=0.35 if start == "median" else 1e-3)
    np.testing.assert_array_equal(state.parameters["w_enc"], state.parameters["w_dec"])  # tied


def test_silence_is_counted_in_tokens_and_only_positive_values_fire():
    m = method(learning_rate=0.0, normalise="none", b_dec_start="zeros")
    x = np.abs(tokens())
    mask = np.arange(BATCH) < 40
    state = m.init(jax.random.key(0), {"x": jnp.asarray(x)})
    b_enc = np.full(N, -1e3, np.float32)  # selected or not, clipped to zero
    b_enc[:2] = 1e3  # always on
    b_enc[2] = -1e2  # always among the four selected, always zero
    state = state._replace(parameters=state.parameters | {"b_enc": jnp.asarray(b_enc)})
    step = jax.jit(m.step)
    state, info = step(state, {"x": jnp.asarray(x), "mask": jnp.asarray(mask)})
    state, _ = step(state, {"x": jnp.asarray(x), "mask": jnp.asarray(mask)})
    assert state.silent.dtype == jnp.int32
    assert np.asarray(state.silent).tolist() == [0, 0, *[80] * (N - 2)]
    assert (float(info["l0"]), int(info["tokens"])) == (2, 40)


def test_dead_is_said_after_the_threshold_in_tokens():
    batch = whole()
    state = method().init(jax.random.key(0), batch)
    silent = np.zeros(N, np.int32)
    silent[:24], silent[24] = 10_000_000, 9_999_999
    _, info = stepper()(state._replace(silent=jnp.asarray(silent)), batch)
    assert float(info["dead_fraction"]) == 0.25


def test_counters_do_not_overflow():
    batch = whole()
    state = method().init(jax.random.key(0), batch)
    state = state._replace(silent=jnp.full(N, 2**31 - 200, jnp.int32))
    for _ in range(3):
        state, _ = stepper()(state, batch)
    assert (np.asarray(state.silent) >= 0).all()


def test_auxk_moves_dead_latents_and_their_encoders():
    batch = whole()
    dead = np.arange(N) >= N // 2

    def run(auxk):
        m = method(auxk=auxk, dead_after_tokens=1000)
        state = started(m, batch)
        b_enc = jnp.asarray(np.where(dead, 0, 50), jnp.float32)  # the dead are never selected
        state = state._replace(
            parameters=state.parameters | {"b_enc": b_enc}, silent=jnp.asarray(np.where(dead, 2000, 0), jnp.int32)
        )
        new, info = stepper(auxk=auxk, dead_after_tokens=1000)(state, batch)
        names = ("w_enc", "b_enc", "w_dec")
        moved = [np.abs(np.asarray(new.parameters[n]) - np.asarray(state.parameters[n])) for n in names]
        return [m.reshape(N, -1).max(1) for m in moved], info

    (enc, bias, dec), info = run(AuxK())
    assert float(info["auxk"]) > 0
    assert (enc[dead] > 0).mean() > 0.5  # gradients reach the encoder, which the peers' did not
    assert (bias[dead] > 0).mean() > 0.5
    assert (dec[dead] > 1e-4).mean() > 0.5
    (enc, bias, dec), info = run(None)
    assert "auxk" not in info
    assert enc[dead].max() == bias[dead].max() == 0
    assert dec[dead].max() < 1e-6  # normalising again rounds


def test_masked_tokens_do_not_exist():
    m, step = method(auxk=AuxK(), dead_after_tokens=1000), stepper(auxk=AuxK(), dead_after_tokens=1000)
    x = tokens(48)
    padded = np.full((BATCH, D_IN), np.nan, np.float32)
    padded[5:53] = x
    mask = np.zeros(BATCH, bool)
    mask[5:53] = True
    a = started(m, {"x": jnp.asarray(x)})
    b = started(m, {"x": jnp.asarray(padded), "mask": jnp.asarray(mask)})
    silent = jnp.asarray(np.arange(N) * 20, jnp.int32)  # half are dead: AuxK takes part
    one, info = step(a._replace(silent=silent), {"x": jnp.asarray(x)})
    two, info_two = step(b._replace(silent=silent), {"x": jnp.asarray(padded), "mask": jnp.asarray(mask)})
    assert float(info["auxk"]) > 0
    for u, v in zip(jax.tree.leaves((one, info)), jax.tree.leaves((two, info_two)), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-3, atol=1e-5)
    assert int(info_two["nonfinite_tokens"]) == 0


def test_broken_tokens_are_left_out_and_counted():
    x, step = tokens(), stepper()
    bad = x.copy()
    bad[3], bad[9, 2] = np.nan, np.inf
    state = started(method(), whole())
    got, info = step(state, whole(bad))
    keep = np.ones(BATCH, bool)
    keep[[3, 9]] = False
    want, _ = step(state, {"x": jnp.asarray(x), "mask": jnp.asarray(keep)})
    assert (int(info["nonfinite_tokens"]), int(info["tokens"]), int(info["skipped_batches"])) == (2, 62, 0)
    for u, v in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(u, v)


@pytest.mark.parametrize("why", ["nan", "masked", "overflow"])
def test_a_hopeless_batch_changes_nothing_but_the_count(why):
    batch, step = whole(), stepper()
    state = started(method(), batch)
    hopeless = {
        "nan": whole(tokens() * np.float32(np.nan)),
        "masked": batch | {"mask": jnp.asarray(np.zeros(BATCH, bool))},
        "overflow": whole(tokens() * np.float32(1e30)),  # finite, but its square is not
    }[why]
    new, info = step(state, hopeless)
    assert int(new.skipped) == int(info["skipped_batches"]) == 1
    assert int(new.step) == 0
    for a, b in zip(
        jax.tree.leaves((new.parameters, new.optimiser)),
        jax.tree.leaves((state.parameters, state.optimiser)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    after, info = step(new, batch)
    assert int(after.step) == 1
    assert np.isfinite(float(info["loss"]))


def test_k_and_the_learning_rate_follow_their_schedules_without_recompiling():
    m = method(k_start=16, k_steps=10, learning_rate=0.02, warmup_steps=4, steps=20)
    x = tokens(20 * BATCH).reshape(20, BATCH, D_IN)
    state = m.init(jax.random.key(0), {"x": x[0]})
    b_enc = jax.device_put(np.full(N, 9, np.float32))  # everything positive
    state = state._replace(parameters=state.parameters | {"b_enc": b_enc})
    step, l0, rate = jax.jit(m.step), [], []
    for batch in x:
        state, info = step(state, {"x": batch})
        l0.append(float(info["l0"]))
        rate.append(float(info["learning_rate"]))
    assert (l0[0], l0[5], l0[10], l0[13]) == (16, 10, 4, 4)
    np.testing.assert_allclose(np.array(rate)[[0, 3, 15, 18]], [0.005, 0.02, 0.02, 0.01], rtol=1e-6)
    assert step._cache_size() == 1
    assert m.finish(state).k == K
    # decoder rows stay there
    np.testing.assert_allclose(np.linalg.norm(state.parameters["w_dec"], axis=1), 1, rtol=1e-5)
    default = Training().rate(2**16)
    assert float(default(jnp.int32(10**6))) == pytest.approx(1e-4, rel=1e-6)  # 2e-4 / sqrt(n_latents / 2^14)


def test_a_transcoder_learns_a_map():
    x, truth = planted(1, 250 * 128)
    out = truth @ rows(np.random.default_rng(5), D_IN, 6)
    y = np.maximum(x @ truth.T - 0.5, 0) @ out
    m = topk(64, 4, auxk=None, training=Training(learning_rate=1e-2, steps=250, warmup_steps=5))
    state, infos = train(m, {"x": x.reshape(250, 128, D_IN), "y": y.reshape(250, 128, 6).astype(np.float32)})
    assert infos["fvu"][-10:].mean() < 0.2 < infos["fvu"][0]
    dictionary = m.finish(state)
    assert (dictionary.d_in, dictionary.d_out, dictionary.apply_b_dec_to_input) == (D_IN, 6, False)


@pytest.mark.usefixtures("this_machine")
def test_one_token_block_in_memory():
    n, d, f = 4096, 8, 8192
    m = topk(f, 8)
    batch = {"x": jax.ShapeDtypeStruct((n, d), jnp.float32)}
    state = jax.eval_shape(m.init, jax.random.key(0), batch)
    memory = jax.jit(m.step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < n * f * 4 / 4  # dense latents or their gradient: 134 MB each


def test_two_runs_are_bitwise_equal():
    x = tokens(8 * BATCH).reshape(8, BATCH, D_IN)
    m, step = method(auxk=AuxK(), dead_after_tokens=1000), stepper(auxk=AuxK(), dead_after_tokens=1000)
    ends = []
    for _ in range(2):
        state = m.init(jax.random.key(0), whole(x[0]))._replace(silent=np.arange(N, dtype=np.int32) * 20)
        infos = []
        for batch in x:
            state, info = step(state, whole(batch))
            infos.append(info)
        ends.append(jax.tree.leaves((state, infos)))
    assert float(infos[0]["auxk"]) > 0  # half are dead
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "1 <= k"),
        ({"k": N + 1}, rf"k = {N + 1}, k_start = {N + 1}, n_latents = {N}"),
        ({"k_start": 2, "k": 4}, "k_start = 2"),
        ({"k_start": 8}, "k_steps = 0 steps from"),
        ({"dead_after_tokens": 0}, "dead_after_tokens = 0 is below 1"),
        ({"accumulate": 0}, "accumulate = 0 is below 1"),
        ({"optimiser": "adma"}, "Did you mean 'adam'"),
        ({"b_dec_start": "medain"}, "Did you mean 'median'"),
    ],
)
def test_wrong_choices(change, message):
    with pytest.raises(UserError, match=message):
        method(**change)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"y": jnp.ones((4, 2))}, r"this one is \['y'\]"),
        ({"x": jnp.ones((4, 2, 2))}, r"x float32\[4, 2, 2\]"),
        ({"x": jnp.ones((4, 2), jnp.int32)}, r"x int32\[4, 2\]"),
        ({"x": jnp.ones((4, 2)), "mask": jnp.ones(3, bool)}, r"mask bool\[3\]"),
        ({"x": jnp.full((4, 2), jnp.nan)}, "no finite, unmasked token .4 hold NaN"),
        ({"x": jnp.ones((4, 2))}, "all tokens of the first batch are equal"),
    ],
)
def test_wrong_first_batches(batch, message):
    with pytest.raises(UserError, match=message):
        method().init(jax.random.key(0), batch)
