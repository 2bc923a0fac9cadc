# SPDX-License-Identifier: Apache-2.0
"""Cards of a dictionary's latents: which groups they fire in, where they are strongest, which tokens they write."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..activations import ActivationArray
from ..dictionaries import SparseCoder
from ..models import unembedding
from ..neurons import decode_directions
from .inputs import Inputs

CHUNK = 8192
"""Tokens encoded together."""
KEPT = 64
"""Strongest tokens kept per latent, before one per window is taken."""


@partial(jax.jit, static_argnames="n_groups")
def _group_counts(dictionary: SparseCoder, x: jax.Array, group: jax.Array, n_groups: int) -> jax.Array:
    """int32 [n_latents, K]: tokens of each group on which each latent fires; group -1 counts nowhere."""
    vals, idx = dictionary.encode_sparse(x)
    fired = ((vals > 0) & (group >= 0)[:, None]).astype(jnp.int32)
    counts = jnp.zeros((dictionary.n_latents, n_groups), jnp.int32)
    return counts.at[idx, jnp.maximum(group, 0)[:, None]].add(fired)


@jax.jit
def _values(dictionary: SparseCoder, x: jax.Array, latents: jax.Array) -> jax.Array:
    """float32 [n, m]: the chosen latents on every token."""
    vals, idx = dictionary.encode_sparse(x)
    return jnp.sum(jnp.where(idx[:, :, None] == latents, vals[:, :, None], 0), 1)


def _chunks(acts: ActivationArray) -> Iterator[tuple[np.ndarray, int, int]]:
    """(rows padded to CHUNK, first row, number of real rows)."""
    for start in range(0, len(acts), CHUNK):
        x = np.asarray(acts.x[start : start + CHUNK], np.float32)
        yield np.pad(x, ((0, CHUNK - len(x)), (0, 0))), start, len(x)


def group_rates(dictionary: SparseCoder, acts: ActivationArray, n_groups: int) -> np.ndarray:
    """float64 [n_latents, K]: share of each group's tokens on which each latent fires."""
    counts = np.zeros((dictionary.n_latents, n_groups), np.int64)
    for x, start, n in _chunks(acts):
        group = np.full(CHUNK, -1, np.int32)
        group[:n] = acts.group[start : start + n]
        counts += np.asarray(_group_counts(dictionary, x, group, n_groups))
    return counts / np.maximum(np.bincount(acts.group, minlength=n_groups), 1)


def most_selective(rates: np.ndarray, n: int, floor: float = 1e-3) -> np.ndarray:
    """Latents whose firing is most concentrated on one group, taken from every group in turn.

    score_i = (max_k p_ik / sum_k p_ik) sqrt(max_k p_ik)        0 where max_k p_ik < floor
    """
    top, total = rates.max(1), np.maximum(rates.sum(1), 1e-12)
    score = np.where(top >= floor, top / total * np.sqrt(top), 0)
    order = np.argsort(-score, kind="stable")
    queues = [[i for i in order if rates[i].argmax() == k and score[i] > 0] for k in range(rates.shape[1])]
    taken = [q[r] for r in range(n) for q in queues if r < len(q)]
    return np.array(taken[:n], np.int32)


def strongest(dictionary: SparseCoder, acts: ActivationArray, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, rows) [m, KEPT]: each latent's strongest tokens, strongest first; row -1 where it fired less often."""
    values = np.zeros((len(latents), KEPT), np.float32)
    rows = np.full((len(latents), KEPT), -1, np.int64)
    for x, start, n in _chunks(acts):
        z = np.asarray(_values(dictionary, x, latents))[:n].T
        every = np.concatenate([values, z], 1)
        where = np.concatenate([rows, np.broadcast_to(np.arange(start, start + n), z.shape)], 1)
        best = np.argsort(-every, axis=1, kind="stable")[:, :KEPT]
        values, rows = np.take_along_axis(every, best, 1), np.take_along_axis(where, best, 1)
    return values, np.where(values > 0, rows, -1)


def latent_cards(inputs: Inputs, dictionary: SparseCoder, acts: ActivationArray) -> list[dict[str, Any]]:
    """One card per chosen latent, in the report's shape."""
    c, rates = inputs.config.cards, group_rates(dictionary, acts, len(inputs.groups))
    latents = most_selective(rates, c.latents)
    if not latents.size:
        return []
    _, rows = strongest(dictionary, acts, latents)
    density = (rates * np.bincount(acts.group, minlength=len(inputs.groups))).sum(1) / len(acts)
    tokens = _written(inputs, dictionary, latents)
    found = []
    for i, latent in enumerate(latents):
        rate = rates[latent]
        found.append(
            {
                "latent": int(latent),
                "density": float(density[latent]),
                "rate": rate.tolist(),
                "group": inputs.groups[int(rate.argmax())],
                "selectivity": float(rate.max() / rate.sum()),
                "examples": _examples(inputs, dictionary, acts, int(latent), rows[i]),
                **tokens[i],
            }
        )
    return found


def _written(inputs: Inputs, dictionary: SparseCoder, latents: np.ndarray) -> list[dict[str, Any]]:
    """Tokens that each latent's decoder row promotes and suppresses, where the model has an unembedding."""
    weights, cfg = inputs.model.weights, inputs.model.cfg
    if not cfg.has_head or dictionary.d_out != cfg.d_model:
        return [{"promoted": None, "suppressed": None}] * len(latents)
    rows = dictionary.W_dec[latents]
    if "final_norm" in weights:
        rows = rows * weights["final_norm"]["scale"].astype(jnp.float32)
    decoded = decode_directions(rows, unembedding(weights, cfg), inputs.config.cards.tokens)
    return [
        {"promoted": inputs.named(up, s_up), "suppressed": inputs.named(down, s_down)}
        for up, s_up, down, s_down in zip(*map(np.asarray, decoded[:4]), strict=True)
    ]


def _examples(
    inputs: Inputs, dictionary: SparseCoder, acts: ActivationArray, latent: int, rows: np.ndarray
) -> list[dict[str, Any]]:
    shown, seen, context = [], set(), inputs.config.cards.context
    for row in rows[rows >= 0]:
        window, peak = int(acts.window[row]), int(acts.pos[row])
        if window in seen or len(shown) == inputs.config.cards.examples:
            continue
        seen.add(window)
        ids = inputs.windows.tokens(window)
        first, last = max(peak - context, 0), min(peak + context + 1, len(ids))
        mine = np.flatnonzero((acts.window == window) & (acts.pos >= first) & (acts.pos < last))
        x = np.zeros((2 * context + 1, acts.x.shape[1]), np.float32)  # one shape, one program
        x[: len(mine)] = acts.x[mine]
        z = np.asarray(_values(dictionary, x, np.array([latent], np.int32)))[: len(mine), 0]
        values = np.zeros(last - first)
        values[acts.pos[mine] - first] = z
        shown.append(
            {
                "group": inputs.groups[int(acts.group[row])],
                "tokens": inputs.tokenizer.token_strings(ids[first:last].tolist()),
                "values": values.tolist(),
                "peak": peak - first,
            }
        )
    return shown
