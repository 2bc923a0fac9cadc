# SPDX-License-Identifier: Apache-2.0
"""A step on several devices by `jax.pmap`, for code that is written so; meshes (`Training.mesh`) do more.

>>> import jax
>>> from jaxneuro.dictionaries import Training, topk
>>> method = topk(n_latents=16, k=2, training=Training(data_axis="data"))
>>> x = jax.random.normal(jax.random.key(0), (64, 4))
>>> n = jax.local_device_count()
>>> state = replicate(method.init(jax.random.key(1), {"x": x}), n)
>>> step = pmap_step(method)
>>> state, info = step(state, split({"x": x}, n))
>>> info["loss"].shape == (n,), method.finish(one(state)).n_latents
(True, 16)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .errors import UserError
from .protocols import Batch, Info, Method, State


def pmap_step(method: Method, *, axis_name: str = "data") -> Callable[[State, Batch], tuple[State, Info]]:
    """The step of a method, mapped over devices: each has all of the state and a part of the batch.

    Gradients and counts are summed over devices inside, so every copy of the state stays the same, and the numbers are
    those of one device with the whole batch, to rounding. The state is donated.

    Args:
      method: made with `Training(data_axis=axis_name)`.
      axis_name: of the pmap.
    Returns:
      (state with a leading axis of devices, batch likewise) -> (state, info), with that axis.
    """
    return jax.pmap(method.step, axis_name=axis_name, donate_argnums=0)


def replicate[T](tree: T, n: int) -> T:
    """Every array n times, along a new leading axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), tree)


def one[T](tree: T) -> T:
    """The first device's copy."""
    return jax.tree.map(lambda x: x[0], tree)


def split[T](batch: T, n: int) -> T:
    """The leading axis of every array cut into n, as a new leading axis.

    Raises:
      UserError: a leading axis that n does not divide.
    """
    lengths = {x.shape[0] for x in jax.tree.leaves(batch)}
    if any(length % n for length in lengths):
        raise UserError(f"batches of {sorted(lengths)} rows cannot be dealt to {n} devices in equal parts.")
    return jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)
