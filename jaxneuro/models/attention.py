# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention in several forms with one meaning: a table says what each can do, and where it is used.

| form | what it is |
|---|---|
| `explicit` | both [batch, head, query, key] exist: for whoever wants `attn.scores` or `attn.pattern` |
| `chunked` | queries in chunks whose scores stay in cache, keys above the diagonal never touched |
| `cudnn`, `splash`, `tokamax` | kernels of others (`fused.py`) |

`forward(attention=None)` takes the first form of `PREFERRED` that can do what is needed, and `explicit` for the sites;
one that is asked for by name is used, or says why it cannot be. No form changes the meaning: a mask, window, soft-cap
or bias that a form does not know keeps it from being used.

`chunked` takes 15 ms where jax.nn.dot_product_attention takes 54 (forward) and 96 where it takes 140 (gradient),
on two CPU cores at batch 16, 256 positions, 6 heads of 32 in float32.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..axes import aligned
from ..errors import UserError, unknown
from ..taps import tap, wants
from . import fused
from .causal import from_there_on
from .positions import EVEN, Columns
from .quantised import matmul

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of a masked pair: finite, so that a row with no visible key is uniform and not NaN (as in transformers)."""


class Visible(NamedTuple):
    """Which keys a query may look at: the conjunction of all that is not None."""

    causal: bool
    window: Int[Array, ""] | None
    """How far back a query sees: query - key < window."""
    mask: Bool[Array, "batch key"] | None
    start: Int[Array, ""] | Int[Array, "batch"] | int | None = None
    """Which key is the first query's own, with a cache; None: there are as many keys as queries."""
    bias: Float[Array, "*batch head query key"] | None = None
    """Added to the scaled scores: T5's relative positions."""
    form: str | None = None
    """The row of `FORMS` that was asked for; None: the device's."""
    where: Columns = EVEN
    """Which positions queries and keys have, for the sites."""
    real: Bool[Array, "batch pos"] | None = None
    """Which of the tokens that are run are real; None: all, or those of `mask`."""

    def pairs(self, queries: Int[Array, "q"], keys: Int[Array, "k"]) -> Bool[Array, "#batch q k"] | None:
        """True where a query sees a key; None when every pair is visible."""
        start = jnp.asarray(0 if self.start is None else self.start, jnp.int32).reshape(-1, 1, 1)
        distance = start + queries[None, :, None] - keys[None, None, :]
        found = []
        if self.causal:
            found.append(distance >= 0)
        if self.window is not None:
            found.append(distance < self.window)
        if self.mask is not None:
            found.append(self.mask[:, None, : keys.shape[0]])
        out = None
        for f in found:
            out = f if out is None else out & f
        return out


def blank(value: Float[Array, "batch key head d_head"], real: Bool[Array, "batch key"] | None) -> Array:
    """Keys or values with 0 at padding: nobody sees them, but 0 times NaN is NaN."""
    return value if real is None else jnp.where(real[:, :, None, None], value, jnp.zeros_like(value))


def attend(
    q: Float[Array, "batch pos head d_head"],
    k: Float[Array, "batch pos kv_head d_head"],
    v: Float[Array, "batch pos kv_head d_head"],
    visible: Visible,
    scale: Float[Array, ""] | float,
    layer: Int[Array, ""],
    *,
    softcap: float | None = None,
    site: str = "blocks.attn",
) -> Float[Array, "batch pos head d_head"]:
    """softmax(scale q k^T + bias + mask) v per head, softmax in float32; query head n uses key head n // (N/K).

    softcap: scores s become softcap * tanh(s / softcap), before bias and mask.
    """
    q = q * jnp.asarray(scale, q.dtype)
    name, run = chosen(q, k, visible, softcap, site), _run(visible, softcap, (layer, site))
    platform = FORMS[name].platform

    def value(v: Array) -> Array:
        if visible.form is not None or platform is None:
            return run(name)(q, k, v)
        # A program may be lowered for another device than the default one.
        return jax.lax.platform_dependent(q, k, v, default=run("chunked"), **{platform: run(name)})

    if not visible.causal or q.shape[1] == 1:  # the newest query sees every key
        return value(v)
    grouped = lambda v: value(v).reshape(*q.shape[:2], v.shape[2], -1, q.shape[3])  # noqa: E731
    return from_there_on(grouped, v, 0 if visible.start is None else visible.start).reshape(q.shape)


def _run(visible: Visible, softcap: float | None, place: tuple[Array, str]) -> Callable[[str], Callable[..., Array]]:
    return lambda name: lambda q, k, v: FORMS[name].run(q, k, v, visible, softcap, place)


def chosen(q: Array, k: Array, visible: Visible, softcap: float | None, site: str = "blocks.attn") -> str:
    """The form that was asked for, or the first preferred one that can do it.

    Raises:
      UserError: no such form, or not here: with the reason.
    """
    asked, needs = visible.form, _needs(q, k, visible, softcap, site)
    if asked is None:
        return next(name for name in preferred() if _refusal(name, q, needs) is None)
    if asked not in FORMS:
        raise unknown("form of attention", asked, FORMS, where="forward(attention=...)")
    if reason := _refusal(asked, q, needs):
        able = ", ".join(name for name in FORMS if _refusal(name, q, needs) is None)
        raise UserError(f"attention={asked!r} cannot be used here: {reason}. Able are: {able}; None takes the best.")
    return asked


def preferred() -> tuple[str, ...]:
    """Forms for the default device, best first; the last can do everything."""
    kind = jax.devices()[0].device_kind.lower()
    found = (row for name, row in PREFERRED.items() if kind.startswith(name))
    return (*next(found, PREFERRED.get(jax.default_backend(), ())), "chunked", "explicit")


def _needs(q: Array, k: Array, visible: Visible, softcap: float | None, site: str) -> dict[str, str]:
    """What a form must know, beyond looking back or both ways and fewer heads of keys: in words."""
    asked = {
        "sites": (wants(f"{site}.scores", f"{site}.pattern"), f"the sites {site}.scores and {site}.pattern"),
        "window": (visible.window is not None, "windows of a layer"),
        "mask": (visible.mask is not None, "padding"),
        "cache": (visible.start is not None, "a cache"),
        "bias": (visible.bias is not None, "a bias of pairs"),
        "softcap": (softcap is not None, "a soft-cap"),
        "cross": (q.shape[1] != k.shape[1], "other keys than of the queries' positions"),
    }
    return {need: words for need, (is_needed, words) in asked.items() if is_needed}


def _refusal(name: str, q: Array, needs: dict[str, str]) -> str | None:
    form = FORMS[name]
    if form.platform is not None and jax.default_backend() != _BACKENDS[form.platform]:
        return f"it is for {form.platform}, this is {jax.default_backend()}"
    if missing := [words for need, words in needs.items() if need not in form.can]:
        return f"it does not know {', '.join(missing)}"
    return form.refuses(q)


def to_heads(x: Array, w: Any, b: Array | None) -> Float[Array, "batch pos head d_head"]:
    """A linear map to heads."""
    y = matmul(x, w)
    return y if b is None else y + aligned(b.astype(y.dtype), y)


def written(
    w: dict[str, Any], z: Array, layer: Array, at: Any, site: str = "blocks.attn"
) -> Float[Array, "batch pos d_model"]:
    """What the heads write to the residual stream, each from its mixture z of values."""
    z = tap(z, f"{site}.z", layer=layer, pos=at, axes=("batch", "pos", "head", "d_head"))
    if wants(f"{site}.result"):
        each = jnp.einsum("btnh,nhd->btnd", z, w["wo"].astype(z.dtype))
        axes = ("batch", "pos", "head", "d_model")
        out = tap(each, f"{site}.result", layer=layer, pos=at, axes=axes).sum(2)
    else:
        out = matmul(z.reshape(*z.shape[:2], -1), w["wo"], inputs=2)
    return out if "bo" not in w else out + aligned(w["bo"].astype(out.dtype), out)


def _scores(
    q: Array, k: Array, pairs: Array | None, softcap: float | None, bias: Array | None
) -> Float[Array, "batch kv_head group q k"]:
    b, t, n, h = q.shape
    grouped = q.reshape(b, t, k.shape[2], n // k.shape[2], h)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.reshape(-1, *scores.shape[1:])
    return scores if pairs is None else jnp.where(pairs[:, None, None], scores, MASKED)


def _explicit(q: Array, k: Array, v: Array, visible: Visible, softcap: float | None, place: tuple[Array, str]) -> Array:
    layer, site = place
    (b, t, n, h), s = q.shape, k.shape[1]
    at: Any = {"layer": layer, **visible.where._asdict(), "axes": ("batch", "head", "query", "key")}
    scores = _scores(q, k, visible.pairs(jnp.arange(t), jnp.arange(s)), softcap, visible.bias).reshape(b, n, t, s)
    scores = tap(scores, f"{site}.scores", **at)
    pattern = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    pattern = tap(pattern, f"{site}.pattern", **at)
    grouped = pattern.reshape(b, v.shape[2], -1, t, s)
    return jnp.einsum("bkgts,bskh->btkgh", grouped, v).reshape(b, t, n, h)


def _chunked(q: Array, k: Array, v: Array, visible: Visible, softcap: float | None, place: Any) -> Array:
    length = q.shape[1]
    chunk = -(-length // max(1, min(4, length // 64)))  # at most 4 chunks (compile time), at least 64 rows each
    outs = []
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        last = stop if visible.causal and visible.start is None else k.shape[1]
        pairs = visible.pairs(jnp.arange(start, stop), jnp.arange(last))
        bias = None if visible.bias is None else visible.bias[..., start:stop, :last]
        outs.append(_softmax_values(_scores(q[:, start:stop], k[:, :last], pairs, softcap, bias), v[:, :last]))
    return jnp.concatenate(outs, axis=1)


def _softmax_values(scores: Array, v: Array) -> Array:
    # The row sum divides the [.., h] result instead of the [.., k] weights: less to write.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bkgts,bskh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    b, kv, group, t, h = out.shape
    return out.astype(v.dtype).transpose(0, 3, 1, 2, 4).reshape(b, t, kv * group, h)


class Form(NamedTuple):
    """One way to compute attention."""

    run: Callable[[Array, Array, Array, Visible, float | None, Any], Array]
    can: frozenset[str]
    """Of what `_needs` names."""
    platform: str | None = None
    """The only one it is for, as XLA names them."""
    refuses: Callable[[Array], str | None] = lambda q: None
    """Why it cannot take these queries."""


_ALL: Final = frozenset({"window", "mask", "cache", "bias", "softcap", "cross"})
_BACKENDS: Final = {"cuda": "gpu", "tpu": "tpu"}
"""Platforms as JAX names them."""
FORMS: Final[dict[str, Form]] = {
    "explicit": Form(_explicit, _ALL | {"sites"}),
    "chunked": Form(_chunked, _ALL),
    "cudnn": Form(fused.cudnn, frozenset({"window", "mask", "cross"}), "cuda", fused.cudnn_refuses),
    "splash": Form(fused.splash, frozenset({"mask", "softcap"}), "tpu", fused.splash_refuses),
    "tokamax": Form(fused.tokamax, frozenset({"window", "mask", "softcap"}), None, fused.tokamax_refuses),
}
PREFERRED: Final[dict[str, tuple[str, ...]]] = {"gpu": ("cudnn",)}
"""Start of a device's kind in lower case ("nvidia h100", "tpu v5"), or JAX's name of its platform -> forms, the fastest
first; `chunked` follows. A row is added when `python -m benchmarks attention` has run on the device: until then splash
and tokamax are used only where they are asked for."""
