# SPDX-License-Identifier: Apache-2.0
"""How evenly a neuron fires over groups, as a size: its entropy beside the most it can be, and exp of it in groups."""

import math
from collections.abc import Sequence
from typing import Final

from .svg import Number, finite

UNIFORM: Final = 0.9
"""Of the largest entropy: from here on the page calls a neuron close to uniform. (Of two groups: 68 % and 32 %.)"""


def entropy_of(rates: Sequence[Number]) -> float | None:
    """-sum_k p ln p in nats of p = rate / sum of rates; None for a neuron that never fires.

    Example:
      >>> entropy_of([0.2, 0.2]) == math.log(2), entropy_of([0.5, 0.0]), entropy_of([0.0, 0.0])
      (True, 0.0, None)
    """
    known = [float(r) for r in rates if finite(r) and r > 0]
    total = sum(known)
    return abs(sum(r / total * math.log(r / total) for r in known)) if total > 0 else None


def of_most(nats: Number, n_groups: int) -> str:
    """An entropy beside the largest of so many groups.

    Example:
      >>> of_most(2.187, 9)
      '2.19 of at most 2.20 nats'
    """
    return f"{nats:.2f} of at most {math.log(n_groups):.2f} nats" if finite(nats) and n_groups > 0 else "–"


def in_groups(nats: Number, n_groups: int) -> str:
    """exp(H): the number of groups over which even firing would have this entropy.

    Example:
      >>> in_groups(2.187, 9), in_groups(0.0, 9)
      ('8.9 of 9 groups', '1.0 of 9 groups')
    """
    return f"{math.exp(nats):.1f} of {n_groups} groups" if finite(nats) else "–"


def near_uniform(nats: Number, n_groups: int) -> bool:
    """Whether an entropy is at least `UNIFORM` of the largest."""
    return finite(nats) and n_groups > 1 and nats >= UNIFORM * math.log(n_groups)
