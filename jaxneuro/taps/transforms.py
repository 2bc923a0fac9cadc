# SPDX-License-Identifier: Apache-2.0
"""The program transformations: capture reads sites, intervene edits them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..errors import UserError, shown
from . import checks, collect
from .compiled import eagerly
from .edits import Edit, numbers_as_arrays
from .primitive import EVERYTHING
from .rewrite import Plan, run
from .staging import look

type Sites = str | Sequence[str] | Mapping[str, Callable[..., Any] | None]


def capture(fn: Callable[..., Any], sites: Sites) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Make a function that also returns the values at sites.

        capture(fn, sites)(*args) = (fn(*args), {site: value})

    A transformation of the program: it composes with jit (inside and outside), grad, vmap, scan, cond, checkpoint,
    shard_map and with other captures and edits. Wrap it in `jax.jit`; without, every call stages fn anew (about 20 ms)
    and runs programs that were compiled for an equal one.

    Args:
      fn: a pure function in which taps are reached: a model, a loss, `jax.grad` of a loss.
      sites: a site, a list of them, or {site: reducer}.
        "blocks.5.mlp.post": one layer, no layer axis. "blocks.2,5.mlp.post": a leading axis for these layers, in this
        order; no other layer is kept. "blocks.*.mlp.post" or "blocks.mlp.post": a leading layer axis. Then come the
        axes of loops around the layers (steps of a decoding scan), those of vmap, and the site's own.
        "...@grad": the gradient at the site, where fn is differentiated inside: `capture(jax.grad(loss), ...)`.
        "*": every site that `sites` lists, each with its leading layer axis, under the names it has there.
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
    listed = [sites] if isinstance(sites, str) else sites
    reducers: dict[str, Any] = dict(listed) if isinstance(listed, Mapping) else dict.fromkeys(listed)
    named = {site: reducer for site, reducer in reducers.items() if site != EVERYTHING}
    collect.merge(named)  # what cannot be read says so now

    @functools.wraps(fn)
    def captured(*args, **kwargs):
        reducers_, asked = named, list(reducers)
        staged, found = look(fn, args, kwargs, asked)
        if EVERYTHING in reducers:
            every = [name for name in found.names if not name.endswith("@tangent")]
            reducers_ = {**dict.fromkeys(every, reducers[EVERYTHING]), **named}
        wants, index = collect.merge(reducers_)
        for site in reducers_:
            checks.check_capture(site, found)
        plan = Plan.make(wants=wants, outside=found.outside)

        def rewritten(plan, inputs):
            outs, frame = run(staged.program, plan, inputs)
            return outs, {s: collect.assemble(s, index[s], plan.wants[index[s]], frame, found) for s in reducers_}

        outs, values = eagerly(rewritten, plan, staged.inputs)
        return staged.unflatten(outs), values

    return captured


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
        staged, found = look(fn, args, kwargs, [e.site for e in listed])
        bound = [checks.bind_edit(e, found) for e in listed]
        plan = Plan.make(edits=[numbers_as_arrays(e) for e in bound])
        return staged.unflatten(eagerly(lambda plan, inputs: run(staged.program, plan, inputs)[0], plan, staged.inputs))

    return intervened


def sweep(fn: Callable[[Any], Any], points: Any, *, batch_size: int = 64) -> Any:
    """fn at every point, `batch_size` points at a time: a scan over vmapped chunks, one compiled program.

    Faster than a loop of calls and far smaller than one vmap over everything: memory is bounded by the chunk. What does
    not depend on the point is calculated once if fn closes over it: for edits in layer l of a jaxneuro model, let
    `resid = forward(..., stop_at=l)` outside and `forward(..., start_at=l, resid=resid)` inside of fn.

    Args:
      fn: function of one point, such as `lambda p: loss(intervene(f, [zero(site, layer=p[0], neuron=p[1])])(x))`.
      points: a pytree of arrays with a leading axis, the points.
      batch_size: points per chunk. The last chunk may be smaller. 64 keeps a small model's CPU caches warm and an
        accelerator busy; raise it while memory allows.
    Returns:
      fn's results, stacked along a leading axis.
    Raises:
      UserError: points without a leading axis or of unequal length, a batch_size below 1; outside of jit, a point that
        selects a layer, neuron, head ... which its site does not have; inside, where points are not known, the site is
        NaN for it (see `zero`).
    Example:
      >>> sweep(lambda p: p * p, jnp.arange(4))
      Array([0, 1, 4, 9], dtype=int32)
    """
    check_points("sweep", points, batch_size, "batch_size")
    return eagerly(lambda points: jax.lax.map(fn, points, batch_size=batch_size), points)


def check_points(who: str, points: Any, size: Any, size_name: str) -> None:
    """Points are arrays of one leading length, and a chunk holds at least one of them.

    Raises:
      UserError: they are not.
    """
    if not isinstance(size, int | np.integer) or size < 1:
        raise UserError(f"{who}: {size_name} is the number of points that run together, at least 1, not {shown(size)}.")
    shapes: list[tuple[int, ...]] = [getattr(a, "shape", ()) for a in jax.tree.leaves(points)]
    if not shapes or () in shapes:
        raise UserError(
            f"{who}: points are arrays with a leading axis, one entry per point, not {shown(points)}. Write a list of "
            "numbers as jnp.array([...])."
        )
    if len(lengths := {shape[0] for shape in shapes}) > 1:
        raise UserError(f"{who}: the arrays of the points have {sorted(lengths)} entries. Give one per point in each.")
