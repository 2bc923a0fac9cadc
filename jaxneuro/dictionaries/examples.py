# SPDX-License-Identifier: Apache-2.0
"""Where the latents of any dictionary fire: rates per group, the most selective and most active, their top examples."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from ..excerpts import excerpt
from ..protocols import Dictionary
from .dictionary import SparseCoder

TOKENS: Final = 8192
"""Encoded together where few latents are active at a token."""
VALUES: Final = 2**26
"""Most latents of all tokens together, where a dictionary gives every latent of every token."""
KEPT: Final = 64
"""Strongest tokens kept per latent, before one per window is taken."""


class Activations(Protocol):
    """Values of a site and where each is from: `jaxneuro.activations.ActivationArray`, or arrays of one length."""

    @property
    def x(self) -> Any:
        """[n_tokens, d_in], sliced in order."""
        ...

    @property
    def window(self) -> np.ndarray:
        """int [n_tokens]: index of the window in `windows`."""
        ...

    @property
    def pos(self) -> np.ndarray:
        """int [n_tokens]: position in the window."""
        ...

    @property
    def group(self) -> np.ndarray:
        """int [n_tokens]: number of the group."""
        ...

    def __len__(self) -> int: ...


@partial(jax.jit, static_argnames="n_groups")
def _group_counts(dictionary: Dictionary, x: jax.Array, group: jax.Array, n_groups: int) -> jax.Array:
    """int32 [n_latents, K]: tokens of each group on which each latent fires; group -1 counts nowhere."""
    if isinstance(dictionary, SparseCoder) and dictionary.k is not None:
        vals, idx = dictionary.encode_sparse(x)
        fired = ((vals > 0) & (group >= 0)[:, None]).astype(jnp.int32)
        counts = jnp.zeros((dictionary.n_latents, n_groups), jnp.int32)
        return counts.at[idx, jnp.maximum(group, 0)[:, None]].add(fired)
    fired = (dictionary.encode(x) > 0).astype(jnp.int32)
    return fired.T @ jax.nn.one_hot(group, n_groups, dtype=jnp.int32)


@jax.jit
def _values(dictionary: Dictionary, x: jax.Array, latents: jax.Array) -> jax.Array:
    """float32 [n, m]: the chosen latents on every token."""
    if isinstance(dictionary, SparseCoder) and dictionary.k is not None:
        vals, idx = dictionary.encode_sparse(x)
        return jnp.sum(jnp.where(idx[:, :, None] == latents[None, None], vals[:, :, None], 0), 1)
    return dictionary.encode(x)[:, latents].astype(jnp.float32)


def _chunks(dictionary: Dictionary, acts: Activations) -> Iterator[tuple[np.ndarray, int, int]]:
    """(rows padded to one length, first row, number of real rows)."""
    few = isinstance(dictionary, SparseCoder) and dictionary.k is not None
    size = TOKENS if few else max(1, min(TOKENS, VALUES // n_latents(dictionary)))
    for start in range(0, len(acts), size):
        x = np.asarray(acts.x[start : start + size], np.float32)
        yield np.pad(x, ((0, size - len(x)), (0, 0))), start, len(x)


def n_latents(dictionary: Any) -> int:
    """The number of latents of any dictionary."""
    return int(dictionary.n_latents)


def group_rates(dictionary: Dictionary, acts: Activations, n_groups: int) -> np.ndarray:
    """float64 [n_latents, K]: share of each group's tokens on which each latent fires (is above 0)."""
    counts = np.zeros((n_latents(dictionary), n_groups), np.int64)
    for x, start, n in _chunks(dictionary, acts):
        group = np.full(len(x), -1, np.int32)
        group[:n] = acts.group[start : start + n]
        counts += np.asarray(_group_counts(dictionary, x, group, n_groups))
    return counts / np.maximum(np.bincount(acts.group, minlength=n_groups), 1)


def most_selective(rates: np.ndarray, n: int, floor: float = 1e-3) -> np.ndarray:
    """Latents whose firing is most concentrated on one group, taken from every group in turn.

        score_i = (max_k p_ik / sum_k p_ik) sqrt(max_k p_ik)        0 where max_k p_ik < floor

    Args:
      rates: [n_latents, K], from `group_rates`.
    Example:
      >>> most_selective(np.array([[0.5, 0.0], [0.5, 0.5], [0.0, 0.2]]), 2).tolist()
      [0, 2]
    """
    top, total = rates.max(1), np.maximum(rates.sum(1), 1e-12)
    score = np.where(top >= floor, top / total * np.sqrt(top), 0)
    order = np.argsort(-score, kind="stable")
    queues = [[i for i in order if rates[i].argmax() == k and score[i] > 0] for k in range(rates.shape[1])]
    taken = [q[r] for r in range(n) for q in queues if r < len(q)]
    return np.array(taken[:n], np.int32)


def most_active(rates: np.ndarray, n: int) -> np.ndarray:
    """Latents that fire most often, groups counted alike.

    Example:
      >>> most_active(np.array([[0.5, 0.0], [0.5, 0.5], [0.0, 0.0]]), 3).tolist()
      [1, 0]
    """
    mean = rates.mean(1)
    order = np.argsort(-mean, kind="stable")
    return order[mean[order] > 0][:n].astype(np.int32)


def strongest(dictionary: Dictionary, acts: Activations, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, rows) [m, KEPT]: each latent's strongest tokens, strongest first; row -1 where it fired less often."""
    values = np.zeros((len(latents), KEPT), np.float32)
    rows = np.full((len(latents), KEPT), -1, np.int64)
    for x, start, n in _chunks(dictionary, acts):
        z = np.asarray(_values(dictionary, x, latents))[:n].T
        every = np.concatenate([values, z], 1)
        where = np.concatenate([rows, np.broadcast_to(np.arange(start, start + n), z.shape)], 1)
        best = np.argsort(-every, axis=1, kind="stable")[:, :KEPT]
        values, rows = np.take_along_axis(every, best, 1), np.take_along_axis(where, best, 1)
    return values, np.where(values > 0, rows, -1)


def latent_examples(
    dictionary: Dictionary,
    acts: Activations,
    windows: Any,
    tokenizer: Any,
    latents: Sequence[int] | np.ndarray,
    *,
    n: int = 5,
    context: int = 12,
    group_names: Sequence[str] | None = None,
    show: Callable[[np.ndarray, int], dict[str, Any]] | None = None,
) -> list[list[dict[str, Any]]]:
    """The `n` windows in which each latent is largest, as token strings with values around the peak.

    Args:
      dictionary: any; its latents are read with `encode_sparse` where few are active at a token, else with `encode`.
      acts: values of its site, of tokens of `windows`: `jaxneuro.activations.harvest(...)`.
      windows: has `tokens(i) -> ids` of window i, and `group_names` if none are given.
      tokenizer: see `jaxneuro.excerpts.excerpt`.
      latents: the chosen ones.
      context: tokens shown on each side of the peak; of a token that was not harvested the value is 0.
      show: of windows that are no text and have `length` positions: (values of all of them, position of the peak) ->
        what stands in the dict beside group and window (`jaxneuro.excerpts.patches`), without tokenizer and context.
    Returns:
      One list per latent of dicts: group (name), tokens (strings), values (floats), peak (index into tokens), window.
    Raises:
      UserError: a latent that the dictionary does not have, a width that is not its own.
    Example:
      >>> acts = harvest(model, rows, "blocks.3.resid_post", "acts", max_tokens=100_000)         # doctest: +SKIP
      >>> latent_examples(dictionary, acts, rows, tokenizer, [0, 7, 12])                         # doctest: +SKIP
    """
    chosen = checked(dictionary, latents)
    names = list(windows.group_names if group_names is None else group_names)
    _, rows = strongest(dictionary, acts, chosen)
    context = windows.length if show else context
    one = partial(_examples, dictionary, acts, windows, tokenizer, n=n, context=context, names=names, show=show)
    return [one(latent=int(latent), rows=rows[i]) for i, latent in enumerate(chosen)]


def checked(dictionary: Any, latents: Sequence[int] | np.ndarray) -> np.ndarray:
    """int32 [m]: the latents, all of which the dictionary has.

    Raises:
      UserError: it does not have one of them.
    """
    size, asked = n_latents(dictionary), [int(i) for i in latents]
    if wrong := [i for i in asked if not 0 <= i < size]:
        raise UserError(f"no latent {wrong[0]}: this dictionary has {size:,}, numbered from 0 to {size - 1:,}.")
    return np.array(asked, np.int32)


def _examples(
    dictionary: Dictionary, acts: Activations, windows: Any, tokenizer: Any,
    *, latent: int, rows: np.ndarray, n: int, context: int, names: list[str], show: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    shown: dict[int, dict[str, Any]] = {}
    for row in rows[rows >= 0]:
        window, peak = int(acts.window[row]), int(acts.pos[row])
        if window in shown or len(shown) == n:
            continue
        length = windows.length if show else len(windows.tokens(window))
        first, last = max(peak - context, 0), min(peak + context + 1, length)
        mine = np.flatnonzero((acts.window == window) & (acts.pos >= first) & (acts.pos < last))
        x = np.zeros((2 * context + 1, acts.x.shape[1]), np.float32)  # one shape, one program
        x[: len(mine)] = acts.x[mine]
        values = np.zeros(last - first)
        z = np.asarray(_values(dictionary, x, np.array([latent], np.int32)))[: len(mine), 0]
        values[acts.pos[mine] - first] = z
        if show:
            about = show(values, peak)
        else:
            about = excerpt(tokenizer, windows.tokens(window)[first:last].tolist(), values.tolist(), peak - first)
        shown[window] = {"group": names[int(acts.group[row])], **about, "window": window}
    return list(shown.values())
