# SPDX-License-Identifier: Apache-2.0
"""Make the golden data of tests/parity/processors: what transformers and timm make of tiny pictures.

Needs transformers with Pillow, and for its cases timm with torchvision, in an environment of its own (nothing else of
this repository is imported):

    python scripts/make_processor_fixtures.py           transformers' cases
    python scripts/make_processor_fixtures.py --timm    timm's

pictures.npz has the pictures: arrays, and PNG files for Pillow's other modes. Each case is its configuration and a row
of a table of batches; of large ones only every 48th row and column is kept.
"""

import argparse
import io
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

FOLDER = Path(__file__).parents[1] / "tests" / "parity" / "processors"
SEED = 20251121
SIZES = {"wide": (14, 31), "high": (23, 17), "small": (7, 6)}
EVERY = 48

_STATISTICS = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.22, 0.3, 0.27]}
_V5 = {**_STATISTICS, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_resize": True}
_CROP = {"do_center_crop": True, "crop_size": {"height": 9, "width": 8}}
# case: preprocessor_config.json. Every processor and every setting of jaxneuro's Processor appears.
CASES: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", **_V5, "size": {"height": 9, "width": 11}},
    "vit-first": {"feature_extractor_type": "ViTFeatureExtractor", **_STATISTICS, "resample": 2, "size": 10},
    "deit": {"image_processor_type": "DeiTImageProcessor", **_V5, **_CROP, "size": {"height": 12, "width": 13}},
    "deit-cropped-only": {"feature_extractor_type": "DeiTFeatureExtractor", "do_resize": False, "crop_size": [10, 16]},
    "dinov2": {"image_processor_type": "BitImageProcessor", **_V5, **_CROP, "size": {"shortest_edge": 11}},
    "dinov2-framed": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 6}, "crop_size": 13},
    "clip": {"image_processor_type": "CLIPImageProcessorFast", **_V5, **_CROP, "size": {"shortest_edge": 10}},
    "clip-first": {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 8, "size": 9, "resample": 1},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": 8, "resample": 5},
    "siglip-bare": {
        "image_processor_type": "SiglipImageProcessor",
        "size": [8, 6],
        "resample": 0,
        "do_rescale": False,
        "do_normalize": False,
    },
    "resnet": {"feature_extractor_type": "ConvNextFeatureExtractor", **_STATISTICS, "crop_pct": 0.7, "size": 9},
    "resnet-large": {"image_processor_type": "ConvNextImageProcessor", **_V5, "size": {"shortest_edge": 384}},
}
TIMM: dict[str, dict[str, Any]] = {
    "timm": {"input_size": [3, 8, 8], "crop_pct": 0.7, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    "timm-bilinear": {"input_size": [3, 9, 9], "interpolation": "bilinear", "crop_pct": 0.95},
    "timm-squash": {"input_size": [3, 9, 9], "crop_mode": "squash", "crop_pct": 0.75},
}


def pictures() -> dict[str, np.ndarray]:
    """Random colours of a few sizes; the widest also as PNG files of other modes."""
    rng = np.random.default_rng(SEED)
    found = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in SIZES.items()}
    wide = Image.fromarray(found["wide"])
    clear = wide.copy()
    clear.putalpha(Image.fromarray(rng.integers(0, 256, SIZES["wide"], dtype=np.uint8)))
    modes = {"RGBA": clear, "LA": clear.convert("LA"), "L": wide.convert("L"), "P": wide.quantize(16)}
    for mode, picture in modes.items():
        file = io.BytesIO()
        picture.save(file, "PNG", **({"transparency": 3} if mode == "P" else {}))
        found[f"png-{mode}"] = np.frombuffer(file.getvalue(), np.uint8)
    return found


def opened(picture: np.ndarray) -> Image.Image:
    """Pillow's picture of an array, or of a PNG file."""
    return Image.open(io.BytesIO(picture.tobytes())) if picture.ndim == 1 else Image.fromarray(picture)


def thinned(x: np.ndarray) -> np.ndarray:
    """All of a small picture [row, column, channel], a part of a large one."""
    return x[::EVERY, ::EVERY] if max(x.shape) > 4 * EVERY else x


def hugging(config: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What transformers' processor, the one with Pillow, makes of each picture that it takes."""
    import transformers

    kind = config.get("image_processor_type") or config["feature_extractor_type"].replace("Feature", "Image")
    kind = kind.removesuffix("Fast").replace("ImageExtractor", "ImageProcessor")
    processor = getattr(transformers, f"{kind}Pil").from_dict(config)
    taken = {name: a for name, a in given.items() if a.ndim == 3 or processor.do_convert_rgb}
    return {
        name: thinned(processor(opened(a), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0))
        for name, a in taken.items()
    }


def defaults() -> dict[str, dict[str, Any]]:
    """What each of transformers' processors writes that was given nothing."""
    import transformers

    kinds = {c["image_processor_type"].removesuffix("Fast") for c in CASES.values() if "image_processor_type" in c}
    return {kind: json.loads(getattr(transformers, f"{kind}Pil")().to_json_string()) for kind in sorted(kinds)}


def timm_defaults() -> dict[str, dict[str, Any]]:
    """What timm takes for keys that a pretrained_cfg leaves out."""
    from timm.data import resolve_data_config

    return {"": resolve_data_config({}, pretrained_cfg={"tag": "none"})}


def timms(config: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What timm's evaluation transform makes of each picture."""
    from timm.data import create_transform, resolve_data_config

    transform: Any = create_transform(**resolve_data_config({}, pretrained_cfg=config), is_training=False)
    return {name: transform(opened(a)).permute(1, 2, 0).numpy() for name, a in given.items() if a.ndim == 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", action="store_true", help="timm's cases instead of transformers'")
    timm = parser.parse_args().timm
    FOLDER.mkdir(exist_ok=True)
    given, found = pictures(), {}
    for case, config in (TIMM if timm else CASES).items():
        made = (timms if timm else hugging)(config, given)
        found |= {f"{case}/{name}": np.asarray(x, np.float32) for name, x in made.items()}
    name = "timm" if timm else "transformers"
    versions = {m.__name__: m.__version__ for m in (np, PIL, __import__(name))} | {"python": platform.python_version()}
    about = {"made_by": "scripts/make_processor_fixtures.py", "seed": SEED, "versions": versions}
    about["cases"] = TIMM if timm else CASES
    about["defaults"] = timm_defaults() if timm else defaults()
    np.savez_compressed(FOLDER / "pictures.npz", allow_pickle=False, **given)
    np.savez_compressed(FOLDER / f"{name}.npz", allow_pickle=False, **found)
    (FOLDER / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
