# SPDX-License-Identifier: Apache-2.0
"""Real sizes, by name, and every op's operands at them: what tests lower and compile, tuning and benchmarks time."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .dispatch import Backend
from .encode_topk import api as encoder
from .encode_topk import encode_topk
from .sae_backward import Rows, sae_adam, sae_backward
from .sae_backward import api as backward
from .sparse_decode import gather_dot, products, row_sum, sparse_decode
from .topk import api as selection
from .topk import topk
from .topk_mask import api as mask
from .topk_mask import topk_mask

SHAPES: Final[dict[str, tuple[int, int, int, int]]] = {
    "study": (1024, 192, 3072, 16),
    "cpu-128": (2048, 128, 4096, 32),
    "cpu-256": (2048, 256, 8192, 32),
    "gpt2-32k": (8192, 768, 32768, 32),
    "sparsify-131k": (8192, 1024, 131072, 32),
    "gemma2-131k": (8192, 2304, 131072, 32),
    "gemma2-131k-128": (8192, 2304, 131072, 128),
    "llama3-131k": (8192, 4096, 131072, 64),
}
"""(tokens, d, n_latents, k). Tests run the small ones."""


class Case(NamedTuple):
    """One op at one size."""

    call: Callable[..., Any]
    """Takes the operands, and `implementation=`."""
    operands: tuple[Any, ...]
    """Shapes and types, a tree."""
    size: dict[str, Any]
    """As the table of measurements has it."""


class Op(NamedTuple):
    """How a case is made."""

    name: str
    """The public op's."""
    operands: tuple[str, ...]
    """Names, see `_inputs`."""
    call: Callable[[int, int], Callable[..., Any]]
    """(n_latents, k) -> a function of the operands and `implementation=`."""
    backends: Mapping[str, Backend]
    size: Callable[..., dict[str, Any]]
    """(operands, n_latents, k) -> its size."""


def _encoder(pre_dtype: str) -> Op:
    return Op(
        "encode_topk",
        ("x", "w", "b"),
        lambda n, k: lambda x, w, b, **kw: encode_topk(x, w, b, k, pre_dtype=pre_dtype, **kw),
        encoder.BACKENDS,
        lambda a, n, k: encoder.size_of(a[0], a[1], k, jnp.dtype(pre_dtype)),
    )


def _product(op: Callable[..., Any], *names: str) -> Op:
    backends = products.BACKENDS[op.__name__]
    return Op(op.__name__, names, lambda n, k: op, backends, lambda a, n, k: products.size_of(a[1], a[2]))


OPS: Final[dict[str, Op]] = {
    "topk": Op(
        "topk",
        ("pre",),
        lambda n, k: lambda x, **kw: topk(x, k, **kw),
        selection.BACKENDS,
        lambda a, n, k: selection.size_of(a[0], k),
    ),
    "topk_mask": Op(
        "topk_mask",
        ("h",),
        lambda n, k: lambda h, **kw: topk_mask(h, h.shape[-1] // 10, **kw),
        mask.BACKENDS,
        lambda a, n, k: selection.size_of(a[0], a[0].shape[-1] // 10),
    ),
    "encode_topk": _encoder("float32"),
    "encode_topk, rounded": _encoder("bfloat16"),
    "sparse_decode": _product(sparse_decode, "vals", "idx", "w"),
    "gather_dot": _product(gather_dot, "x", "idx", "w"),
    "row_sum": Op(
        "row_sum",
        ("vals", "idx", "x"),
        lambda n, k: functools.partial(row_sum, n_latents=n),
        products.BACKENDS["row_sum"],
        lambda a, n, k: products.size_of(a[1], a[2], n),
    ),
    "sae_backward": Op(
        "sae_backward",
        ("vals", "idx", "g", "x", "w"),
        lambda n, k: sae_backward,
        backward.BACKENDS,
        lambda a, n, k: backward.size_of(a[1], a[2], a[4]),
    ),
    "sae_adam": Op(
        "sae_adam",
        ("vals", "idx", "g", "x", "parameters", "first", "second"),
        lambda n, k: functools.partial(sae_adam, step=1, learning_rate=1e-3, unit_norm=True),
        backward.ADAM,
        lambda a, n, k: backward.size_of(a[1], a[2], a[4].w_dec),
    ),
}
"""Everything that has more than one implementation."""


def case(op: str, shape: tuple[int, int, int, int], dtype: str = "bfloat16") -> Case:
    """An op at (tokens, d, n_latents, k).

    Args:
      op: one of OPS. topk_mask keeps a tenth of rows of 4 d.
      shape: one of SHAPES' values, or any other.
      dtype: of the matmul's and the gathers' operands.
    Example:
      >>> made = case("topk", SHAPES["cpu-128"], "float32")
      >>> made.operands, made.size
      ((ShapeDtypeStruct(shape=(2048, 4096), dtype=float32),), {'dtype': 'float32', 'tokens': 2048, 'n': 4096, 'k': 32})
    """
    made, inputs = OPS[op], _inputs(*shape, dtype)
    operands = tuple(inputs[name] for name in made.operands)
    return Case(made.call(*shape[2:]), operands, made.size(operands, *shape[2:]))


def _inputs(tokens: int, d: int, n: int, k: int, dtype: str) -> dict[str, Any]:
    def of(*shape: int, dtype: str = dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    rows = Rows(*(of(*s, dtype="float32") for s in ((n, d), (n,), (n, d))))
    return {
        "x": of(tokens, d),
        "g": of(tokens, d),
        "w": of(n, d),
        "b": of(n, dtype="float32"),
        "vals": of(tokens, k, dtype="float32"),
        "idx": of(tokens, k, dtype="int32"),
        "pre": of(tokens, n),
        "h": of(tokens, 4 * d),
        "parameters": rows,
        "first": rows,
        "second": rows,
    }


def fill(operands: Any, n_latents: int, seed: int = 0) -> Any:
    """Arrays for a case, made on the device from this seed: normal numbers without their signs where they are values or
    moments (rank 2 or less, float32), and indices used as unevenly as in a trained dictionary (the cube of a uniform).
    """
    leaves, tree = jax.tree.flatten(operands)

    @functools.partial(jax.jit, static_argnums=1)
    def one(key: Array, like: Any) -> Array:
        if like.dtype == jnp.int32:
            skewed = jax.random.uniform(key, like.shape) ** 3
            return jnp.minimum((n_latents * skewed).astype(jnp.int32), n_latents - 1)
        drawn = jax.random.normal(key, like.shape, jnp.float32)
        return (jnp.abs(drawn) if like.dtype == jnp.float32 else drawn).astype(like.dtype)

    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(tree, [one(key, like) for key, like in zip(keys, leaves, strict=True)])
