# SPDX-License-Identifier: Apache-2.0
"""Some of the windows, in the same clothes: for a split into studied and measured text, say."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .by_row import ByRow, counted_per_group, counted_per_row
from .windows import Windows

if TYPE_CHECKING:
    from .paired import Paired
    from .picture_rows import PictureRows


def draw_windows(rows: "Windows | Paired | PictureRows", max_tokens_per_group: int | None, seed: int) -> "Subset":
    """Windows drawn at random over every whole group, until one more would be too much; at least two of each.

    Args:
      rows: all windows.
      max_tokens_per_group: counted tokens; None: all of them.
      seed: same seed, same windows. A group's draw depends on the seed and its number alone.
    Returns:
      Subset, in the order of `rows`.
    """
    n, chosen = counted_per_row(rows), []
    for g in range(len(rows.group_names)):
        mine = np.random.default_rng([seed, g]).permutation(np.flatnonzero(rows.group == g))
        enough = len(mine) if max_tokens_per_group is None else np.sum(np.cumsum(n[mine]) <= max_tokens_per_group)
        chosen.append(np.sort(mine[: max(enough, 2)]))
    return Subset(rows, np.concatenate(chosen))


class Subset(ByRow):
    """Chosen windows of a `Windows` or `Paired`; `batches`, `harvest` and the statistics take it like the whole.

    A row's `window` stays its number in the whole, so labels and examples need no translation.

    Args:
      base: all windows.
      indices: numbers of the chosen ones, in the order wanted.
    Raises:
      UserError: a number outside the windows, or none at all.
    """

    def __init__(self, base: "Windows | Paired | PictureRows", indices: Sequence[int] | np.ndarray):
        self.base, self.indices = base, np.asarray(indices, np.int64)
        if not self.indices.size or self.indices.min() < 0 or self.indices.max() >= len(base):
            raise UserError(f"a subset needs window numbers from 0 to {len(base) - 1}, at least one of them.")
        self.group_names, self.length = base.group_names, base.length
        self.group, self.block = base.group[self.indices], base.block[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Windows stacked on axis 0; an index past the end gives a filler row, as in `Windows.rows`."""
        at = np.asarray(indices, np.int64)
        inside = at < len(self)
        return self.base.rows(np.where(inside, self.indices[np.where(inside, at, 0)], len(self.base)))

    @property
    def tokenizer(self) -> Any:
        """Of windows of text."""
        return getattr(self.base, "tokenizer", None)

    @property
    def counted_each(self) -> np.ndarray | None:
        """int64 [n], where the whole knows it without reading: see `PictureRows`."""
        known = getattr(self.base, "counted_each", None)
        return None if known is None else known[self.indices]

    @property
    def tokens_per_group(self) -> np.ndarray:
        """int64 [n_groups]: counted tokens of the chosen windows."""
        return self._tokens_per_group

    @cached_property
    def _tokens_per_group(self) -> np.ndarray:
        return counted_per_group(self)

    @property
    def fingerprint(self) -> str:
        """A hash of the whole's fingerprint and the chosen numbers."""
        return hashlib.sha256(self.base.fingerprint.encode() + self.indices.tobytes()).hexdigest()


def in_turns(rows: Subset, seed: int) -> Subset:
    """The same windows, the blocks of every group taking turns: however few of the first are kept, many documents are
    among them. Windows of a block are in random order."""
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    by_block = shuffled[np.argsort(rows.block[shuffled], kind="stable")]
    block = rows.block[by_block]
    turn = np.arange(len(rows)) - np.searchsorted(block, block)
    return Subset(rows.base, rows.indices[by_block[np.lexsort((block, turn))]])
