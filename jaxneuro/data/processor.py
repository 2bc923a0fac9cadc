# SPDX-License-Identifier: Apache-2.0
"""Pictures as a model reads them: resized, cropped, rescaled and normalised as its folder says (extra `images`)."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
from jaxtyping import Float, UInt8

from ..errors import UserError, shown, unknown
from ..io.fields import FLAG, many, null_or, number, whole

FILTERS: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters; the place of one is the number that it has in a preprocessor_config.json."""

LONGEST: Final = 8192
"""Pixels of a side: 8192 x 8192 of three channels are 2 GB while they are rescaled."""
SIDE: Final = whole(1, LONGEST)
SCALE: Final = number(low=1e-12, high=1e6)
MEAN: Final = many(number(low=-1e6, high=1e6), least=1, most=64)
STD: Final = many(number(low=1e-6, high=1e6), least=1, most=64)
"""What the settings of a processor may be, in files too: within these every pixel is finite."""

type Picture = Any
"""A `PIL.Image.Image`, or a uint8 array [row, column, channel]."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What is done to a picture before a model sees it. `load_processor` reads one from the model's folder.

        x = (crop(resize(picture)) * rescale - mean) / std

    Resizing is Pillow's, on eight bits; the rest is float32. A picture smaller than the crop gets a black frame.
    Pictures are taken as they lie: rotate one that its EXIF data turns with `PIL.ImageOps.exif_transpose`.

    Source: transformers' image processors with Pillow (5.23), equal bit for bit with the same Pillow (13 resizes some
      pictures that are higher than wide by a few grey levels otherwise than 11 and 12); timm's evaluation transform
      at 1e-6.
    Example:
      >>> processor = Processor(crop=(2, 2), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
      >>> white = np.full((4, 6, 3), 255, np.uint8)
      >>> processor([white, white // 255 * 0]).shape, float(processor(white).max())
      ((2, 2, 2, 3), 1.0)
    """

    resize: int | tuple[int, int] | None = None
    """The shorter side, the longer in proportion; or rows and columns. None: as it comes."""
    resample: str = "bicubic"
    """A row of `FILTERS`."""
    crop: tuple[int, int] | None = None
    """Rows and columns that are cut out of the middle; None: all."""
    crop_to_even: bool = False
    """Where nothing is the middle, begin at the even one of the two rows (torchvision, timm); else at the first."""
    rescale: float | None = 1 / 255
    mean: tuple[float, ...] | None = None
    """Per channel, with `std`; None: not normalised."""
    std: tuple[float, ...] | None = None
    to_rgb: bool = False
    """Pillow's pictures of other modes are converted to RGB first, transparent ones on white."""

    def __post_init__(self):
        if self.resample not in FILTERS:
            raise unknown("filter", self.resample, FILTERS, where="Processor")
        sides = [*(self.resize if isinstance(self.resize, tuple) else (self.resize,)), *(self.crop or ())]
        for side in sides:
            null_or(SIDE).of(side, "a side of resize or crop")
        for name, kind in {"rescale": SCALE, "mean": MEAN, "std": STD}.items():
            null_or(kind).of(getattr(self, name), name)
        for name in ("crop_to_even", "to_rgb"):
            FLAG.of(getattr(self, name), name)
        if len(self.mean or ()) != len(self.std or ()):
            raise UserError(f"mean={self.mean} and std={self.std}: one number per channel each.")

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Float[np.ndarray, "batch row column channel"]:
        """The batch that a model takes.

        Args:
          pictures: Pillow's, or uint8 arrays [row, column, channel], of any sizes; or one of them.
        Raises:
          UserError: another dtype, number of axes or of channels; Pillow is needed and not installed; pictures that do
            not come out in one size (no crop).
        """
        named = isinstance(pictures, str | bytes | os.PathLike)
        one = named or getattr(pictures, "ndim", 0) == 3 or hasattr(pictures, "getbands")
        each: Any = [pictures] if one else pictures
        done = [self._one(_pixels(picture, self.to_rgb)) for picture in each]
        if len(sizes := {x.shape for x in done}) != 1:
            found = ", ".join(sorted(" x ".join(map(str, shape)) for shape in sizes)) or "none"
            raise UserError(f"a batch has pictures of one size; these come out as {found}. Give one of them at a time.")
        return np.stack(done)

    def undone(self, x: Float[np.ndarray, "row column channel"]) -> UInt8[np.ndarray, "row column channel"]:
        """What the model reads, as a picture to look at: neither normalised nor rescaled, and still cropped.

        Example:
          >>> half = Processor(mean=(0.5,), std=(0.5,))
          >>> half.undone(half(np.full((1, 1, 1), 200, np.uint8))[0]).item()
          200
        """
        if self.mean is not None:
            x = x * np.array(self.std, np.float32) + np.array(self.mean, np.float32)
        return np.clip(np.round(x / (self.rescale or 1.0)), 0, 255).astype(np.uint8)

    def _one(self, a: UInt8[np.ndarray, "row column channel"]) -> Float[np.ndarray, "row column channel"]:
        channels = (1, 3) if self.mean is None else (len(self.mean),)
        if a.shape[2] not in channels:
            want = " or ".join(map(str, channels))
            raise UserError(
                f"a picture with {a.shape[2]} channels, where the processor takes {want}. Convert it first: "
                "PIL.Image.Image.convert('RGB'), or 'L' for one channel."
            )
        if self.resize is not None:
            a = _resized(a, _sides(a.shape[:2], self.resize), self.resample)
        if self.crop is not None:
            for axis, side in enumerate(self.crop):
                a = _middle(a, axis, side, self.crop_to_even)
        x = a.astype(np.float32) if self.rescale is None else (a.astype(np.float64) * self.rescale).astype(np.float32)
        return x if self.mean is None else (x - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def pillow(what: str) -> ModuleType:
    """PIL.Image; `what` needs it.

    Raises:
      UserError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as e:
        raise UserError(f"{what} needs the package Pillow. Run: pip install 'jaxneuro[images]'.") from e
    return Image


def _pixels(picture: Picture, to_rgb: bool) -> UInt8[np.ndarray, "row column channel"]:
    if hasattr(picture, "getbands"):
        a = np.asarray(rgb(picture) if to_rgb else picture)
        if not to_rgb and picture.mode not in ("RGB", "L"):
            raise UserError(
                f"a picture of Pillow's mode {picture.mode}, which this processor does not convert: "
                "use picture.convert('RGB')."
            )
        return a[..., None] if a.ndim == 2 else a
    if isinstance(picture, str | bytes | os.PathLike):
        raise UserError(
            f"a picture is Pillow's or a uint8 array, not the name of a file, {shown(picture)}. Open it first: "
            "PIL.Image.open(path), turned upright by PIL.ImageOps.exif_transpose where its EXIF data says so."
        )
    a = np.asarray(picture)
    if a.dtype != np.uint8 or a.ndim != 3:
        raise UserError(
            f"a picture is Pillow's or a uint8 array [row, column, channel]; this is {a.dtype} {list(a.shape)}."
        )
    return a


def rgb(picture: Picture) -> Picture:
    """Pillow's picture in RGB; a transparent one on white."""
    image = pillow("converting a picture to RGB")
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return image.alpha_composite(image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")


def _sides(have: tuple[int, int], want: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(want, tuple):
        return want
    rows, columns = have
    long = int(want * max(have) / min(have))
    if long > LONGEST:
        raise UserError(
            f"a picture of {rows} x {columns} pixels has {long} on its longer side when the shorter has {want}: more "
            f"than {LONGEST}. Crop it first."
        )
    return (long, want) if columns <= rows else (want, long)


def _resized(a: UInt8[np.ndarray, "..."], sides: tuple[int, int], resample: str) -> UInt8[np.ndarray, "..."]:
    image = pillow("resizing pictures")
    picture = image.fromarray(a[..., 0] if a.shape[2] == 1 else np.ascontiguousarray(a))
    out = np.asarray(picture.resize(sides[::-1], resample=FILTERS.index(resample)))
    return out.reshape(*sides, a.shape[2])


def _middle(a: UInt8[np.ndarray, "..."], axis: int, side: int, to_even: bool) -> UInt8[np.ndarray, "..."]:
    more = a.shape[axis] - side
    if more < 0:
        frame = [(0, 0)] * a.ndim
        frame[axis] = (math.ceil(-more / 2), -more // 2)
        return np.pad(a, frame)
    start = round(more / 2) if to_even else more // 2
    return a.take(range(start, start + side), axis)
