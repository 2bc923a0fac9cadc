# SPDX-License-Identifier: Apache-2.0
"""The nnx module under every model: it owns a configuration and a nested dict of weights."""

from typing import Any

import jax
from flax import nnx

from .layout import Weights


class Owner(nnx.Module):
    """`nnx.split`, `merge`, `state`, `nnx.Optimizer` and passing it through `jax.jit` work as for any nnx module."""

    def __init__(self, cfg: Any, weights: Weights, hf_config: str = "{}", generation_config: str = "{}"):
        """hf_config, generation_config: config.json and generation_config.json that it came with, as JSON (hashable),
        kept for `save_pretrained`; the second is read by generation alone."""
        self.cfg = cfg
        self.hf_config = hf_config
        self.generation_config = generation_config
        self.params = nnx.data(jax.tree.map(nnx.Param, weights))

    @property
    def weights(self) -> Weights:
        """The weights as a plain nested dict of arrays (the arrays themselves, not copies)."""
        return jax.tree.map(nnx.Param.get_value, self.params, is_leaf=lambda p: isinstance(p, nnx.Param))

    def __repr__(self) -> str:
        """One line; `nnx.display` and a notebook's treescope show every array."""
        leaves = jax.tree.leaves(self.weights)
        n, dtypes = sum(a.size for a in leaves), sorted({str(a.dtype) for a in leaves})
        return f"{type(self).__name__}({n:,} parameters, {'/'.join(dtypes)}, {self.cfg!r})"
