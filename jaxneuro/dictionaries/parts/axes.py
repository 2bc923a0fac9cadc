# SPDX-License-Identifier: Apache-2.0
"""Which axes of a mesh tokens and latents are split over, from inside `shard_map` (or `pmap`)."""

import math
from typing import NamedTuple

import jax
from jax import lax
from jaxneuro_kernels.vary import vary


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
        axes = () if self.data is None else (self.data,)
        return jax.tree.map(lambda x: vary(x, axes), tree)

    @property
    def shards(self) -> int:
        """Devices that tokens and latents are split over."""
        return math.prod(lax.axis_size(axis) for axis in self if axis is not None)
