# SPDX-License-Identifier: Apache-2.0
"""Texts as rows of token ids: what a tokenizer puts around a text, once, and rows of unequal length side by side."""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ..errors import UserError, unknown

Bos = Literal["auto", "always", "never"]
"""Whether texts begin with the begin token: as the tokenizer's own convention has it, always, or never."""
BOS: Final[dict[str, bool | None]] = {"auto": None, "always": True, "never": False}
"""The words of command lines -> `bos=` of `load_tokenizer` and `Tokenizer.batch`."""


class TokenBatch(NamedTuple):
    """Rows of token ids with padding, as models take them."""

    tokens: Int[np.ndarray, "batch pos"]
    mask: Bool[np.ndarray, "batch pos"]
    """True at real tokens, those that the tokenizer puts around a text included."""


def without(ids: Sequence[int], prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
    """The ids of a text without the special tokens that it spells out itself where the tokenizer would put them.

    Example:
      >>> without([1, 7, 8], prefix=(1,), suffix=(2,)), without([7, 8, 2], prefix=(0, 7), suffix=(2,))
      ([7, 8], [8])
    """
    ids = list(ids)
    ids = ids[_overlap(prefix, ids) :]
    return ids[: len(ids) - _overlap(ids, suffix)]


def around(ids: Sequence[int], prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
    """The ids between prefix and suffix, neither of them twice.

    Example:
      >>> around([7, 8], (1,), (2,)), around([1, 7, 8], (1,), ()), around([1, 7, 2], (0, 1), (2, 3))
      ([1, 7, 8, 2], [1, 7, 8], [0, 1, 7, 2, 3])
    """
    return [*prefix, *without(ids, prefix, suffix), *suffix]


def _overlap(left: Sequence[int], right: Sequence[int]) -> int:
    """How many of the last of one are the first of the other."""
    longest = min(len(left), len(right))
    return next((n for n in range(longest, 0, -1) if list(left[len(left) - n :]) == list(right[:n])), 0)


def padded(rows: Sequence[Sequence[int]], fill: int, *, side: str = "right", length: int | None = None) -> TokenBatch:
    """Rows side by side, shorter ones filled up.

    Args:
      side: where the filling is, "right" or "left".
      length: columns; None: those of the longest row.
    Raises:
      UserError: no such side; no rows; an empty row, or one longer than length.
    Example:
      >>> tokens, mask = padded([[5, 6], [7]], 0, side="left")
      >>> tokens.tolist(), mask.tolist()
      ([[5, 6], [0, 7]], [[True, True], [False, True]])
    """
    if side not in ("left", "right"):
        raise unknown("side", side, ("left", "right"), where="padding")
    lengths = np.array([len(row) for row in rows], np.int64)
    if not len(lengths):
        raise UserError("there are no texts. Give at least one.")
    if not lengths.all():
        raise UserError(f"text {int(lengths.argmin())} is empty: it gives no token. Leave it out, or give it words.")
    columns = int(lengths.max()) if length is None else length
    if columns < lengths.max():
        raise UserError(
            f"text {int(lengths.argmax())} has {lengths.max()} tokens, more than length={length}. Shorten it, or ask "
            "for more columns."
        )
    at, need = np.arange(columns), lengths[:, None]
    mask = at < need if side == "right" else at >= columns - need
    tokens = np.full(mask.shape, fill, np.int32)
    tokens[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return TokenBatch(tokens, mask)
