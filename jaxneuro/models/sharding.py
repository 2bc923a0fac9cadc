# SPDX-License-Identifier: Apache-2.0
"""Where each leaf lives on a mesh: logical axes to mesh axes, one rule per axis name."""

import logging
import math
from collections.abc import Mapping
from typing import Any, Final

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..errors import UserError
from .config import Config
from .layout import layout, nest, shapes

RULES: Final = {
    "vocab": "model",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
    "dense_mlp": "model",
    "inner": "model",
    "expert": "expert",
    "embed": "fsdp",
    "token": "fsdp",
}
"""Axis of a leaf -> axis of the mesh, if the mesh has it. Layers are never split: the scan walks along them."""

_log = logging.getLogger("jaxneuro.models")


def shardings(cfg: Config, mesh: Mesh, rules: dict[str, str] = RULES) -> dict[str, Any]:
    """A pytree of NamedShardings with the structure of the weights.

    An axis that the mesh axis does not divide is replicated, and the log says so. How values inside the model are laid
    out is left to XLA's partitioner, so the axes must have the type Auto.

    Raises:
      UserError: an axis has the type Explicit (the default of jax.make_mesh); the mesh has an axis "expert" that does
        not divide the experts.
    Example:
      >>> import jax
      >>> from jaxneuro.models import Config
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> shardings(cfg, mesh)["blocks"]["attn"]["wq"].spec
      P(None, None, 'model', None)
    """
    names, lengths = layout(cfg), shapes(cfg)
    _check_types(mesh)
    parts = mesh.shape.get("expert", 1)
    if cfg.experts is not None and cfg.experts.n % parts:
        raise UserError(f"{cfg.experts.n} experts cannot be split over the {parts} devices of the mesh axis 'expert'.")
    return nest({leaf: NamedSharding(mesh, _spec(leaf, names[leaf], lengths[leaf], mesh, rules)) for leaf in names})


def device_mesh(axes: Mapping[str, int]) -> Mesh | None:
    """A mesh of the first devices, with axes of type Auto; None where one device is enough.

    Raises:
      UserError: a size below 1, more devices than there are.
    Example:
      >>> device_mesh({"data": 1, "model": 1}) is None
      True
    """
    asked, there = math.prod(axes.values()), jax.device_count()
    shown = " x ".join(f"{name} {size}" for name, size in axes.items())
    if min(axes.values()) < 1:
        raise UserError(f"devices: {shown} are asked for; each is 1 at least.")
    if asked > there:
        raise UserError(f"devices: {shown} = {asked} are asked for, {there} are there.")
    if asked == 1:
        return None
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=jax.devices()[:asked])


def _check_types(mesh: Mesh) -> None:
    if AxisType.Explicit in mesh.axis_types:
        raise UserError(
            f"a model cannot be laid out on the explicit mesh axes {mesh.axis_names}. Make the mesh with "
            f"jax.make_mesh({tuple(mesh.shape.values())}, {mesh.axis_names}, "
            f"axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)})."
        )


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
