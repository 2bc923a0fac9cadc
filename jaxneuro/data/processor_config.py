# SPDX-License-Identifier: Apache-2.0
"""A model's folder to its `Processor`: transformers' preprocessor_config.json, timm's pretrained_cfg; no guesses."""

import math
import os
from collections.abc import Callable
from typing import Any, Final

from ..errors import UserError, unknown
from ..io.fields import FLAG, Fields, Kind, choice, many, number
from ..io.files import read_json
from ..io.sources import resolve
from .processor import FILTERS, LONGEST, MEAN, SCALE, SIDE, STD, Processor

_HALF: Final = (0.5, 0.5, 0.5)
_CLIP: Final = {
    "do_center_crop": True,
    "do_convert_rgb": True,
    "size": {"shortest_edge": 224},
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_ALL: Final = {
    "do_resize": True,
    "size": 224,
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": False,
    "crop_size": 224,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _HALF,
    "image_std": _HALF,
    "do_convert_rgb": False,
    "do_pad": False,
    "use_square_size": False,
}
# What a file leaves out, where it is not as in `_ALL`: transformers' defaults.
PROCESSORS: Final[dict[str, dict[str, Any]]] = {
    "ViTImageProcessor": {"resample": 2, "default_to_square": True},
    "DeiTImageProcessor": {"size": 256, "default_to_square": True, "do_center_crop": True},
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "SiglipImageProcessor": {"size": {"height": 224, "width": 224}, "do_convert_rgb": True},
    "ConvNextImageProcessor": {"size": 384, "crop_pct": 224 / 256},
}
# Keys that change no pixel: whose file it is, and how transformers' own arrays lie.
_SILENT: Final = frozenset(
    [
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "_valid_processor_keys",
        "data_format",
        "input_data_format",
        "device",
        "return_tensors",
        "disable_grouping",
        "image_seq_length",
        "pad_size",
    ]
)


def load_processor(name: str | os.PathLike, *, revision: str | None = None) -> Processor:
    """What a model of pictures wants done to them: of a folder, or a Hub name (`jaxneuro.io.sources`).

    Read from processor_config.json or preprocessor_config.json, as transformers does with Pillow (its processors of
    ViT, DeiT, BiT, CLIP, SigLIP and ConvNeXT, which DINOv2 and ResNet share), or from the config.json of timm, as its
    evaluation does.

    Raises:
      UserError: there is no such file, or a processor, setting or value that is not ported.
    Example:
      >>> pixels = load_processor("google/vit-base-patch16-224")(pictures)          # doctest: +SKIP
      >>> logits = models.load("google/vit-base-patch16-224")(pixels)               # doctest: +SKIP
    """
    folder = resolve(name, revision=revision, files=("*.json",), kind="processor")
    for file, part, read in _FILES:
        path = folder / file
        found = read_json(path) if path.is_file() else {}
        inner = found.get(part) if part and isinstance(found, dict) else found
        if isinstance(inner, dict) and inner:
            return read(inner, str(path))
    raise UserError(
        f"{folder} does not say how its pictures are prepared: it has no preprocessor_config.json, and no "
        "pretrained_cfg in its config.json. Make a jaxneuro.data.Processor from what the model's authors say."
    )


def processor_from_hf(config: dict[str, Any], where: str = "preprocessor_config.json") -> Processor:
    """The processor of a preprocessor_config.json of transformers; `where` is for messages.

    Raises:
      UserError: a processor, setting or value that is not ported.
    Example:
      >>> processor_from_hf({"feature_extractor_type": "ViTFeatureExtractor", "size": 32}).resize
      (32, 32)
    """
    written = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = written.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    if kind not in PROCESSORS:
        raise unknown("image processor", written, PROCESSORS, where=where)
    usual = {**_ALL, **PROCESSORS[kind]}
    given = {key: value for key, value in config.items() if value is not None and key not in _SILENT}
    if odd := [key for key in given if key not in usual]:
        raise unknown(f"setting of a {kind}", odd[0], usual, where=where)
    with Fields({**usual, **given}, where) as s:
        for key in ("do_pad", "use_square_size"):
            if s.read(key, FLAG):
                s.note(f"{key}=True is not ported")
        square = s.read("default_to_square", FLAG)
        resize = s.read("size", _size(square, edge=True)) if s.read("do_resize", FLAG) else None
        crop = s.read("crop_size", _size(True)) if s.read("do_center_crop", FLAG) else None
        if "crop_pct" in s and resize is not None:
            resize, crop = _cropped_part(resize, s.read("crop_pct", _SHARE), crop, where)
        normalised = s.read("do_normalize", FLAG)
        found: dict[str, Any] = {
            "resize": resize,
            "resample": FILTERS[s.read("resample", _FILTER)],
            "crop": crop,
            "rescale": s.read("rescale_factor", SCALE) if s.read("do_rescale", FLAG) else None,
            "mean": s.read("image_mean", MEAN) if normalised else None,
            "std": s.read("image_std", STD) if normalised else None,
            "to_rgb": s.read("do_convert_rgb", FLAG),
        }
    return _made(where, **found)


_SHARE: Final = number(low=0.01, high=1)
_FILTER: Final = Kind[int](
    f"one of Pillow's numbers of filters, 0 to {len(FILTERS) - 1}",
    lambda v: type(v) is int and 0 <= v < len(FILTERS),
    int,
    0,
)


def _size(square: bool, *, edge: bool = False) -> Kind[Any]:
    """The shorter side, or rows and columns; `edge`: {shortest_edge} is known."""

    def sides(v: Any) -> Any:
        if isinstance(v, dict):
            wanted = ["height", "width"] if len(v) == 2 else ["shortest_edge"] if edge else []
            found = [v.get(key) for key in wanted] if set(v) == set(wanted) else []
        else:
            found = list(v) if isinstance(v, list | tuple) and len(v) == 2 else [v] * (1 + square)
        if not found or not all(map(SIDE.fits, found)):
            return None
        return found[0] if len(found) == 1 else tuple(found)

    ways = "[height, width], {height, width}" + (" or {shortest_edge}" if edge else "")
    return Kind(f"a whole number of pixels from 1 to {LONGEST}, {ways}", lambda v: sides(v) is not None, sides, 1)


def _cropped_part(resize: Any, share: float, crop: Any, where: str) -> tuple[Any, tuple[int, int] | None]:
    """ConvNeXT's rule: below 384 pixels resize to more and cut the middle out, else squeeze the whole into a square."""
    if isinstance(resize, tuple) or crop is not None:
        raise UserError(f"{where}: a ConvNextImageProcessor has size={{shortest_edge}} and no do_center_crop.")
    return (int(resize / share), (resize, resize)) if resize < 384 else ((resize, resize), None)


def _made(where: str, **fields: Any) -> Processor:
    try:
        return Processor(**fields)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None


_TIMM: Final = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def processor_from_timm(config: dict[str, Any], where: str = "config.json") -> Processor:
    """The processor of a pretrained_cfg of timm, whose other keys are not about pictures; `where` is for messages.

    Raises:
      UserError: a value that is not ported.
    Example:
      >>> processor_from_timm({"input_size": [3, 224, 224], "crop_pct": 0.95}).resize
      235
    """
    given = {key: usual if config.get(key) is None else config[key] for key, usual in _TIMM.items()}
    with Fields(given, where) as s:
        channels, rows, columns = s.read("input_size", many(SIDE, least=3, most=3))
        mean, share = s.read("mean", MEAN), s.read("crop_pct", _SHARE)
        mode = s.read("crop_mode", choice(["center", "squash"]))
        found = {"resample": s.read("interpolation", choice(FILTERS)), "mean": mean, "std": s.read("std", STD)}
        if rows != columns or channels != len(mean):
            s.note(
                f"input_size={given['input_size']}, mean={given['mean']}: pictures are square, with a mean per channel"
            )
    side = math.floor(rows / share)
    resize = side if mode == "center" else (side, side)
    return _made(where, resize=resize, crop=(rows, columns), crop_to_even=True, **found)


_FILES: Final[tuple[tuple[str, str, Callable[[dict[str, Any], str], Processor]], ...]] = (
    ("processor_config.json", "image_processor", processor_from_hf),
    ("preprocessor_config.json", "", processor_from_hf),
    ("config.json", "pretrained_cfg", processor_from_timm),
)
"""Files of a folder, the part that is read of each, and by whom; the first one that is there."""
