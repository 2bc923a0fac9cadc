# SPDX-License-Identifier: Apache-2.0
"""Synthetic activations as a stream: any batch from its number, in the compiled step or before it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...errors import UserError
from ...protocols import Batch, Method
from ...taps.compiled import eagerly
from .features import SyntheticFeatures, check, sample


class Counted[T](Iterator[T]):
    """The batches make(0), make(1), ...: an iterator that can be put anywhere, with Grain's two functions."""

    def __init__(self, make: Callable[[int], T], seed: int, steps: int | None):
        self._make, self._seed, self._steps, self._next = make, seed, steps, 0

    def __next__(self) -> T:
        if self._steps is not None and self._next >= self._steps:
            raise StopIteration
        self._next += 1
        return self._make(self._next - 1)

    def get_state(self) -> dict[str, int]:
        """Where the stream is."""
        return {"seed": self._seed, "next": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Go there.

        Raises:
          UserError: the state is of a stream with another seed.
        """
        if state["seed"] != self._seed:
            raise UserError(f"the state is of the stream with seed {state['seed']}; this one's is {self._seed}.")
        self._next = state["next"]


def synthetic_batches(
    features: SyntheticFeatures, *, batch_size: int, seed: int = 0, steps: int | None = None, truth: bool = False
) -> Counted[dict[str, Array]]:
    """A stream of {"x": [batch_size, d]}, made on the device from its number alone.

    For `jaxneuro.activations.run` and everything else that reads batches. To train long, `on_synthetic` draws the same
    batches inside the step.

    Args:
      seed: two seeds share no sample; judge with another than you trained with.
      steps: batches in all; None: without end.
      truth: also "z": [batch_size, n_features], the features in each sample.
    Returns:
      Iterator with get_state() and set_state(): a resumed run goes on exactly.
    Raises:
      UserError: batch_size below 1.
    Example:
      >>> from jaxneuro.dictionaries.synthetic import REDUCED, synthetic
      >>> features = synthetic(REDUCED, key=jax.random.key(42))
      >>> [batch["x"].shape for batch in synthetic_batches(features, batch_size=32, steps=2)]
      [(32, 64), (32, 64)]
    """
    check(features, batch_size)

    def make(number: int) -> dict[str, Array]:
        x, z = sample(features, _key(jnp.uint32(seed), jnp.uint32(number)), batch_size)
        return {"x": x, "z": z} if truth else {"x": x}

    return Counted(make, seed, steps)


def synthetic_steps(*, seed: int = 0, steps: int | None = None) -> Counted[dict[str, np.ndarray]]:
    """The stream for `on_synthetic`: two numbers per step, and nothing else leaves the host.

    Example:
      >>> {k: int(v) for k, v in next(synthetic_steps(seed=7)).items()}
      {'seed': 7, 'step': 0}
    """
    return Counted(lambda number: {"seed": np.array(seed, np.uint32), "step": np.array(number, np.uint32)}, seed, steps)


def on_synthetic(method: Method, *, batch_size: int, inner_steps: int = 1) -> Method:
    """A method over activations as a method over numbers: samples are drawn, used and forgotten in one program.

    The features come with the batches as a constant, `run(..., constants={"features": features})`; with inner_steps
    = 1 each step sees what `synthetic_batches` of the same seed and batch size would have given it.

    Args:
      method: takes {"x": [n, d]}.
      batch_size: samples of a step.
      inner_steps: steps of `method` per call, in one scan; info is the last one's. For small models, where starting a
        program takes longer than running it.
    Returns:
      A method over the batches of `synthetic_steps`.
    Raises:
      UserError: batch_size or inner_steps below 1.
    Example:
      >>> fast = on_synthetic(batchtopk(n_latents=4096, k=25), batch_size=1024)             # doctest: +SKIP
      >>> run(fast, synthetic_steps(steps=195_312), constants={"features": features}, key=key)  # doctest: +SKIP
    """
    if batch_size < 1 or inner_steps < 1:
        raise UserError(f"on_synthetic: batch_size = {batch_size} and inner_steps = {inner_steps} are at least 1.")

    def drawn(batch: Batch, inner: Array | int) -> dict[str, Array]:
        number = batch["step"] * np.uint32(inner_steps) + jnp.uint32(inner)
        return {"x": sample(batch["features"], _key(batch["seed"], number), batch_size)[0]}

    def step(state: Any, batch: Batch) -> tuple[Any, Any]:
        if inner_steps == 1:
            return method.step(state, drawn(batch, 0))
        numbers = jnp.arange(inner_steps, dtype=jnp.uint32)
        state, infos = jax.lax.scan(lambda s, i: method.step(s, drawn(batch, i)), state, numbers)
        return state, jax.tree.map(lambda a: a[-1], infos)

    return Method(
        init=lambda key, batch: method.init(key, jax.jit(drawn)(batch, 0)),
        step=functools.partial(eagerly, step),
        finish=method.finish,
    )


def _key(seed: Array, number: Array) -> Array:
    return jax.random.fold_in(jax.random.key(seed), number)
