# SPDX-License-Identifier: Apache-2.0
"""T5's positions: a learned number per head and bucket of distances, added to the scores of every layer."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..axes import aligned
from ..errors import UserError
from .ranges import check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeBias:
    """How distances fall into buckets: near ones have one each, farther ones share them logarithmically.

    Example:
      >>> RelativeBias(buckets=8, max_distance=16).bucket_of(12, causal=True).tolist()
      [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6]
    """

    buckets: int = 32
    """In all; without a causal mask one half of them is for keys after the query."""
    max_distance: int = 128
    """From here on all distances are one."""
    per_layer: bool = False
    """Every layer has a table of its own (UMT5)."""

    def __post_init__(self):
        check_fields(self, "relative.")
        if self.buckets < 4 or self.buckets % 4:
            raise UserError(f"relative.buckets={self.buckets} is not a multiple of four.")
        if self.max_distance <= self.buckets // 2:
            raise UserError(f"relative.max_distance={self.max_distance} must be over half of {self.buckets} buckets.")

    def bucket_of(self, length: int, *, causal: bool) -> np.ndarray:
        """The buckets of the distances 0 .. length-1 in one direction, in transformers' float32 steps."""
        n = self.buckets if causal else self.buckets // 2
        near = n // 2
        distance = np.arange(length)
        ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(near))
        far = near + (ratio / np.float32(math.log(self.max_distance / near)) * np.float32(n - near)).astype(np.int32)
        return np.where(distance < near, distance, np.minimum(far, n - 1)).astype(np.int32)

    def scores(
        self,
        table: Float[Array, "bucket head"],
        length: int,
        *,
        causal: bool,
        at: Int[Array, "*batch q"] | None = None,
    ) -> Float[Array, "*batch head q k"]:
        """What is added to the score of every pair of positions.

        Args:
          length: number of keys.
          at: positions of the queries; None: those of the keys.
        Source: arXiv 1910.10683; transformers' T5.
        """
        keys = jnp.arange(length, dtype=jnp.int32)
        queries = (keys if at is None else at)[..., None]
        offset = aligned(keys, queries) - queries
        before = jnp.take(jnp.asarray(self.bucket_of(length, causal=causal)), jnp.abs(offset), axis=0)
        after = jnp.int32(0) if causal else before + jnp.int32(self.buckets // 2)  # causal: masked anyway
        buckets = jnp.where(offset > 0, after, before)
        return jnp.moveaxis(jnp.take(table, buckets, axis=0), -1, -3).astype(jnp.float32)
