# SPDX-License-Identifier: Apache-2.0
"""Sums as another machine would round them, from a seed: for tests that must not assume one order of addition.

A processor decides in which order a float sum is added, and so its last digit. Here every sum of a program is computed
twice: as this machine does it, and with its terms permuted by the seed and added in two blocks. Where both agree the
sum is exact (counts, one-hot products, a single term) and stays; where they differ the second one is taken, one ulp up
or down by the seed. Order and signs depend on the seed, the program's name, the shapes and the number of devices: a
program agrees with itself bit for bit, and with nothing else.

`reordered(seed)` replaces how JAX lowers the primitives of `RULES` to XLA, so it holds inside jit, scan, cond, custom
derivatives and shard_map, after differentiation and batching, and for operations called one by one; `by_numpy` uses the
same rules. `pytest --reordered SEED` runs any tests so.
"""

import contextlib
import zlib
from functools import partial

import jax
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

seed = None
"""The seed in force, or None."""


class Order:
    """What one equation's order is drawn from."""

    def __init__(self, *key):
        self.rng = np.random.default_rng(zlib.crc32(repr((seed, *key)).encode()))

    def permuted(self, *arrays_and_axes):
        """Arrays with the same permutation of one axis each."""
        array, axis = arrays_and_axes[0]
        order = self.rng.permutation(array.shape[axis])
        return [a.take(order, axis, mode="clip") for a, axis in arrays_and_axes]

    def halves(self, n):
        """A random half of n places as a slice: with the places permuted, any half will do."""
        cut = int(self.rng.integers(1, n)) if n > 1 else n
        return slice(0, cut), slice(cut, n)

    def masks(self, shape, axes):
        """0/1 masks of two blocks, chosen along these axes."""
        on = self.rng.integers(0, 2, [n if i in axes else 1 for i, n in enumerate(shape)]).astype(bool)
        return on, ~on


def dot_general(bind, order, a, b, *, dimension_numbers, **params):
    (of_a, of_b), _ = dimension_numbers
    if not of_a:
        return bind(a, b, dimension_numbers=dimension_numbers, **params)
    for i, j in zip(of_a, of_b, strict=True):
        a, b = order.permuted((a, i), (b, j))
    i, j = max(zip(of_a, of_b, strict=True), key=lambda pair: a.shape[pair[0]])
    blocks = [(at(a, i, part), at(b, j, part)) for part in order.halves(a.shape[i]) if part.start < part.stop]
    return added(bind(*block, dimension_numbers=dimension_numbers, **params) for block in blocks)


def reduce_sum(bind, order, x, *, axes, **params):
    if not axes or 0 in x.shape:
        return bind(x, axes=axes, **params)
    for axis in axes:
        (x,) = order.permuted((x, axis))
    longest = max(axes, key=lambda axis: x.shape[axis])
    parts = [part for part in order.halves(x.shape[longest]) if part.start < part.stop]
    return added(bind(at(x, longest, part), axes=axes, **params) for part in parts)


def convolution(bind, order, x, kernel, *, dimension_numbers, **params):
    """The window and the channels it sums over in two blocks."""
    summed = dimension_numbers.rhs_spec[1:]
    return added(
        bind(x, masked(kernel, on), dimension_numbers=dimension_numbers, **params)
        for on in order.masks(kernel.shape, summed)
    )


def along(axes_of):
    """A sum of one array over places of some axes: linear, so two masked arrays add up to it."""

    def rule(bind, order, x, **params):
        return added(bind(masked(x, on), **params) for on in order.masks(x.shape, axes_of(x, params)))

    return rule


def scatter_add(bind, order, x, ids, updates, **params):
    for on in order.masks(updates.shape, range(updates.ndim)[:1]):
        x = bind(x, ids, masked(updates, on), **params)
    return x


def at(x, axis, part):
    return x[(slice(None),) * axis + (part,)]


def added(blocks):
    first, *others = blocks
    return sum(others, start=first)


def masked(x, on):
    return module(x).where(on, x, np.zeros((), x.dtype))


def module(x):
    return np if isinstance(x, np.ndarray) else jax.numpy


PRIMITIVES = {
    p.name: p
    for p in (
        lax.dot_general_p,
        lax.reduce_sum_p,
        lax.conv_general_dilated_p,
        lax.cumsum_p,
        lax.reduce_window_sum_p,
        lax.scatter_add_p,
    )
}
RULES = {
    "dot_general": dot_general,
    "reduce_sum": reduce_sum,
    "conv_general_dilated": convolution,
    "cumsum": along(lambda _, params: (params["axis"],)),
    "reduce_window_sum": along(lambda x, _: range(x.ndim)[1:]),
    "scatter-add": scatter_add,
}


def rounded_otherwise(kind, bind, key, *inputs, **params):
    """One equation's result in another order. kind: a key of RULES; bind: the equation as this machine does it."""
    plain = bind(*inputs, **params)
    if not jax.numpy.issubdtype(plain.dtype, np.floating) or not plain.size:
        return plain
    order = Order(kind, *key, *(x.shape for x in inputs))
    other, xp = RULES[kind](bind, order, *inputs, **params), module(plain)
    inexact = (plain != other) & xp.isfinite(plain) & xp.isfinite(other)
    if plain.dtype.itemsize >= 4:  # a narrow type differs by a whole ulp already
        ulp = np.finfo(plain.dtype).eps
        other = other * (1 + ulp * signs(order, plain.shape)).astype(plain.dtype)
    return xp.where(inexact, other, plain)


def signs(order, shape):
    """-1 or 1 per entry, the product of a sign per place of each axis."""
    out = np.ones((), np.float64)
    for i, n in enumerate(shape):
        out = out * order.rng.choice([-1.0, 1.0], [n if j == i else 1 for j in range(len(shape))])
    return out


def rule_of(kind, primitive, plain):
    """How XLA is told: the rule of `kind` around a twin of the primitive that is lowered as the primitive was."""

    def shape(*avals, **params):
        unsharded = {"out_sharding": None} if "out_sharding" in params else {}
        return primitive.abstract_eval(*avals, **params | unsharded)[0]

    twin = Primitive(f"plain_{kind}")
    twin.def_abstract_eval(shape)
    mlir.register_lowering(twin, plain)

    def lowered(ctx, *operands, **params):
        module = ctx.module_context
        key = str(module.module.operation.attributes["sym_name"]), getattr(module.axis_context, "num_devices", 0)
        fn = mlir.lower_fun(partial(rounded_otherwise, kind, twin.bind, key), multiple_results=False)
        avals = [jax.core.ShapedArray(a.shape, a.dtype) for a in ctx.avals_in]
        (out,) = fn(inner := ctx.replace(avals_in=avals), *operands, **params)
        ctx.set_tokens_out(inner.tokens_out)
        return [out]

    return lowered


@contextlib.contextmanager
def reordered(new):
    """Within, every sum is rounded as the seed `new` says: an int."""
    global seed
    cpu, common = mlir._platform_specific_lowerings["cpu"], mlir._lowerings
    before = {p: cpu.get(p) for p in PRIMITIVES.values()}
    outer, seed = seed, new
    try:
        jax.clear_caches()
        for kind, p in PRIMITIVES.items():
            mlir.register_lowering(p, rule_of(kind, p, (before[p] or common[p]).rule), platform="cpu")
        yield
    finally:
        seed = outer
        for p, entry in before.items():
            if entry is None:
                del cpu[p]
            else:
                cpu[p] = entry
        jax.clear_caches()
