# SPDX-License-Identifier: Apache-2.0
"""Several methods as one: a sweep that trains in one program, on one reading of the data or one pass of the model."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ..errors import UserError
from ..protocols import Method
from ..taps.compiled import eagerly


def together(methods: Mapping[str, Method]) -> Method:
    """Methods that all see the same batches: a sweep over k, width, learning rate, or different methods altogether.

    Each of them is what it would be alone, run with the same key over the same stream. Next to a model the batch is
    computed once for all: `at_site(model.apply, site, together({...}))`; one buffer serves all:
    `shuffled(together({...}), capacity)`.

    Args:
      methods: by name; the names lead those of the infos ("k32/loss").
    Returns:
      A Method; state, info and what `finish` returns are dicts with these names.
    Raises:
      UserError: no method.
    Example:
      >>> from jaxneuro.activations import moments, run
      >>> rows = [{"x": jnp.ones((4, 2))}, {"x": jnp.zeros((4, 2))}]
      >>> found = run(together({"a": moments(), "b": moments()}), rows, key=jax.random.key(0))
      >>> found["a"].mean.tolist(), found["b"].count
      ([0.5, 0.5], 8)
    """
    each = apart(methods)
    return Method(
        init=lambda key, batch: each.init(key, dict.fromkeys(methods, batch)),
        step=lambda state, batch: each.step(state, dict.fromkeys(methods, batch)),
        finish=each.finish,
    )


def apart(methods: Mapping[str, Method]) -> Method:
    """Methods that each see their own part of a batch, `batch[name]`. All start from the same key."""
    methods = dict(methods)
    if not methods:
        raise UserError("no method to run: give at least one, {name: method}.")

    def step(state, batch):
        done = {name: method.step(state[name], batch[name]) for name, method in methods.items()}
        return {name: new for name, (new, _) in done.items()}, {name: info for name, (_, info) in done.items()}

    return Method(
        init=lambda key, batch: {name: method.init(key, batch[name]) for name, method in methods.items()},
        step=step,
        finish=lambda state: {name: method.finish(state[name]) for name, method in methods.items()},
    )


def replicas(method: Method, n: int) -> Method:
    """The same method from n seeds; one program, however many they are.

    Replica i is what `method` would be alone, run with `jax.random.fold_in(key, i)`. They take turns on the device (a
    scan): a step of each costs what it costs alone, and no array is larger than it is alone, but for the states.

    Args:
      method: any.
      n: how many.
    Returns:
      A Method; infos are named by number ("0/loss"), `finish` returns a list.
    Raises:
      UserError: n below 1.
    Example:
      >>> from jaxneuro.activations import run
      >>> draw = Method(
      ...     init=lambda key, batch: jax.random.uniform(key), step=lambda state, batch: (state, {}), finish=float
      ... )
      >>> a, b = run(replicas(draw, 2), [{"x": jnp.ones(3)}], key=jax.random.key(0))
      >>> a != b, a == float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), 0)))
      (True, True)
    """
    if n < 1:
        raise UserError(f"replicas: n is at least 1, not {n}.")

    def one(state, i):
        return jax.tree.map(lambda a: a[i], state)

    def init(key, batch):
        states = [method.init(jax.random.fold_in(key, i), batch) for i in range(n)]
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(a) for a in leaves]), *states)

    def step(state, batch):
        def turn(state, i):
            new, info = method.step(one(state, i), batch)
            return jax.tree.map(lambda a, v: a.at[i].set(v), state, new), info

        state, infos = jax.lax.scan(turn, state, jnp.arange(n, dtype=jnp.int32))
        return state, {str(i): one(infos, i) for i in range(n)}

    return Method(
        init, functools.partial(eagerly, step), lambda state: [method.finish(one(state, i)) for i in range(n)]
    )
