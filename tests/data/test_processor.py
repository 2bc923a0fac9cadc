# SPDX-License-Identifier: Apache-2.0
"""Pictures are prepared as transformers and timm prepare them; what is not ported is said (golden data of
scripts/make_processor_fixtures.py)."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from jaxneuro.data.processor import FILTERS, Processor
from jaxneuro.data.processor_config import (
    _ALL,
    _TIMM,
    PROCESSORS,
    load_processor,
    processor_from_hf,
    processor_from_timm,
)
from jaxneuro.errors import UserError

GOLDEN = Path(__file__).parents[1] / "parity" / "processors"
PICTURES = dict(np.load(GOLDEN / "pictures.npz"))
ABOUT = {library: json.loads((GOLDEN / f"{library}.json").read_text()) for library in ("transformers", "timm")}
CASES = {library: about["cases"] for library, about in ABOUT.items()}
READ = {"transformers": processor_from_hf, "timm": processor_from_timm}


# The golden data are Pillow 13's; earlier ones resize some of these pictures, which are noise, by up to 3 of 255 grey
# levels otherwise. Divided by the smallest std.
ROUNDING = 0.0 if int(PIL.__version__.split(".")[0]) >= 13 else 3.5 / 255 / 0.2


@pytest.fixture(scope="module")
def golden():
    return {name: a for library in CASES for name, a in np.load(GOLDEN / f"{library}.npz").items()}


def processors():
    return {case: READ[library](config) for library, cases in CASES.items() for case, config in cases.items()}


def opened(name):
    a = PICTURES[name]
    return Image.open(io.BytesIO(a.tobytes())) if a.ndim == 1 else Image.fromarray(a)


def error(processor, name, expected):
    """The largest difference; of large pictures the golden one is every 48th row and column."""
    (x,) = processor(opened(name))
    x = x[::48, ::48] if max(x.shape) > 4 * 48 else x
    return np.inf if x.shape != expected.shape else np.abs(x - expected).max()


@pytest.mark.parametrize("case", CASES["transformers"])
def test_pictures_are_those_of_transformers_bit_for_bit(case, golden):
    expected = {name.split("/")[1]: x for name, x in golden.items() if name.startswith(f"{case}/")}
    assert {name for name, a in PICTURES.items() if a.ndim == 3} <= set(expected)
    for name, x in expected.items():
        assert error(processors()[case], name, x) <= ROUNDING


@pytest.mark.parametrize("case", CASES["timm"])
def test_pictures_are_those_of_timm(case, golden):
    for name in ("wide", "high", "small"):
        # timm divides by 255 in float32, then by std: a last digit more or less
        assert error(processors()[case], name, golden[f"{case}/{name}"]) < 1e-6 + ROUNDING


def test_every_setting_is_read(golden):
    """A processor with one setting changed makes other pictures in some case."""
    changes = {
        "resize": lambda p: 12 if isinstance(p.resize, int) else (12, 12),
        "resample": lambda p: FILTERS[(FILTERS.index(p.resample) + 1) % len(FILTERS)],
        "crop": lambda p: p.crop and (p.crop[0] + 1, p.crop[1]),
        "crop_to_even": lambda p: not p.crop_to_even,
        "rescale": lambda p: None if p.rescale else 1 / 255,
        "mean": lambda p: p.mean and p.mean[::-1],
        "std": lambda p: p.std and tuple(1.01 * s for s in p.std),
        "to_rgb": lambda p: not p.to_rgb,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Processor)}
    noticed = set()
    for name in golden:
        case, picture = name.split("/")
        if case == "resnet-large":
            continue
        p = processors()[case]
        for field in set(changes) - noticed:
            try:
                off = error(dataclasses.replace(p, **{field: changes[field](p)}), picture, p(opened(picture))[0])
            except UserError:  # a picture that is not RGB and is no longer converted
                off = np.inf
            noticed |= {field} if off > 1e-4 else set()
    assert noticed == set(changes)


def test_what_a_file_leaves_out_is_as_the_libraries_have_it():
    defaults = ABOUT["transformers"]["defaults"]
    assert set(defaults) == set(PROCESSORS)
    for kind, written in defaults.items():
        assert processor_from_hf({"image_processor_type": kind}) == processor_from_hf(written)
        assert {key for key in written if key != "image_processor_type"} >= {"size", "resample", "image_mean"}
    assert processor_from_timm({}) == processor_from_timm(ABOUT["timm"]["defaults"][""])


def test_there_is_a_case_of_every_processor_and_filter():
    written = [c.get("image_processor_type") or c["feature_extractor_type"] for c in CASES["transformers"].values()]
    kinds = {name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast") for name in written}
    assert kinds == set(PROCESSORS)
    assert {p.resample for p in processors().values()} >= {"nearest", "lanczos", "bilinear", "bicubic", "hamming"}


def test_arrays_and_batches_are_as_pillow():
    p = processors()["clip"]
    arrays = [PICTURES[name] for name in ("wide", "high")]
    batch = p([Image.fromarray(a) for a in arrays])
    assert (batch.shape, batch.dtype) == ((2, 9, 8, 3), np.float32)
    np.testing.assert_array_equal(p(arrays), batch)
    np.testing.assert_array_equal(p(np.stack([arrays[0]] * 2))[1], batch[0])
    np.testing.assert_array_equal(p(arrays[1])[0], batch[1])


def test_pictures_of_one_channel():
    p = Processor(resize=(4, 5), mean=(0.5,), std=(0.25,))
    grey = PICTURES["wide"][..., :1]
    np.testing.assert_array_equal(p(grey), p(Image.fromarray(grey[..., 0])))
    assert p(grey).shape == (1, 4, 5, 1)


WRONG_PICTURES = {
    "floats": ("vit", np.zeros((4, 4, 3)), r"uint8 array \[row, column, channel\]; this is float64 \[4, 4, 3\]"),
    "two axes": ("vit", [np.zeros((4, 4), np.uint8)], r"this is uint8 \[4, 4\]"),
    "channels first": ("clip", np.zeros((3, 8, 9), np.uint8), "9 channels, where the processor takes 3"),
    "a grey one": ("vit", Image.new("L", (4, 4)), r"1 channels.*convert\('RGB'\)"),
    "a transparent one": ("vit", Image.new("RGBA", (4, 4)), r"mode RGBA, which this processor does not convert"),
    "none": ("vit", [], "come out as none"),
    "names": ("vit", ["a.jpg"], r"not the name of a file, a.jpg. Open it first: PIL.Image.open"),
    "a name": ("vit", "a.jpg", "not the name of a file, a.jpg"),
    "a path": ("clip", Path("a.jpg"), "not the name of a file, a.jpg"),
}


@pytest.mark.parametrize(("case", "picture", "message"), WRONG_PICTURES.values(), ids=list(WRONG_PICTURES))
def test_pictures_that_are_refused(case, picture, message):
    with pytest.raises(UserError, match=message):
        processors()[case](picture)


def test_a_batch_has_one_size():
    with pytest.raises(UserError, match=r"these come out as 14 x 31 x 3, 23 x 17 x 3. Give one of them at a time"):
        Processor()([PICTURES["wide"], PICTURES["high"]])


HF, CONVNEXT = {"image_processor_type": "CLIPImageProcessor"}, {"image_processor_type": "ConvNextImageProcessor"}
WRONG_CONFIGS = {
    "another processor": ({"image_processor_type": "BeitImageProcessor"}, "no image processor 'BeitImageProcessor'"),
    "no processor": ({"size": 224}, "no image processor ''. Known: ViTImageProcessor"),
    "an unknown setting": ({**HF, "crop_pct": 0.9}, "no setting of a CLIPImageProcessor 'crop_pct'. Did you mean"),
    "padding": ({**HF, "do_pad": True}, "do_pad=True is not ported"),
    "an old switch": ({**HF, "use_square_size": True}, "use_square_size=True is not ported"),
    "two edges": ({**HF, "size": {"shortest_edge": 8, "longest_edge": 9}}, "size = .* is not a whole number of pixels"),
    "a crop of an edge": ({**HF, "crop_size": {"shortest_edge": 8}}, "crop_size = .* is not a whole number of pixels"),
    "half a size": ({**HF, "size": {"height": 8}}, "size = .*height, width"),
    "a size of text": ({**HF, "size": "8"}, "size = .8. is not a whole number"),
    "a size of nothing": ({**HF, "size": 0}, "size = 0 is not a whole number of pixels from 1 to 8192"),
    "a filter": ({**HF, "resample": 6}, "resample = 6 is not one of Pillow's numbers"),
    "one mean for all": ({**HF, "image_mean": 0.5}, "image_mean = 0.5 is not a list"),
    "two means": ({**HF, "image_mean": [0.5, 0.5]}, r"mean=\(0.5, 0.5\) and std=.*one number per channel each"),
    "no deviation": ({**HF, "image_std": [1, 0, 1]}, "image_std = .* is not a list of 1 to 64"),
    "a scale": ({**HF, "rescale_factor": "1/255"}, "rescale_factor = .1/255. is not a finite number"),
    "a square of convnext": ({**CONVNEXT, "size": {"height": 8, "width": 8}}, "has size={shortest_edge} and no"),
    "a crop of convnext": ({**CONVNEXT, "do_center_crop": True}, "has size={shortest_edge} and no do_center_crop"),
    "a share": ({**CONVNEXT, "crop_pct": 0}, "crop_pct = 0 is not a finite number"),
    "timm, borders": (
        {"pretrained_cfg": {"crop_mode": "border"}},
        "no crop_mode 'border'. Known: center, squash",
    ),
    "timm, no square": ({"pretrained_cfg": {"input_size": [3, 8, 9]}}, r"input_size=\[3, 8, 9\].*square"),
    "timm, one channel": ({"pretrained_cfg": {"input_size": [1, 8, 8]}}, "with a mean per channel"),
    "timm, a filter": ({"pretrained_cfg": {"interpolation": "random"}}, "no interpolation 'random'"),
    "neither": ({"pretrained_cfg": {}}, "does not say how its pictures are prepared"),
}


@pytest.mark.parametrize(("config", "message"), WRONG_CONFIGS.values(), ids=list(WRONG_CONFIGS))
def test_configurations_that_are_refused(config, message, tmp_path):
    name = "config.json" if "pretrained_cfg" in config else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as e:
        load_processor(tmp_path)
    assert str(tmp_path) in str(e.value)


SWITCHES = [key for key, value in _ALL.items() if type(value) is bool]
NO_NUMBERS = [True, "0.5", float("nan"), float("inf"), [], {}, 1e30]
SCALES = [*NO_NUMBERS, 0, -1, 1e-300]
MEANS = [5, "0.5", [], ["0.5"] * 3, *([v] * 3 for v in NO_NUMBERS)]
STDS = [*MEANS, [0.0] * 3, [-1.0] * 3, [1e-300] * 3]
SIZES = [10**9, True, 2.0, "8", [8], [8, True], {"height": True, "width": 8}, {"height": 8, "width": 10**9}]
VALUES = {
    **{key: ["false", "no", 0, 1, [], {}, 0.0] for key in SWITCHES},
    "rescale_factor": SCALES,
    "crop_pct": SCALES,
    "image_mean": MEANS,
    "mean": MEANS,
    "image_std": STDS,
    "std": STDS,
    "size": SIZES,
    "crop_size": SIZES,
    "resample": [True, 2.0, "2", -1, [2]],
    "input_size": [5, [3, 8], [3, 8, 8, 8], [3, True, 8], [3, 10**9, 10**9], "388", [3, 8.0, 8.0]],
    "interpolation": [3, True, [], {}],
    "crop_mode": [3, True, []],
}


@pytest.mark.parametrize("key", VALUES)
def test_every_setting_is_typed(key):
    for value in VALUES[key]:
        if key in _TIMM and key != "crop_pct":
            read, config = processor_from_timm, {key: value}
        else:
            kind = CONVNEXT if key == "crop_pct" else HF
            read, config = processor_from_hf, {**kind, "do_center_crop": kind is HF, key: value}
        with pytest.raises(UserError, match=rf"{key} = .* is not "):
            read(config)
        if key == "crop_pct":
            with pytest.raises(UserError, match=r"crop_pct = .* is not "):
                processor_from_timm({key: value})


def test_a_processor_made_by_hand_is_checked_too():
    wrong = {"resize": 10**9, "crop": (8, True), "rescale": float("nan"), "mean": (float("nan"),), "std": (0.0,)}
    for name, value in {**wrong, "to_rgb": "no", "crop_to_even": 1}.items():
        with pytest.raises(UserError, match="is not"):
            Processor(**{"mean": (0.5,), "std": (0.5,), name: value})
    with pytest.raises(UserError, match=r"a picture of 1 x 9000 pixels has 72000 on its longer side"):
        Processor(resize=8)(np.zeros((1, 9000, 3), np.uint8))


def test_files_are_looked_for_in_transformers_order(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 7, 7]}}))
    assert load_processor(tmp_path).resize == 8
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**HF, "size": 9, "crop_size": None}))
    assert load_processor(tmp_path) == processor_from_hf({**HF, "size": 9})
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**HF, "size": 6}}))
    assert load_processor(tmp_path).resize == 6


def test_pillow_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert Processor(crop=(2, 2))(PICTURES["wide"]).shape == (1, 2, 2, 3)
    with pytest.raises(UserError, match=r"resizing pictures needs the package Pillow. Run: pip install 'jaxneuro"):
        Processor(resize=2)(PICTURES["wide"])
