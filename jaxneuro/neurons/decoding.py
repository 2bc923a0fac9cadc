# SPDX-License-Identifier: Apache-2.0
"""Names for neurons from the weights alone: the tokens that a neuron's direction promotes and suppresses."""

from functools import partial
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..axes import aligned
from ..errors import UserError, unknown
from ..models import unembedding
from ..models.transformer import gain
from ..taps.ranges import check_index

_FULL = jax.lax.Precision.HIGHEST


class Decoded(NamedTuple):
    """Tokens along each direction, best first. Leading axes are those of the directions."""

    promoted: Int[Array, "*n k"]
    promoted_score: Float[Array, "*n k"]
    suppressed: Int[Array, "*n k"]
    suppressed_score: Float[Array, "*n k"]
    """The lowest scores, lowest first."""
    logsumexp: Float[Array, "*n"]
    """Of the scores over the vocabulary: exp(promoted_score - logsumexp) is softmax's probability (variant "logit")."""


class _Best(NamedTuple):
    top: tuple[Array, Array]
    bottom: tuple[Array, Array]
    peak: Array
    total: Array


@partial(jax.jit, static_argnames=("k", "chunk", "centred", "variant", "bits"))
def decode_directions(
    directions: Float[Array, "n d_model"],
    unembed: Float[Array, "d_model d_vocab"],
    k: int = 10,
    *,
    chunk: int = 4096,
    centred: bool = True,
    variant: Literal["logit", "cosine", "zscore"] = "logit",
    population: Float[Array, "m d_model"] | None = None,
    bits: int = 24,
) -> Decoded:
    """Top-k and bottom-k tokens of directions in the residual stream.

        logit:   s[n, v] = d_n . u_v
        cosine:  s[n, v] = d_n . u_v / (|d_n| |u_v|)
        zscore:  s[n, v] = (d_n . u_v - mean_m d_m . u_v) / std_m d_m . u_v      over the population

    The vocabulary is walked in chunks with a running top-k and a running log-sum-exp: [n, d_vocab] never exists. The
    z-score's mean and spread per token come from the population's mean and covariance, again without [m, d_vocab].

    Args:
      directions: one per row; any float dtype, accumulated in float32.
      unembed: W_U. On an accelerator products with bfloat16 numbers run on its matrix units, and are still exact.
      k: tokens on each side; equal scores are ordered by token number.
      chunk: tokens at a time.
      centred: subtract from every u_v the mean over the vocabulary. Softmax does not see it; cosines and z-scores do.
      variant: rare tokens with a large |u_v| win many plain logits; cosine and zscore take that away.
      population: directions over which "zscore" standardises; None: `directions`.
      bits: of mantissa that are in float32 directions: 16 for a product of two bfloat16 numbers. On an accelerator a
        bfloat16 `unembed` is multiplied once for each 8 of them.
    Returns:
      Decoded.
    Source: arXiv 2501.02688 (input directions, softmax of W_U w); variants ours.
    Example:
      >>> decode_directions(jnp.eye(4)[:2], jnp.eye(4), k=1).promoted.tolist()
      [[0], [1]]
    """
    if getattr(unembed, "dtype", None) != jnp.bfloat16:  # the only one that needs no copy
        unembed = unembed.astype(jnp.float32)
    d, size = directions, unembed.shape[1]
    k, chunk = min(k, size), min(max(chunk, k), size)
    offset, spread = _population((d if population is None else population).astype(jnp.float32))
    if variant == "cosine":
        d = d.astype(jnp.float32)
        d, bits = d / jnp.maximum(jnp.linalg.norm(d, axis=-1, keepdims=True), jnp.float32(1e-30)), 24
    if variant == "zscore":
        d, bits = d.astype(jnp.float32) - offset[None], 24
    mean_u = jnp.mean(unembed, 1, keepdims=True, dtype=jnp.float32) * jnp.float32(centred)
    at_mean = jnp.matmul(d.astype(jnp.float32), mean_u, precision=_FULL)

    def score(piece: Array) -> Array:
        s = _product(d, piece, bits) - at_mean
        piece = piece.astype(jnp.float32) - mean_u
        if variant == "cosine":
            s = s / jnp.maximum(jnp.linalg.norm(piece, axis=0, keepdims=True), jnp.float32(1e-30))
        if variant == "zscore":
            var = jnp.einsum("dv,de,ev->v", piece, spread, piece, precision=_FULL)[None]
            s = s / jnp.sqrt(jnp.maximum(var, jnp.float32(1e-30)))
        return s

    def one(best: _Best, start: Array) -> tuple[_Best, None]:
        # the last chunk is moved back to end at the vocabulary's end; what it repeats is masked out
        at = jnp.minimum(start, size - chunk)
        token = at + jnp.arange(chunk, dtype=jnp.int32)
        s, fresh = score(jax.lax.dynamic_slice_in_dim(unembed, at, chunk, 1)), token >= start
        up, down = (jnp.where(fresh, v, -jnp.inf) for v in (s, -s))
        peak = jnp.maximum(best.peak, jnp.max(up, 1))
        total = best.total * jnp.exp(best.peak - peak) + jnp.sum(jnp.exp(up - peak[:, None]), 1)
        return _Best(_keep(best.top, up, token, k), _keep(best.bottom, down, token, k), peak, total), None

    n = d.shape[0]
    empty = (jnp.full((n, k), -jnp.inf, jnp.float32), jnp.full((n, k), size, jnp.int32))
    start = _Best(empty, empty, jnp.full((n,), -jnp.inf, jnp.float32), jnp.zeros((n,), jnp.float32))
    best, _ = jax.lax.scan(one, start, jnp.arange(0, size, chunk, dtype=jnp.int32))
    return Decoded(best.top[1], best.top[0], best.bottom[1], -best.bottom[0], best.peak + jnp.log(best.total))


def _product(d: Array, piece: Array, bits: int) -> Array:
    """d @ piece as float32 numbers multiply."""
    if piece.dtype != jnp.bfloat16:
        return _product_float32(d, piece)
    split = partial(_product_bfloat16, bits=bits)
    return jax.lax.platform_dependent(d, piece, cpu=_product_float32, default=split)


def _product_float32(d: Array, piece: Array) -> Array:
    return jnp.matmul(d.astype(jnp.float32), piece.astype(jnp.float32), precision=_FULL)


def _product_bfloat16(d: Array, piece: Array, *, bits: int = 24) -> Array:
    # 24 bits of mantissa are three times bfloat16's 8, and a product of two of those fits in float32. The parts lie
    # side by side, so that one matmul adds them up.
    parts = [d] if d.dtype == jnp.bfloat16 else _parts(d.astype(jnp.float32))[: -(-bits // 8)]
    both = jnp.concatenate(parts, 1), jnp.concatenate([piece] * len(parts))
    return jnp.matmul(*both, preferred_element_type=jnp.float32)


def _parts(x: Array) -> list[Array]:
    """Three bfloat16 arrays whose sum is a float32 one. Not by casts, which XLA may leave out."""
    high = jax.lax.reduce_precision(x, 8, 7)
    middle = jax.lax.reduce_precision(x - high, 8, 7)
    return [part.astype(jnp.bfloat16) for part in (high, middle, x - high - middle)]


def _keep(best: tuple[Array, Array], s: Array, token: Array, k: int) -> tuple[Array, Array]:
    values, index = jax.lax.top_k(jnp.concatenate([best[0], s], 1), k)
    tokens = jnp.concatenate([best[1], jnp.broadcast_to(token, s.shape)], 1)
    return values, jnp.take_along_axis(tokens, index, 1)


def _population(d: Array) -> tuple[Array, Array]:
    mean = jnp.mean(d, 0)
    centred = d - mean[None]
    return mean, jnp.matmul(centred.T, centred, precision=_FULL) / jnp.float32(d.shape[0])


_LEAVES: Final = {"output": "down", "input": "up", "gate": "gate"}


def neuron_directions(
    weights: Any, cfg: Any, side: Literal["output", "input", "gate"] = "output", *, fold_norm: bool = True
) -> Float[Array, "layer neuron d_model"]:
    """What each MLP neuron writes to the residual stream ("output") or reads from it ("input", "gate").

    output: a row of W_down. input: a column of W_up, gate: of W_gate. With `fold_norm` the norm between the direction
    and the matrix it is compared with is folded in: its gain multiplies the direction (output: the norm after the MLP,
    where there is one, and the final norm; input and gate: the norm before the MLP, of pre-norm models), and for
    LayerNorm, which ignores the mean of its input, the direction is centred over d_model. In a mixture of experts
    neuron j of expert e is number e d_mlp + j.

    Raises:
      UserError: unknown side; "gate" of an MLP without one; a model without MLPs, or with experts in some layers only.
    """
    if side not in _LEAVES:
        raise unknown("side", side, tuple(_LEAVES), where="neuron_directions")
    d = _directions(weights | {"blocks": _mlps(weights, cfg)}, cfg, side, fold_norm)
    return _by_layer(d, cfg)


def _by_layer(a: Array, cfg: Any) -> Array:
    """[layer * expert, neuron, ...] -> [layer, expert * neuron, ...]."""
    each = 1 if cfg.experts is None else cfg.experts.n
    return a.reshape(a.shape[0] // each, each * a.shape[1], *a.shape[2:])


def _mlps(weights: Any, cfg: Any) -> dict[str, Any]:
    """MLPs and the norms before them, [layer, ...]; of a mixture [layer * expert, ...]."""
    blocks = weights["blocks"]
    norm = blocks.get("ln1" if cfg.one_norm else "ln2")
    if cfg.experts is None and "mlp" in blocks:
        return {"mlp": blocks["mlp"], "norm": norm, "ls2": blocks.get("ls2"), "ln2_post": blocks.get("ln2_post")}
    if cfg.experts is None or cfg.experts.dense:
        why = "has no MLPs" if cfg.experts is None else "has experts in some layers and one MLP in others"
        raise UserError(
            f"neuron_directions: this {cfg.family} model {why}. Give rows of its weights to decode_directions; "
            f"weights['blocks'] has {', '.join(sorted(blocks))}."
        )
    mlp = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), {n: blocks["moe"][n] for n in _LEAVES.values()})
    return {"mlp": mlp, "norm": jax.tree.map(lambda a: jnp.repeat(a, cfg.experts.n, axis=0), norm)}


def _directions(weights: Any, cfg: Any, side: str, fold_norm: bool) -> Float[Array, "mlp neuron d_model"]:
    mlp, names = weights["blocks"]["mlp"], _LEAVES
    if names[side] not in mlp:
        raise UserError(f"neuron_directions: the MLPs of this {cfg.family} model have no gate. Use side='input'.")
    w = mlp[names[side]].astype(jnp.float32)
    d = w if side == "output" else jnp.swapaxes(w, 1, 2)
    if not fold_norm:
        return d
    layer_norm = cfg.norm == "layer"
    if side == "output":
        return at_unembedding(_added(d, weights["blocks"], cfg), weights, cfg)
    if cfg.norm_placement != "pre":
        return d
    # w . (gain * (x - mean(x))) = (gain * w - mean(gain * w)) . x
    return _centre(d * gain(weights["blocks"]["norm"], cfg)[:, None], layer_norm)


def _added(d: Float[Array, "mlp neuron d_model"], blocks: Any, cfg: Any) -> Float[Array, "mlp neuron d_model"]:
    """As it is added to the residual stream: scaled channel by channel, normed, where a model does this after its MLPs.

    Up to the scale of the norm, which depends on the text.
    """
    if blocks.get("ls2") is not None:
        d = d * blocks["ls2"].astype(jnp.float32)[:, None]
    return d if blocks.get("ln2_post") is None else d * gain(blocks["ln2_post"], cfg)[:, None]


def at_unembedding(d: Float[Array, "*n d_model"], weights: Any, cfg: Any) -> Float[Array, "*n d_unembed"]:
    """Directions of the residual stream as the unembedding reads them: gain * (d - mean(d)), up to the norm's scale.

    The mean is taken off under LayerNorm only. OPT-350m has a projection between norm and unembedding.
    """
    if "scale" in weights.get("final_norm", {}):
        d = _centre(d, cfg.norm == "layer") * aligned(gain(weights["final_norm"], cfg), d)
    out = weights.get("head", {}).get("proj_out")
    return d if out is None else jnp.matmul(d, out.astype(jnp.float32), precision=_FULL)


def _centre(d: Array, yes: bool) -> Array:
    return d - jnp.mean(d, -1, keepdims=True) if yes else d


def decode_neurons(
    weights: Any,
    cfg: Any,
    layers: np.ndarray | None = None,
    neurons: np.ndarray | None = None,
    *,
    k: int = 10,
    side: Literal["output", "input", "gate"] = "output",
    fold_norm: bool = True,
    centred: bool = True,
    variant: Literal["logit", "cosine", "zscore"] = "logit",
    chunk: int = 4096,
) -> Decoded:
    """Decode chosen neurons through the LM head, or all of them.

    Args:
      weights, cfg: a model's (`model.weights`, `model.cfg`).
      layers, neurons: int [n], the neurons (of a mixture: see `neuron_directions`). Both None: all, layer by layer.
      k, centred, variant, chunk: see `decode_directions`; "zscore" standardises over all neurons of the model.
      side, fold_norm: see `neuron_directions`. With tied embeddings input and output are compared with one matrix.
    Returns:
      Decoded with leading axis [n], or [L, F] for all.
    Raises:
      UserError: the model has no unembedding (an encoder), or only one of layers and neurons is given; one
        that is not there.
    """
    if not cfg.has_head:
        raise UserError(
            f"decode_neurons: this {cfg.family} model has no unembedding, so its neurons have no tokens to be compared "
            f"with. Describe them from their top examples instead (jaxneuro.neurons.describe)."
        )
    if (layers is None) != (neurons is None):
        raise UserError("decode_neurons: give both layers and neurons, or neither for all.")
    if layers is not None:
        d = neuron_directions(weights, cfg, side, fold_norm=fold_norm)
        for axis, index, n in zip(("layer", "neuron"), (layers, neurons), d.shape, strict=False):
            check_index(np.asarray(index), "blocks.mlp.post", axis, n, "decode_neurons")
        everyone = d.reshape(-1, d.shape[-1]) if variant == "zscore" else None
        chosen = d[np.asarray(layers), np.asarray(neurons)]
        options: dict[str, Any] = {"centred": centred, "variant": variant, "population": everyone}
        return decode_directions(chosen, unembedding(weights, cfg), k, chunk=chunk, **options)
    read = {name: weights[name] for name in ("final_norm", "head", "embed") if name in weights}
    read["blocks"] = _mlps(weights, cfg)
    found = _decode_all(read, cfg, k, side=side, fold_norm=fold_norm, centred=centred, variant=variant, chunk=chunk)
    return jax.tree.map(partial(_by_layer, cfg=cfg), found)


@partial(jax.jit, static_argnames=("cfg", "k", "side", "fold_norm", "centred", "variant", "chunk"))
def _decode_all(
    weights: Any, cfg: Any, k: int, *, side: Any, fold_norm: bool, centred: bool, variant: Any, chunk: int
) -> Decoded:
    """MLP by MLP: only one's directions exist as float32, and its scores of one chunk of tokens."""
    blocks, head, everyone = weights["blocks"], unembedding(weights, cfg), None
    if variant == "zscore":
        everyone = _directions(weights, cfg, side, fold_norm).reshape(-1, cfg.d_model)

    read = jax.tree.leaves((blocks, weights.get("final_norm", {})))
    one_gain = cfg.norm == "rms" and cfg.norm_placement == "pre" and not cfg.layer_scale
    bits = 16 if one_gain and all(a.dtype == jnp.bfloat16 for a in read) else 24

    def of_mlp(layer: Any) -> Decoded:
        one = weights | {"blocks": jax.tree.map(lambda a: a[None], layer)}
        d = _directions(one, cfg, side, fold_norm)[0]
        if not fold_norm and getattr(layer["mlp"]["down"], "dtype", None) == jnp.bfloat16:  # which loses nothing
            d = d.astype(jnp.bfloat16)
        options: dict[str, Any] = {"centred": centred, "variant": variant, "population": everyone}
        return decode_directions(d, head, k, chunk=chunk, bits=bits, **options)

    return jax.lax.map(of_mlp, blocks)


def stability(a: Decoded, b: Decoded) -> float:
    """Fraction of neurons whose top promoted token is the same in two models (base and fine-tuned)."""
    return float(np.mean(np.asarray(a.promoted[..., 0]) == np.asarray(b.promoted[..., 0])))
