# SPDX-License-Identifier: Apache-2.0
"""How objects are shown in a REPL: one line, arrays by type and shape, only what differs from its default."""

import dataclasses
from typing import Any

import jax
from jax.core import Tracer

from ..errors import shown


def value(x: Any) -> str:
    """One value in a few words.

    Example:
      >>> value(jnp.zeros((2, 3))), value(3), value(jnp.float32(2.5)), value((1, None))
      ('float32[2, 3]', '3', '2.5', '(1, None)')
    """
    if isinstance(x, tuple | list):
        inside = ", ".join(map(value, x))
        return f"({inside})" if isinstance(x, tuple) else f"[{inside}]"
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        return x.__name__ if hasattr(x, "__name__") else repr(x)
    there: Any = x
    known = not isinstance(x, Tracer | jax.ShapeDtypeStruct) and getattr(x, "is_fully_addressable", True)
    if x.shape == () and known:
        return f"{there.item():.6g}" if getattr(x.dtype, "kind", "") == "f" else str(x)
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"


def brief(x: Any) -> str:
    """`value`, where an object could say pages: for messages."""
    return shown(x) if isinstance(x, str) or not hasattr(x, "dtype") else value(x)


def fields(obj: Any) -> str:
    """A dataclass by the fields that differ from their defaults."""
    parts = [f"{f.name}={value(v)}" for f in dataclasses.fields(obj) if _told(v := getattr(obj, f.name), f)]
    return f"{type(obj).__name__}({', '.join(parts)})"


def sizes(obj: Any) -> str:
    """A dictionary by its sizes, its dtype, and what of it is no array."""
    rest = [f for f in dataclasses.fields(obj) if not hasattr(getattr(obj, f.name), "dtype")]
    parts = [f"{name}={getattr(obj, name)}" for name in ("d_in", "d_out", "n_latents") if hasattr(obj, name)]
    parts += [f"{f.name}={value(v)}" for f in rest if _told(v := getattr(obj, f.name), f)]
    dtypes = {str(a.dtype) for f in dataclasses.fields(obj) if hasattr(a := getattr(obj, f.name), "dtype")}
    return f"{type(obj).__name__}({', '.join([*parts, *sorted(dtypes)])})"


def _told(x: Any, field: dataclasses.Field[Any]) -> bool:
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return type(x) is not type(default) or hasattr(x, "shape") or x != default
