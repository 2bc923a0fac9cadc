# SPDX-License-Identifier: Apache-2.0
"""Tokens of a text that a study does not count, by id, position or norm: sinks, say, that would set every scale."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from ..console import say
from ..data import Subset, Windows, batches, in_turns
from ..errors import UserError
from ..left_out import leaving_out, norm_limit, norms
from ..taps import capture
from .config import TextConfig

STREAM: Final = "blocks.resid_post"


def without(rows: Windows, model: Any, text: TextConfig) -> Windows:
    """The windows without the ids and positions that are left out.

    Raises:
      UserError: as `leaving_out`; a group has no counted token left.
    """
    if not (text.without_ids or text.without_positions):
        return rows
    change = leaving_out(text.without_ids, text.without_positions, model.cfg.d_vocab)
    return _counting(rows.leaving_out(change, f"{text.without_ids} {text.without_positions}"), rows)


def without_long(used: Subset, model: Any, text: TextConfig, batch_size: int, seed: int) -> Subset:
    """The same windows without tokens whose stream, after any layer, is longer than text.max_norm median norms there.

    Medians are those of the counted tokens of the first batch, one in which all groups are; NaN is not long.

    Raises:
      UserError: a group has no counted token left.
    """
    if text.max_norm is None:
        return used
    whole = used.base
    assert isinstance(whole, Windows)
    place, long = np.full(len(whole) + 1, -1), np.zeros((len(used) + 1, used.length), bool)
    place[used.indices] = np.arange(len(used))
    for window, found in _long(in_turns(used, seed), model, text.max_norm, batch_size):
        long[place[window]] = found  # filler rows have the last place of both, and nothing to count

    def change(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**batch, "counted": batch["counted"] & ~long[place[batch["window"]]]}

    name = hashlib.sha256(long.tobytes()).hexdigest()
    found = Subset(whole.leaving_out(change, name), used.indices)
    n = int(used.tokens_per_group.sum() - found.tokens_per_group.sum())
    say(f"{n} of {used.tokens_per_group.sum()} tokens are longer than {text.max_norm:g} median norms: left out")
    return _counting(found, used)


def _long(rows: Subset, model: Any, most: float, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(window [b], too long at some layer [b, pos]) of every batch."""
    read = capture(model.apply, {STREAM: norms})

    @jax.jit
    def lengths(weights: Any, batch: Any) -> jax.Array:
        return read(weights, batch["tokens"], batch["mask"])[1][STREAM]

    @functools.partial(jax.vmap, in_axes=(0, None))
    def limits(length: jax.Array, counted: jax.Array) -> jax.Array:
        return norm_limit(length[..., None], counted, most)

    limit = np.full((), np.nan, np.float32)  # NaN: of no counted token yet
    for batch in batches(rows, batch_size=min(batch_size, len(rows))):
        length = lengths(model.weights, {k: batch[k] for k in ("tokens", "mask")})
        if np.isnan(limit).all():
            limit = np.asarray(limits(length, jnp.asarray(batch["counted"])))[:, None, None]
        yield batch["window"], (np.asarray(length) > limit).any(0) & batch["counted"]


def _counting[R: (Windows, Subset)](rows: R, before: R) -> R:
    if empty := [name for name, n in zip(rows.group_names, rows.tokens_per_group, strict=True) if not n]:
        raise UserError(
            f"`without_ids`, `without_positions` and `max_norm` leave no token of {len(empty)} of "
            f"{len(before.group_names)} groups. Leave out fewer."
        )
    return rows
