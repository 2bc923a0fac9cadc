# SPDX-License-Identifier: Apache-2.0
"""Which mesh axes of a shard_map a value varies over: operands of one product, and the carry of a loop, must agree."""

from collections.abc import Iterable

import jax
from jax import Array, lax


def varying(*values: Array) -> frozenset[str]:
    """Mesh axes over which any of the values varies; empty outside shard_map.

    Example:
      >>> varying(jax.numpy.zeros(3))
      frozenset()
    """
    return frozenset().union(*(axes_of(jax.typeof(v)) for v in values))


def vary(x: Array, axes: Iterable[str]) -> Array:
    """x, said to vary over these axes as well; its transpose sums over them."""
    lacking = tuple(sorted(frozenset(axes) - varying(x)))
    return lax.pcast(x, lacking, to="varying") if lacking else x


def axes_of(aval: object) -> frozenset[str]:
    """The same of a type, or of what `jax.eval_shape` returns."""
    kind = getattr(aval, "manual_axis_type", None)  # jax 0.11; before that the field was called vma
    return frozenset(getattr(aval, "vma", ()) if kind is None else kind.varying)
