# SPDX-License-Identifier: Apache-2.0
"""Top examples of chosen neurons as text: the windows are run once more and only those neurons' values are kept."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from ..axes import by_position
from ..excerpts import excerpt
from ..taps import capture
from .table import GroupStatistics


def _gather(index: Array, mask: Array, x: Array) -> Array:
    return by_position(x, mask.shape)[..., index]


@partial(jax.jit, static_argnames=("apply", "site"))
def _values(weights: Any, tokens: Array, mask: Array, index: Array, apply: Callable, site: str) -> Array:
    _, out = capture(apply, {site: Partial(_gather, index, mask)})(weights, tokens, mask)
    return out[site] if out[site].ndim == 4 else out[site][None]


def neuron_examples(
    apply: Callable,
    weights: Any,
    statistics: GroupStatistics,
    windows: Any,
    tokenizer: Any,
    layers: Sequence[int],
    neurons: Sequence[int],
    *,
    n: int = 5,
    context: int = 12,
    batch_size: int = 16,
    group_names: Sequence[str] | None = None,
    show: Callable[[np.ndarray, int], dict[str, Any]] | None = None,
) -> list[list[dict[str, Any]]]:
    """The `n` windows in which each neuron is largest, as token strings with values around the peak.

    The distinct windows are run again in batches of `batch_size`; of every layer only the chosen neurons' values are
    kept, [layers, batch, pos, distinct neurons].

    Args:
      apply, weights: pure function (weights, tokens, mask) and its weights.
      statistics: from `group_statistics` with `n_examples` >= 1, over the same windows and at `statistics.site`.
      windows: random access; windows[i] is a mapping with `tokens`, `mask` [T]. It has `group_names` if none are given.
      tokenizer: has `token_strings(ids) -> list[str]`, or `joined_strings`: see `jaxneuro.excerpts`.
      layers, neurons: the chosen neurons; a layer is a row of `statistics`.
      context: tokens shown on each side of the peak.
      show: of windows that are no text: (values of all positions, position of the peak) -> what stands in the dict
        beside group and window (`jaxneuro.excerpts.patches`); tokenizer and context are not read.
    Returns:
      One list per neuron of dicts: group (name), tokens (strings), values (floats), peak (index into tokens), window.
    """
    names = list(windows.group_names if group_names is None else group_names)
    best = [statistics.examples(layer, f, n) for layer, f in zip(layers, neurons, strict=True)]
    wanted = sorted({e["window"] for rows in best for e in rows})
    index, column = np.unique(np.asarray(neurons, np.int32), return_inverse=True)
    shown: list[list[Any]] = [[None] * len(rows) for rows in best]
    for start in range(0, len(wanted), batch_size):
        here = wanted[start : start + batch_size]
        rows = [windows[i] for i in [*here, *[here[-1]] * (batch_size - len(here))]]  # one shape, one program
        tokens, mask = (np.stack([np.asarray(r[key]) for r in rows]) for key in ("tokens", "mask"))
        values = np.asarray(_values(weights, tokens, mask, index, apply, statistics.site), np.float32)
        row_of = {w: i for i, w in enumerate(here)}
        for i, examples in enumerate(best):
            for j, e in enumerate(examples):
                if (b := row_of.get(e["window"])) is not None:
                    line = values[layers[i], b, :, column[i]]
                    about = (
                        show(line, e["position"]) if show else _text(tokens[b], mask[b], line, e, context, tokenizer)
                    )
                    shown[i][j] = {"group": names[e["group"]], **about, "window": e["window"]}
    return shown


def _text(
    tokens: np.ndarray, mask: np.ndarray, values: np.ndarray, e: dict, context: int, tokenizer: Any
) -> dict[str, Any]:
    near = np.arange(max(e["position"] - context, 0), min(e["position"] + context + 1, len(tokens)))
    near = near[mask[near]]
    peak = int(np.flatnonzero(near == e["position"])[0])
    return excerpt(tokenizer, tokens[near].tolist(), values[near].tolist(), peak)
