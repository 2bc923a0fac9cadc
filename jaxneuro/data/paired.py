# SPDX-License-Identifier: Apache-2.0
"""Texts and their answers, side by side: what the encoder and the decoder of one model read."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import UserError
from .by_row import ByRow, counted_per_group
from .windows import Windows


class Paired(ByRow):
    """Rows for a model with an encoder: a decoder's tokens and, as "context" and "context_mask", what it answers.

    The decoder reads the start token and then the answer, as in training (teacher forcing): what it says of the last
    token of a row that is full is never read. The start token is real and not counted. `batches`, `harvest` and the
    statistics take it like `Windows`; group and window are the answer's.

    Args:
      texts, answers: of the same groups with one row per document: windows(..., packing="documents"). Answer i belongs
        to text i.
      start: the id that answers begin with, `Transformer.start_token`.
    Raises:
      UserError: other groups, or other numbers of documents.
    """

    def __init__(self, texts: Windows, answers: Windows, start: int):
        if texts.group_names != answers.group_names or not np.array_equal(texts.group, answers.group):
            shown = " and ".join(str(_sizes(rows)) for rows in (texts, answers))
            raise UserError(
                f"texts and answers go together document by document, but their groups have {shown} rows. Give the "
                "same groups with the same numbers of documents, packing='documents'."
            )
        self.texts, self.answers, self.start = texts, answers, start
        self.group_names, self.group, self.block = answers.group_names, answers.group, answers.block
        self.length, self.tokenizer = answers.length, answers.tokenizer

    def __len__(self) -> int:
        return len(self.group)

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows stacked on axis 0; an index past the end gives a filler row, as in `Windows.rows`."""
        text, answer = self.texts.rows(indices), self.answers.rows(indices)
        before = {"tokens": np.int32(self.start), "mask": answer["mask"][:, 0], "counted": np.False_}
        shifted = {name: _behind(answer[name], first) for name, first in before.items()}
        return {**answer, **shifted, "context": text["tokens"], "context_mask": text["mask"]}

    @property
    def tokens_per_group(self) -> np.ndarray:
        """int64 [n_groups]: counted tokens that the decoder reads."""
        return self._tokens_per_group

    @cached_property
    def _tokens_per_group(self) -> np.ndarray:
        return counted_per_group(self)

    @property
    def fingerprint(self) -> str:
        """A hash of both texts' and the start token."""
        return hashlib.sha256(f"{self.texts.fingerprint} {self.answers.fingerprint} {self.start}".encode()).hexdigest()


def _behind(rows: np.ndarray, first: Any) -> np.ndarray:
    """Every row one position later, behind `first`."""
    out = np.roll(rows, 1, axis=1)
    out[:, 0] = first
    return out


def _sizes(rows: Windows) -> dict[str, int]:
    return dict(zip(rows.group_names, np.bincount(rows.group, minlength=len(rows.group_names)).tolist(), strict=True))
