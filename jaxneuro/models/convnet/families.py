# SPDX-License-Identifier: Apache-2.0
"""What a ConvNet's config keys and tensors are called: transformers' ResNet; torchvision's names, as timm stores them.

A family reads a config.json, writes one, and says for every module of the network what it is called in the file.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ...errors import UserError, quoted, shown, unknown
from ...io.fields import FLAG, OBJECT, TEXT, Fields, Kind, choice, many, null_or, whole
from ..hf_config import ACTS
from .layout import ConvNet, Dense, Residual

type Names = Mapping[str, Callable[..., str]]
"""{pattern of a module's path: from the numbers in it to its name in a file}; a block may be "{i}", any block."""


class Family(NamedTuple):
    """How one kind of checkpoint is spelled."""

    read: Callable[[Fields], ConvNet]
    write: Callable[[ConvNet], dict[str, Any]]
    names: Names
    prefix: str = ""
    """In front of every tensor but the head's; absent when the base model alone was saved."""


_BLOCK: Final = r"stages\.(\d+)\.blocks\.(\d+|{i})"


def _transformers_names(layer: Callable[[int, int], str]) -> Names:
    return {
        r"stem\.conv": lambda: "resnet.embedder.embedder.convolution",
        r"stem\.norm": lambda: "resnet.embedder.embedder.normalization",
        rf"{_BLOCK}\.conv(\d)": lambda s, b, n: f"{layer(s, b)}.layer.{n - 1}.convolution",
        rf"{_BLOCK}\.norm(\d)": lambda s, b, n: f"{layer(s, b)}.layer.{n - 1}.normalization",
        rf"{_BLOCK}\.shortcut\.conv": lambda s, b: f"{layer(s, b)}.shortcut.convolution",
        rf"{_BLOCK}\.shortcut\.norm": lambda s, b: f"{layer(s, b)}.shortcut.normalization",
        "head": lambda: "classifier.1",
    }


_TRANSFORMERS: Final = _transformers_names(lambda s, b: f"resnet.encoder.stages.{s}.layers.{b}")
_RESNET: Final[Names] = {
    r"stem\.conv": lambda: "conv1",
    r"stem\.norm": lambda: "bn1",
    rf"{_BLOCK}\.conv(\d)": lambda s, b, n: f"layer{s + 1}.{b}.conv{n}",
    rf"{_BLOCK}\.norm(\d)": lambda s, b, n: f"layer{s + 1}.{b}.bn{n}",
    rf"{_BLOCK}\.shortcut\.conv": lambda s, b: f"layer{s + 1}.{b}.downsample.0",
    rf"{_BLOCK}\.shortcut\.norm": lambda s, b: f"layer{s + 1}.{b}.downsample.1",
    "head": lambda: "fc",
}
_DENSENET: Final[Names] = {
    r"stem\.(conv|norm)": lambda part: f"features.{part}0",
    rf"{_BLOCK}\.((?:conv|norm)\d)": lambda s, b, part: f"features.denseblock{s + 1}.denselayer{b + 1}.{part}",
    r"stages\.(\d+)\.transition\.(conv|norm)": lambda s, part: f"features.transition{s + 1}.{part}",
    "final_norm": lambda: "features.norm5",
    "head": lambda: "classifier",
}


def tensor_of(module: str, names: Names) -> str:
    """What the file calls a module of the network.

    Example:
      >>> tensor_of("stages.0.blocks.1.norm2", _RESNET)
      'layer1.1.bn2'
    """
    for pattern, name in names.items():
        if found := re.fullmatch(pattern, module):
            return name(*(int(part) if part.isdigit() else part for part in found.groups()))
    raise AssertionError(f"{module} has no name in this family")


_DEPTHS: Final = many(whole(1, 10_000), least=1, most=64)
_WIDE: Final = many(whole(), least=1, most=64)


def _read_transformers(hf: Fields) -> ConvNet:
    """As transformers' ResNetConfig: its inner activation is relu whatever hidden_act says."""
    kind = hf.read("layer_type", choice(["basic", "bottleneck"]), "bottleneck")
    widths = hf.read("hidden_sizes", _WIDE, (256, 512, 1024, 2048))
    stride_in_conv1 = hf.read("downsample_in_bottleneck", FLAG, False)
    return ConvNet(
        family="resnet",
        channels=hf.read("num_channels", whole(), 3),
        stem=hf.read("embedding_size", whole(), 64),
        depths=hf.read("depths", _DEPTHS, (3, 4, 6, 3)),
        blocks=Residual(
            bottleneck=kind == "bottleneck",
            widths=widths,
            mids=tuple(w // 4 for w in widths) if kind == "bottleneck" else widths,
            first_stride=2 if hf.read("downsample_in_first_stage", FLAG, False) else 1,
            stride_in_conv1=kind == "bottleneck" and stride_in_conv1,
        ),
        act=ACTS[hf.read("hidden_act", choice(ACTS), "relu")],
        n_classes=_n_named(hf),
    )


def _n_named(hf: Fields) -> int:
    """The names of classes go before their number here."""
    labels = hf.read("id2label", null_or(OBJECT), None)
    return len(labels) if labels else hf.read("num_labels", whole(0), 2)


def _write_transformers(cfg: ConvNet) -> dict[str, Any]:
    r = cfg.blocks
    assert isinstance(r, Residual)
    labels = {str(i): f"LABEL_{i}" for i in range(cfg.n_classes)}
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification" if cfg.n_classes else "ResNetModel"],
        "num_channels": cfg.channels,
        "embedding_size": cfg.stem,
        "hidden_sizes": list(r.widths),
        "depths": list(cfg.depths),
        "layer_type": "bottleneck" if r.bottleneck else "basic",
        "hidden_act": next(name for name, act in ACTS.items() if act == cfg.act),
        "downsample_in_first_stage": r.first_stride == 2,
        "downsample_in_bottleneck": r.stride_in_conv1,
        **({"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}} if labels else {}),
    }


_TIMM_ONLY: Final = {"global_pool": "avg", "act_layer": "relu", "output_stride": 32}
"""Arguments of timm's models that change the mathematics, with the value that does not."""
_TIMM_TRAINING: Final = ("drop_rate", "drop_path_rate", "drop_block_rate", "proj_drop_rate", "zero_init_last")
_WIDTHS: Final = (64, 128, 256, 512)
_RESNET_ARGS: Final = {"in_chans": 3, "channels": _WIDTHS, "cardinality": 1, "base_width": 64}
_DENSENET_ARGS: Final = {"in_chans": 3, "bn_size": 4}
_DEEP: Final = ("layers", "block_config")


def _arguments(hf: Fields, usual: dict[str, Any]) -> dict[str, Any]:
    """The arguments that timm builds this model with."""
    given, known = hf.group("model_args"), {**usual, "num_classes": 1000}
    for fields, names in ((hf, ("global_pool",)), (given, tuple(_TIMM_ONLY))):
        for name in names:
            if name in fields and not _same(fields[name], _TIMM_ONLY[name]):
                hf.note(f"{name}={quoted(fields[name])} of {shown(hf['architecture'])} is not supported")
    given.only(*known, *_TIMM_ONLY, *_TIMM_TRAINING)
    found = {name: given.read(name, _kind_of(name, default), default) for name, default in known.items()}
    return {**found, "num_classes": hf.read("num_classes", whole(0), found["num_classes"])}


def _same(value: Any, allowed: Any) -> bool:
    return type(value) is type(allowed) and value == allowed


def _kind_of(name: str, default: Any) -> Kind[Any]:
    if isinstance(default, tuple):
        return _DEPTHS if name in _DEEP else _WIDE
    return whole(0) if name == "num_classes" else whole()


def _timm_config(cfg: ConvNet, args: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    other = {k: list(v) if isinstance(v, tuple) else v for k, v in args.items() if usual[k] != v}
    return {
        "architecture": cfg.family,
        "num_classes": cfg.n_classes,
        "num_features": cfg.width,
        **({"model_args": other} if other else {}),
    }


def _timm_resnet(name: str, bottleneck: bool, layers: tuple[int, ...], **more: int) -> Family:
    usual = {**_RESNET_ARGS, "layers": layers, **more}
    expansion = 4 if bottleneck else 1

    def read(hf: Fields) -> ConvNet:
        a = _arguments(hf, usual)
        if not bottleneck and (a["cardinality"], a["base_width"]) != (1, 64):
            raise UserError(f"config.json: {name} has basic blocks, which know no cardinality or base_width.")
        mids = tuple(int(c * a["base_width"] / 64) * a["cardinality"] for c in a["channels"])
        return ConvNet(
            family=name,
            channels=a["in_chans"],
            stem=64,
            depths=a["layers"],
            blocks=Residual(
                bottleneck=bottleneck,
                widths=tuple(expansion * c for c in a["channels"]),
                mids=mids,
                groups=a["cardinality"],
            ),
            n_classes=a["num_classes"],
        )

    def write(cfg: ConvNet) -> dict[str, Any]:
        r = cfg.blocks
        assert isinstance(r, Residual)
        channels = tuple(w // expansion for w in r.widths)
        args = {
            "in_chans": cfg.channels,
            "layers": cfg.depths,
            "channels": channels,
            "cardinality": r.groups,
            "base_width": 64 * r.mids[0] // (r.groups * channels[0]),
        }
        return _timm_config(cfg, args, usual)

    return Family(read, write, _RESNET)


def _timm_densenet(name: str, growth: int, layers: tuple[int, ...]) -> Family:
    usual = {**_DENSENET_ARGS, "growth_rate": growth, "block_config": layers}

    def read(hf: Fields) -> ConvNet:
        a = _arguments(hf, usual)
        return ConvNet(
            family=name,
            channels=a["in_chans"],
            stem=2 * a["growth_rate"],
            depths=a["block_config"],
            blocks=Dense(growth=a["growth_rate"], mid=a["bn_size"] * a["growth_rate"]),
            n_classes=a["num_classes"],
        )

    def write(cfg: ConvNet) -> dict[str, Any]:
        d = cfg.blocks
        assert isinstance(d, Dense)
        args = {
            "in_chans": cfg.channels,
            "growth_rate": d.growth,
            "block_config": cfg.depths,
            "bn_size": d.mid // d.growth,
        }
        return _timm_config(cfg, args, usual)

    return Family(read, write, _DENSENET)


_RESNETS: Final = {
    "resnet18": (False, (2, 2, 2, 2), {}),
    "resnet26": (True, (2, 2, 2, 2), {}),
    "resnet34": (False, (3, 4, 6, 3), {}),
    "resnet50": (True, (3, 4, 6, 3), {}),
    "resnet101": (True, (3, 4, 23, 3), {}),
    "resnet152": (True, (3, 8, 36, 3), {}),
    "resnet200": (True, (3, 24, 36, 3), {}),
    "wide_resnet50_2": (True, (3, 4, 6, 3), {"base_width": 128}),
    "wide_resnet101_2": (True, (3, 4, 23, 3), {"base_width": 128}),
    "resnext50_32x4d": (True, (3, 4, 6, 3), {"cardinality": 32, "base_width": 4}),
    "resnext101_32x4d": (True, (3, 4, 23, 3), {"cardinality": 32, "base_width": 4}),
    "resnext101_32x8d": (True, (3, 4, 23, 3), {"cardinality": 32, "base_width": 8}),
    "resnext101_64x4d": (True, (3, 4, 23, 3), {"cardinality": 64, "base_width": 4}),
}
_DENSENETS: Final = {
    "densenet121": (32, (6, 12, 24, 16)),
    "densenet161": (48, (6, 12, 36, 24)),
    "densenet169": (32, (6, 12, 32, 32)),
    "densenet201": (32, (6, 12, 48, 32)),
}
CONVNETS: Final[dict[str, Family]] = {
    "resnet": Family(_read_transformers, _write_transformers, _TRANSFORMERS, prefix="resnet."),
    **{name: _timm_resnet(name, bottleneck, layers, **more) for name, (bottleneck, layers, more) in _RESNETS.items()},
    **{name: _timm_densenet(name, *sizes) for name, sizes in _DENSENETS.items()},
}
"""transformers' `model_type`, or timm's `architecture` (which is also torchvision's name) -> its row."""


def is_convnet(hf: Any) -> bool:
    """Whether a config.json is transformers' ResNet's, or one of timm's."""
    kind = hf.get("model_type", "resnet" if "architecture" in hf else None) if isinstance(hf, Mapping) else None
    return kind == "resnet"


def family_name(hf: Mapping[str, Any]) -> str:
    """The row of a config.json.

    Raises:
      UserError: an architecture that is not ported.
    """
    key = "model_type" if hf.get("model_type") else "architecture"
    name = TEXT.of(hf[key], f"config.json: {key}").partition(".")[0]
    if name not in CONVNETS:
        hint = (
            "Variants with another stem, shortcut, pool or attention (resnet50d, seresnet50, resnetv2_50 ...) compute "
            "something else under similar names."
        )
        raise unknown("architecture", name, [n for n in CONVNETS if n != "resnet"], where="config.json", hint=hint)
    return name


def convnet_from_hf(hf: Mapping[str, Any]) -> ConvNet:
    """Build a ConvNet from a config.json of transformers (`model_type: resnet`) or timm (`architecture`).

    Raises:
      UserError: all that is wrong: an architecture, an activation or an argument that is not ported; a size that is
        none.
    Example:
      >>> convnet_from_hf({"architecture": "densenet121", "num_classes": 10}).width
      1024
    """
    with Fields(hf, "config.json") as fields:
        return CONVNETS[family_name(fields)].read(fields)


def convnet_to_hf(cfg: ConvNet) -> dict[str, Any]:
    """The config.json of a ConvNet: the inverse of `convnet_from_hf`.

    Raises:
      UserError: the family's class cannot express this architecture.
    """
    if cfg.family not in CONVNETS:
        raise unknown("model family", cfg.family, CONVNETS, where="save_pretrained")
    family = CONVNETS[cfg.family]
    if isinstance(cfg.blocks, Dense) != (family.names is _DENSENET):
        raise UserError(f"{cfg.family} has other blocks than {type(cfg.blocks).__name__}: choose another family.")
    hf = family.write(cfg)
    back = convnet_from_hf(hf)
    fields = [f for f in ConvNet.__dataclass_fields__ if f != "n_classes" or cfg.n_classes]
    if different := [f for f in fields if getattr(cfg, f) != getattr(back, f)]:
        listed = ", ".join(f"{f}={getattr(cfg, f)!r}" for f in different)
        raise UserError(f"a {cfg.family} cannot express {listed}. Choose another family for saving.")
    return hf
