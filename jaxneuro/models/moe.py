# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts in three forms with one meaning: exact, no token is dropped; the caller never chooses.

    y = sum over the chosen e of share_e * down_e(act(gate_e x) * up_e x),    share = softmax(x router) of the chosen

| form | used when | work per token, values at once |
|---|---|---|
| `_sorted` | nobody looks inside | the chosen experts; a block of tokens of one expert at a time |
| `_each` | `moe.weights` is wanted: an edit may send a token to any expert | every expert; one expert at a time |
| `_whole` | `moe.pre`, `moe.pre_linear` or `moe.post` is wanted | every expert; [batch, pos, expert, neuron] exists |

Sites: `moe.router` (logits), `moe.weights` (shares, 0 for those not chosen), `moe.pre`, `moe.pre_linear` and `moe.post`
(of every expert, chosen or not), and `mlp_out` as always. Shares without their price: `route` of `moe.router`.

`_sorted` is not jax.lax.ragged_dot, which on a CPU masks a copy of the tokens for every expert and has no vmap over the
routing: 1024 tokens to 2 of 8 experts of 512 neurons (d_model 256, float32, two busy cores) take 44 ms, with ragged_dot
760 ms and 7 times the memory, with `_each` 204 ms. Tokens of the whole batch are sorted
together, so batches that are split over devices are best run under `jax.shard_map`; experts that are split over a mesh
axis "expert" are fetched one by one. Auxiliary losses are not part of the forward pass, and there is no jitter.
"""

from collections.abc import Callable
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..taps import wants
from .config import Experts
from .layout import Weights
from .quantised import matmul

_EXPERT: Final = ("batch", "pos", "expert")
_NEURON: Final = ("batch", "pos", "expert", "neuron")
_INSIDE: Final = ("blocks.moe.pre", "blocks.moe.pre_linear", "blocks.moe.post")
_BLOCKS: Final = (32, 256)  # rows: fewer cost as much as fetching the weights, more gain nothing


def experts(
    w: Weights,
    x: Float[Array, "batch pos d_model"],
    cfg: Experts,
    act: Callable[[Array], Array],
    site: Callable[..., Array],
) -> Float[Array, "batch pos d_model"]:
    """What the experts of one layer write, weighted by their shares.

    Args:
      w: router [d_model, expert]; gate, up [expert, d_model, neuron]; down [expert, neuron, d_model].
      site: the layer's tap: (value, name, axes) -> value.
    Source: arXiv 2101.03961, 2401.04088; transformers' Mixtral and Qwen3-MoE.
    """
    logits = site(x @ w["router"].astype(x.dtype), "moe.router", _EXPERT)
    shares, chosen = route(logits, cfg)
    maps = {name: w[name] for name in ("gate", "up", "down")}
    if not wants("blocks.moe.weights", *_INSIDE):
        tokens, shares, chosen = (a.reshape(-1, a.shape[-1]) for a in (x, shares, chosen))
        return _sorted(maps, tokens, shares, chosen, act).astype(x.dtype).reshape(x.shape)
    dense = (jax.nn.one_hot(chosen, cfg.n, dtype=shares.dtype) * shares[..., None]).sum(-2)
    dense = site(dense, "moe.weights", _EXPERT)
    y = _whole(maps, x, dense, act, site) if wants(*_INSIDE) else _each(maps, x, dense, act)
    return y.astype(x.dtype)


def route(
    logits: Float[Array, "*batch expert"], cfg: Experts
) -> tuple[Float[Array, "*batch per_token"], Int[Array, "*batch per_token"]]:
    """(shares, experts) of each token, the largest share first; softmax in float32.

    Example:
      >>> shares, chosen = route(jnp.log(jnp.array([0.1, 0.6, 0.3])), Experts(n=3, per_token=2))
      >>> chosen.tolist(), [round(s, 3) for s in shares.tolist()]
      ([1, 2], [0.667, 0.333])
    """
    shares, chosen = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), cfg.per_token)
    return (shares / shares.sum(-1, keepdims=True) if cfg.renormalise else shares), chosen


def _expert(w: Weights, x: Array, act: Callable[[Array], Array]) -> Array:
    return matmul(act(matmul(x, w["gate"])) * matmul(x, w["up"]), w["down"])


def _sorted(
    w: Weights,
    tokens: Float[Array, "token d_model"],
    shares: Float[Array, "token per_token"],
    chosen: Int[Array, "token per_token"],
    act: Callable[[Array], Array],
) -> Float[Array, "token d_model"]:
    """Tokens in the order of their experts, cut into blocks that belong to one expert each."""
    n, (length, per_token) = w["gate"].shape[0], chosen.shape
    pairs = length * per_token
    block = max(_BLOCKS[0], min(_BLOCKS[1], pairs // (4 * n)) // 8 * 8)  # a quarter of many rows may be left empty
    blocks = (pairs + min(n, pairs) * (block - 1)) // block  # at most, however the tokens are shared out
    places, owners = _places(chosen.reshape(-1), n, block, blocks)
    token = jnp.arange(pairs, dtype=jnp.int32) // per_token
    rows = jnp.zeros((blocks * block, tokens.shape[1]), tokens.dtype).at[places].set(tokens[token])

    def one(_: None, at: tuple[Array, Array]) -> tuple[None, Array]:
        mine = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, at[1], keepdims=False), w)
        return None, _expert(mine, at[0], act)

    _, out = jax.lax.scan(one, None, (rows.reshape(blocks, block, -1), owners))
    back = out.reshape(blocks * block, -1)[places].reshape(length, per_token, -1)
    return jnp.einsum("tkd,tk->td", back.astype(jnp.float32), shares)


def _places(
    chosen: Int[Array, "pair"], n: int, block: int, blocks: int
) -> tuple[Int[Array, "pair"], Int[Array, "block"]]:
    """The row of every (token, expert) pair, and the expert of every block of rows."""
    order = jnp.argsort(chosen)
    counts = jnp.bincount(chosen, length=n).astype(jnp.int32)
    ends = jnp.cumsum(-(-counts // block), dtype=jnp.int32)  # in blocks
    first_row = (ends - -(-counts // block)) * block
    first_pair = jnp.cumsum(counts, dtype=jnp.int32) - counts
    expert = chosen[order]
    row = first_row[expert] + jnp.arange(chosen.shape[0], dtype=jnp.int32) - first_pair[expert]
    owners = jnp.searchsorted(ends, jnp.arange(blocks, dtype=jnp.int32), side="right")
    return jnp.zeros_like(row).at[order].set(row), jnp.minimum(owners, n - 1).astype(jnp.int32)


def _each(w: Weights, x: Array, dense: Array, act: Callable[[Array], Array]) -> Array:
    def add(y: Array, at: tuple[Weights, Array]) -> tuple[Array, None]:
        mine, share = at
        return y + share[..., None] * _expert(mine, x, act).astype(jnp.float32), None

    return jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), (w, jnp.moveaxis(dense, -1, 0)))[0]


def _whole(w: Weights, x: Array, dense: Array, act: Callable[[Array], Array], site: Callable[..., Array]) -> Array:
    w = {name: a.astype(x.dtype) for name, a in w.items()}
    pre = site(jnp.einsum("btd,edf->btef", x, w["gate"]), "moe.pre", _NEURON)
    linear = site(jnp.einsum("btd,edf->btef", x, w["up"]), "moe.pre_linear", _NEURON)
    post = site(act(pre) * linear, "moe.post", _NEURON)
    return jnp.einsum("btef,efd,bte->btd", post, w["down"], dense.astype(x.dtype))
