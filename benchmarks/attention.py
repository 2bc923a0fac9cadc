# SPDX-License-Identifier: Apache-2.0
"""Every form of attention that runs here, forward and gradient, against the explicit one: what `PREFERRED` is made of.

A form that cannot do what a shape needs is left out, one that fails is a row with its error. "error" is to the explicit
form in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro.errors import UserError
from jaxneuro.models.attention import FORMS, Visible, attend, chosen, preferred

from .harness import Program, run, with_ratio
from .limits import DTYPE, INNER, ON_CPU


class Shape(NamedTuple):
    """Of queries, and what they need."""

    batch: int
    pos: int
    heads: int
    kv_heads: int
    d_head: int
    window: int | None = None
    softcap: float | None = None


SHAPES: dict[str, Shape] = {
    "GPT-2": Shape(16, 1024, 12, 12, 64),
    "Llama-3.1-8B": Shape(16, 1024, 32, 8, 128),
    "Llama-3.1-8B, 8,192 positions": Shape(2, 8192, 32, 8, 128),
    "Gemma-2-2B": Shape(8, 1024, 8, 4, 256, softcap=50.0),
    "window of 512": Shape(8, 2048, 16, 4, 128, window=512),
}
SMALL: dict[str, Shape] = {"bundled": Shape(16, 256, 6, 2, 32), "GPT-2": Shape(4, 128, 12, 12, 64)}


def rows(repeats: int) -> list[dict]:
    """A table per shape and direction; ratios are to the form that is taken when none is asked for."""
    found = []
    for name, shape in (SMALL if ON_CPU else SHAPES).items():
        for op, make in (("forward", _forward), ("gradient", _gradient)):
            found += _table(f"{name}, {op}", shape, make, repeats)
    return found


def _table(name: str, shape: Shape, make: Callable, repeats: int) -> list[dict]:
    draw = np.random.default_rng(0).standard_normal
    sizes = [(shape.batch, shape.pos, heads, shape.d_head) for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    q, k, v = (jnp.asarray(draw(size, np.float32), DTYPE) for size in sizes)
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(make(shape, "explicit"))(*(a[:1].astype(jnp.float32) for a in (q, k, v)))

    def error(result: Any) -> float:
        pairs = zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True)
        return max(float(jnp.max(jnp.abs(a[:1].astype(jnp.float32) - b))) for a, b in pairs)

    said = {"name": name, **shape._asdict()}
    able = [form for form in FORMS if _able(form, shape, q, k)]
    taken = next(form for form in preferred() if form in able)
    programs = [Program(form, make(shape, form), (q, k, v), said, DTYPE, reference=error) for form in able]
    return with_ratio(list(run(programs, repeats, INNER, together=False)), taken)


def _visible(shape: Shape, form: str) -> Visible:
    return Visible(True, None if shape.window is None else jnp.int32(shape.window), None, form=form)


def _able(form: str, shape: Shape, q: Any, k: Any) -> bool:
    try:
        return chosen(q, k, _visible(shape, form), shape.softcap) == form
    except UserError:
        return False


def _forward(shape: Shape, form: str) -> Callable[..., Any]:
    visible, scale = _visible(shape, form), shape.d_head**-0.5
    return lambda q, k, v: attend(q, k, v, visible, scale, jnp.int32(0), softcap=shape.softcap)


def _gradient(shape: Shape, form: str) -> Callable[..., Any]:
    def total(q: Any, k: Any, v: Any) -> Any:
        return jnp.sum(jnp.sin(_forward(shape, form)(q, k, v).astype(jnp.float32)))

    return jax.grad(total, (0, 1, 2))
