# SPDX-License-Identifier: Apache-2.0
"""The tap: an identity primitive that gives a value inside a pure function a name, and costs nothing by itself."""

import contextlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, ArrayLike

from ..errors import UserError
from .names import parse
from .spans import Span, packed

tap_p = Primitive("tap")

EVERYTHING = "*"
# What the enclosing transforms ask for. It is part of the key of every jit cache, so a path chosen with `wants` is
# never taken from a stale cache. Made once, at import, as JAX asks.
wanted = jax.make_user_context(frozenset())
_prefix = jax.make_user_context("")


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Sites reached inside are called `name.` and what they are called otherwise: two models in one function.

    Example:
      >>> from jaxneuro.taps import sites
      >>> def both(x):
      ...     with scope("encoder"):
      ...         x = tap(2 * x, "embed")
      ...     return tap(x + 1, "embed")
      >>> [site.name for site in sites(both, jnp.ones(3))]
      ['encoder.embed', 'embed']
    """
    with _prefix(f"{_prefix.value}{name}."):
        yield


def tap(
    x: ArrayLike,
    name: str,
    *,
    layer: int | Array | None = None,
    pos: int | Array | Span | None = None,
    key: Span | None = None,
    axes: Sequence[str] | None = None,
    spec: Sequence[Any] | None = None,
) -> Array:
    """Name a value, so that `capture` can read it and `intervene` can replace it. Returns x.

    Args:
      x: the value.
      name: the site, without a layer: "blocks.mlp.post". One name, one meaning; two calls need two names.
      layer: which layer this is; a Python int in an unrolled model, the scanned index under `lax.scan`.
      pos: absolute position of index 0 of the "pos" (or "query") axis, for decoding with a cache. Default 0. An array
        has one for each entry of the site's first axes ([batch]); under vmap each example may have its own. A `Span`
        says where the row ends, too, for padding: edits count negative positions from there.
      key: the same of the "key" axis.
      axes: one name per axis, ("batch", "pos", "neuron"); edits select by them. Axes added by vmap do not count.
      spec: inside `shard_map`, the mesh axis (or None) along which each axis is split, as in a PartitionSpec.
        With it captures are global arrays and edits count in global indices; without it a capture has one
        leading axis per mesh axis over which the value varies, and indices are local to the shard.
    Raises:
      UserError: the name holds a pattern or a tag; the axes do not fit x.
    Example:
      >>> tap(jnp.arange(3.0), "embed", axes=("d_model",))
      Array([0., 1., 2.], dtype=float32)
    """
    x = jnp.asarray(x)
    name = _prefix.value + name
    site = parse(name)
    if "*" in name or "@" in name or (site.layers is not None and (layer is not None or not site.single)):
        raise UserError(f"tap: {name!r} is not the name of one site. Write 'blocks.mlp.post' and pass layer=.")
    if axes is not None and (len(axes) != x.ndim or len(set(axes)) != len(axes)):
        raise UserError(f"tap: site {name!r} has shape {x.shape}, which the axes {tuple(axes)} do not name one by one.")
    if spec is not None and len(spec) > x.ndim:
        raise UserError(f"tap: site {name!r} has shape {x.shape}, the spec {tuple(spec)} has more axes.")
    if site.layers is not None:
        layer = site.layers[0]
    static = operator.index(layer) if layer is not None and isinstance(layer, int | np.integer) else None
    operands = [] if layer is None or static is not None else [jnp.asarray(layer, jnp.int32)]
    given = {"pos": pos, "key": key}
    spans = {n: s if isinstance(s, Span) else Span(s) for n, s in given.items() if s is not None}
    ends = [packed(span) for span in spans.values()]
    return tap_p.bind(
        x,
        *operands,
        *ends,
        name=site.name,
        ndim=x.ndim,
        static_layer=static,
        traced_layer=layer is not None and static is None,
        spans=tuple((n, a.ndim - 1, s.size) for (n, s), a in zip(spans.items(), ends, strict=True)),
        axes=None if axes is None else tuple(axes),
        spec=None if spec is None else (*spec, *[None] * (x.ndim - len(spec))),
    )


def wants(*names: str) -> bool:
    """Whether an enclosing `capture` or `intervene` asks for one of these sites (or its gradient).

    Model code takes a fused kernel while nobody looks inside it. The answer is part of jit's cache key.

    Example:
      >>> wants("blocks.attn.pattern")
      False
    """
    asked = wanted.value
    return EVERYTHING in asked or any(parse(_prefix.value + n).base in asked for n in names)


def split_operands(params: dict[str, Any], operands: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """(layer, {name of a span: its operand}) of a bound tap: the static or traced layer, None where there is none."""
    rest = list(operands)
    layer = rest.pop(0) if params["traced_layer"] else params["static_layer"]
    return layer, {name: operand for (name, _, _), operand in zip(params["spans"], rest, strict=True)}


def _jvp(primals, tangents, **params):
    t = tangents[0]
    # The tangent goes through a linear tap of its own, whose transpose is the gradient's: gradients become sites.
    # Second derivatives of a site have no name.
    if type(t) is not ad.Zero and "@" not in params["name"]:
        t = tap_p.bind(t, *primals[1:], **{**params, "name": params["name"] + "@tangent"})
    return tap_p.bind(*primals, **params), t


_TRANSPOSED = {"tangent": "grad", "grad": "tangent"}


def _transpose(ct, x, *operands, **params):
    if type(ct) is not ad.Zero:
        base, _, tag = params["name"].partition("@")
        ct = tap_p.bind(ct, *operands, **{**params, "name": f"{base}@{_TRANSPOSED[tag]}"})
    return [ct] + [None] * len(operands)


def _batch(args, dims, **params):
    """Vmapped axes lead the site's own; position offsets of each example lead likewise."""
    x, *operands = args
    if params["traced_layer"] and dims[1] is not None:
        raise UserError(
            f"site {params['name']!r}: its layer index is batched by vmap, so it has no one value. "
            "Loop over layers with lax.scan or Python, and vmap with in_axes=None for the index."
        )
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    x = jnp.broadcast_to(x, (size, *x.shape)) if dims[0] is None else jnp.moveaxis(x, dims[0], 0)
    first = len(operands) - len(params["spans"])
    for i, (_, ndim, _) in enumerate(params["spans"], first):
        span, dim = operands[i], dims[1 + i]
        span = jnp.expand_dims(span, 0) if dim is None else jnp.moveaxis(span, dim, 0)
        lead = span.ndim - ndim - 1
        if dim is not None or lead > 1:
            rest = (1,) * (x.ndim - params["ndim"] - lead)
            operands[i] = span.reshape(span.shape[:lead] + rest + span.shape[lead:])
    return tap_p.bind(x, *operands, **params), 0


tap_p.def_impl(lambda x, *_, **__: x)
tap_p.def_abstract_eval(lambda x, *_, **__: x)
mlir.register_lowering(tap_p, lambda ctx, x, *_, **__: [x])
ad.primitive_jvps[tap_p] = _jvp
ad.primitive_transposes[tap_p] = _transpose
batching.primitive_batchers[tap_p] = _batch
