# SPDX-License-Identifier: Apache-2.0
"""What a convolutional network is made of: its configuration, its convolutions, its leaves and their shapes."""

import dataclasses
import math
from typing import Annotated, Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ...errors import UserError, shown
from ...io.fields import whole
from ...taps import reprs
from ..layout import Weights, nest
from ..ranges import EPS, check_fields

STATISTICS: Final = ("scale", "bias", "mean", "var")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """A ResNet's stages: act(x + f(x)), f two convolutions (basic) or three (bottleneck)."""

    bottleneck: bool
    widths: tuple[int, ...]
    """Channels that the blocks of each stage write."""
    mids: tuple[int, ...]
    """Channels between their convolutions."""
    groups: int = 1
    """Of a bottleneck's 3x3 convolution (ResNeXt)."""
    first_stride: int = 1
    """Of the first stage; the others halve rows and columns."""
    stride_in_conv1: bool = False
    """A bottleneck halves in its first 1x1 convolution (the first paper), not in the 3x3 one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """A DenseNet's stages: every block adds `growth` channels, a transition halves channels, rows and columns."""

    growth: int
    mid: int
    """Channels between a block's two convolutions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNet:
    """A convolutional network's architecture: frozen, hashable.

    Example:
      >>> cfg = ConvNet(stem=8, depths=(2, 2), blocks=Dense(growth=4, mid=8), n_classes=5)
      >>> cfg.width, cfg.min_pixels
      (16, 5)
    """

    family: str = "resnet"
    """Row of the table in families/convnet.py: the names of tensors and config keys."""
    channels: int = 3
    stem: int
    """Channels after the first convolution."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    blocks: Residual | Dense
    act: str = "relu"
    """Of the stem and at the end of a block."""
    inner_act: str = "relu"
    """Between the convolutions of a block."""
    norm_eps: Annotated[float, EPS] = 1e-5
    n_classes: Annotated[int, whole(0)] = 1000
    """0: no head; the last map comes out."""

    def __repr__(self) -> str:
        return reprs.fields(self)

    def __post_init__(self):
        check_fields(self)
        check_fields(self.blocks)
        counts = {"channels": (self.channels,), "stem": (self.stem,), "depths": self.depths}
        of_blocks = {name: n for name, n in vars(self.blocks).items() if not isinstance(n, bool)}
        counts |= {name: n if isinstance(n, tuple) else (n,) for name, n in of_blocks.items()}
        for name, sizes in counts.items():
            if not sizes or any(type(n) is not int or n < 1 for n in sizes):
                raise UserError(f"{name}={shown(sizes)}: every size is a positive whole number.")
        if isinstance(self.blocks, Residual):
            r = self.blocks
            if not len(self.depths) == len(r.widths) == len(r.mids):
                raise UserError(f"depths={self.depths}, widths={r.widths} and mids={r.mids} have an entry per stage.")
            if any(mid % r.groups for mid in r.mids):
                raise UserError(f"groups={r.groups} does not divide the channels {r.mids}.")

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return self.blocks.widths[-1] if isinstance(self.blocks, Residual) else _dense_inputs(self)[-1][-1]

    @property
    def min_pixels(self) -> int:
        """The fewest rows and columns that leave something of a picture: a transition's pool drops the odd row."""
        halvings = len(self.depths) - 1 if isinstance(self.blocks, Dense) else 0
        return 4 * (2**halvings - 1) + 1


class Conv(NamedTuple):
    """A convolution without bias, padded by half its size."""

    size: int
    c_in: int
    c_out: int
    stride: int = 1
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its weights: [row, column, in, out]."""
        return (self.size, self.size, self.c_in // self.groups, self.c_out)


def stem(cfg: ConvNet) -> Conv:
    """The first convolution."""
    return Conv(7, cfg.channels, cfg.stem, 2)


def residual(cfg: ConvNet, stage: int, first: bool) -> tuple[dict[str, Conv], Conv | None]:
    """A block's convolutions and that of its shortcut, if it has one."""
    r = cfg.blocks
    assert isinstance(r, Residual)
    mid, out = r.mids[stage], r.widths[stage]
    c_in = (cfg.stem, *r.widths)[stage] if first else out
    stride = (r.first_stride if stage == 0 else 2) if first else 1
    shortcut = Conv(1, c_in, out, stride) if (c_in, stride) != (out, 1) else None
    if not r.bottleneck:
        return {"1": Conv(3, c_in, mid, stride), "2": Conv(3, mid, out)}, shortcut
    one, two = (stride, 1) if r.stride_in_conv1 else (1, stride)
    return {"1": Conv(1, c_in, mid, one), "2": Conv(3, mid, mid, two, r.groups), "3": Conv(1, mid, out)}, shortcut


def _dense_inputs(cfg: ConvNet) -> list[list[int]]:
    """Per stage, the channels that each block reads, and those that leave the stage."""
    assert isinstance(cfg.blocks, Dense)
    out, c_in = [], cfg.stem
    for depth in cfg.depths:
        out.append([c_in + b * cfg.blocks.growth for b in range(depth + 1)])
        c_in = out[-1][-1] // 2
    return out


def convnet_shapes(cfg: ConvNet) -> dict[str, tuple[int, ...]]:
    """{leaf: shape}; under "rest" the leaves of a stage's blocks from the second on, stacked.

    Example:
      >>> cfg = ConvNet(stem=8, depths=(3,), blocks=Residual(bottleneck=False, widths=(8,), mids=(8,)))
      >>> convnet_shapes(cfg)["stages.0.rest.conv2"]
      (2, 3, 3, 8, 8)
    """
    stage = _residual_leaves if isinstance(cfg.blocks, Residual) else _dense_leaves
    out = {"stem.conv": stem(cfg).shape, **_norm_leaves("stem.norm", cfg.stem)}
    for s in range(len(cfg.depths)):
        out |= {f"stages.{s}.{leaf}": shape for leaf, shape in stage(cfg, s).items()}
    if isinstance(cfg.blocks, Dense):
        out |= _norm_leaves("final_norm", cfg.width)
    return out | ({"head.w": (cfg.width, cfg.n_classes), "head.b": (cfg.n_classes,)} if cfg.n_classes else {})


def _norm_leaves(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (channels,) for part in STATISTICS}


def _residual_leaves(cfg: ConvNet, s: int) -> dict[str, tuple[int, ...]]:
    def block(first: bool) -> dict[str, tuple[int, ...]]:
        convs, shortcut = residual(cfg, s, first)
        out = {}
        for n, conv in convs.items():
            out |= {f"conv{n}": conv.shape, **_norm_leaves(f"norm{n}", conv.c_out)}
        if shortcut:
            out |= {"shortcut.conv": shortcut.shape, **_norm_leaves("shortcut.norm", shortcut.c_out)}
        return out

    more = cfg.depths[s] - 1
    rest = {f"rest.{leaf}": (more, *shape) for leaf, shape in block(False).items()} if more else {}
    return {f"first.{leaf}": shape for leaf, shape in block(True).items()} | rest


def _dense_leaves(cfg: ConvNet, s: int) -> dict[str, tuple[int, ...]]:
    assert isinstance(cfg.blocks, Dense)
    growth, mid = cfg.blocks.growth, cfg.blocks.mid
    *inputs, last = _dense_inputs(cfg)[s]
    out: dict[str, tuple[int, ...]] = {}
    for b, c_in in enumerate(inputs):
        out |= {**_norm_leaves(f"blocks.{b}.norm1", c_in), f"blocks.{b}.conv1": (1, 1, c_in, mid)}
        out |= {**_norm_leaves(f"blocks.{b}.norm2", mid), f"blocks.{b}.conv2": (3, 3, mid, growth)}
    if s < len(cfg.depths) - 1:
        out |= {**_norm_leaves("transition.norm", last), "transition.conv": (1, 1, last, last // 2)}
    return out


def init_convnet(cfg: ConvNet, key: Key[Array, ""], dtype: Any = jnp.float32) -> Weights:
    """Random weights: N(0, 2 / fan out) convolutions (arXiv 1502.01852), N(0, 0.01^2) head, norms that do nothing."""
    table = convnet_shapes(cfg)
    keys = dict(zip(table, jax.random.split(key, len(table)), strict=True))

    def start(leaf: str, shape: tuple[int, ...]) -> Array:
        name = leaf.rsplit(".", 1)[-1]
        if name in (*STATISTICS, "b"):
            return (jnp.ones if name in ("scale", "var") else jnp.zeros)(shape, dtype)
        std = 0.01 if name == "w" else math.sqrt(2 / (shape[-4] * shape[-3] * shape[-1]))
        return (std * jax.random.normal(keys[leaf], (math.prod(shape),))).astype(dtype).reshape(shape)

    return nest({leaf: start(leaf, shape) for leaf, shape in table.items()})
