# SPDX-License-Identifier: Apache-2.0
"""Semi-NMF, full batch and streamed: its updates, planted neuron groups, guards, hierarchy and concept utilities."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneuro.dictionaries import factorise as module
from jaxneuro.dictionaries.concepts import concept_detection, sentence_scores, top_positions
from jaxneuro.dictionaries.factorise import factorise, iteration
from jaxneuro.dictionaries.hierarchy import hierarchy, refine
from jaxneuro.dictionaries.parts.multiplicative import EPS, basis, coefficients
from jaxneuro.dictionaries.semi_nmf import SemiNMFDictionary, semi_nmf
from jaxneuro.errors import UserError

from .conftest import matched, rows

D, GROUPS, SIZE = 120, 6, 6
SHARE = SIZE / D


@functools.cache
def groups() -> np.ndarray:
    """GROUPS latents of SIZE neurons each, signs mixed, unit norm."""
    rng = np.random.default_rng(7)
    w = np.zeros((GROUPS, D), np.float32)
    for row in w:
        row[rng.choice(D, SIZE, replace=False)] = rng.choice([-1, 1], SIZE) * rng.uniform(0.5, 1, SIZE)
    return w / np.linalg.norm(w, axis=1, keepdims=True)


def tokens(n, seed=0, noise=0.03, active=2) -> np.ndarray:
    """Each a positive combination of `active` groups."""
    rng = np.random.default_rng(seed)
    z = np.zeros((n, GROUPS), np.float32)
    which = np.argsort(rng.random((n, GROUPS)), axis=1)[:, :active]
    np.put_along_axis(z, which, rng.uniform(1, 2, (n, active)).astype(np.float32), 1)
    return (z @ groups() + noise * rng.normal(size=(n, D))).astype(np.float32)


def found_groups(w) -> int:
    """How many planted groups have a latent with exactly their neurons."""
    supports = {tuple(np.flatnonzero(row)) for row in np.asarray(w)}
    return sum(tuple(np.flatnonzero(row)) in supports for row in groups())


def run(x, key=0, n_latents=GROUPS + 3, **kw):
    options = {"sparsity": SHARE, "steps": 300, "patience": 300, "start": "random"} | kw
    return factorise(jnp.asarray(x), n_latents, key=jax.random.key(key), **options)


# ---- updates


def one_iteration(x, g, share):
    """The authors' five steps in float64, A = x^T, F = w^T."""
    gram = g.T @ g
    f = x.T @ g @ np.linalg.inv(gram + EPS * np.trace(gram) / len(gram) * np.eye(len(gram)))
    kept = math.ceil(share * len(f))
    f = np.where(np.abs(f) >= np.sort(np.abs(f), 0)[-kept], f, 0)
    s = np.linalg.norm(g, axis=0)
    g, f = g / s, f * s
    p, q = x @ f, f.T @ f
    plus, minus = (lambda a: np.maximum(a, 0)), (lambda a: np.maximum(-a, 0))
    g = g * np.sqrt((plus(p) + g @ minus(q)) / (minus(p) + g @ plus(q) + 1e-6))
    return f.T, g, np.square(x - g @ f.T).sum()


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_an_iteration_equals_float64(share):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(40, 30)), rng.random((40, 4))
    w, new, loss = one_iteration(x, g, share)
    g32 = jnp.asarray(g, jnp.float32)
    w_here, g_here, gram, loss_here = iteration(jnp.asarray(x, jnp.float32), g32, g32.T @ g32, sparsity=share)
    np.testing.assert_allclose(w_here, w, atol=1e-4 * np.abs(w).max())
    np.testing.assert_allclose(g_here, new, atol=1e-4 * new.max())
    np.testing.assert_allclose(gram, new.T @ new, atol=1e-4 * (new.T @ new).max())
    assert float(loss_here) == pytest.approx(loss, rel=1e-5)


def test_the_basis_is_least_squares_and_survives_copies():
    rng = np.random.default_rng(0)
    g, x = rng.random((200, 5)), rng.normal(size=(200, 9))
    exact = np.linalg.lstsq(g, x)[0]
    g32, x32 = jnp.asarray(g, jnp.float32), jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(basis(g32.T @ x32, g32.T @ g32), exact, atol=1e-4)
    twice = jnp.tile(g32, (1, 60))  # 300 latents, 5 different
    w = basis(twice.T @ x32, twice.T @ twice)
    np.testing.assert_allclose(twice @ w, g @ exact, atol=0.02)


def test_coefficients_are_nearly_the_best_non_negative_ones():
    x, w = tokens(50, noise=0.1), rows(np.random.default_rng(1), 10, D)
    g = np.asarray(coefficients(jnp.asarray(x), jnp.asarray(w), 200), np.float64)
    best = np.array([scipy.optimize.nnls(w.T.astype(np.float64), row)[1] ** 2 for row in x.astype(np.float64)])
    error = np.square(x - g @ w).sum(1)
    assert (error >= best - 1e-5).all()
    assert (error <= best * 1.01).all()
    assert (g >= 0).all()
    assert 0.1 < (g == 0).mean() < 0.9
    scaled = coefficients(jnp.asarray(x) * 1000, jnp.asarray(w), 200)
    np.testing.assert_allclose(scaled, g * 1000, rtol=1e-3, atol=1e-2)


def test_without_winner_take_all_the_loss_never_rises():
    """120 neurons, 300 tokens, rank 10."""
    rng = np.random.default_rng(0)
    x = rng.random((300, 10)) @ rng.normal(size=(10, 120))
    found = run(x.astype(np.float32), n_latents=10, sparsity=1.0, steps=800, patience=800, start="random")
    losses = np.asarray(found.losses)
    assert np.isfinite(losses).all()
    assert np.diff(losses).max() < 3e-6  # float32 rounding of a difference of sums as large as |x|^2
    assert float(found.loss) < 1e-4 < 1e-2 < losses[5]
    error = np.square(x - np.asarray(found.g, np.float64) @ np.asarray(found.w)).sum() / np.square(x).sum()
    assert error == pytest.approx(float(found.loss), abs=3e-6)


def test_a_share_below_the_true_one_costs_what_it_should():
    """Winner-take-all interrupts the descent: the best iterate is kept, and too small a share shows."""
    rng = np.random.default_rng(0)
    f = np.where(rng.random((10, 120)) < 0.1, rng.normal(size=(10, 120)), 0)
    x = (rng.random((300, 10)) @ f).astype(np.float32)
    losses = {}
    for share in (0.2, 0.05, 0.01):
        found = run(x, n_latents=10, sparsity=share, steps=400, patience=400, start="random")
        losses[share] = float(found.loss)
        assert float(found.loss) == np.nanmin(found.losses)
        assert ((np.asarray(found.w) != 0).sum(1) <= math.ceil(share * 120)).all()
    assert (np.diff(np.asarray(found.losses)) > 1e-6).any()
    assert losses[0.2] < 0.01 < 0.05 < losses[0.05] < 0.15 < 0.3 < losses[0.01] < 0.5


# ---- truth


@pytest.mark.parametrize("start", ["random", "svd", "rotated", "kmeans", "pooled"])
def test_finds_planted_neuron_groups(start):
    found = run(tokens(400), start=start)
    assert found_groups(found.w) == GROUPS
    assert matched(found.w, groups()).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(found.w, axis=1), 1, rtol=1e-5)
    assert float(found.loss) == pytest.approx(D * 0.03**2 / (np.square(tokens(400)).sum() / 400), rel=0.1)


def parts_and_tokens(seed, n=600, d=48, k=12, share=0.2):
    """(parts [k, d], a fifth of their neurons each, tokens of all parts at once): no token shows a part alone."""
    rng = np.random.default_rng(seed)
    w = np.zeros((k, d))
    for row in w:
        row[rng.choice(d, math.ceil(share * d), replace=False)] = rng.normal(size=math.ceil(share * d))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    x = rng.random((n, k)) @ w
    return w, (x + 0.05 * x.std() * rng.normal(size=x.shape)).astype(np.float32)


def test_pooled_starts_find_planted_parts_that_no_single_start_finds_whole():
    """Of five seeds together, at cosine 0.9: parts that overlap and are all used at every token. Noise has none."""
    found = {"pooled": [], "random": []}
    null = []
    for seed in range(5):
        parts, x = parts_and_tokens(seed)
        for start, shares in found.items():
            w = run(x, key=seed, n_latents=12, sparsity=0.2, start=start).w
            shares.append((matched(w, parts) > 0.9).mean())
        noise = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
        null.append((matched(run(noise, key=seed, n_latents=12, sparsity=0.2, start="pooled").w, parts) > 0.9).mean())
    assert np.mean(found["pooled"]) >= 0.9
    assert np.mean(found["random"]) < np.mean(found["pooled"]) - 0.05
    assert max(null) == 0


def test_seeds_agree_on_groups_and_not_on_noise():
    noise = np.random.default_rng(3).normal(size=(800, D)).astype(np.float32)
    keys = jax.random.split(jax.random.key(5), 2)

    def pair(x):
        options = {"sparsity": SHARE, "steps": 200, "start": "random"}
        both = jax.vmap(lambda k: factorise(jnp.asarray(x), GROUPS, key=k, **options))(keys)
        return matched(*both.w), float(both.loss.min())

    agree, loss = pair(tokens(400))
    assert np.median(agree) > 0.99
    assert loss < 0.1
    agree, loss = pair(noise)
    rng, choice = np.random.default_rng(0), np.zeros((2, GROUPS, D))
    for row in choice.reshape(-1, D):
        row[rng.choice(D, SIZE, replace=False)] = rng.normal(size=SIZE)
    assert np.median(agree) < np.median(matched(*choice)) + 0.3 < 0.7
    assert loss > 0.9


def test_one_massive_token_needs_a_guard():
    x = tokens(400)
    x[17, 3] = 1e5  # a massive activation: one neuron, one token
    assert found_groups(run(x).w) < GROUPS - 1
    for guard in ("clip", "unit"):
        found = run(x, guard=guard, n_latents=GROUPS + 4)
        assert found_groups(found.w) >= GROUPS - 1, guard
    error = np.square(x - np.asarray(found.g) @ np.asarray(found.w)).sum(1)  # coefficients are of the raw tokens
    assert np.median(error) < 0.2 < 1 < np.square(x).sum(1).min()


def test_tokens_that_do_not_count_have_no_say():
    x = tokens(300)
    mask = np.arange(300) % 4 > 0
    spoiled = x.copy()
    spoiled[~mask] = 1e6
    some = run(spoiled, mask=jnp.asarray(mask), n_latents=GROUPS, steps=50, start="svd")
    alone = run(x[mask], n_latents=GROUPS, steps=50, start="svd")
    np.testing.assert_allclose(some.w, alone.w, atol=1e-3)
    np.testing.assert_allclose(np.asarray(some.g)[mask], alone.g, atol=1e-3 * float(alone.g.max()))
    assert (np.asarray(some.g)[~mask] == 0).all()
    spoiled[~mask] = np.nan
    np.testing.assert_array_equal(run(spoiled, n_latents=GROUPS, steps=50, start="svd").w, some.w)


# ---- programs


def test_is_one_program_for_all_keys_and_data():
    run(tokens(50), steps=200, patience=5)
    size = module._factorise._cache_size()
    run(tokens(50, seed=9), key=3, steps=200, patience=5, tolerance=0.1)
    assert module._factorise._cache_size() == size


def test_stops_when_nothing_improves():
    found = run(tokens(50), steps=200, patience=5, tolerance=1e-3)
    n = int(found.steps)
    assert 5 < n < 200
    assert np.isfinite(found.losses[:n]).all()
    assert np.isnan(found.losses[n:]).all()


def test_seeds_under_vmap_equal_their_own_runs():
    x, keys = jnp.asarray(tokens(60)), jax.random.split(jax.random.key(1), 3)

    def one(k):
        return factorise(x, GROUPS, key=k, sparsity=SHARE, steps=20, start="random")

    together = jax.vmap(one)(keys)
    for i, key in enumerate(keys):
        alone = one(key)
        np.testing.assert_allclose(together.w[i], alone.w, atol=1e-3)
        np.testing.assert_allclose(together.losses[i], alone.losses, atol=1e-4)


def test_tokens_spread_over_four_devices_give_the_same_and_stay_there():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = tokens(400)
    one = run(x, start="random")
    spread = jax.device_put(jnp.asarray(x), NamedSharding(mesh, P("data")))
    four = run(spread, start="random")
    np.testing.assert_allclose(four.losses[:20], one.losses[:20], atol=1e-4)
    assert float(four.loss) == pytest.approx(float(one.loss), rel=0.02)
    assert four.g.sharding.spec[0] == "data"
    text = (
        jax.jit(lambda x, g: iteration(x, g, g.T @ g, sparsity=SHARE))
        .lower(spread, jax.device_put(one.g, NamedSharding(mesh, P("data"))))
        .compile()
        .as_text()
    )
    assert "all-reduce" in text
    assert "all-gather" not in text  # tokens are never collected


def test_half_precision_products_find_the_same():
    found = run(tokens(400), dtype="bfloat16")
    assert found_groups(found.w) == GROUPS
    assert found.w.dtype == found.g.dtype == jnp.float32
    assert found_groups(run(jnp.asarray(tokens(400), jnp.bfloat16)).w) == GROUPS


# ---- levels


def test_a_hierarchy_finds_groups_of_groups():
    """Nine latents, three of each of three parents."""
    rng = np.random.default_rng(0)
    parents = np.repeat(np.eye(3), 4, axis=1)  # [3, 12]: four neurons each
    w = np.repeat(parents, 3, axis=0) * rng.uniform(0.8, 1.2, (9, 12))
    (level,) = hierarchy(jnp.asarray(w, jnp.float32), [3], key=jax.random.key(0), sparsity=1 / 3, start="kmeans")
    assert matched(level.w, parents).min() > 0.98
    owner = np.asarray(level.g).argmax(1)
    assert [len(set(owner[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    two = hierarchy(jnp.asarray(w, jnp.float32), [5, 2], key=jax.random.key(0), sparsity=1.0, steps=50)
    assert [(level.g.shape, level.w.shape) for level in two] == [((9, 5), (5, 12)), ((5, 2), (2, 12))]
    with pytest.raises(UserError, match=r"sizes \[5, 6\] from 9 latents"):
        hierarchy(jnp.asarray(w, jnp.float32), [5, 6], key=jax.random.key(0))


@pytest.mark.parametrize("nonnegative", [True, False])
def test_refining_all_levels_lowers_the_loss(nonnegative):
    x = jnp.asarray(tokens(200))
    first = run(x, steps=5)
    (second,) = hierarchy(first.w, [4], key=jax.random.key(1), sparsity=1.0, steps=50)
    factors, losses = refine(x, (first.g, second.g, second.w), learning_rate=0.01, steps=300, nonnegative=nonnegative)
    assert float(losses[-1]) < 0.9 * float(losses[0])  # four latents cannot hold six groups
    assert [f.shape for f in factors] == [(200, GROUPS + 3), (GROUPS + 3, 4), (4, D)]
    lowest = min(float(f.min()) for f in factors[:-1])
    assert lowest >= 0 if nonnegative else lowest < 0
    x_hat = np.asarray(factors[0]) @ np.asarray(factors[1]) @ np.asarray(factors[2])
    assert np.square(x - x_hat).sum() / np.square(x).sum() == pytest.approx(float(losses[-1]), rel=0.05)


# ---- the stream


@functools.cache
def streamed(guard="none"):
    m = semi_nmf(GROUPS + 3, sparsity=SHARE, guard=guard)
    return m, jax.jit(m.init), jax.jit(lambda s, x: jax.lax.scan(lambda s, x: m.step(s, {"x": x}), s, x))


def stream(x, seed=0, **kw):
    m, init, steps = streamed(**kw)
    many = jnp.asarray(x.reshape(-1, 200, D))
    state, infos = steps(init(jax.random.key(seed), {"x": many[0]}), many)
    return m.finish(state), state, infos


def test_a_streamed_step_equals_float64():
    m = semi_nmf(4, sparsity=0.1, decay=0.5, coefficient_steps=10)
    x = tokens(120, noise=0.1)
    state = m.init(jax.random.key(0), {"x": jnp.asarray(x[:60])})
    w, cross, gram = np.asarray(state.w, np.float64), 0.0, 0.0
    step = jax.jit(m.step)
    for part in (x[:60].astype(np.float64), x[60:].astype(np.float64)):
        state, info = step(state, {"x": jnp.asarray(part, jnp.float32)})
        norm = np.linalg.norm(part, axis=1, keepdims=True)
        p, q = part / norm @ w.T, w @ w.T
        g = np.maximum(p, 0) + 0.01
        for _ in range(10):
            up, down = np.maximum(p, 0) + g @ np.maximum(-q, 0), np.maximum(-p, 0) + g @ np.maximum(q, 0)
            g = g * np.sqrt(up / (down + 1e-6))
        g = norm * np.where(g > 1e-3 * g.max(1, keepdims=True), g, 0)
        assert float(info["loss"]) == pytest.approx(np.square(part - g @ w).sum(1).mean(), rel=1e-3)
        assert float(info["l0"]) == pytest.approx((g > 0).sum(1).mean(), abs=0.02)
        cross, gram = 0.5 * cross + g.T @ part, 0.5 * gram + g.T @ g
        w = w.copy()
        for k in range(4):
            row = w[k] + (cross[k] - gram[k] @ w) / gram[k, k]
            w[k] = np.where(np.abs(row) >= np.sort(np.abs(row))[-12], row, 0)
        size = np.linalg.norm(w, axis=1, keepdims=True)
        w, cross, gram = w / size, cross * size, gram * size * size.T
        np.testing.assert_allclose(state.w, w, atol=1e-3)
        np.testing.assert_allclose(state.gram, gram, atol=1e-3 * gram.max())
        np.testing.assert_allclose(state.cross, cross, atol=1e-3 * np.abs(cross).max())


def test_a_stream_finds_planted_neuron_groups():
    found, _, infos = stream(tokens(8000))
    assert found_groups(found.W_dec) == GROUPS
    assert matched(found.W_dec, groups()).min() > 0.97  # a spare latent may share a group, exact supports all the same
    np.testing.assert_allclose(np.linalg.norm(found.W_dec, axis=1), 1, rtol=1e-5)
    assert float(infos["fvu"][-1]) < 0.08
    x = tokens(500, seed=9)
    error = np.square(x - np.asarray(found(jnp.asarray(x)))).sum() / np.square(x - x.mean(0)).sum()
    assert error == pytest.approx(float(infos["fvu"][-1]), abs=0.02)


def test_a_stream_of_noise_gives_seeds_nothing_to_agree_on():
    noise = np.random.default_rng(3).normal(size=(8000, D)).astype(np.float32)
    a, b = (stream(noise, seed=s) for s in (0, 1))
    assert np.median(matched(a[0].W_dec, b[0].W_dec)) < 0.6
    assert float(a[2]["fvu"][-1]) > 0.9


@pytest.mark.parametrize("guard", ["none", "clip"])
def test_a_streamed_massive_token_hides_at_most_one_group(guard):
    """Pooled starts give it a spare latent of its own, so that a stream survives it with and without a guard."""
    x = tokens(8000)
    x[::1000, 3] = 1e4  # one token of each fifth batch
    assert found_groups(stream(x, guard=guard)[0].W_dec) >= GROUPS - 1


def test_a_dead_latent_begins_again():
    m, x = semi_nmf(GROUPS, sparsity=SHARE, dead_after_tokens=400), tokens(2000)
    state = jax.jit(m.init)(jax.random.key(0), {"x": jnp.asarray(x[:200])})
    away = np.zeros(D, np.float32)
    away[np.setdiff1d(np.arange(D), np.flatnonzero(np.abs(groups()).sum(0)))[:SIZE]] = 1  # neurons of no group
    state = state._replace(w=state.w.at[2].set(jnp.asarray(away / np.linalg.norm(away))))
    state = state._replace(silent=state.silent.at[2].set(300))
    step = jax.jit(m.step)
    quiet = [{"x": jnp.asarray(np.maximum(part @ np.eye(D), 0) * (away == 0), jnp.float32)} for part in np.split(x, 10)]
    reseeded = []
    for batch in quiet[:3]:
        state, info = step(state, batch)
        reseeded.append(int(info["reseeded"]))
    assert reseeded[0] == 1
    assert sum(reseeded[1:]) == 0
    assert float(jnp.abs(state.w[2] * away).max()) == 0  # it left its neurons
    np.testing.assert_allclose(jnp.linalg.norm(state.w, axis=1), 1, rtol=1e-5)


def test_encode_is_exact_for_orthogonal_latents():
    d = SemiNMFDictionary(W_dec=jnp.eye(5)[:3])
    z = d.encode(jnp.asarray([[3.0, -2.0, 1.0, 9.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(z, [[3, 0, 1], [0, 0, 0]], atol=1e-3)
    assert (np.asarray(z)[0, 1], np.asarray(z)[1, 2]) == (0, 0)


# ---- concepts


def test_top_positions_equal_a_sort():
    z = np.maximum(np.random.default_rng(0).normal(size=(50, 4)), 0).astype(np.float32)
    mask = np.arange(50) % 2 == 0
    found = top_positions(jnp.asarray(z), 30, mask=jnp.asarray(mask))
    for k in range(4):
        order = sorted((i for i in range(50) if mask[i] and z[i, k] > 0), key=lambda i: -z[i, k])
        assert [p for p in np.asarray(found.positions[k]).tolist() if p >= 0] == order
        np.testing.assert_array_equal(np.asarray(found.values[k])[: len(order)], z[order, k])
        assert (np.asarray(found.values[k])[len(order) :] == 0).all()
    with pytest.raises(UserError, match="k = 51 of 50 tokens"):
        top_positions(jnp.asarray(z), 51)


def test_a_concept_is_detected_by_its_latent_only():
    x = tokens(80, active=1, noise=0.3).reshape(20, 4, D)
    with_it = x.copy()
    with_it[:, 2] += 6 * groups()[3]
    mask = jnp.ones((20, 4), bool)
    found = concept_detection(
        sentence_scores(jnp.asarray(groups()), jnp.asarray(with_it), mask),
        sentence_scores(jnp.asarray(groups()), jnp.asarray(x), mask),
    )
    assert int(found.difference.argmax()) == 3
    assert float(found.difference[3]) > 0.4 > 3 * float(np.abs(np.delete(np.asarray(found.difference), 3)).max())
    hidden = sentence_scores(jnp.asarray(groups()), jnp.asarray(with_it), mask.at[:, 2].set(False))
    bare = sentence_scores(jnp.asarray(groups()), jnp.asarray(x), mask.at[:, 2].set(False))
    np.testing.assert_array_equal(hidden, bare)
    assert (sentence_scores(jnp.asarray(groups()), jnp.asarray(x), ~mask) == -1).all()


# ---- refusals


def test_bad_requests():
    for kw, text in (
        ({"n_latents": 0}, "n_latents = 0"),
        ({"n_latents": 3, "sparsity": 0.0}, "sparsity = 0.0 is the share"),
        ({"n_latents": 3, "sparsity": 1.5}, "sparsity = 1.5"),
        ({"n_latents": 3, "decay": 1.1}, "decay = 1.1 is not between 0 and 1"),
        ({"n_latents": 3, "coefficient_steps": 0}, "coefficient_steps = 0"),
        ({"n_latents": 3, "guard": "clop"}, "no guard 'clop'. Did you mean 'clip'"),
    ):
        with pytest.raises(UserError, match=text):
            semi_nmf(**kw)
    with pytest.raises(UserError, match="the first batch has 5 valid tokens for 6 latents"):
        semi_nmf(6).init(jax.random.key(0), {"x": jnp.asarray(tokens(5))})
    x = jnp.asarray(tokens(5))
    for bad, n_latents, kw, text in (
        (x[0], 3, {}, r"x is float32\[120\]; tokens are rows"),
        (x.astype(jnp.int32), 3, {}, r"x is int32\[5, 120\]"),
        (x, 6, {}, "n_latents = 6 for 5 tokens"),
        (x, 3, {"mask": jnp.ones(4, bool)}, r"mask is bool\[4\], not bool\[5\]"),
        (x, 3, {"steps": 0}, "steps = 0 is below 1"),
        (x, 3, {"start": "knn"}, "no start 'knn'. .*Known: pooled, random, svd, rotated, kmeans"),
    ):
        with pytest.raises(UserError, match=text):
            factorise(bad, n_latents, key=jax.random.key(0), **kw)
