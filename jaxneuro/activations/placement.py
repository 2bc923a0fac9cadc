# SPDX-License-Identifier: Apache-2.0
"""Where the arrays of a run live, who owns them, and the one compiled step over them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ..errors import UserError
from .identity import describe, differences, leaf_names, table


def everywhere(sharding: Sharding | None, *trees: Any) -> NamedSharding | None:
    """Replicated over the devices of `sharding`, else of the first leaf that lies on several; None: one device.

    Raises:
      UserError: `sharding` names no mesh.
    """
    if sharding is not None and not isinstance(sharding, NamedSharding):
        raise UserError(f"sharding is a jax.sharding.NamedSharding of the batch axis, not {type(sharding).__name__}.")
    found = [x.sharding for x in jax.tree.leaves(trees) if _on_several(x)]
    for s in [sharding, *found] if sharding is not None else found:
        if isinstance(s, NamedSharding):
            return NamedSharding(s.mesh, PartitionSpec())
    return None


def _on_several(x: Any) -> bool:
    return isinstance(x, jax.Array) and len(x.sharding.device_set) > 1


def placed(tree: Any, spread: Sharding | None) -> Any:
    """The tree on the device(s); what already lies on several stays where it is."""
    return jax.tree.map(lambda x: x if _on_several(x) else jax.device_put(x, spread), tree)


def own(state: Any, spread: Sharding | None, *, borrowed: Any) -> Any:
    """A state that may be donated: arrays of fixed type, on their devices, sharing memory with nothing.

    Args:
      state: what a method's init returned; may hold numbers, numpy arrays, an array twice, or a borrowed one.
      spread: where leaves go that lie on one device.
      borrowed: what must survive.
    """
    seen = {p for x in jax.tree.leaves(borrowed) for p in _memory(x)}

    def leaf(name: str, x: Any) -> jax.Array:
        if not isinstance(x, jax.Array):
            try:
                x = jnp.array(x)
            except TypeError as e:
                raise UserError(f"state leaf {name!r} is {describe(x)}: a state is made of arrays.") from e
        x = x if _on_several(x) else jax.device_put(x, spread)
        if x.aval.weak_type:  # type: ignore[attr-defined]
            x = jax.lax.convert_element_type(x, x.dtype)
        if not seen.isdisjoint(_memory(x)):
            x = jnp.copy(x)
        seen.update(_memory(x))
        return x

    leaves, treedef = jax.tree.flatten(state)
    return treedef.unflatten([leaf(n, x) for n, x in zip(leaf_names(state), leaves, strict=True)])


def _memory(x: Any) -> list[int]:
    if not isinstance(x, jax.Array) or not x.size:
        return []
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return [s.data.unsafe_buffer_pointer() for s in x.addressable_shards]


def compiled(step: Callable[[Any, Any], tuple[Any, Any]], state: Any) -> Callable[[Any, Any, Mapping], Any]:
    """(state, batch, constants) -> (state, info, tick), one program; the state is donated and stays where it is.

    `tick` is there when the step is done; it can be waited for, where a donated state cannot.

    Raises:
      UserError: at the first call, if the step changes the state's structure, shapes or dtypes, or an info is not a
        scalar.
    """
    where, treedef = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    return _compiled(step, treedef, tuple(where))


@functools.lru_cache(
    maxsize=16
)  # one method run again, over the next chunk or after an interruption, is not recompiled
def _compiled(step: Callable[[Any, Any], tuple[Any, Any]], treedef: Any, where: tuple[Sharding, ...]) -> Any:
    def one(state: Any, batch: Any, constants: Mapping[str, Any]) -> tuple[Any, Any, jax.Array]:
        new, info = step(state, {**batch, **constants} if constants else batch)
        return _same_type(new, state), _scalars(info), jnp.zeros((), jnp.int32)

    several = any(len(s.device_set) > 1 for s in where)  # on one device it would commit the state: another program
    return jax.jit(one, donate_argnums=0, out_shardings=(treedef.unflatten(where), None, None) if several else None)


def _same_type(new: Any, old: Any) -> Any:
    new = jax.tree.map(jnp.asarray, new)
    lines = differences(table(old), table(new))
    if lines or jax.tree.structure(new) != jax.tree.structure(old):
        raise UserError(
            f"the method's step changes its state (there: before, here: after): "
            f"{'; '.join(lines) or 'another tree structure'}. Every step must return what it was given."
        )
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype) if _weak(x) else x, new)


def _weak(x: jax.Array) -> bool:
    return bool(jax.typeof(x).weak_type)


def _scalars(info: Any) -> Any:
    info = jax.tree.map(jnp.asarray, info)
    bad = {n: s for n, s in table(info).items() if not s.endswith("[]")}
    if bad:
        shown = ", ".join(f"{n} is {s}" for n, s in bad.items())
        raise UserError(f"a step's info is made of scalars, but {shown}. Reduce it, or keep it in the state.")
    return info
