# SPDX-License-Identifier: Apache-2.0
"""Evaluates a traced function with numpy, equation by equation: for small programs that run once.

Compiling one takes a second, evaluating it some milliseconds, and what is said about values is the same: the program is
the one that JAX traces, with `jax.grad`, `jax.vmap` or `jaxneuro.taps` inside. What has no row in the table below is
run by JAX, operation by operation. tests/test_by_numpy.py compares it with what JAX compiles.
"""

import jax
import numpy as np
from scipy import special

from jaxneuro.taps import reading

from . import reordered

INLINE = {"jit", "call", "remat", "custom_jvp", "custom_vjp"}


def by_numpy(fn):
    """fn, evaluated by numpy: from trees of arrays to trees of numpy arrays. Traced once per structure, as by `jit`."""
    traced = {}

    def run(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        inputs = [host(a) for a in leaves]
        key = tree, *((a.shape, a.dtype) for a in inputs)
        if key not in traced:
            traced[key] = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        program, shape = traced[key]
        with np.errstate(all="ignore"):
            out = evaluate(program, inputs)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return run


def evaluate(program, inputs):
    """The outputs of a program."""
    program, consts = reading.opened(program)
    values = dict(zip([*program.constvars, *program.invars], [*map(host, consts), *inputs], strict=True))
    for eqn in program.eqns:
        out = equation(eqn, [read(atom, values) for atom in eqn.invars])
        for var, value in zip(eqn.outvars, out, strict=True):
            values[var] = host(value, var.aval.dtype)
            assert values[var].shape == var.aval.shape, eqn
    return [read(atom, values) for atom in program.outvars]


def host(x, dtype=None):
    """As a numpy array; random keys have none."""
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return np.asarray(x) if dtype is None else np.asarray(x).astype(dtype, copy=False)


def read(atom, values):
    return host(reading.value_of(atom, values), atom.aval.dtype)


def equation(eqn, inputs):
    """The outputs of one equation."""
    kind = reading.kind(eqn)
    if kind in LOOPS:
        return LOOPS[kind](eqn, inputs)
    if kind in INLINE:
        return evaluate(reading.programs(eqn)[0], inputs)
    if kind not in TABLE or any(isinstance(x, jax.Array) for x in inputs):
        return reading.bind(eqn, inputs)
    # bfloat16 is computed in float32 and rounded, as XLA does.
    inputs = [x.astype(np.float32) if x.dtype.kind == "V" else x for x in inputs]
    out = summed(kind, inputs, eqn.params) if kind in reordered.RULES else TABLE[kind](*inputs, **eqn.params)
    return out if eqn.primitive.multiple_results else [out]


def summed(kind, inputs, params):
    """A sum, in this machine's order or the order that the tests ask for."""
    if reordered.seed is None:
        return TABLE[kind](*inputs, **params)
    return reordered.rounded_otherwise(kind, TABLE[kind], ("by numpy",), *inputs, **params)


def scan(eqn, inputs):
    """Turn by turn; what the turns give is stacked."""
    s = reading.scan(eqn)
    split = s.n_consts + s.n_carry
    consts, carry, xs, turns = inputs[: s.n_consts], inputs[s.n_consts : split], inputs[split:], []
    for i in range(s.length)[:: -1 if s.reverse else 1]:
        out = evaluate(s.body, [*consts, *carry, *(x[i] for x in xs)])
        carry = out[: s.n_carry]
        turns.append(out[s.n_carry :])
    return [*carry, *map(np.stack, zip(*turns[:: -1 if s.reverse else 1], strict=True))]


def while_loop(eqn, inputs):
    w = reading.while_loop(eqn)
    split = w.n_cond_consts + w.n_body_consts
    test, consts, carry = inputs[: w.n_cond_consts], inputs[w.n_cond_consts : split], inputs[split:]
    while evaluate(w.cond, [*test, *carry])[0]:
        carry = evaluate(w.body, [*consts, *carry])
    return carry


def cond(eqn, inputs):
    branches = eqn.params["branches"]
    return evaluate(branches[np.clip(int(inputs[0]), 0, len(branches) - 1)], inputs[1:])


LOOPS = {"scan": scan, "while": while_loop, "cond": cond}


def dot_general(a, b, *, dimension_numbers, preferred_element_type, **_):
    """Axes of the result: of the batch, the others of a, the others of b."""
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    of_a, of_b = [*range(a.ndim)], [*range(a.ndim, a.ndim + b.ndim)]
    for i, j in zip((*sum_a, *batch_a), (*sum_b, *batch_b), strict=True):
        of_b[j] = i
    rest = [i for i in of_a if i not in (*sum_a, *batch_a)]
    wide = np.promote_types(preferred_element_type or a.dtype, np.int32 if a.dtype.kind in "iu" else np.float32)
    out = [*batch_a, *rest, *(j for j in of_b if j >= a.ndim)]
    return np.einsum(a.astype(wide, copy=False), of_a, b.astype(wide, copy=False), of_b, out)


def windows(ids, shape, sizes, axes, batching):
    """(index of each entry of each window, whether all of a window is inside); ids [..., axes] are where it starts."""
    first = np.zeros((*ids.shape[:-1], len(shape)), np.int64)
    first[..., list(axes)] = ids
    for axis, i in zip(*batching, strict=True):
        first[..., axis] = np.expand_dims(np.arange(shape[axis]), [j for j in range(ids.ndim - 1) if j != i])
    last = np.array(shape) - sizes
    inside = ((first >= 0) & (first <= last)).all(-1)
    first = np.expand_dims(np.clip(first, 0, last), [*range(ids.ndim - 1, ids.ndim - 1 + len(shape))])
    return tuple(first[..., k] + i for k, i in enumerate(np.indices(sizes))), inside


def gather(x, ids, *, dimension_numbers, slice_sizes, mode, fill_value, **_):
    d, n = dimension_numbers, ids.ndim - 1
    batching = d.operand_batching_dims, d.start_indices_batching_dims
    at, inside = windows(ids, x.shape, slice_sizes, d.start_index_map, batching)
    out = x[at]
    if mode == jax.lax.GatherScatterMode.FILL_OR_DROP and not inside.all():
        assert fill_value is not None or x.dtype.kind not in "iub", "which integer is it?"
        out[~inside] = np.nan if fill_value is None else fill_value
    out = out.squeeze(tuple(n + i for i in (*d.collapsed_slice_dims, *d.operand_batching_dims)))
    return np.moveaxis(out, range(n, out.ndim), d.offset_dims)


def scatter(combine):
    def run(x, ids, updates, *, dimension_numbers, mode, **_):
        d, x = dimension_numbers, x.copy()
        inner = [i for i in range(x.ndim) if i not in (*d.inserted_window_dims, *d.operand_batching_dims)]
        sizes = np.ones(x.ndim, int)
        sizes[inner] = [updates.shape[i] for i in d.update_window_dims]
        batching = d.operand_batching_dims, d.scatter_indices_batching_dims
        at, inside = windows(ids, x.shape, sizes, d.scatter_dims_to_operand_dims, batching)
        n = ids.ndim - 1
        updates = np.moveaxis(updates, d.update_window_dims, range(n, updates.ndim)).reshape(*ids.shape[:-1], *sizes)
        keep = inside if mode == jax.lax.GatherScatterMode.FILL_OR_DROP else np.ones_like(inside)
        combine(x, tuple(np.broadcast_to(i, updates.shape)[keep] for i in at), updates[keep])
        return x

    return run


def pad(x, value, *, padding_config):
    out = x
    for axis, (low, high, inner) in enumerate(padding_config):
        n = out.shape[axis]
        wide = max(n + inner * (n - 1), 0)
        new = np.full([*out.shape[:axis], max(low, 0) + wide + max(high, 0), *out.shape[axis + 1 :]], value)
        before = (slice(None),) * axis
        new[(*before, slice(max(low, 0), max(low, 0) + wide, inner + 1))] = out
        out = new[(*before, slice(max(-low, 0), new.shape[axis] - max(-high, 0)))]
    return out


def broadcast_in_dim(x, *, shape, broadcast_dimensions, **_):
    given = dict(zip(broadcast_dimensions, x.shape, strict=True))
    return np.broadcast_to(x.reshape([given.get(i, 1) for i in range(len(shape))]), shape)


def starts_of(x, starts, sizes):
    """Slices of a window, moved inside."""
    lows = [int(np.clip(s, 0, n - k)) for s, n, k in zip(starts, x.shape, sizes, strict=True)]
    return tuple(slice(low, low + k) for low, k in zip(lows, sizes, strict=True))


def dynamic_update_slice(x, update, *starts):
    x = x.copy()
    x[starts_of(x, starts, update.shape)] = update
    return x


def sort(*xs, dimension, num_keys, **_):
    order = np.lexsort(xs[:num_keys][::-1], axis=dimension)
    return [np.take_along_axis(x, order, dimension) for x in xs]


def top_k(x, *, k, axis, **_):
    at = np.argsort(-x, axis, kind="stable").take(range(k), axis)
    return [np.take_along_axis(x, at, axis), at]


def search_sorted(x, asked, *, _prim):
    x, shared = np.moveaxis(x, _prim.dimension, -1), _prim.batch_dims
    found = [np.searchsorted(x[i], asked[i[:shared]], side=_prim.side) for i in np.ndindex(x.shape[:-1])]
    return [np.reshape(found, (*x.shape[:-1], *asked.shape[shared:]))]


def divide(a, b):
    return a / b if a.dtype.kind not in "iu" else np.trunc(a / b)


def cumulative(ufunc):
    def run(x, *, axis, reverse):
        x = np.flip(x, axis) if reverse else x
        return np.flip(ufunc.accumulate(x, axis), axis) if reverse else ufunc.accumulate(x, axis)

    return run


def plain(fn):
    """A row for a primitive whose parameters say nothing here (how it is spread, how exact it has to be)."""
    return lambda *args, **_: fn(*args)


def reduced(ufunc):
    return lambda x, *, axes, **_: ufunc.reduce(x, axes)


SAME = "exp log sqrt tanh sin cos floor ceil square sign abs log1p expm1 exp2 cbrt add"
OTHER = (
    "add_any:add sub:subtract mul:multiply rem:fmod pow:power max:maximum min:minimum neg:negative is_finite:isfinite "
    "eq:equal ne:not_equal lt:less le:less_equal gt:greater ge:greater_equal and:bitwise_and or:bitwise_or not:invert "
    "xor:bitwise_xor"
)
REDUCED = "sum:add prod:multiply max:maximum min:minimum and:logical_and or:logical_or"
CUMULATIVE = "sum:add prod:multiply max:maximum min:minimum"
"""jax's name:numpy's name."""


def named(text):
    return {name: getattr(np, ufunc) for name, ufunc in (pair.split(":") for pair in text.split())}


TABLE = {
    **{name: plain(getattr(np, name)) for name in SAME.split()},
    **{name: plain(ufunc) for name, ufunc in named(OTHER).items()},
    **{name: plain(getattr(special, name)) for name in ("erf", "erfc")},
    **{name: plain(lambda x, *_: x) for name in ("tap", "copy", "copy_p", "stop_gradient", "sharding_constraint")},
    **{f"reduce_{name}": reduced(ufunc) for name, ufunc in named(REDUCED).items()},
    **{f"cum{name}": cumulative(ufunc) for name, ufunc in named(CUMULATIVE).items()},
    "convert_element_type": plain(lambda x: x),  # every result is given the type of its variable
    "div": plain(divide),
    "logistic": plain(special.expit),
    "rsqrt": plain(lambda x: 1 / np.sqrt(x)),
    "select_n": plain(lambda which, *cases: np.choose(which.astype(int), cases)),
    "clamp": plain(lambda low, x, high: np.clip(x, low, high)),
    "argmax": lambda x, *, axes, **_: x.argmax(*axes),
    "argmin": lambda x, *, axes, **_: x.argmin(*axes),
    "integer_pow": lambda x, *, y: x**y,
    "dot_general": dot_general,
    "gather": gather,
    "scatter": scatter(lambda x, at, new: x.__setitem__(at, new)),
    "scatter-add": scatter(np.add.at),
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
    "squeeze": lambda x, *, dimensions: x.squeeze(dimensions),
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "iota": lambda *, shape, dimension, **_: np.indices(shape)[dimension],
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "stack": lambda *xs, axis: np.stack(xs, axis),
    "split": lambda x, *, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "sort": sort,
    "top_k": top_k,
    "SearchSorted": search_sorted,
    "pad": pad,
    "slice": lambda x, *, start_indices, limit_indices, strides: x[
        tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))
    ],
    "dynamic_slice": lambda x, *starts, slice_sizes: x[starts_of(x, starts, slice_sizes)],
    "dynamic_update_slice": dynamic_update_slice,
}
