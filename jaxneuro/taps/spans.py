# SPDX-License-Identifier: Apache-2.0
"""Where the positions of a value begin and end, in every row: said once per pass of a model, read by every edit."""

from typing import Any, Final, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

SPAN_OF: Final = {"pos": "pos", "query": "pos", "key": "key"}
"""Axis of a site -> the span of its tap that says what its indices mean."""


class Span(NamedTuple):
    """The positions along an axis: index 0 holds position `start`, and negative ones count from `end`.

    One for all rows, or one for each entry of the site's first axes ([batch]).
    """

    start: int | Int[Array, ""] | Int[Array, "batch"]
    """Below 0 where a row begins with padding: position 0 is its first real token."""
    end: int | Int[Array, ""] | Int[Array, "batch"] | None = None
    """One behind the last real token; None: behind the last index of the axis."""
    size: int | None = None
    """Most positions that a row can have here; None: that is known only when the program runs."""


def packed(span: Span) -> Int[Array, "*own ends"]:
    """A span as an operand of a tap: start, and end where it is known, along the last axis."""
    ends = [a for a in (span.start, span.end) if a is not None]
    return jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(a, jnp.int32) for a in ends)), axis=-1)


def unpacked(operand: Any) -> Span:
    """What `packed` packed."""
    return Span(operand[..., 0], operand[..., 1] if operand.shape[-1] == 2 else None)
