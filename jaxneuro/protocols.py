# SPDX-License-Identifier: Apache-2.0
"""Where rooms meet: the triple that every learner is, and the interface that every dictionary has."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

type State = Any
"""What the next step needs: a pytree of arrays. It is donated, checkpointed and sharded from outside."""
type Batch = Any
"""One batch of the stream: a pytree of arrays with a leading axis, masks included."""
type Info = Any
"""What a person wants to see of a step: a pytree of scalars, left on the device."""


class Method(NamedTuple):
    """Whatever consumes a stream (neuron statistics, a dictionary, a probe), as three pure functions.

    jit, scan, sharding, checkpoints, progress and metrics come from the one driver,
    `jaxneuro.activations.run`; a method owns mathematics.
    """

    init: Callable[[Key[Array, ""], Batch], State]
    """(key, first batch) -> state. Only shapes and, for data-dependent starts, values of the batch are read."""
    step: Callable[[State, Batch], tuple[State, Info]]
    """(state, batch) -> (state, info). Compiled once; the state is donated."""
    finish: Callable[[State], Any]
    """state -> Dictionary, table of scores, probe. Runs once, outside jit."""

    def __repr__(self) -> str:
        return f"Method({', '.join(f'{name}={_name(fn)}' for name, fn in zip(self._fields, self, strict=True))})"


def _name(fn: Any) -> str:
    """A function in a word, what wraps it taken off."""
    while not hasattr(fn, "__qualname__") and hasattr(fn, "func"):
        fn = next((a for a in fn.args if callable(a)), fn.func)
    return getattr(fn, "__qualname__", type(fn).__name__).replace(".<locals>", "")


@runtime_checkable
class Dictionary(Protocol):
    """What every dictionary learner returns."""

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch n_latents"]:
        """Latents of x, zero where a latent is off."""
        ...

    def decode(self, z: Float[Array, "*batch n_latents"]) -> Float[Array, "*batch d_out"]:
        """The reconstruction from latents."""
        ...

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """The reconstruction of x: decode(encode(x)), and what a method does beside it."""
        ...
