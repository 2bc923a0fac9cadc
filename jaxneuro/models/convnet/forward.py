# SPDX-License-Identifier: Apache-2.0
"""The forward pass of ResNet and DenseNet: a pure function of weights and pictures, a tap at every site."""

from collections.abc import Callable
from functools import partial
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...axes import aligned
from ...errors import UserError
from ...taps import tap
from ...taps.compiled import compiled
from ..inputs import check_pictures
from ..layout import Weights, flatten, nest
from ..transformer import ACTS
from .layout import Conv, ConvNet, Residual, residual, stem

_MAP: Final = ("batch", "row", "column", "channel")


def _check_given(weights: Weights, pixels: Array, *, cfg: ConvNet) -> None:
    if not isinstance(pixels, jax.ShapeDtypeStruct):
        check_pictures(pixels)


@partial(compiled, check=_check_given)
def convnet(
    weights: Weights, pixels: Float[Array, "batch row column channel"], *, cfg: ConvNet
) -> Float[Array, "batch n_classes"]:
    """Run a ResNet or a DenseNet on pictures of any size.

    Norms are inference's, y = (x - mean) / sqrt(var + eps) * scale + bias with running mean and variance, in float32.

    Args:
      weights: as `init_convnet` and `load` make them; their dtype is the dtype of the convolutions.
      pixels: normalised as the model's processor does (`jaxneuro.data.load_processor`), channels last.
    Returns:
      Logits [batch, n_classes]; without a head the last map [batch, row, column, channel].
    Raises:
      UserError: another number of axes or channels, or a picture so small that nothing of it is left.
    Source: arXiv 1512.03385, 1608.06993; transformers' ResNet, torchvision's and timm's ResNet and DenseNet; parity
      tests at 1e-5.
    Example:
      >>> from jaxneuro.models.convnet import ConvNet, Residual, init_convnet
      >>> cfg = ConvNet(stem=8, depths=(1,), blocks=Residual(bottleneck=False, widths=(8,), mids=(8,)), n_classes=5)
      >>> convnet(init_convnet(cfg, jax.random.key(0)), jnp.zeros((1, 32, 32, 3)), cfg=cfg).shape
      (1, 5)
    """
    _check(cfg, pixels.shape)
    x = _stem(weights["stem"], pixels, cfg)
    stage = _residual_stage if isinstance(cfg.blocks, Residual) else _dense_stage
    for s in range(len(cfg.depths)):
        x = stage(weights["stages"][str(s)], x, cfg, s)
    if "final_norm" in weights:
        x = ACTS[cfg.act](_norm(x, weights["final_norm"], cfg))
    x = tap(x, "final", axes=_MAP)
    pooled = tap(x.astype(jnp.float32).mean((1, 2)).astype(x.dtype), "pooled", axes=("batch", "channel"))
    if "head" not in weights:
        return x
    return tap(pooled @ weights["head"]["w"] + weights["head"]["b"][None], "logits", axes=("batch", "class"))


def _check(cfg: ConvNet, shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[3] != cfg.channels:
        raise UserError(f"this model takes pictures [batch, row, column, {cfg.channels}]; these are {list(shape)}.")
    if min(shape[1:3]) < cfg.min_pixels:
        raise UserError(
            f"pictures of {shape[1]} x {shape[2]} pixels are too small for this model: nothing would be left of them. "
            f"It takes at least {cfg.min_pixels} x {cfg.min_pixels}."
        )


def _stem(w: Weights, pixels: Array, cfg: ConvNet) -> Array:
    x = tap(_conv(pixels.astype(w["conv"].dtype), w["conv"], stem(cfg)), "stem.conv", axes=_MAP)
    x = tap(_norm(x, w["norm"], cfg), "stem.norm", axes=_MAP)
    x = tap(ACTS[cfg.act](x), "stem.act", axes=_MAP)
    lowest = np.array(-np.inf, x.dtype)  # numpy's, so that jax sees which reduction it is and knows its gradient
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    return tap(x, "stem", axes=_MAP)


type _Site = Callable[[Array, str], Array]


def _site(stage: int, block: int | Array) -> _Site:
    return lambda value, name: tap(value, f"stage{stage}.blocks.{name}", layer=block, axes=_MAP)


def _residual_stage(w: Weights, x: Array, cfg: ConvNet, s: int) -> Array:
    x = _residual_block(w["first"], x, cfg, *residual(cfg, s, True), _site(s, 0))
    if "rest" not in w:
        return x
    convs, _ = residual(cfg, s, False)

    def body(x: Array, at: tuple[Array, Weights]) -> tuple[Array, None]:
        block, rest = at
        return _residual_block(rest, x, cfg, convs, None, _site(s, block)), None

    return jax.lax.scan(body, x, (jnp.arange(1, cfg.depths[s], dtype=jnp.int32), w["rest"]))[0]


def _residual_block(
    w: Weights, x: Array, cfg: ConvNet, convs: dict[str, Conv], shortcut: Conv | None, site: _Site
) -> Array:
    x = y = site(x, "pre")
    for n, conv in convs.items():
        y = site(_conv(y, w[f"conv{n}"], conv), f"conv{n}")
        y = site(_norm(y, w[f"norm{n}"], cfg), f"norm{n}")
        if int(n) < len(convs):
            y = site(ACTS[cfg.inner_act](y), f"act{n}")
    if shortcut is not None:
        x = site(_norm(_conv(x, w["shortcut"]["conv"], shortcut), w["shortcut"]["norm"], cfg), "shortcut")
    return site(ACTS[cfg.act](site(y + x, "sum")), "post")


def _dense_stage(w: Weights, x: Array, cfg: ConvNet, s: int) -> Array:
    for b in range(cfg.depths[s]):
        x = _dense_block(w["blocks"][str(b)], x, cfg, _site(s, b))
    if "transition" not in w:
        return x
    x = ACTS[cfg.act](_norm(x, w["transition"]["norm"], cfg))
    x = _conv(x, w["transition"]["conv"], Conv(1, x.shape[-1], x.shape[-1] // 2))
    window = (1, 2, 2, 1)
    total = jax.lax.reduce_window(x.astype(jnp.float32), np.float32(0), jax.lax.add, window, window, "VALID")
    return tap((total / 4).astype(x.dtype), f"stage{s}.transition", axes=_MAP)


def _dense_block(w: Weights, x: Array, cfg: ConvNet, site: _Site) -> Array:
    x = y = site(x, "pre")
    for n, size in (("1", 1), ("2", 3)):
        y = site(_norm(y, w[f"norm{n}"], cfg), f"norm{n}")
        y = site(ACTS[cfg.inner_act](y), f"act{n}")
        kernel = w[f"conv{n}"]
        y = site(_conv(y, kernel, Conv(size, *kernel.shape[2:])), f"conv{n}")
    return site(jnp.concatenate([x, y], axis=-1), "post")


def _conv(x: Array, kernel: Array, conv: Conv) -> Array:
    pad = (conv.size // 2, conv.size // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (conv.stride, conv.stride),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=conv.groups,
    )


def _norm(x: Array, w: Weights, cfg: ConvNet) -> Array:
    """Inference's batch norm; one that was folded into its convolution has only its bias left."""
    if "scale" not in w:
        return x + aligned(w["bias"], x)
    gain, shift = _affine(w, cfg)
    return (x.astype(jnp.float32) * aligned(gain, x) + aligned(shift, x)).astype(x.dtype)


def _affine(w: Weights, cfg: ConvNet) -> tuple[Array, Array]:
    """A norm as gain * x + shift, in float32."""
    scale, bias, mean, var = (w[part].astype(jnp.float32) for part in ("scale", "bias", "mean", "var"))
    gain = scale * jax.lax.rsqrt(var + jnp.float32(cfg.norm_eps))
    return gain, bias - mean * gain


def fold_batch_norm(weights: Weights, cfg: ConvNet) -> Weights:
    """The same function with every norm that follows a convolution folded into it.

        conv(x, W) * gain + shift = conv(x, W * gain) + shift,  gain = scale / sqrt(var + eps), shift = bias - mean gain

    The sites stay: what `conv1` is afterwards has the gain already. Norms before an activation that feeds a
    convolution (all of a DenseNet but the stem's and each block's norm2) stay as they are. Folded weights are for
    running and cannot be saved; a second fold changes nothing.

    Returns:
      Weights for the same `cfg`, equal to float32 rounding.
    Source: arXiv 1712.05877, section 3.2.
    Example:
      >>> from jaxneuro.models.convnet import ConvNet, Dense, init_convnet
      >>> cfg = ConvNet(stem=8, depths=(1,), blocks=Dense(growth=4, mid=8), n_classes=5)
      >>> sorted(fold_batch_norm(init_convnet(cfg, jax.random.key(0)), cfg)["stem"]["norm"])
      ['bias']
    """
    flat = flatten(weights)
    for conv, norm in _foldable(flat, isinstance(cfg.blocks, Residual)).items():
        parts = {part: flat.pop(f"{norm}.{part}") for part in ("scale", "bias", "mean", "var")}
        gain, shift = _affine(parts, cfg)
        kernel = flat[conv]
        flat[conv] = (kernel.astype(jnp.float32) * gain[..., None, None, None, :]).astype(kernel.dtype)
        flat[f"{norm}.bias"] = shift.astype(kernel.dtype)
    return nest(flat)


def _foldable(flat: Weights, norm_follows: bool) -> dict[str, str]:
    """{convolution: the norm that is the only one to read it}."""
    pairs = {}
    for conv in (leaf for leaf in flat if leaf.rsplit(".", 1)[-1].startswith("conv")):
        place, _, name = conv.rpartition(".")
        n = name.removeprefix("conv")
        after = f"{place}.norm{n if norm_follows or not n else int(n) + 1}"
        if place.endswith("transition"):  # its norm comes first
            continue
        if f"{after}.scale" in flat:
            pairs[conv] = after
    return pairs
