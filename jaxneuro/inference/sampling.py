# SPDX-License-Identifier: Apache-2.0
"""From logits to the next token: pure functions, and one small pytree that composes them."""

import dataclasses
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ..errors import UserError


def temperature(logits: Float[Array, "*batch vocab"], t: Any) -> Float[Array, "*batch vocab"]:
    """logits / t: below 1 the likely tokens become likelier, above 1 all become more alike.

    Example:
      >>> temperature(jnp.array([1.0, 2.0]), 0.5).tolist()
      [2.0, 4.0]
    """
    return logits / jnp.asarray(t, logits.dtype)


def top_k(logits: Float[Array, "*batch vocab"], k: int) -> Float[Array, "*batch vocab"]:
    """The k largest logits, the others -inf. Equals of the k-th are all kept.

    Source: arXiv 1805.04833.
    Example:
      >>> top_k(jnp.array([1.0, 3.0, 2.0]), 2).tolist()
      [-inf, 3.0, 2.0]
    """
    lowest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def top_p(logits: Float[Array, "*batch vocab"], p: Any) -> Float[Array, "*batch vocab"]:
    """The fewest most likely tokens whose probabilities sum to p or more, the others -inf; at least one is kept.

    Equals of the least likely that is kept are all kept. p >= 1 keeps all.

    Source: arXiv 1904.09751.
    Example:
      >>> jnp.isfinite(top_p(jnp.log(jnp.array([0.2, 0.5, 0.3])), 0.6)).tolist()
      [False, True, True]
    """
    down = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    mass = jax.nn.softmax(down, axis=-1)
    before = jnp.cumsum(mass, axis=-1) - mass
    p = jnp.asarray(p, logits.dtype)
    kept = jnp.sum(before < p, axis=-1, keepdims=True, dtype=jnp.int32)
    lowest = jnp.take_along_axis(down, jnp.maximum(kept, 1) - 1, axis=-1)
    return jnp.where((logits >= lowest) | (p >= 1), logits, -jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws from softmax(top_p(top_k(logits / temperature))); what is None is left out, as in transformers.

    `temperature` and `top_p` are leaves, which change without compiling again; `top_k` is a part of the program. Any
    function (logits [batch, vocab], keys [batch]) -> tokens [batch] is a sampler too: each row has a key of its own, so
    that what it draws does not depend on the others.

    Raises:
      UserError: a temperature that is not above 0 (that would be `greedy`), k below 1, p outside (0, 1].
    Example:
      >>> sampler = Sampler(temperature=0.7, top_k=2)
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> bool((sampler(jnp.tile(jnp.array([5.0, 1.0, 4.0]), (3, 1)), keys) != 1).all())
      True
    """

    temperature: Any = None
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})
    top_p: Any = None

    def __post_init__(self):
        checks = {
            "temperature": (lambda t: t > 0, "above 0; at 0 the sampler is `greedy`"),
            "top_k": (lambda k: type(k) is int and k >= 1, "a whole number of at least 1"),
            "top_p": (lambda p: 0 < p <= 1, "above 0 and at most 1"),
        }
        for name, (fine, said) in checks.items():
            value = getattr(self, name)
            if isinstance(value, int | float) and not fine(value):
                raise UserError(f"Sampler: {name}={value!r}; it must be {said}.")

    def logits(self, logits: Float[Array, "*batch vocab"]) -> Float[Array, "*batch vocab"]:
        """Those that are drawn from."""
        logits = logits if self.temperature is None else temperature(logits, self.temperature)
        logits = logits if self.top_k is None else top_k(logits, self.top_k)
        return logits if self.top_p is None else top_p(logits, self.top_p)

    def __call__(self, logits: Float[Array, "batch vocab"], keys: Key[Array, "batch"]) -> Int[Array, "batch"]:
        return jax.vmap(jax.random.categorical)(keys, self.logits(logits)).astype(jnp.int32)


def _most_likely(logits: Float[Array, "batch vocab"], keys: Key[Array, "batch"]) -> Int[Array, "batch"]:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


greedy: Final = jax.tree_util.Partial(_most_likely)
"""The sampler that takes the most likely token, the first of equals."""


def as_tree(sampler: Any) -> Any:
    """A sampler as a pytree that can be called."""
    return sampler if isinstance(sampler, Sampler | jax.tree_util.Partial) else jax.tree_util.Partial(sampler)


def row_keys(key: Any, rows: int) -> Key[Array, "batch"]:
    """One key per row, the same whatever the other rows are."""
    key = jax.random.key(0) if key is None else key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows, dtype=jnp.int32))
