# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np

from jaxneuro.models.convnet import convnet_shapes
from jaxneuro.models.layout import nest


def random_weights(cfg, seed=0):
    """Weights in which no statistic is where it starts, and every map keeps its size."""
    rng = np.random.default_rng(seed)

    def leaf(name, shape):
        if name.endswith(("scale", "var")):
            return rng.uniform(0.7, 1.3, shape)
        fan_in = np.prod(shape[-4:-1]) if ".conv" in name else 10
        return rng.normal(0.1, (2 / fan_in) ** 0.5, shape)

    return nest(jax.device_put({n: leaf(n, s).astype(np.float32) for n, s in convnet_shapes(cfg).items()}))
