# SPDX-License-Identifier: Apache-2.0
"""The program transformations: capture reads sites, intervene edits them, sites lists them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr
from jax.tree_util import Partial

from jaxneuro.errors import UserError
from jaxneuro.taps import checks
from jaxneuro.taps.edits import Edit
from jaxneuro.taps.names import parse
from jaxneuro.taps.primitive import EVERYTHING, wanted
from jaxneuro.taps.rewrite import Entry, Frame, Plan, Want, run
from jaxneuro.taps.survey import Occurrence, Survey, survey

type Sites = str | Sequence[str] | Mapping[str, Callable[..., Any] | None]


class _Staged(NamedTuple):
    program: Jaxpr
    inputs: list[Any]
    unflatten: Callable[[Sequence[Any]], Any]


def _stage(fn: Callable[..., Any], args: Any, kwargs: Any, names: frozenset[str]) -> _Staged:
    """The program of fn. Arrays are its inputs; Python numbers, strings and other objects are constants, so that
    arguments a caller holds static stay static."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    is_input = [isinstance(a, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct) for a in leaves]

    def flat(*inputs):
        rest = iter(inputs)
        args, kwargs = jax.tree.unflatten(tree, [next(rest) if i else a for a, i in zip(leaves, is_input, strict=True)])
        return fn(*args, **kwargs)

    inputs = [a for a, i in zip(leaves, is_input, strict=True) if i]
    # Under disable_jit a scan would be staged as a Python loop.
    with wanted(wanted.value | names), jax.disable_jit(False):
        program, shape = jax.make_jaxpr(flat, return_shape=True)(*inputs)
    return _Staged(program, inputs, functools.partial(jax.tree.unflatten, jax.tree.structure(shape)))


def _look(fn: Callable[..., Any], args: Any, kwargs: Any, asked: Sequence[str]) -> tuple[_Staged, Survey]:
    """Stage fn and find the sites. Sites on a path that the model takes only if something else is wanted count too."""
    names = [parse(site) for site in asked]
    staged = _stage(fn, args, kwargs, frozenset(n.base for n in names))
    found = survey(staged.program)
    if not {n.name for n in names} <= set(found.names):
        staged = _stage(fn, args, kwargs, frozenset({EVERYTHING}))
        found = survey(staged.program)
    return staged, found


def capture(fn: Callable[..., Any], sites: Sites) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Make a function that also returns the values at sites.

        capture(fn, sites)(*args) = (fn(*args), {site: value})

    A transformation of the program: it composes with jit (inside and outside), grad, vmap, scan, cond, checkpoint,
    shard_map and with other captures and edits. Wrap it in `jax.jit`; without, it stages fn anew in every call.

    Args:
      fn: a pure function in which taps are reached: a model, a loss, `jax.grad` of a loss.
      sites: a site, a list of them, or {site: reducer}.
        "blocks.5.mlp.post": one layer, no layer axis. "blocks.2,5.mlp.post": a leading axis for these layers, in this
        order; no other layer is kept. "blocks.*.mlp.post" or "blocks.mlp.post": a leading layer axis. Then come the
        axes of loops around the layers (steps of a decoding scan), those of vmap, and the site's own.
        "...@grad": the gradient at the site, where fn is differentiated inside: `capture(jax.grad(loss), ...)`.
        A reducer is a function value -> pytree that runs where the value is, before anything is stacked; it sees the
        site's own axes. `jax.tree_util.Partial(reducer, *args)` is called as reducer(*args, value), and the args may
        be traced (masks, one-hots). None keeps the value.
    Returns:
      A function of fn's arguments. The dict is keyed by the strings that were asked for. A site in a branch of a
      `cond` that was not taken is zeros.
    Raises:
      UserError: (when called) a site or layer that does not exist, even one of a list; a site reached twice; a site
        inside a `while_loop`.
    Example:
      >>> from jaxneuro.taps import tap
      >>> f = lambda x: tap(2 * x, "double") + 1
      >>> capture(f, "double")(jnp.int32(3))
      (Array(7, dtype=int32), {'double': Array(6, dtype=int32)})
    """
    reducers: dict[str, Any] = (
        dict(sites) if isinstance(sites, Mapping) else dict.fromkeys([sites] if isinstance(sites, str) else sites)
    )
    wants, index = _wants(reducers)

    @functools.wraps(fn)
    def captured(*args, **kwargs):
        staged, found = _look(fn, args, kwargs, list(reducers))
        for site in reducers:
            checks.check_capture(site, found)
        outs, frame = run(staged.program, Plan.make(wants=wants, outside=found.outside), staged.inputs)
        values = {site: _assemble(site, index[site], wants[index[site]], frame, found) for site in reducers}
        return staged.unflatten(outs), values

    return captured


def _wants(reducers: Mapping[str, Any]) -> tuple[list[Want], dict[str, int]]:
    """What to read for all requests together: one thing per site, and one per reducer."""
    wants: list[Want] = []
    index: dict[str, int] = {}
    for site, reducer in reducers.items():
        asked = parse(site)
        same = [i for i, w in enumerate(wants) if w.name == asked.name and w.reducer is None and reducer is None]
        if same:
            layers = wants[same[0]].layers
            both = None if layers is None or asked.layers is None else tuple(sorted({*layers, *asked.layers}))
            wants[same[0]] = dataclasses.replace(wants[same[0]], layers=both)
        else:
            if reducer is not None and not callable(reducer):
                raise UserError(f"capture({site!r}): a reducer is a function of the value, not {reducer!r}.")
            partial = reducer if reducer is None or isinstance(reducer, Partial) else Partial(reducer)
            layers = None if asked.layers is None else tuple(sorted(set(asked.layers)))
            wants.append(Want(asked.name, layers, partial))
        index[site] = same[0] if same else len(wants) - 1
    return wants, index


def _assemble(site: str, i: int, want: Want, frame: Frame, found: Survey) -> Any:
    """The value of one request: the layers it names, from all places where the site was reached."""
    asked = parse(site)
    parts = [(found.captured[want.name, *key[1:]], entry) for key, entry in frame.items() if key[0] == i]
    if parts[0][0].layer is None or (len(parts) == 1 and parts[0][0].layers is None):
        return _flat(parts[0][1]).value
    rows: dict[int, tuple[Entry, int | None]] = {}
    for o, entry in parts:
        numbers = list(want.layers or ()) if entry.is_buffer else o.layers or []
        here = set(o.layers or ())
        flat = _flat(entry)
        rows |= {n: (flat, k if entry.layer_axes else None) for k, n in enumerate(numbers) if n in here}
    if asked.single and asked.layers:
        entry, k = rows[asked.layers[0]]
        return entry.value if k is None else jax.tree.map(lambda a: a[k], entry.value)
    return _stack([rows[n] for n in (sorted(rows) if asked.layers is None else asked.layers)])


def _flat(entry: Entry) -> Entry:
    """An entry with its layer axes made one."""
    n = entry.layer_axes
    return entry if n < 2 else entry.map(lambda a: a.reshape(-1, *a.shape[n:]), layer_axes=1)


def _stack(rows: list[tuple[Entry, int | None]]) -> Any:
    """The rows along a leading layer axis; without a copy where they are all of one array, in its order."""
    first = rows[0][0]
    if all(entry is first and k == n for n, (entry, k) in enumerate(rows)) and _length(first) == len(rows):
        return first.value
    if all(entry is first and k is not None for entry, k in rows):
        return jax.tree.map(lambda a: a[np.array([k for _, k in rows])], first.value)
    values = [entry.value if k is None else jax.tree.map(lambda a, k=k: a[k], entry.value) for entry, k in rows]
    return jax.tree.map(lambda *a: jnp.stack(a), *values)


def _length(entry: Entry) -> int | None:
    leaves = jax.tree.leaves(entry.value)
    return leaves[0].shape[0] if leaves and entry.layer_axes else None


def intervene(fn: Callable[..., Any], edits: Edit | Sequence[Edit]) -> Callable[..., Any]:
    """Make a function in which the values at sites are edited.

    The edits apply in order; everything after a site sees the edited value. `capture(intervene(fn, edits), sites)`
    reads values after the edits, `intervene(capture(fn, sites), edits)` before them, with the edited output.
    `jax.grad(intervene(fn, edits))` differentiates the edited function; `intervene(jax.grad(fn), edits)` edits values
    of a program that is differentiated already, so the derivative is the unedited one's: a straight-through edit.

    Args:
      fn: a pure function in which taps are reached.
      edits: an `Edit` or any pytree of them: `zero`, `set_to`, `add`, `scale`, `clamp`, `patch`, `apply_fn`. Edits may
        be arguments of the function that is compiled: new values do not compile again.
    Returns:
      A function with the signature of fn; `fn` itself if there are no edits.
    Raises:
      UserError: a site, layer or axis that does not exist; an index out of range; a value that does not broadcast;
        a site whose result nobody reads; a site inside a `custom_vjp` or `custom_jvp`.
    Example:
      >>> from jaxneuro.taps import tap, zero
      >>> f = lambda x: tap(2 * x, "double", axes=("pos",)) + 1
      >>> intervene(f, [zero("double", pos=0)])(jnp.arange(3))
      Array([1, 3, 5], dtype=int32)
    """
    listed = jax.tree.leaves(edits, is_leaf=lambda e: isinstance(e, Edit))
    for edit in listed:
        if not isinstance(edit, Edit):
            raise UserError(
                f"intervene: {edit!r} is not an edit. "
                "Make edits with zero, set_to, add, scale, clamp, patch or apply_fn."
            )
    if not listed:
        return fn

    @functools.wraps(fn)
    def intervened(*args, **kwargs):
        staged, found = _look(fn, args, kwargs, [e.site for e in listed])
        bound = [checks.bind_edit(e, found) for e in listed]
        outs, _ = run(staged.program, Plan.make(edits=bound), staged.inputs)
        return staged.unflatten(outs)

    return intervened


@dataclasses.dataclass(frozen=True)
class Site:
    """One named value of a function."""

    name: str
    layers: tuple[int, ...] | None
    """Layer numbers; None: the site has no layers; (): they are calculated when the program runs."""
    axes: tuple[str, ...] | None
    """Names of the axes; None if the model gives none."""
    shape: tuple[int, ...]
    """Of one layer."""
    dtype: str


class SiteTable(tuple[Site, ...]):
    """The sites of a function, in the order in which it reaches them. str() is a table."""

    def __str__(self) -> str:
        rows = [("site", "layers", "axes", "shape", "dtype"), *map(_cells, self)]
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def _cells(site: Site) -> tuple[str, str, str, str, str]:
    layers = "" if site.layers is None else checks.ranges(list(site.layers)) if site.layers else "?"
    axes = "?" if site.axes is None else " ".join(site.axes)
    return site.name, layers, axes, " ".join(map(str, site.shape)), site.dtype


def sites(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> SiteTable:
    """All sites of a function, as records; `print` shows a table. Nothing runs: arguments may be `ShapeDtypeStruct`s.

    Example:
      >>> from jaxneuro.taps import tap
      >>> print(sites(lambda x: tap(2 * x, "double", axes=("pos",)), jnp.arange(3)))
      site    layers  axes  shape  dtype
      double          pos   3      int32
    """
    found = survey(_stage(fn, args, kwargs, frozenset({EVERYTHING})).program)
    by_name: dict[str, list[Occurrence]] = {}
    for o in found.all:
        by_name.setdefault(o.name, []).append(o)
    return SiteTable(_site(name, here) for name, here in by_name.items())


def _site(name: str, here: list[Occurrence]) -> Site:
    first = here[0]
    layers = None if all(o.layer is None for o in here) else tuple(checks.known_layers(here) or ())
    return Site(name, layers, first.axes, first.shape, str(first.dtype))


def sweep(fn: Callable[[Any], Any], points: Any, *, batch_size: int = 64) -> Any:
    """fn at every point, `batch_size` points at a time: a scan over vmapped chunks, one compiled program.

    Faster than a loop of calls and far smaller than one vmap over everything: memory is bounded by the chunk.

    Args:
      fn: function of one point, such as `lambda p: loss(intervene(f, [zero(site, layer=p[0], neuron=p[1])])(x))`.
      points: a pytree of arrays with a leading axis, the points.
      batch_size: points per chunk. The last chunk may be smaller. 64 keeps a small model's CPU caches warm and an
        accelerator busy; raise it while memory allows.
    Returns:
      fn's results, stacked along a leading axis.
    Example:
      >>> sweep(lambda p: p * p, jnp.arange(4))
      Array([0, 1, 4, 9], dtype=int32)
    """
    return jax.lax.map(fn, points, batch_size=batch_size)
