# SPDX-License-Identifier: Apache-2.0
"""Edits: what `intervene` does to the value at a site. Pytrees, so that jit, vmap and grad reach what is inside."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array

from ..axes import aligned
from ..errors import UserError, shown, unknown
from . import reprs
from .definitions import definition
from .names import parse
from .views import View, split_like

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """One edit of one site. Made by `zero`, `set_to`, `add`, `scale`, `clamp`, `patch` and `apply_fn`.

    The site, the operation and `per_layer` are fixed; everything else is a leaf: an argument of a compiled program
    that may change, be vmapped and be differentiated without compiling again.
    """

    site: str = dataclasses.field(metadata=_STATIC)
    op: Callable[..., Any] = dataclasses.field(metadata=_STATIC)
    args: tuple[Any, ...] = ()
    fn: Partial | None = None
    """The function of `apply_fn`."""
    layer: Any = None
    at: dict[str, Any] = dataclasses.field(default_factory=dict)
    where: Any = None
    per_layer: bool | None = dataclasses.field(default=False, metadata=_STATIC)
    """Whether args have a leading layer axis; None: to be told from their shape."""
    rows: tuple[int, ...] | None = dataclasses.field(default=None, metadata=_STATIC)
    """Layer numbers of the rows of per-layer arguments; found when the edit meets the model."""
    outside: Any = None
    """Whether a traced selector names what the site does not have, found likewise; None: none can."""

    @property
    def name(self) -> str:
        """The site's name without the layer."""
        return parse(self.site).name

    def __repr__(self) -> str:
        op = "apply_fn" if self.fn is not None else getattr(self.op, "__name__", "edit").strip("_")
        parts = [repr(self.site), *([reprs.value(self.fn.func)] if self.fn is not None else [])]
        parts += map(reprs.value, self.args)
        at = {"layer": self.layer, **self.at, "where": self.where}
        parts += [f"{name}={reprs.value(index)}" for name, index in at.items() if index is not None]
        return f"{op}({', '.join([*parts, *(['per_layer=True'] if self.per_layer else [])])})"

    def apply(self, x: Array, layer: Any, spans: dict[str, Any], params: dict[str, Any]) -> Array:
        """The value with the edit made. `layer`, `spans` and `params` are the tap's."""
        layers = parse(self.site).layers
        if isinstance(layer, int) and layers is not None and layer not in layers:
            return x
        view = View(self.site, x, spans, params)
        args = self.args
        if self.per_layer:
            args = jax.tree.map(lambda a: _row(a, layer, self.rows), args)
        new = view.call(self.fn, args) if self.fn is not None else view.pointwise(self.op, args)
        hits = [view.hit(axis, index) for axis, index in self.at.items()]
        if self.where is not None:
            hits.append(view.fit(self.where, "where").astype(bool))
        if layer is not None and layers is not None and not isinstance(layer, int):
            hits.append(jnp.any(layer == np.array(layers, np.int32)))
        if layer is not None and self.layer is not None:
            hits.append(jnp.any(layer == jnp.asarray(self.layer, jnp.int32)))
        if hits:
            hit = functools.reduce(jnp.logical_and, [aligned(hit, x) for hit in hits])
            new = jnp.where(split_like(x, hit), new, x)
        if self.outside is None or not jnp.issubdtype(x.dtype, jnp.inexact):
            return new
        return jnp.where(split_like(x, self.outside), jnp.full_like(new, jnp.nan), new)


def numbers_as_arrays(edit: Edit) -> Edit:
    """The edit with numbers as arguments of the program, so that another number is not another program. What a user's
    function is given stays: it may branch on it."""

    def array(a: Any) -> Any:
        return jnp.asarray(a) if isinstance(a, bool | int | float | complex) else a

    args = edit.args if edit.fn is not None else tuple(map(array, edit.args))
    return dataclasses.replace(edit, args=args, at={axis: array(index) for axis, index in edit.at.items()})


def _row(a: Any, layer: Any, rows: tuple[int, ...] | None) -> Any:
    """One layer of a per-layer argument. Scalars are the same for all layers."""
    if jnp.ndim(a) == 0:
        return a
    if rows is None or rows == tuple(range(len(rows))):
        row = layer
    elif isinstance(layer, int):
        row = rows.index(layer)
    else:
        row = jnp.argmax(np.array(rows, np.int32) == layer)
    return jax.lax.dynamic_index_in_dim(jnp.asarray(a), row, 0, keepdims=False)


def _zero(x):
    return jnp.zeros_like(x)


def _set_to(x, value):
    return jnp.broadcast_to(value, x.shape)


def _patch(x, source):
    return _set_to(x, source)


def _add(x, vector):
    return x + vector


def _scale(x, factor):
    return x * factor


def _clamp(x, lo, hi):
    return jnp.clip(x, lo, hi)


class Selectors(TypedDict, total=False):
    """Keywords of every edit, for editors: see `zero`. Sites of your own may have other axes."""

    layer: Any
    where: Any
    per_layer: bool | None
    batch: Any
    pos: Any
    d_model: Any
    head: Any
    d_head: Any
    query: Any
    key: Any
    neuron: Any
    expert: Any
    channel: Any
    d_state: Any
    group: Any
    row: Any
    column: Any
    one: Any
    d_vocab: Any
    d_projection: Any


AXES: Final = frozenset(Selectors.__annotations__) | {"class"}
"""Selectors, and names of axes, of the library's own models. (`class` is written **{"class": 3}.)"""


def _make(
    site: str,
    op: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    fn: Partial | None = None,
    layer: Any = None,
    where: Any = None,
    per_layer: bool | None = False,
    **at: Any,
) -> Edit:
    if parse(site).layers is not None and layer is not None:
        raise UserError(f"{site!r} names its layer and layer= names another. Write '*' in the site to use layer=.")
    if definition(site) is not None and (wrong := [axis for axis in at if axis not in AXES]):
        raise unknown("axis", wrong[0], sorted(AXES), where=repr(site))
    layer = None if layer is None else _index(site, "layer", layer)
    at = {axis: _index(site, axis, index) for axis, index in at.items() if index is not None}
    args = tuple(_listed(site, a) for a in args) if fn is not None else tuple(_numbers(site, op, a) for a in args)
    _check_where(site, where)
    return Edit(site=site, op=op, args=args, fn=fn, layer=layer, at=at, where=where, per_layer=per_layer)


def _listed(site: str, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    try:
        return _array(value)
    except ValueError:
        raise UserError(f"{site!r}: the rows of {shown(value)} have unequal lengths. Give an array.") from None


def _numbers(site: str, op: Callable[..., Any], value: Any) -> Any:
    """The value of an edit: numbers, which None is only as a missing bound."""
    if value is None and op is _clamp:
        return None
    value = _listed(site, value)
    kind = getattr(value, "dtype", None) or np.asarray(value).dtype
    ordered = op is not _clamp or not jnp.issubdtype(kind, np.complexfloating)
    if not ordered or (not jnp.issubdtype(kind, np.number) and kind != np.bool_):
        what = op.__name__.strip("_")
        raise UserError(f"{what}({site!r}, {reprs.brief(value)}): the value is a number or an array of numbers.")
    return value


def _array(numbers: Any) -> Any:
    """A list of numbers as an array; some may be traced."""
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(numbers))
    return jnp.asarray(numbers) if traced else np.asarray(numbers)


def _index(site: str, axis: str, index: Any) -> Any:
    if isinstance(index, list | tuple | range):
        index = _array(index) if len(index) else np.zeros(0, np.int32)
    dtype = getattr(index, "dtype", np.asarray(index).dtype if isinstance(index, int) else None)
    if dtype is None or np.dtype(dtype).kind not in "iub":
        raise UserError(
            f"{site!r}: {axis}={index!r} selects nothing. Give an integer, an index array or a boolean mask."
        )
    if np.dtype(dtype).kind != "b" and not isinstance(index, Tracer):
        _check_numbers(site, axis, np.asarray(index))
    return index


def _check_numbers(site: str, axis: str, index: np.ndarray) -> None:
    if index.size and (index.min() < -(2**31) or index.max() >= 2**31):
        raise UserError(f"{site!r}: {axis}={np.abs(index).max()} is out of range: no axis is as long.")
    if index.ndim == 1 and len(unique := np.unique(index, return_counts=True)) and (unique[1] > 1).any():
        raise UserError(
            f"{site!r}: {axis}= names {unique[0][unique[1] > 1][0]} twice. It selects a set: name each entry once."
        )


def _check_where(site: str, where: Any) -> None:
    if where is None:
        return
    dtype = where.dtype if hasattr(where, "dtype") else np.asarray(where).dtype
    if np.dtype(dtype).kind not in "iub":
        raise UserError(f"{site!r}: where= is boolean, this is {dtype}.")


def zero(site: str, **at: Unpack[Selectors]) -> Edit:
    """Set the site to 0 where selected.

    Every edit takes the same selectors, as keywords:
      layer: an integer, index array or mask over layers; or write the layers in the site ("blocks.3.mlp.post").
      one keyword per axis of the site (`pos=`, `neuron=`, `head=`, `batch=` ...): an integer, an index array or a
        boolean mask over that axis. Negative indices count from the end, those of `pos`, `query` and `key` of a model
        from each row's own end, and the others from its first real token. Several axes select where all of them do. A
        list is a set: with a value that has this axis (for `layer=`, with `per_layer=True`) it must ascend, as entry i
        of the value belongs to entry i.
      where: a boolean array that broadcasts to the site, for selections that are not a product of axes.
      per_layer: True if the arguments have a leading layer axis: one row per layer of the site, or per layer written
        in the site string, in that order.
    Arguments broadcast to the whole site (not to the selected part). Dtype and shape of the site stay.

    Raises:
      UserError: (from `intervene`) no such site, layer or axis, an index out of range, an argument that does not
        broadcast. Outside of jit that holds for the points of a `sweep` too. In a program that is being made an index
        is not known: out of range it makes the whole site NaN (whole numbers: selects nothing), so that no effect is
        never that of a neuron which does not exist.
    Example:
      >>> zero("blocks.3.mlp.post", neuron=123).site
      'blocks.3.mlp.post'
    """
    return _make(site, _zero, (), **at)


def set_to(site: str, value: Any, **at: Unpack[Selectors]) -> Edit:
    """Set the site to a value: x' = value. Selectors: see `zero`."""
    return _make(site, _set_to, (value,), **at)


def add(site: str, vector: Any, **at: Unpack[Selectors]) -> Edit:
    """Add to the site: x' = x + vector. Steering is `add("blocks.8.resid_post", coefficient * direction)`.

    Selectors: see `zero`.
    """
    return _make(site, _add, (vector,), **at)


def scale(site: str, factor: Any, **at: Unpack[Selectors]) -> Edit:
    """Multiply the site: x' = x * factor. Selectors: see `zero`.

    The gradient with respect to a factor of ones, [n_layers, n_neurons] with `per_layer=True`, is activation x
    gradient summed over batch and positions.
    """
    return _make(site, _scale, (factor,), **at)


def clamp(site: str, lo: Any = None, hi: Any = None, **at: Unpack[Selectors]) -> Edit:
    """Keep the site between two bounds: x' = min(max(x, lo), hi); None is no bound. Selectors: see `zero`."""
    edit = _make(site, _clamp, (lo, hi), **at)
    if any(isinstance(bound, Tracer) for bound in (lo, hi)):
        return edit
    low, high = (
        np.asarray(end if bound is None else bound, np.float64) for bound, end in ((lo, -np.inf), (hi, np.inf))
    )
    if (
        np.isnan(low).any()
        or np.isnan(high).any()
        or (broadcasts_together(low.shape, high.shape) and not (low <= high).all())
    ):
        raise UserError(f"clamp({site!r}): lo={lo} is above hi={hi}, or one of them is NaN: nothing lies between.")
    return edit


def broadcasts_together(*shapes: tuple[int, ...]) -> bool:
    """Whether arrays of these shapes go together."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def patch(site: str, source: Any, **at: Unpack[Selectors]) -> Edit:
    """Set the site to values captured elsewhere: what `capture` returned for the same site string.

    Args:
      site: the site.
      source: the captured value, with or without its leading layer axis (told by its number of axes); or the whole
        dict that `capture` returned, of which the entry `site` is taken.
      at: selectors, see `zero`.
    """
    if isinstance(source, Mapping):
        if site not in source:
            raise unknown("captured site", site, source, where="patch")
        source = source[site]
    return _make(site, _patch, (source,), **{"per_layer": None, **at})


def apply_fn(site: str, fn: Callable[..., Any], *args: Any, **at: Unpack[Selectors]) -> Edit:
    """Replace the site by a function of it: x' = fn(x, *args). Selectors: see `zero`.

    `fn` is part of the program: define it once, a new function object compiles anew. What changes goes into `args`
    (or into the arguments of a `jax.tree_util.Partial`). It sees the site's own axes, without those of vmap, and
    returns the same shape, or one number for all of it.

    Raises:
      UserError: fn is not a function; (when it runs) fn returned another shape.
    """
    if not callable(fn):
        raise UserError(f"apply_fn({site!r}, {shown(fn)}): the second argument is a function of the site's value.")
    return _make(site, _set_to, args, fn=fn if isinstance(fn, Partial) else Partial(fn), **at)
