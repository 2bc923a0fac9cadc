# SPDX-License-Identifier: Apache-2.0
"""Where each leaf lives on a mesh: logical axes to mesh axes, one rule per axis name."""

import logging
import math
from typing import Any, Final

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .config import Config
from .layout import layout, nest, shapes

RULES: Final = {"vocab": "model", "heads": "model", "kv_heads": "model", "mlp": "model", "embed": "fsdp"}
"""Axis of a leaf -> axis of the mesh, if the mesh has it. Layers are never split: the scan walks along them."""

_log = logging.getLogger("jaxneuro.models")


def shardings(cfg: Config, mesh: Mesh, rules: dict[str, str] = RULES) -> dict[str, Any]:
    """A pytree of NamedShardings with the structure of the weights.

    An axis that the mesh axis does not divide is replicated, and the log says so.

    Example:
      >>> import jax
      >>> from jaxneuro.models import Config
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> shardings(cfg, jax.make_mesh((1,), ("model",)))["blocks"]["attn"]["wq"].spec
      PartitionSpec(None, None, 'model', None)
    """
    names, lengths = layout(cfg), shapes(cfg)
    return nest({leaf: NamedSharding(mesh, _spec(leaf, names[leaf], lengths[leaf], mesh, rules)) for leaf in names})


def _spec(leaf: str, axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, rules: dict[str, str]) -> PartitionSpec:
    out = []
    for axis, length in zip(axes, shape, strict=True):
        target = rules.get(axis)
        target = target if target in mesh.shape else None
        if target is not None and length % mesh.shape[target]:
            _log.warning(
                "%s: axis %r of length %d is replicated, the mesh axis %r of %d does not divide it",
                *(leaf, axis, length, target, mesh.shape[target]),
            )
            target = None
        out.append(target)
    return PartitionSpec(*out)


def bytes_per_device(cfg: Config, mesh: Mesh, itemsize: int = 2) -> int:
    """Bytes of weights that each device holds under `shardings`."""
    table = layout(cfg)
    total = 0
    for leaf, shape in shapes(cfg).items():
        spec = _spec(leaf, table[leaf], shape, mesh, RULES)
        total += math.prod(shape) // math.prod(mesh.shape[a] for a in spec if a is not None)
    return total * itemsize
