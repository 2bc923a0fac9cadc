# SPDX-License-Identifier: Apache-2.0
"""What is read by row: one, several, or a slice of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class ByRow(Sequence[dict[str, np.ndarray]]):
    """A sequence of rows, each a dict of arrays, that can read several at once."""

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows stacked on axis 0."""
        raise NotImplementedError

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.rows(range(*i.indices(len(self))))
        i = range(len(self))[i]  # IndexError and negative numbers as in a list
        return {name: column[0] for name, column in self.rows([i]).items()}
