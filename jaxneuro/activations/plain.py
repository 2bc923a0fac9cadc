# SPDX-License-Identifier: Apache-2.0
"""Plain Python and numpy values as JSON plus a list of arrays, and back: what a stream's state is made of."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError


def to_json(value: Any) -> tuple[Any, list[np.ndarray]]:
    """A value as JSON and the arrays it refers to. Tuples, bytes and keys that are not text survive.

    Raises:
      UserError: something in it is neither plain Python nor numpy.
    Example:
      >>> to_json({"next_index": 3, "buffer": np.zeros(2)})
      ({'next_index': 3, 'buffer': {'__array__': 0}}, [array([0., 0.])])
      >>> from_json(*to_json({1: (b"x", None)}))
      {1: (b'x', None)}
    """
    arrays: list[np.ndarray] = []

    def put(v: Any) -> Any:
        if v is None or isinstance(v, bool | int | float | str):
            return v
        if isinstance(v, list):
            return [put(u) for u in v]
        if isinstance(v, tuple):
            return {"__tuple__": [put(u) for u in v]}
        if isinstance(v, bytes):
            return {"__bytes__": base64.b64encode(v).decode()}
        if isinstance(v, np.generic) and v.dtype != object:
            return put(v.item())
        if isinstance(v, np.ndarray) and v.dtype != object:
            arrays.append(v.copy())  # a copy: its owner may go on writing into it
            return {"__array__": len(arrays) - 1}
        if isinstance(v, Mapping):
            if all(isinstance(k, str) and not k.startswith("__") for k in v):
                return {k: put(u) for k, u in v.items()}
            return {"__items__": [[put(k), put(u)] for k, u in v.items()]}
        raise UserError(
            f"a state to be saved holds a {type(v).__name__}, which a checkpoint cannot keep: let get_state() return "
            f"numbers, text, bytes, numpy arrays and containers of them."
        )

    return put(value), arrays


def from_json(value: Any, arrays: Sequence[np.ndarray] | Mapping[int, np.ndarray] = ()) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, list):
        return [from_json(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    if "__tuple__" in value:
        return tuple(from_json(v, arrays) for v in value["__tuple__"])
    if "__bytes__" in value:
        return base64.b64decode(value["__bytes__"])
    if "__array__" in value:
        return np.array(arrays[value["__array__"]])  # writable, and no longer anybody else's
    if "__items__" in value:
        return {from_json(k, arrays): from_json(v, arrays) for k, v in value["__items__"]}
    return {k: from_json(v, arrays) for k, v in value.items()}
