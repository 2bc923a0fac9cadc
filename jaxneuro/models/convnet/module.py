# SPDX-License-Identifier: Apache-2.0
"""The Flax face of the pure function: an nnx module that owns the weights."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...taps import SiteTable, sites
from ..half import check_finite
from ..layout import Weights
from ..owner import Owner
from .forward import convnet
from .layout import ConvNet


@functools.cache
def apply_fn(cfg: ConvNet) -> Callable[..., Array]:
    """`convnet` with the configuration bound: one function object per configuration, so jit caches are shared."""

    def apply(weights: Weights, pixels: Float[Array, "batch row column channel"]) -> Array:
        """See `jaxneuro.models.convnet.convnet`."""
        return convnet(weights, pixels, cfg=cfg)

    apply.__qualname__ = "ConvModel.apply"  # what shows of `model.apply`, and in a TypeError of Python's
    return apply


class ConvModel(Owner):
    """A convolutional network: its configuration and its weights, as `Transformer` is one for transformers.

    The running statistics of its norms are weights like any other: gradients reach them, training does not update them.

    Example:
      >>> from jaxneuro.models.convnet import Residual, init_convnet
      >>> cfg = ConvNet(stem=8, depths=(1,), blocks=Residual(bottleneck=False, widths=(8,), mids=(8,)), n_classes=5)
      >>> model = ConvModel(cfg, init_convnet(cfg, jax.random.key(0)))
      >>> bool((model(model.example()) == model.apply(model.weights, model.example())).all())
      True
    """

    cfg: ConvNet

    def __init__(self, cfg: ConvNet, weights: Weights, hf_config: str = "{}", counters: str = "{}"):
        """Kept for `save_pretrained`, as JSON (hashable): the config.json it came with, and how many batches torch has
        counted at each norm, which nothing here reads."""
        super().__init__(cfg, weights, hf_config)
        self.counters = counters

    @property
    def apply(self) -> Callable[..., Array]:
        """The pure function (weights, pixels), the same object for equal configurations."""
        return apply_fn(self.cfg)

    def __call__(self, pixels: Float[Array, "batch row column channel"]) -> Array:
        """Logits, or the last map of a model without a head."""
        out = self.apply(self.weights, pixels)
        if out.dtype == jnp.float16:
            check_finite(out, f"this {self.cfg.family} model")
        return out

    def sites(self, pixels: Array | None = None) -> SiteTable:
        """All sites of the model; nothing runs. pixels: None: `example()`."""
        return sites(self.apply, self.weights, self.example() if pixels is None else pixels)

    def example(self) -> Float[Array, "1 row column channel"]:
        """One black picture, to list sites with."""
        size = max(64, self.cfg.min_pixels)
        return jnp.zeros((1, size, size, self.cfg.channels))
