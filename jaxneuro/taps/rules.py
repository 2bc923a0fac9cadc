# SPDX-License-Identifier: Apache-2.0
"""How each equation that holds other programs is built again, through JAX's public transforms."""

import dataclasses
import weakref
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from jax.sharding import PartitionSpec

from . import reading
from .rewrite import Entry, Frame, Jits, Rule, empty_buffer, fill, run, zeros_like
from .survey import Key, layer_loops, mesh_axes

_jits = Jits()


def _jit(eqn, inputs, plan):
    """One compiled function per program and options; plans are arguments, so those of one structure share it."""
    call = reading.jit(eqn)
    made = (plan.jits or _jits).made.setdefault(call.body, {})
    key = (call.name, call.options)
    if key not in made:
        body = weakref.ref(call.body)  # the cache must not keep its own key alive

        def rebuilt(plan, *inputs):
            program = body()
            assert program is not None, "the equation that is being rebuilt holds it"
            outs, frame = run(program, plan, inputs)
            return tuple(outs), frame

        rebuilt.__name__ = rebuilt.__qualname__ = call.name
        made[key] = jax.jit(rebuilt, **dict(call.options))
    return made[key](plan, *inputs)


def _call(eqn, inputs, plan):
    return run(reading.programs(eqn)[0], plan, inputs)


def _custom(eqn, inputs, plan):
    """The call and its derivative rule stay; it runs once more for what is read inside. XLA merges the two."""
    _, frame = run(reading.programs(eqn)[0], plan, inputs)
    return reading.bind(eqn, inputs), frame


def _remat(eqn, inputs, plan):
    """Edits hold in a recomputation too, else the gradient would be another function's."""
    call = reading.remat(eqn)
    inside = dataclasses.replace(plan, recomputed=plan.recomputed or call.recomputes)
    cse = call.prevent_cse if isinstance(call.prevent_cse, bool) else (True, *call.prevent_cse)
    again = jax.checkpoint(lambda plan, *inputs: run(call.body, plan, inputs), prevent_cse=cse, policy=call.policy)
    return again(inside, *inputs)


def _scan(eqn, inputs, plan):
    """Layers asked for by number go to a buffer in the carry; everything else is stacked."""
    loop = reading.scan(eqn)
    n, m = loop.n_consts, loop.n_consts + loop.n_carry
    consts, init, rows = inputs[:n], inputs[n:m], inputs[m:]
    over_layers: dict[Key, bool] = {
        (i, *key[1:]): over
        for key, over in layer_loops(eqn, plan.recomputed, plan.outside).items()
        for i, want in enumerate(plan.wants)
        if want.name == key[0]
    }

    def kept(key):
        return plan.wants[key[0]].layers if over_layers[key] else None

    def once(carry, row):
        outs, frame = run(loop.body, plan, [*consts, *carry, *row])
        return outs[: loop.n_carry], outs[loop.n_carry :], frame

    def turn(state, row):
        carry, buffers = state
        carry, ys, frame = once(carry, row)
        buffers = {k: fill(b, frame.pop(k), plan.wants[k[0]].layers) for k, b in buffers.items()}
        return (carry, buffers), (ys, frame)

    buffers: Frame = {}
    if any(plan.wants[k[0]].layers is not None and over for k, over in over_layers.items()):
        first = [jax.eval_shape(lambda a: a[0], r) for r in rows]
        shapes = jax.eval_shape(lambda c, r: once(c, r)[2], init, first)
        buffers = {k: empty_buffer(e, len(layers)) for k, e in shapes.items() if (layers := kept(k)) is not None}
    (carry, buffers), (ys, frame) = jax.lax.scan(
        turn, (init, buffers), rows, length=loop.length, reverse=loop.reverse, unroll=loop.unroll
    )
    stacked = {k: _stacked(e, over_layers[k]) for k, e in frame.items()}
    return [*carry, *ys], stacked | buffers


def _stacked(entry: Entry, over_layers: bool) -> Entry:
    """What a scan stacked: its axis is a layer axis, or goes behind the layer axes."""
    if over_layers:
        return Entry(entry.value, None, entry.layer_axes + 1)
    n = entry.layer_axes
    layer = None if entry.layer is None else entry.layer[0]
    return entry.map(lambda a: jnp.moveaxis(a, 0, n), layer=layer)


def _while(eqn, inputs, plan):
    loop = reading.while_loop(eqn)
    n, m = loop.n_cond_consts, loop.n_cond_consts + loop.n_body_consts
    carry = jax.lax.while_loop(
        lambda c: run(loop.cond, plan, [*inputs[:n], *c])[0][0],
        lambda c: run(loop.body, plan, [*inputs[n:m], *c])[0],
        inputs[m:],
    )
    return carry, {}


def _cond(eqn, inputs, plan):
    """A branch that does not reach a site gives zeros for it, of no layer."""
    which, *inputs = inputs
    branches = reading.programs(eqn)
    shapes: Frame = {}
    for program in branches:
        shapes = jax.eval_shape(lambda p=program: run(p, plan, inputs)[1]) | shapes

    def absent(entry: Entry) -> Entry:
        nowhere = None
        if entry.layer is not None:
            nowhere = zeros_like(entry.layer) if entry.is_buffer else zeros_like(entry.layer) - 1
        return Entry(jax.tree.map(zeros_like, entry.value), nowhere, entry.layer_axes)

    def branch(program):
        def taken(*inputs):
            outs, frame = run(program, plan, inputs)
            return outs, {k: frame[k] if k in frame else absent(e) for k, e in shapes.items()}

        return taken

    return jax.lax.switch(which, [branch(p) for p in branches], *inputs)


def _shard_map(eqn, inputs, plan):
    """Values leave as global arrays where the tap says how they are split; else with one axis per mesh axis."""
    call = reading.shard_map(eqn)
    splits = _declared(call.body)
    out_specs: dict[Key, Entry] = {}

    def leave(key: Key, entry: Entry) -> Entry:
        want = plan.wants[key[0]]
        split = splits.get(want.name) if want.reducer is None else None
        leaves, tree = jax.tree.flatten(entry.value)
        arrays, specs = zip(*(_leaving(a, entry.layer_axes, split, call) for a in leaves), strict=True)
        value, spec = jax.tree.unflatten(tree, arrays), jax.tree.unflatten(tree, specs)
        out_specs[key] = Entry(spec, None if entry.layer is None else PartitionSpec(), entry.layer_axes)
        return dataclasses.replace(entry, value=value)

    def local(plan, inputs):
        outs, frame = run(call.body, plan, inputs)
        return outs, {k: leave(k, e) for k, e in frame.items()}

    def only_trace(plan, inputs):
        local(plan, inputs)
        return ()

    def mapped(fn, specs):
        return jax.shard_map(
            fn,
            mesh=call.mesh,
            in_specs=(PartitionSpec(), list(call.in_specs)),
            out_specs=specs,
            check_vma=call.check_vma,
            axis_names=set(call.axes),
        )

    # Over which mesh axes a value varies shows only inside: trace once to learn the specs, then build.
    jax.eval_shape(mapped(only_trace, ()), plan, inputs)
    return mapped(local, (list(call.out_specs), dict(out_specs)))(plan, inputs)


def _leaving(a: Any, n: int, split: Any, call: reading.ShardMap) -> tuple[Any, PartitionSpec]:
    """A shard with the axes it needs to leave shard_map, and its partition spec. Its first n axes are layers."""
    declared = {axis for entry in split or () for axis in mesh_axes(entry)}
    unchecked = call.axes if split is None else declared  # what to assume where JAX does not keep track
    varies = reading.varies_over(a) if call.check_vma else unchecked
    new = tuple(axis for axis in call.mesh.axis_names if axis in call.axes and axis in varies - declared)
    a = a.reshape(a.shape[:n] + (1,) * len(new) + a.shape[n:])
    between = a.ndim - n - len(new) - len(split or ())
    return a, PartitionSpec(*[None] * n, *new, *[None] * between, *(split or ()))


def _declared(program: Jaxpr) -> dict[str, Any]:
    """The declared partition of each site in a program."""
    found: dict[str, Any] = {}
    for eqn in reading.opened(program)[0].eqns:
        if eqn.params.get("spec") is not None and "static_layer" in eqn.params:
            found[eqn.params["name"]] = eqn.params["spec"]
        for inner in reading.programs(eqn):
            found |= _declared(inner)
    return found


RULES: dict[str, Rule] = {
    "jit": _jit,
    "call": _call,
    "custom_jvp": _custom,
    "custom_vjp": _custom,
    "remat": _remat,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
