# SPDX-License-Identifier: Apache-2.0
"""A value at a site as an edit sees it: what its axes mean, where it starts, what broadcasts to it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from ..axes import aligned
from ..errors import UserError
from . import reading
from .spans import SPAN_OF, Span, unpacked
from .survey import manual_mesh, mesh_axes, whole_shape


@dataclasses.dataclass(frozen=True)
class View:
    """A value at a site with what its axes mean. Inside shard_map, a shard of the whole where the spec says so."""

    site: str
    x: Array
    spans: dict[str, Any]
    params: dict[str, Any]

    @property
    def ndim(self) -> int:
        return self.params["ndim"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[self.x.ndim - self.ndim :]

    @property
    def whole(self) -> tuple[int, ...]:
        return whole_shape(self.shape, self.params["spec"], dict(manual_mesh()))

    def start(self, axis: int) -> Any:
        """Where along an axis of the whole this shard starts."""
        if self.shape[axis] == self.whole[axis]:
            return 0
        manual = dict(manual_mesh())
        names = tuple(a for a in mesh_axes(self.params["spec"][axis]) if a in manual)
        return jax.lax.axis_index(names) * self.shape[axis]

    def pointwise(self, op: Callable[..., Any], args: tuple[Any, ...]) -> Array:
        """op(x, *args), calculated in the widest of the types, given back in x's."""
        fitted = [None if a is None else self.fit(a, op.__name__.strip("_")) for a in args]
        with jax.numpy_dtype_promotion("standard"):  # whatever the user forbids in their own code
            wide = functools.reduce(jnp.promote_types, [a.dtype for a in fitted if a is not None], self.x.dtype)
        if jnp.issubdtype(wide, jnp.complexfloating) and not jnp.issubdtype(self.x.dtype, jnp.complexfloating):
            raise UserError(f"{self.site!r} holds {self.x.dtype}; a complex value does not fit. Give its real part.")
        new = op(self.x.astype(wide), *(None if a is None else a.astype(wide) for a in fitted))
        return new.astype(self.x.dtype)

    def call(self, fn: Partial, args: tuple[Any, ...]) -> Array:
        """fn(value, *args), mapped over the axes that vmap put in front of the site's own."""

        def one(value):
            new = jnp.asarray(fn(value, *args))
            if new.ndim and new.shape != value.shape:  # rows that broadcast over others are a slip, not an edit
                raise UserError(
                    f"{self.site!r}: what {getattr(fn.func, '__name__', 'the function')} returned has shape "
                    f"{new.shape}, which is not that of {describe(self.shape, self.params['axes'])}. Return the same "
                    "shape (jnp.broadcast_to), or one number."
                )
            return jnp.broadcast_to(new, value.shape).astype(value.dtype)

        for _ in range(self.x.ndim - self.ndim):
            one = jax.vmap(one)
        return one(self.x)

    def fit(self, value: Any, what: str) -> Array:
        """An argument that broadcasts to the whole site, cut to this shard."""
        value = jnp.asarray(value)
        lead = self.x.shape[: self.x.ndim - self.ndim]
        self._check(value.shape, lead + self.whole, f"a value for {what}")
        for axis in range(self.ndim):
            k = value.ndim - self.ndim + axis
            if k >= 0 and value.shape[k] != 1 and self.shape[axis] != self.whole[axis]:
                value = jax.lax.dynamic_slice_in_dim(value, self.start(axis), self.shape[axis], k)
        return split_like(self.x, aligned(value, self.x) if value.ndim else value)

    def hit(self, axis: str, index: Any) -> Array:
        """Where an index, index array or mask along one axis selects, shaped to broadcast with the site."""
        k = (self.params["axes"] or ()).index(axis)
        first, span, own = self.start(k), self.span(axis), self.span_ndim(axis)
        start = jnp.asarray(first + span.start)[..., None]
        end = jnp.asarray(self.whole[k] + span.start if span.end is None else span.end)[..., None]
        here = start + aligned(jnp.arange(self.shape[k], dtype=jnp.int32), start)
        index = jnp.asarray(index)
        if index.dtype == bool:
            hit = index.at[here].get(mode="fill", fill_value=False)
        else:
            index = aligned(index.astype(jnp.int32).reshape(-1), end)
            asked, here = jnp.where(index < 0, index + end, index)[..., None, :], here[..., None]
            hit = jnp.any(aligned(here, asked) == aligned(asked, here), axis=-1)
            here = here[..., 0]
        hit &= aligned(here >= 0, hit)  # padding before the first real token has no position
        return hit.reshape(hit.shape[:-1] + (1,) * (k - own) + (-1,) + (1,) * (self.ndim - k - 1))

    def span(self, axis: str) -> Span:
        """Which positions the indices of an axis hold: counted from 0 where the tap does not say otherwise."""
        operand = self.spans.get(SPAN_OF.get(axis, ""))
        return Span(0) if operand is None else unpacked(operand)

    def span_ndim(self, axis: str) -> int:
        """Of how many of the site's own axes the span has an entry each."""
        return next((n for name, n, _ in self.params["spans"] if name == SPAN_OF.get(axis)), 0)

    def _check(self, shape: tuple[int, ...], target: tuple[int, ...], what: str) -> None:
        if not broadcasts(shape, target):
            raise UserError(
                f"{self.site!r}: {what} has shape {shape}, which does not broadcast to "
                f"{describe(target, self.params['axes'])}."
            )


def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of one shape broadcasts to another without changing it."""
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape[::-1], target[::-1], strict=False))


def describe(shape: tuple[int, ...], axes: tuple[str, ...] | None) -> str:
    """A site's shape with its axis names; axes in front that have no name are vmap's."""
    names = ("vmap",) * (len(shape) - len(axes)) + tuple(axes) if axes else ()
    named = ", ".join(f"{a}={n}" for a, n in zip(names, shape, strict=bool(names)))
    return f"the site's axes ({named})" if named else f"the site's shape {shape}"


def split_like(x: Array, value: Array) -> Array:
    """A value that broadcasts to x, split over the mesh like x where types carry shardings."""
    sharding = reading.type_sharding(x)
    if sharding is None or value.ndim == 0:
        return value
    return jax.reshard(jnp.broadcast_to(value, x.shape), sharding)
