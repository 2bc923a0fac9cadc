# SPDX-License-Identifier: Apache-2.0
"""A small model with planted group neurons, and labelled text for it."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.data import shuffled_labels
from jaxneuro.models import init
from jaxneuro.neurons import group_statistics
from jaxneuro.taps import tap

L, B, T, D, F, V, K = 3, 6, 10, 16, 32, 40, 3
SITE = "blocks.mlp.post"
PLANTED = {0: [(0, 3), (2, 5)], 1: [(1, 7)], 2: [(1, 8), (2, 20)]}  # group -> (layer, neuron)


def forward(weights, tokens, mask=None):
    """Embeddings, causal averages over real tokens, ReLU MLPs, tied unembedding."""
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    n_pos = tokens.shape[1]
    see = jnp.tri(n_pos, dtype=bool)[None] & mask[:, None, :]
    mix = see.astype(jnp.float32) / jnp.maximum(see.sum(-1, keepdims=True), 1).astype(jnp.float32)
    x = tap(weights["embed"][tokens], "embed", axes=("batch", "pos", "d_model"))

    def body(x, at):
        i, w = at
        h = jax.nn.relu((x + 0.1 * mix @ x) @ w["up"] + w["b"][None, None])
        h = tap(h, SITE, layer=i, axes=("batch", "pos", "neuron"))
        return x + h @ w["down"], None

    layers = jnp.arange(weights["blocks"]["b"].shape[0], dtype=jnp.int32)
    x, _ = jax.lax.scan(body, x, (layers, weights["blocks"]))
    return x if "unembed" not in weights else tap(x @ weights["unembed"], "logits", axes=("batch", "pos", "d_vocab"))


def token_group(tokens):
    """Tokens 0..11 belong to group 0, 12..23 to 1, 24..35 to 2; 36..39 to none."""
    return np.asarray(tokens) // 12


def make_weights(planted: bool, head: bool = True):
    rng = np.random.default_rng(0)
    embed = 0.3 * rng.normal(size=(V, D))
    unembed = 2 * embed.T.copy()
    embed[:, -2 * K :] = unembed[-2 * K :] = 0
    for v in range(36):
        embed[v, D - 2 * K + v // 12] = unembed[D - K + v // 12, v] = 1.0  # a token says which group it is of
    up, down = 0.5 * rng.normal(size=(L, D, F)), 0.05 * rng.normal(size=(L, F, D))
    b = rng.uniform(-0.9, 0.1, (L, F))  # firing rates from a few to about 60 per cent
    up[:, -2 * K :] = down[:, :, -2 * K :] = 0  # other neurons neither look nor say
    if planted:
        for k, places in PLANTED.items():
            for layer, f in places:
                up[layer, :, f] = 0
                up[layer, D - 2 * K + k, f], b[layer, f] = 4.0, -2.0
                down[layer, f] = 0
                down[layer, f, D - K + k] = 0.7  # and makes the group's tokens likelier
    up[2, :, 11], b[2, 11] = 0, -1.0  # a dead neuron
    w = {"embed": embed, "blocks": {"up": up, "b": b, "down": down}}
    if head:
        w["unembed"] = unembed
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), w)


def random_weights(cfg, dtype=jnp.float32):
    """Weights of any model without compiling its initialiser."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))

    def leaf(path, a):
        gain = path[-1].key == "scale"
        return jnp.asarray(gain + 0.3 * rng.normal(size=a.shape), dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def make_batches(n_batches=8, seed=1, padding="right", fillers=True):
    """Windows whose tokens are mostly of their group; ragged lengths, special tokens, a filler row at the end."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n_batches):
        group = rng.permutation(np.arange(B) % K).astype(np.int32)
        tokens = np.where(rng.random((B, T)) < 0.95, group[:, None] * 12 + rng.integers(0, 12, (B, T)), 36)
        length = rng.integers(4, T + 1, B)
        mask = np.arange(T) < length[:, None]
        window = (i * B + np.arange(B)).astype(np.int32)
        counted = mask & (tokens != 36)  # a special token, also in the middle
        counted[:, 0] = False
        if fillers and i == n_batches - 1:
            mask[-1], counted[-1], window[-1] = False, False, -1
        if padding == "left":
            roll = lambda a, n=length: np.stack([np.roll(r, T - m) for r, m in zip(a, n, strict=True)])  # noqa: E731
            tokens, mask, counted = roll(tokens), roll(mask), roll(counted)
        out.append(
            {"tokens": tokens.astype(np.int32), "mask": mask, "counted": counted, "group": group, "window": window}
        )
    return out


@pytest.fixture(scope="session")
def toy():
    """The planted model, the same without planting, text, and true plus shuffled labels by window."""
    batches = make_batches()
    group = np.zeros(len(batches) * B, np.int32)
    for b in batches:
        group[b["window"][b["window"] >= 0]] = b["group"][b["window"] >= 0]
    chosen = np.zeros((K, L, F), bool)
    for k, places in PLANTED.items():
        for layer, f in places:
            chosen[k, layer, f] = True
    return types.SimpleNamespace(
        apply=forward, weights=make_weights(True), plain=make_weights(False), batches=batches, group=group,
        chosen=chosen, L=L, F=F, K=K, T=T, B=B, D=D, V=V, site=SITE, planted=PLANTED,
        run=run_method, compiled=compiled, make_batches=make_batches, make_weights=make_weights,
        random_weights=random_weights,
    )  # fmt: skip


@functools.cache
def compiled(method):
    return jax.jit(method.init), jax.jit(method.step)


def run_method(method, batches, weights, labels):
    """The driver's loop in five lines."""
    init, step = compiled(method)
    state = None
    for b in batches:
        window = b["window"]
        b = {**b, "weights": weights, "labels": np.where(window[:, None] >= 0, labels[window], -1).astype(np.int32)}
        state = init(jax.random.key(0), b) if state is None else state
        state, _ = step(state, b)
    return method.finish(state)


@pytest.fixture(scope="session")
def labels(toy):
    return shuffled_labels(toy.group, 40, seed=3)


@pytest.fixture(scope="session")
def method(toy):
    return group_statistics(toy.apply, toy.site, toy.K, bins=16, n_examples=4, responses_per_group=12)


@pytest.fixture(scope="session")
def table(toy, method, labels):
    return run_method(method, toy.batches, toy.weights, labels)
