# SPDX-License-Identifier: Apache-2.0
"""What is asked of the logits, without the logits: functions of them, a few positions at a time, both ways.

A vocabulary of 256k at 8 x 1024 positions takes 8 GiB in float32, more than most models' weights. Positions do not meet
after the last block, so the final norm, the unembedding and whatever follows run on chunks of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..errors import UserError
from ..taps import wants
from ..taps.compiled import compiled
from ..taps.definitions import LAST_SITES
from .config import Config
from .inputs import check_mask
from .layout import Weights, flatten, nest
from .loss import cross_entropy, predictions
from .positions import columns
from .quantised import Quantised, constant
from .transformer import forward, head

VALUES = 2**26
"""Logits held at once unless said otherwise: 256 MiB in float32. A chunk has at least one position of each row."""
type _Piece = Callable[[Weights, Weights, Array, Any], Any]
_READ = ("embed.tok", "final_norm.", "head.")


class LogitStatistics(NamedTuple):
    """The distribution over the next token at every position: float32, in nats."""

    logsumexp: Float[Array, "batch pos"]
    """Of the logits: exp(logit - logsumexp) is the probability."""
    entropy: Float[Array, "batch pos"]
    logprob: Float[Array, "batch pos"]
    """Of the token asked about."""
    top: Int[Array, "batch pos k"]
    """The most probable tokens, best first; equal ones by number."""
    top_logprob: Float[Array, "batch pos k"]


@compiled
def map_logits(
    fn: Callable[..., Any],
    weights: Weights,
    resid: Float[Array, "batch pos d_model"],
    *constants: Array,
    cfg: Config,
    mask: Bool[Array, "batch pos"] | None = None,
    values: int = VALUES,
) -> Any:
    """fn(logits, *constants), position by position, without [batch, pos, d_vocab] in it or in its gradient.

    Where somebody wants one of the sites `LAST_SITES` there is one chunk, the whole: what is read or edited there
    is what the result is made of.

    Args:
      fn: (logits [batch, some, d_vocab], *constants [batch, some, ...]) -> pytree of arrays [batch, some, ...].
      weights: of the whole model; only those above the blocks are read.
      resid: the residual stream that leaves the last block, `forward(..., stop_at=cfg.n_layers)`.
      constants: what else fn needs at each position. No gradient goes to them.
      mask: that of `forward`; an edit's `pos` counts from each row's first real token here too.
      values: logits held at once.
    Returns:
      The pytree, of arrays [batch, pos, ...]. Gradients of weights are summed over chunks in float32; they are reverse
      mode only.
    Raises:
      UserError: the model has no head; a mask that is not boolean or of another shape.
    Example:
      >>> import jax
      >>> from jaxneuro.models import Config, init
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> weights, tokens = init(cfg, jax.random.key(0)), jax.numpy.zeros((1, 5), "int32")
      >>> resid = forward(weights, tokens, cfg=cfg, stop_at=2)
      >>> map_logits(lambda logits: logits.max(-1), weights, resid, cfg=cfg).shape
      (1, 5)
    """
    if not cfg.has_head:
        raise UserError(f"this {cfg.family} model has no head, so it has no logits.")
    check_mask(mask, resid.shape[:2], "a residual stream")
    batch, length = resid.shape[:2]
    chunk = max(1, values // max(1, batch * cfg.d_vocab))

    def piece(read: Weights, fixed: Weights, x: Array, rest: tuple[Array, ...], at: Any = None) -> Any:
        return fn(head(nest({**read, **fixed}), x, cfg, at), *rest)

    read = {leaf: a for leaf, a in flatten(weights).items() if leaf.startswith(_READ)}
    if not cfg.tied:  # its gradient would be zeros of the size of the vocabulary
        del read["embed.tok"]
    fixed = {leaf: jax.tree.map(constant, read.pop(leaf)) for leaf, a in [*read.items()] if isinstance(a, Quantised)}
    constants = jax.lax.stop_gradient(constants)
    if chunk >= length or wants(*LAST_SITES):
        return piece(read, fixed, resid, constants, columns(mask, length).pos)
    cut, join = functools.partial(_cut, chunk=chunk), functools.partial(_join, length=length)
    return jax.tree.map(join, _in_turn(piece)(read, fixed, cut(resid), jax.tree.map(cut, constants)))


def _cut(a: Array, chunk: int) -> Array:
    """[batch, pos, ...] -> [n, batch, chunk, ...], the last position repeated to fill the last chunk."""
    a = jnp.pad(a, [(0, 0), (0, -a.shape[1] % chunk), *[(0, 0)] * (a.ndim - 2)], mode="edge")
    return jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0)


def _join(a: Array, length: int) -> Array:
    a = jnp.moveaxis(a, 0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])[:, :length]


def _in_turn(piece: _Piece) -> _Piece:
    """Chunk after chunk; the gradient goes through each chunk again and sums over them in float32."""

    @jax.custom_vjp
    def run(read: Weights, fixed: Weights, x: Array, rest: Any) -> Any:
        return jax.lax.map(lambda at: piece(read, fixed, *at), (x, rest))

    def forwards(read: Weights, fixed: Weights, x: Array, rest: Any) -> Any:
        return run(read, fixed, x, rest), (read, fixed, x, rest)

    def backwards(saved: Any, gradient: Any) -> Any:
        read, fixed, x, rest = saved

        def one(total: Weights, at: Any) -> tuple[Weights, Array]:
            x, rest, gradient = at
            of_read, of_x = jax.vjp(lambda read, x: piece(read, fixed, x, rest), read, x)[1](gradient)
            return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, of_read), of_x

        start = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), read)
        total, of_x = jax.lax.scan(one, start, (x, rest, gradient))
        return jax.tree.map(lambda t, a: t.astype(a.dtype), total, read), None, of_x, None

    run.defvjp(forwards, backwards)
    return run


@compiled
def logit_statistics(
    weights: Weights,
    resid: Float[Array, "batch pos d_model"],
    targets: Int[Array, "batch pos"],
    *,
    cfg: Config,
    k: int = 1,
    mask: Bool[Array, "batch pos"] | None = None,
    values: int = VALUES,
) -> LogitStatistics:
    """Entropy, the likeliest tokens and the probability of given ones, from one walk over the positions.

        logsumexp = log sum_v exp(logit_v)      entropy = -sum_v p_v log p_v      logprob = log p_target

    Args:
      weights, resid, mask, values: see `map_logits`.
      targets: the token asked about at each position; that which follows, for a loss.
      k: how many of the likeliest.
    Returns:
      LogitStatistics. A target outside the vocabulary has the log-probability NaN.
    Example:
      >>> import jax
      >>> from jaxneuro.models import Config, init
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> weights, tokens = init(cfg, jax.random.key(0)), jax.numpy.zeros((1, 5), "int32")
      >>> found = logit_statistics(weights, forward(weights, tokens, cfg=cfg, stop_at=2), tokens, cfg=cfg, k=3)
      >>> found.top.shape, bool((found.entropy < jax.numpy.log(32)).all())
      ((1, 5, 3), True)
    """

    def each(logits: Array, targets: Array) -> LogitStatistics:
        scores = logits.astype(jnp.float32)
        total = jax.nn.logsumexp(scores, axis=-1)
        logp = scores - total[..., None]
        p = jnp.exp(logp)
        entropy = -jnp.sum(p * jnp.where(p > 0, logp, 0), axis=-1)
        chosen = -cross_entropy(logits, targets)
        best, top = jax.lax.top_k(logp, min(k, logp.shape[-1]))
        return LogitStatistics(total, entropy, chosen, top, best)

    return map_logits(each, weights, resid, targets.astype(jnp.int32), cfg=cfg, mask=mask, values=values)


def model_loss(
    weights: Weights,
    tokens: Int[Array, "batch pos"],
    mask: Bool[Array, "batch pos"] | None = None,
    *,
    cfg: Config,
    values: int = VALUES,
    **part: Any,
) -> tuple[Float[Array, "batch pos-1"], Bool[Array, "batch pos-1"]]:
    """Next-token cross entropy of a model: `token_loss` of its logits, of which only a few exist at a time.

    Args:
      weights, tokens, mask, part: as of `forward`.
      values: logits held at once.
    Returns:
      (nll, valid), see `token_loss`.
    Example:
      >>> import jax
      >>> from jaxneuro.models import Config, init
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> weights, tokens = init(cfg, jax.random.key(0)), jax.numpy.zeros((1, 5), "int32")
      >>> nll, valid = model_loss(weights, tokens, cfg=cfg)
      >>> nll.shape, bool(valid.all())
      ((1, 4), True)
    """

    resid = forward(weights, tokens, cfg=cfg, mask=mask, stop_at=cfg.n_layers, **part)
    following = jnp.roll(tokens, -1, axis=1)  # the last position has none; it is there because the site `logits` has it
    valid = predictions(tokens, mask)
    counted = jnp.pad(valid, ((0, 0), (0, 1)))
    how: dict[str, Any] = {"cfg": cfg, "mask": mask, "values": values}
    nll = map_logits(_counted, weights, resid, jnp.where(counted, following, 0), counted, **how)
    return nll[:, :-1], valid


def _counted(logits: Array, targets: Array, counted: Array) -> Array:
    """The loss where it counts, 0 elsewhere, in the gradient too."""
    nll = cross_entropy(jnp.where(counted[..., None], logits, 0), targets)
    return jnp.where(counted, nll, 0)


@functools.cache
def loss_fn(cfg: Config, values: int = VALUES) -> Callable[..., Array]:
    """A model's pure function (weights, tokens, mask=None, ...) that gives the loss of each prediction, not logits.

    Its output is the nll [batch, pos-1] of `model_loss`; with `stop_at` it is the residual stream, as of the model. It
    goes where a model's `apply` goes, with a measure of given losses: `recovered(loss_fn(cfg), ..., judge=given_loss)`.
    """

    def apply(
        weights: Weights, tokens: Array, mask: Array | None = None, *, stop_at: int | None = None, **part: Any
    ) -> Array:
        if stop_at is not None:
            return forward(weights, tokens, cfg=cfg, mask=mask, stop_at=stop_at, **part)
        return model_loss(weights, tokens, mask, cfg=cfg, values=values, **part)[0]

    return apply
