# SPDX-License-Identifier: Apache-2.0
"""What a run is, as JSON: shapes, seeds and fingerprints, so that a folder of another run is recognised."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MISSING = "absent"


def leaf_names(tree: Any) -> list[str]:
    """One readable name per leaf, in flattening order.

    Example:
      >>> leaf_names({"a": 1, "b": [2, 3]})
      ['a', 'b/0', 'b/1']
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def table(tree: Any) -> dict[str, str]:
    """Every leaf's name with its dtype and shape.

    Example:
      >>> table({"x": np.zeros((2, 3), np.float32)})
      {'x': 'float32[2,3]'}
    """
    return dict(zip(leaf_names(tree), map(describe, jax.tree.leaves(tree)), strict=True))


def describe(leaf: Any) -> str:
    """dtype and shape of one leaf, "float32[2,3]"; the type's name if it is no array or number."""
    if isinstance(leaf, bool | int | float):
        leaf = np.asarray(leaf)
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def key_name(key: Any) -> str:
    """A PRNG key as text, typed or not."""
    key = jnp.asarray(key)
    data = jax.random.key_data(key) if is_key(key) else key
    kind = str(key.dtype) if is_key(key) else "raw"
    return f"{kind} {np.asarray(data).ravel().tolist()}"


def is_key(x: Any) -> bool:
    """Whether x is a typed PRNG key array (or its shape)."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def fingerprint(tree: Any) -> str:
    """64 bits that change when any bit of any leaf changes (or moves), computed where the arrays are.

    Order of summation does not matter (integers modulo 2^32), so it is the same on one device and on many. It finds
    accidents, not forgeries.

    Example:
      >>> a = fingerprint({"w": np.arange(4.0, dtype=np.float32)})
      >>> a == fingerprint({"w": np.arange(4.0, dtype=np.float32)})
      True
      >>> a == fingerprint({"w": np.asarray([1, 0, 2, 3], np.float32)})
      False
    """
    parts = [np.asarray(_mix(jnp.asarray(x))) for x in jax.tree.leaves(tree)]
    words = np.stack([np.full(2, len(parts), np.uint32), *parts])
    return "".join(f"{int(w):08x}" for w in np.asarray(_mix(jnp.asarray(words))))


@jax.jit
def _mix(x: jax.Array) -> jax.Array:
    """Two sums over all elements of a hash of (bits, place): uint32 [2]."""
    if is_key(x):
        x = jax.random.key_data(x)
    bits = _bits(x)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    sums = []
    for seed in (0x9E3779B1, 0x85EBCA77):  # odd; the finaliser is MurmurHash3's
        h = (bits + jnp.uint32(1)) * jnp.uint32(seed) ^ place * jnp.uint32(0xC2B2AE3D)
        h = (h ^ h >> 16) * jnp.uint32(0x85EBCA6B)
        h = (h ^ h >> 13) * jnp.uint32(0xC2B2AE35)
        sums.append(jnp.sum(h ^ h >> 16, dtype=jnp.uint32))
    return jnp.stack(sums)


def _bits(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as it reads back from JSON (tuples become lists, paths and the like become text)."""
    return json.loads(json.dumps(dict(identity), default=str))


def differences(there: Any, here: Any, *, limit: int = 8) -> list[str]:
    """One line for every entry of two JSON values that differs.

    Example:
      >>> differences({"k": 32, "d": 8}, {"k": 64, "d": 8})
      ['k: there 32, here 64']
    """
    a, b = _flat(there), _flat(here)
    lines = [
        f"{name}: there {a.get(name, _MISSING)}, here {b.get(name, _MISSING)}"
        for name in [*a, *(n for n in b if n not in a)]
        if a.get(name, _MISSING) != b.get(name, _MISSING)
    ]
    return lines if len(lines) <= limit else [*lines[:limit], f"... and {len(lines) - limit} more"]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {name: leaf for k, v in value.items() for name, leaf in _flat(v, f"{prefix}.{k}" if prefix else k).items()}
