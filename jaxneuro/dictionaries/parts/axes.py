# SPDX-License-Identifier: Apache-2.0
"""Which axes of a mesh tokens and latents are split over, from inside `shard_map` (or `pmap`)."""

from typing import NamedTuple

import jax
from jax import lax
from jaxneuro_kernels.vary import vary
from jaxtyping import Array


class Axes(NamedTuple):
    """Names of mesh axes; None where there is no such split. Static."""

    data: str | None = None
    latent: str | None = None

    def over_tokens[T](self, tree: T) -> T:
        """The sum over all devices' tokens."""
        return tree if self.data is None else jax.tree.map(lambda x: lax.psum(x, self.data), tree)

    def over_latents[T](self, tree: T) -> T:
        """The sum over all devices' latents."""
        return tree if self.latent is None else jax.tree.map(lambda x: lax.psum(x, self.latent), tree)

    def own[T](self, tree: T) -> T:
        """Parameters as each device's own, so that their gradients are sums over this device's tokens alone."""
        return tree if self.data is None else jax.tree.map(lambda x: vary(x, (self.data,)), tree)

    def mean_of_tokens(self, x: Array, n: Array) -> Array:
        """Sum over the leading axis of all devices, over n."""
        return self.over_tokens(x.sum(0)) / n
