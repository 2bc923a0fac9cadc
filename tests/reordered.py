# SPDX-License-Identifier: Apache-2.0
"""Sums as another machine would round them, from a seed: for tests that must not assume one order of addition.

A processor decides in which order a float sum is added, and so its last digit. Here every sum of a program is computed
twice: as this machine does it, and with its terms permuted by the seed and added in blocks. Where both agree the sum
is exact (counts, one-hot products, a single term) and stays; where they differ the second one is taken, after each
block one ulp up or down by the seed: what two processors disagree by is an ulp of what they add up on the way, which
is many of a sum in which the terms cancel. Order and signs depend on the seed, the program's name, the shapes and the
number of devices: a program agrees with itself bit for bit, and with nothing else.

`reordered(seed)` replaces how JAX lowers the primitives of `RULES` to XLA, so it holds inside jit, scan, cond, custom
derivatives and shard_map, after differentiation and batching, and for operations called one by one; `by_numpy` uses the
same rules. `pytest --reordered SEED` runs any tests so; the fixture `this_machine` exempts those about programs.
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
        return [part for part in (slice(0, cut), slice(cut, n)) if part.start < part.stop]

    def masks(self, shape, axes, blocks=2):
        """A mask per block of places that are chosen along these axes."""
        block = self.rng.integers(0, blocks, [n if i in axes else 1 for i, n in enumerate(shape)])
        return [block == i for i in range(blocks)]


def dot_general(bind, order, a, b, *, dimension_numbers, **params):
    (of_a, of_b), _ = dimension_numbers
    if not of_a:
        return [bind(a, b, dimension_numbers=dimension_numbers, **params)]
    for i, j in zip(of_a, of_b, strict=True):
        a, b = order.permuted((a, i), (b, j))
    i, j = max(zip(of_a, of_b, strict=True), key=lambda pair: a.shape[pair[0]])
    blocks = [(at(a, i, part), at(b, j, part)) for part in order.halves(a.shape[i])]
    return [bind(*block, dimension_numbers=dimension_numbers, **params) for block in blocks]


def reduce_sum(bind, order, x, *, axes, **params):
    if not axes or 0 in x.shape:
        return [bind(x, axes=axes, **params)]
    for axis in axes:
        (x,) = order.permuted((x, axis))
    longest = max(axes, key=lambda axis: x.shape[axis])
    return [bind(at(x, longest, part), axes=axes, **params) for part in order.halves(x.shape[longest])]


def convolution(bind, order, x, kernel, *, dimension_numbers, **params):
    """The window and the channels it sums over in eight blocks: processors differ most in how they convolve."""
    summed = dimension_numbers.rhs_spec[1:]
    return [
        bind(x, masked(kernel, on), dimension_numbers=dimension_numbers, **params)
        for on in order.masks(kernel.shape, summed, blocks=8)
    ]


def along(axes_of):
    """A sum of one array over places of some axes: linear, so two masked arrays add up to it."""

    def rule(bind, order, x, **params):
        return [bind(masked(x, on), **params) for on in order.masks(x.shape, axes_of(x, params))]

    return rule


def scatter_add(bind, order, x, ids, updates, **params):
    on, off = (masked(updates, on) for on in order.masks(updates.shape, range(updates.ndim)[:1]))
    return [bind(x, ids, on, **params), bind(module(x).zeros_like(x), ids, off, **params)]


def at(x, axis, part):
    return x[(slice(None),) * axis + (part,)]


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
    order, xp = Order(kind, *key, *(x.shape for x in inputs)), module(plain)
    blocks = RULES[kind](bind, order, *map(wide, inputs), **params | wide_result(params))
    if not blocks:  # nothing is added up
        return plain
    other = sum(blocks[1:], start=blocks[0])
    inexact = (plain != other.astype(plain.dtype)) & xp.isfinite(plain) & xp.isfinite(other)
    total, ulp = xp.zeros_like(other), np.finfo(other.dtype).eps
    for block in blocks:
        total = (total + block) * (1 + ulp * signs(order, plain.shape)).astype(other.dtype)
    return xp.where(inexact, total.astype(plain.dtype), plain)


def wide(x):
    """Narrow floats are added in float32 and their sum is rounded once, as XLA does."""
    narrow = jax.numpy.issubdtype(x.dtype, np.floating) and x.dtype.itemsize < 4
    return x.astype(np.float32) if narrow else x


def wide_result(params):
    asked = params.get("preferred_element_type")
    return {} if asked is None or np.dtype(asked).itemsize >= 4 else {"preferred_element_type": np.dtype(np.float32)}


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


CPU = mlir._platform_specific_lowerings["cpu"]
PLAIN = {p: CPU.get(p) for p in PRIMITIVES.values()}
"""This machine's own rules, where they are not those of all platforms."""


@contextlib.contextmanager
def reordered(new):
    """Within, every sum is rounded as the seed `new` says: an int, or None for this machine's own sums."""
    global seed
    outer, seed = seed, new
    try:
        install()
        yield
    finally:
        seed = outer
        install()


def install():
    """The rules of the seed in force."""
    jax.clear_caches()
    for kind, p in PRIMITIVES.items():
        if seed is not None:
            plain = (PLAIN[p] or mlir._lowerings[p]).rule
            mlir.register_lowering(p, rule_of(kind, p, plain), platform="cpu")
        elif PLAIN[p] is None:
            CPU.pop(p, None)
        else:
            CPU[p] = PLAIN[p]
