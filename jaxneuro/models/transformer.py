# SPDX-License-Identifier: Apache-2.0
"""The one forward pass: a pure function of weights and tokens, a scan over layers, a tap at every site."""

import functools
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..axes import aligned
from ..errors import UserError
from ..taps import scope, tap
from ..taps.compiled import compiled
from ..taps.spans import Span
from .attention import Visible, attend, blank, to_heads, written
from .cache import Cache, Carried, Kept
from .classify import classified
from .config import Config
from .cross import Context, check_context, cross_attention, seen_by
from .inputs import check_given, check_inputs, check_length, check_read, embedded
from .layout import Weights
from .mixers import mix_layers
from .moe import experts
from .patches import check_hidden, hide
from .positions import EVEN, Columns, columns
from .quantised import matmul
from .remat import rematerialised
from .rope import rotate
from .runs import Run, layer_in_run, runs


def _rounded_once(act: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """An activation in float32, in the dtype that it was given: in 16 bits each step of it would be rounded."""
    return lambda x: act(x.astype(jnp.float32)).astype(x.dtype)


ACTS: Final[dict[str, Callable[[Array], Array]]] = {
    "relu": jax.nn.relu,
    "quick_gelu": _rounded_once(lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "gelu": _rounded_once(functools.partial(jax.nn.gelu, approximate=False)),
    "gelu_tanh": _rounded_once(functools.partial(jax.nn.gelu, approximate=True)),
    "silu": _rounded_once(jax.nn.silu),
}

_RESIDUAL: Final = ("batch", "pos", "d_model")
_HEADS: Final = ("batch", "pos", "head", "d_head")
_NEURON: Final = ("batch", "pos", "neuron")


@functools.partial(compiled, check=check_given)
def forward(
    weights: Weights,
    tokens: Int[Array, "batch pos"] | Float[Array, "batch row column channel"],
    *,
    cfg: Config,
    mask: Bool[Array, "batch pos"] | None = None,
    token_types: Int[Array, "batch pos"] | None = None,
    stop_at: int | None = None,
    start_at: int = 0,
    resid: Float[Array, "batch pos d_model"] | None = None,
    remat: str | None = None,
    cache: Carried | None = None,
    hidden_patches: Bool[Array, "batch patch"] | None = None,
    context: Int[Array, "batch key"] | Float[Array, "batch key d_model"] | None = None,
    context_mask: Bool[Array, "batch key"] | None = None,
    attention: str | None = None,
) -> Any:
    """Run the model, or a part of its stack.

    Args:
      weights: as `init` and `load` make them; their dtype is the dtype of the computation (norms, rope and softmax
        are float32 inside).
      tokens: ids. One outside the vocabulary is NaN at its position, and so at those that see it (values cannot raise
        under jit); behind a mask it is any other padding. A NaN or infinity at a position of a causal model, from an
        id, an edit or an overflow, reaches this and later positions of its row and no others (gradients of weights are
        sums over all positions, and NaN). For a model of pictures (`Config.image`): pixels, channels last, resized,
        cropped and normalised as its preprocessor_config.json says, which `jaxneuro.data.load_processor` does.
      mask: True at real tokens, padding allowed on either side; None: all real. Each row gets what it would get alone:
        learned positions, and those that edits name, count from its first real token (`positions`). What comes out at
        padding is finite and means nothing.
      token_types: segment ids of an encoder that has them; None: all 0.
      stop_at: run layers start_at .. stop_at-1 and return the residual stream entering layer stop_at; nothing above
        is computed. None: the whole stack, final norm and head.
      start_at: enter the stack at this layer with `resid`, the residual stream that enters it (at 0: instead of the
        embedding). `tokens` then only says how many positions there are.
      remat: what each layer keeps for the backward pass, a row of `remat.POLICIES`: "block" nothing, "dots" what its
        matrices gave. None: everything. It changes memory and time, not numbers.
      cache: of the tokens before these (`init_cache`; causal models only). These come at the positions `cache.at`
        and on, at every site too: an edit with pos=7 acts when position 7 is processed. More of them than are slots
        left is an error of the caller that is not noticed under jit.
      hidden_patches: of a model of pictures with a mask token (DINOv2): True at patches whose embedding that token
        replaces, as in training, before positions are added. Unlike those that `mask` leaves out, others attend to
        them. (`mask` counts all tokens of a picture: learned ones, registers, patches.)
      context: for a model with an encoder (`Config.encoder`): the encoder's token ids, or what `encode` made of them.
        With a cache once: it keeps the keys and values that all layers make of it.
      context_mask: True at real tokens of the context; None: all real.
      attention: a row of `attention.FORMS` to compute attention with: "explicit", "chunked", "cudnn", "splash",
        "tokamax". None: the device's best that can do what is needed. It changes time, and numbers by their rounding.
    Returns:
      Logits [batch, pos, d_vocab], of a classifier of pictures [batch, d_vocab]; without a head the last hidden state
      (after the final norm); with stop_at the residual stream [batch, pos, d_model]. With a cache: (that, the cache
      with the layers that ran written and `at` behind the last real token of each row).
    Raises:
      UserError: a layer outside the stack, start_at without resid, more positions than a model that learns them has;
        a context that is missing, misshapen, or given to a model without an encoder; a form of attention that cannot
        do what is needed here.
    Source: arXiv 1706.03762, 1810.04805, 2302.13971 and the transformers implementations; parity tests at 1e-5.
    Example:
      >>> import jax
      >>> from jaxneuro.models import Config, forward, init
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> forward(init(cfg, jax.random.key(0)), jax.numpy.zeros((1, 5), "int32"), cfg=cfg).shape
      (1, 5, 32)
    """
    given: dict[str, Any] = {"context": context, "context_mask": context_mask, "resid": resid}
    check_inputs(cfg, tokens, mask, token_types=token_types, **given)
    stop = cfg.n_layers if stop_at is None else stop_at
    _check_range(cfg, tokens.shape, start_at, stop, resid)
    if hidden_patches is not None:
        check_hidden(hidden_patches, cfg, tokens.shape[0], resid)
    if start_at < stop or context is not None:
        check_context(cfg, context, context_mask, cache, tokens.shape[0])
    if context is not None and context.ndim == 2:
        context = encode(weights, context, cfg=cfg, mask=context_mask, remat=remat)
    n = (tokens if resid is None else resid).shape[1]
    before: Any = None if cache is None else cache.announced(mask, n)
    where = EVEN if cfg.image is not None else columns(mask, n, before)
    if resid is not None:
        x = resid
    elif cfg.image is not None:
        x = embed_image(weights["embed"], tokens, cfg, hidden_patches)
    else:
        x = embed(weights["embed"], tokens, cfg, token_types, mask, cache, where.pos)
    if cfg.mixer is not None:
        if attention is not None:
            raise UserError(f"attention={attention!r}, but this {cfg.family} model has no attention.")
        part: dict[str, Any] = {"mask": mask, "layers": (start_at, stop), "remat": remat, "state": before}
        part["where"] = where
        x, after = mix_layers(weights, x, cfg, ACTS[cfg.act], _norm, **part)
    else:
        bias = _relative(weights.get("relative", {}).get("table"), n, cfg, cache)
        seen, before = seen_by(weights["blocks"].get("cross_attn"), context, context_mask, before)
        x, after = _stack(weights["blocks"], x, cfg, mask, start_at, stop, remat, before, bias, seen, attention, where)
    x = x if stop_at is not None else head(weights, x, cfg, where.pos)
    return x if after is None else (x, after.advanced(mask, n))


@functools.partial(compiled, check=check_read)
def encode(
    weights: Weights,
    tokens: Int[Array, "batch key"],
    *,
    cfg: Config,
    mask: Bool[Array, "batch key"] | None = None,
    remat: str | None = None,
    stop_at: int | None = None,
    start_at: int = 0,
    resid: Float[Array, "batch key d_model"] | None = None,
) -> Float[Array, "batch key d_model"]:
    """What the encoder of a model makes of a text: its last hidden state, the context of `forward`.

    Its sites are those of any model, under `encoder.`: "encoder.blocks.3.mlp.post".

    Args:
      weights, cfg: of the whole model.
      mask: True at real tokens; None: all real.
      remat, stop_at, start_at, resid: as in `forward`, layers being the encoder's.
    Raises:
      UserError: the model has no encoder; a layer outside its stack.
    Source: arXiv 1910.10683; parity with transformers at 1e-5.
    Example:
      >>> import jax
      >>> from jaxneuro.models import Config, encode, forward, init
      >>> sizes = dict(d_model=8, n_heads=4, n_kv_heads=4, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> cfg = Config(n_layers=2, **sizes, encoder=Config(n_layers=1, **sizes, causal=False, has_head=False))
      >>> weights, text = init(cfg, jax.random.key(0)), jax.numpy.ones((1, 7), "int32")
      >>> forward(weights, text[:, :3], cfg=cfg, context=encode(weights, text, cfg=cfg)).shape
      (1, 3, 32)
    """
    if cfg.encoder is None:
        raise UserError(f"this {cfg.family} model has no encoder of its own: run it with forward.")
    own = {**weights["encoder"], "embed": weights["embed"]}
    with scope("encoder"):
        part: dict[str, Any] = {"stop_at": stop_at, "start_at": start_at, "resid": resid}
        return forward(own, tokens, cfg=cfg.encoder, mask=mask, remat=remat, **part)


def _check_range(cfg: Config, shape: tuple[int, ...], start: int, stop: int, resid: Array | None) -> None:
    if not 0 <= start <= stop <= cfg.n_layers:
        raise UserError(
            f"cannot run layers {start} to {stop}: this model has {cfg.n_layers} layers, "
            f"so 0 <= start_at <= stop_at <= {cfg.n_layers}."
        )
    if start > 0 and resid is None:
        raise UserError(f"start_at={start} needs resid=, the residual stream that enters layer {start}.")
    if cfg.image is not None:
        want = (cfg.image.size, cfg.image.size, cfg.image.channels)
        if resid is None and shape[1:] != want:
            hint = "models.resized makes one for another size."
            raise UserError(
                f"this model takes pictures [batch, {', '.join(map(str, want))}]; these are {list(shape)}. {hint}"
            )
    else:
        check_length(cfg, shape[1], f"{shape[1]} positions", "Use shorter windows.")


def embed(
    w: Weights,
    tokens: Array,
    cfg: Config,
    token_types: Array | None = None,
    mask: Array | None = None,
    cache: Carried | None = None,
    at: Span | None = None,
) -> Float[Array, "batch pos d_model"]:
    """Token, position and type embeddings, and their norm where the model has one."""
    x = embedded(w["tok"], tokens, mask)
    if "proj_in" in w:
        x = x @ w["proj_in"].astype(x.dtype)
    if cfg.embed_scale:
        x = x * jnp.asarray(cfg.d_model**0.5, x.dtype)
    x = tap(x, "embed", pos=at, axes=_RESIDUAL)
    if "pos" in w:
        x = x + tap(_positions(w["pos"], tokens, cfg, mask, cache, at), "pos_embed", pos=at, axes=_RESIDUAL)
    if "type" in w:
        x = x + (aligned(w["type"][0], x) if token_types is None else embedded(w["type"], token_types, mask))
    return _norm(x, w.get("norm", {}), cfg) if cfg.embed_norm else x


def embed_image(
    w: Weights, pixels: Float[Array, "batch row column channel"], cfg: Config, hidden: Array | None = None
) -> Array:
    """Patches, learned tokens before them, positions; registers after these; the norm where the model has one."""
    image = cfg.image
    assert image is not None
    batch, n = pixels.shape[0], image.size // image.patch
    pixels = pixels.astype(w["patch"].dtype)
    cut = pixels.reshape(batch, n, image.patch, n, image.patch, image.channels).transpose(0, 1, 3, 2, 4, 5)
    x = cut.reshape(batch, n * n, -1) @ w["patch"].reshape(-1, cfg.d_model)
    x = hide(x + aligned(w["patch_bias"], x) if image.patch_bias else x, w, hidden)
    first = [jnp.broadcast_to(w[name], (batch, 1, cfg.d_model)) for name in image.prefix]
    x = tap(jnp.concatenate([*first, x], axis=1), "embed", axes=_RESIDUAL)
    if "pos" in w:
        x = x + tap(jnp.broadcast_to(w["pos"], x.shape), "pos_embed", axes=_RESIDUAL)
    if image.registers:
        between = jnp.broadcast_to(w["registers"], (batch, image.registers, cfg.d_model))
        x = jnp.concatenate([x[:, : len(first)], between, x[:, len(first) :]], axis=1)
    return _norm(x, w.get("norm", {}), cfg) if cfg.embed_norm else x


def _positions(
    table: Array, tokens: Array, cfg: Config, mask: Array | None, cache: Any, at: Span | None
) -> Float[Array, "batch pos d_model"]:
    if cfg.masked_positions and (mask is not None or cache is not None):
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        before = 0 if cache is None else jnp.sum(cache.real, axis=1, keepdims=True, dtype=jnp.int32)
        counted = jnp.where(mask, before + jnp.cumsum(mask, axis=1, dtype=jnp.int32), 0)
        return jnp.take(table, counted + (cfg.position_offset - 1), axis=0)
    if at is None:
        rows = table[cfg.position_offset :][: tokens.shape[1]]
    else:
        start = jnp.asarray(at.start)[..., None]
        numbers = start + aligned(jnp.arange(tokens.shape[1], dtype=jnp.int32), start)
        rows = jnp.take(table, jnp.maximum(numbers, 0) + cfg.position_offset, axis=0)
    return jnp.broadcast_to(rows, (*tokens.shape, table.shape[1]))


def _relative(table: Array | None, n: int, cfg: Config, cache: Any) -> Array | None:
    """Scores [head, query, key] (with rows of their own positions [batch, ...]) of the next n tokens."""
    if cfg.relative is None or table is None:
        return None
    if cache is None:
        return cfg.relative.scores(table, n, causal=cfg.causal)
    return cfg.relative.scores(table, cache.seen(n), causal=cfg.causal, at=cache.positions(n))


def _stack(
    blocks: Weights,
    x: Array,
    cfg: Config,
    mask: Array | None,
    start: int,
    stop: int,
    remat: str | None = None,
    cache: Cache | None = None,
    bias: Array | None = None,
    seen: Context | Kept | None = None,
    attention: str | None = None,
    where: Columns = EVEN,
) -> tuple[Array, Cache | None]:
    length = x.shape[1] if cache is None else cache.real.shape[1]
    tables = [r.tables(cfg.d_head, length) for r in (cfg.rope, cfg.local_rope) if r is not None]
    at, real = None, mask
    if cache is not None:
        at, mask = cache.at, cache.real
        tables = jax.tree.map(lambda t: t[cache.positions(x.shape[1])], tables)
    # A layer's window is data of the scan, not structure: one body for any mixture of layers, and each site is
    # reached once per layer however the mixture looks.
    windows = jnp.asarray([length if w is None else w for w in cfg.windows], jnp.int32) if cfg.windows else None
    local_layer = jnp.asarray([cfg.window(i) is not None for i in range(cfg.n_layers)])

    def body(run: Run, carry: tuple[Array, Any], of: tuple[Array, Weights | None]) -> tuple[tuple[Array, Any], None]:
        (x, kv), (layer, w) = carry, of
        w = layer_in_run(blocks, layer, run) if w is None else w
        own = _relative(w["attn"]["relative"], x.shape[1], cfg, cache) if "relative" in w["attn"] else bias
        visible = Visible(
            cfg.causal, None if windows is None else windows[layer], mask, at, own, attention, where, real
        )
        angles = tables[0] if len(tables) == 1 else None
        if len(tables) == 2:
            angles = jax.tree.map(lambda whole, local: jnp.where(local_layer[layer], local, whole), *tables)
        before = None if cache is None else cache._replace(k=kv[0], v=kv[1])
        x, after = _block(w, x, cfg, visible, angles, layer, before, seen)
        return (x, None if after is None else (after.k, after.v)), None

    if start == stop:
        return x, cache
    carry: tuple[Array, Any] = (x, None if cache is None else (cache.k, cache.v))
    for run in runs(cfg, start, stop):
        layers = jnp.arange(run.start, run.stop, dtype=jnp.int32)
        part = None if run != Run(0, cfg.n_layers) else blocks
        carry, _ = jax.lax.scan(rematerialised(functools.partial(body, run), remat), carry, (layers, part))
    x, kv = carry
    return x, None if cache is None else cache._replace(k=kv[0], v=kv[1])


def _block(
    w: Weights,
    x: Array,
    cfg: Config,
    visible: Visible,
    angles: Any,
    layer: Array,
    cache: Cache | None,
    seen: Context | Kept | None,
) -> tuple[Array, Cache | None]:
    def site(value: Array, name: str, axes: tuple[str, ...] = _RESIDUAL) -> Array:
        return tap(value, f"blocks.{name}", layer=layer, pos=visible.where.pos, axes=axes)

    def normed(value: Array, name: str) -> Array:
        return _norm(value, w.get(name, {}), cfg, lambda v, part, axes: site(v, f"{name}.{part}", axes))

    def attention(value: Array) -> Array:
        nonlocal cache
        out, cache = _attention(w["attn"], site(value, "attn.in"), cfg, visible, angles, layer, cache)
        return out * aligned(w["ls1"].astype(out.dtype), out) if cfg.layer_scale else out

    def mlp(value: Array) -> Array:
        value = site(value, "mlp.in")
        if cfg.experts is not None and "moe" in w:
            out = experts(w["moe"], value, cfg.experts, ACTS[cfg.act], site)
        else:
            out = _mlp(w["mlp"], value, cfg, site)
        return out * aligned(w["ls2"].astype(out.dtype), out) if cfg.layer_scale else out

    x = site(x, "resid_pre")
    if cfg.parallel:
        first = normed(x, "ln1")
        x = x + site(attention(first), "attn_out") + site(mlp(first if cfg.one_norm else normed(x, "ln2")), "mlp_out")
    elif cfg.norm_placement == "pre":
        x = site(x + site(attention(normed(x, "ln1")), "attn_out"), "resid_mid")
        if seen is not None:
            out = cross_attention(w["cross_attn"], normed(x, "ln_cross"), seen, _scale(cfg, layer), layer, visible)
            x = site(x + site(out, "cross_attn_out"), "resid_mid_cross")
        x = x + site(mlp(normed(x, "ln2")), "mlp_out")
    elif cfg.norm_placement == "sandwich":
        x = site(x + site(normed(attention(normed(x, "ln1")), "ln1_post"), "attn_out"), "resid_mid")
        x = x + site(normed(mlp(normed(x, "ln2")), "ln2_post"), "mlp_out")
    else:
        x = site(normed(x + site(attention(x), "attn_out"), "ln1"), "resid_mid")
        x = normed(x + site(mlp(x), "mlp_out"), "ln2")
    return site(x, "resid_post"), cache


def _attention(
    w: Weights, x: Array, cfg: Config, visible: Visible, angles: Any, layer: Array, cache: Cache | None
) -> tuple[Array, Cache | None]:
    def heads(name: str) -> Array:
        y = to_heads(x, w[f"w{name}"], w.get(f"b{name}"))
        return tap(y, f"blocks.attn.{name}", layer=layer, pos=visible.where.pos, axes=_HEADS)

    q, k, v = heads("q"), heads("k"), heads("v")
    if cfg.qk_norm:
        q, k = _norm(q, w.get("q_norm", {}), cfg), _norm(k, w.get("k_norm", {}), cfg)
    if cfg.rope is not None:
        q, k = (rotate(a, *angles, interleaved=cfg.rope.interleaved) for a in (q, k))
    k, v = blank(k, visible.real), blank(v, visible.real)
    if cache is not None:
        cache = cache.write(layer, k, v)
        k, v = cache.read(layer, x.shape[1])
    z = attend(q, k, v, visible, _scale(cfg, layer), layer, softcap=cfg.attn_softcap)
    return written(w, z, layer, visible.where.pos), cache


def _scale(cfg: Config, layer: Array) -> Array | float:
    scale = cfg.d_head**-0.5 if cfg.attn_scale is None else cfg.attn_scale
    return scale / (layer + 1).astype(jnp.float32) if cfg.attn_scale_by_layer else scale


def _mlp(w: Weights, x: Array, cfg: Config, site: Callable[..., Array]) -> Array:
    def linear(value: Array, name: str) -> Array:
        y = matmul(value, w[name])
        return y + aligned(w[f"b_{name}"].astype(y.dtype), y) if f"b_{name}" in w else y

    act = ACTS[cfg.act]
    if cfg.gated:
        gate = site(act(site(linear(x, "gate"), "mlp.pre", _NEURON)), "mlp.gate", _NEURON)
        post = gate * site(linear(x, "up"), "mlp.pre_linear", _NEURON)
    else:
        post = act(site(linear(x, "up"), "mlp.pre", _NEURON))
    return linear(site(post, "mlp.post", _NEURON), "down")


def _no_site(value: Array, part: str, axes: tuple[str, ...]) -> Array:
    return value


def _norm(x: Array, w: Weights, cfg: Config, site: Callable[[Array, str, tuple[str, ...]], Array] = _no_site) -> Array:
    """(x - mean) / scale * gain + bias, or x / scale * gain; `normalized` is before gain and bias in all."""
    x32 = x.astype(jnp.float32)
    if cfg.norm in ("layer", "plain"):
        x32 = x32 - x32.mean(-1, keepdims=True)
    scale = jnp.sqrt(jnp.square(x32).mean(-1, keepdims=True) + cfg.norm_eps)
    y = x32 / site(scale, "scale", ("batch", "pos", "one"))
    if cfg.norm == "rms":  # Llama's order: cast to the activation dtype, then multiply
        return site(y.astype(x.dtype), "normalized", _RESIDUAL) * aligned(w["scale"].astype(x.dtype), x)
    y = site(y, "normalized", _RESIDUAL)
    if cfg.norm == "plain":
        return y.astype(x.dtype)
    y = y * aligned(gain(w, cfg), x)
    return (y if cfg.norm == "gemma_rms" else y + aligned(w["bias"].astype(jnp.float32), x)).astype(x.dtype)


def gain(norm: Weights, cfg: Config) -> Float[Array, "... d_model"]:
    """What a norm with these weights multiplies by, in float32: Gemma keeps it less 1."""
    scale = norm["scale"].astype(jnp.float32)
    return 1 + scale if cfg.norm == "gemma_rms" else scale


def head(weights: Weights, x: Array, cfg: Config, at: Any = None) -> Float[Array, "batch pos d_out"]:
    """What comes after the last block, position by position: final norm, unembedding, bias, soft-cap.

    at: which positions they have, where column i is not position i of every row.
    """
    if cfg.norm_placement != "post" and not cfg.norm_pooled:
        site = {"normalized": "ln_final.normalized", "scale": "ln_final.scale"}
        x = _norm(x, weights.get("final_norm", {}), cfg, lambda v, part, axes: tap(v, site[part], pos=at, axes=axes))
    head = weights.get("head", {})
    if "proj_out" in head:
        x = x @ head["proj_out"].astype(x.dtype)
    if not cfg.has_head:
        return x
    if "dense" in head:
        x = x @ head["dense"].astype(x.dtype) + aligned(head["dense_bias"].astype(x.dtype), x)
        x = ACTS[cfg.head_act or cfg.act](x)
        x = _norm(x, head.get("norm", {}), cfg)
    if cfg.mixer is not None:  # whose residual stream may be wider than the weights
        x = x.astype(weights["embed"]["tok"].dtype)
    x = x * jnp.asarray(cfg.d_model**-0.5, x.dtype) if cfg.head_scale else x
    x = tap(x, "unembed.in", pos=at, axes=_RESIDUAL)
    logits = matmul(x, unembedding(weights, cfg)) if cfg.classify is None else classified(head, x, cfg)
    if "b" in head:
        logits = logits + aligned(head["b"].astype(logits.dtype), logits)
    if cfg.logit_softcap is not None:
        logits = cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
    return tap(logits, "logits", pos=at, axes=("batch", "pos", "d_vocab") if logits.ndim == 3 else ("batch", "d_vocab"))


def unembedding(weights: Weights, cfg: Config) -> Float[Array, "d_model d_vocab"]:
    """The matrix that turns the last residual stream into logits, tied to the token embedding or not.

    Raises:
      UserError: the model has no head, or two (a distilled DeiT).
    """
    if not cfg.has_head:
        raise UserError(f"this {cfg.family} model has no head: it ends in its last hidden state.")
    if cfg.classify == "distilled":
        raise UserError("this model averages two classifiers: take head.w_cls or head.w_distillation from its weights.")
    return weights["embed"]["tok"].T if cfg.tied else weights["head"]["w"]
