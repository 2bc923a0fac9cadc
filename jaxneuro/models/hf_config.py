# SPDX-License-Identifier: Apache-2.0
"""Hugging Face config dicts to `Config` and back, by the rows of `families`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from ..errors import UserError, quoted, shown, unknown
from ..io.fields import FLAG, OBJECT, TEXT, Fields, choice, either, many, null_or, whole
from .config import Config, Image
from .families import FAMILIES, Family
from .families.family import Key, classes_of
from .ranges import kinds_of
from .rope import ropes_from_hf, ropes_to_hf

ACTS: Final = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
_ACT_NAMES: Final = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
SLIDING, FULL = "sliding_attention", "full_attention"


def family_of(hf: Any) -> Family:
    """The row of a config's `model_type`.

    Raises:
      UserError: no model_type, or one without a row.
    """
    if not isinstance(hf, Mapping) or "model_type" not in hf:
        raise UserError("config.json names no model_type, so it is not a transformers config.")
    kind = TEXT.of(hf["model_type"], "config.json: model_type")
    if kind not in FAMILIES:
        hint = "A family is a row of a table in jaxneuro/models/families."
        raise unknown("model type", kind, FAMILIES, where="config.json", hint=hint)
    return FAMILIES[kind]


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """Build a Config from a Hugging Face config dict, spelled as transformers 4 or 5 spells it.

    Whether there is a head is taken from `architectures` where a family goes both ways; `load` lets the tensors decide.

    Raises:
      UserError: all that is wrong: an unknown model_type, rope type or activation; a missing size; a switch that is not
        ported; a value of another type or out of range.
    Example:
      >>> hf = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 32}
      >>> cfg = config_from_hf(hf)
      >>> cfg.d_mlp, cfg.act, cfg.tied
      (32, 'gelu_tanh', True)
    """
    family = family_of(hf)
    with Fields(hf, "config.json") as fields:
        return _config(fields, family)


def _config(hf: Fields, family: Family) -> Config:
    _check(hf, family)
    values = {field: _value(hf, field, key, family) for field, key in family.fields.items()}
    values |= {**family.fixed, "family": hf["model_type"]}
    if family.image is not None:
        values |= _image(hf, family, family.image)
    if family.derived is not None:
        values |= family.derived[0](hf, values)
    if "mixer" not in values:
        values["n_kv_heads"] = values.get("n_kv_heads") or values["n_heads"]
        values["d_head"] = values.get("d_head") or values["d_model"] // values["n_heads"]
        values["d_mlp"] = values["d_mlp"] or 4 * values["d_model"]
    if family.positions_counted_in:
        values["n_ctx"] -= values["position_offset"]
    if family.rope is not None:
        values |= ropes_from_hf(hf, family.rope, values["d_head"])
    if "has_head" in family.optional and family.image is None:
        named = " ".join(classes_of(hf))
        values["has_head"] = "MaskedLM" in named or "PreTraining" in named
    return Config(**values, windows=_windows(hf, family, values["n_layers"]))


_IMAGE_KEYS: Final = {"size": "image_size", "patch": "patch_size", "channels": "num_channels"}


_SIDE: Final = kinds_of(Image)["size"]
_SIDES: Final = many(_SIDE, least=2, most=2)
_CHANNELS: Final = kinds_of(Image)["channels"]


def _image(hf: Fields, family: Family, usual: Image) -> dict[str, Any]:
    """The fields that follow from a picture."""
    sides = {field: _side(hf, key, getattr(usual, field)) for field, key in list(_IMAGE_KEYS.items())[:2]}
    found: dict[str, Any] = {**sides, "channels": hf.read("num_channels", _CHANNELS, usual.channels)}
    if usual.registers:
        found["registers"] = hf.read("num_register_tokens", whole(0), usual.registers)
    if usual.mask_token:
        found["mask_token"] = hf.read("use_mask_token", FLAG, True)
    image = dataclasses.replace(usual, **found)
    named = " ".join(classes_of(hf) or ["ImageClassification"])
    has_head = "has_head" in family.optional and "ImageClassification" in named
    return {
        "image": image,
        "n_ctx": image.positions,
        "has_head": has_head,
        "d_vocab": n_labels(hf) if has_head else 0,
    }


def n_labels(hf: Fields) -> int:
    """Classes of a picture, which a config counts, or names, or leaves at two."""
    named = hf.read("id2label", null_or(OBJECT), None)
    return hf.read("num_labels", null_or(whole()), None) or len(named or range(2))


def _side(hf: Fields, key: str, usual: int) -> int:
    """A square may be written as its two sides."""
    side = hf.read(key, either(_SIDE, _SIDES), usual)
    if not isinstance(side, tuple):
        return side
    if side[0] != side[1]:
        hf.note(f"{key} = {list(side)}: pictures and patches are square")
    return side[0]


def _image_to_hf(cfg: Config, image: Image) -> dict[str, Any]:
    found = {key: getattr(image, field) for field, key in _IMAGE_KEYS.items()}
    found |= {"num_labels": cfg.d_vocab} if cfg.has_head else {}
    return found | ({"num_register_tokens": image.registers} if image.registers else {})


def _value(hf: Fields, field: str, key: Key, family: Family) -> Any:
    if field == "act":
        value = hf.read(key.name, choice([*ACTS, *family.acts]), key.default)
        return family.acts.get(value) or ACTS[value]
    value = hf.read(key.name, key.kind_of(field), key.default)
    return value if value is None else key.read(value)


def _check(hf: Fields, family: Family) -> None:
    if stored := hf.get("quantization_config"):
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise UserError(
            f"config.json has a quantization_config ({shown(method)}): weights that were stored quantised are not "
            "read. Take the original, in 16 bits; load(..., dtype='int8') or 'float8_e4m3fn' quantises it."
        )
    for key, allowed in family.only.items():
        value = hf.get(key, allowed[0])
        if not any(type(value) is type(a) and value == a for a in allowed):
            asked = f"{key}={quoted(value)}"
            hf.note(f"{asked} is not supported for {hf['model_type']}, only {allowed[0]!r}")


_WINDOW: Final = null_or(whole())


def _windows(hf: Fields, family: Family, n_layers: int) -> tuple[int | None, ...]:
    if family.windows == "never":
        return ()
    size = hf.read("sliding_window", _WINDOW, family.window)
    if family.windows == "by_layer" and not hf.read("use_sliding_window", FLAG, False):
        return ()
    if family.windows == "always":
        return (size,) * n_layers
    listed = hf.read("layer_types", null_or(many(TEXT)), None)
    kinds = listed if listed is not None else [_kind(i, hf, family) for i in range(n_layers)]
    if bad := sorted(set(kinds) - {SLIDING, FULL}):
        raise unknown("layer type", bad[0], [FULL, SLIDING], where="config.json")
    if len(kinds) != n_layers:
        hf.note(f"layer_types has {len(kinds)} entries for {n_layers} layers")
    if SLIDING in kinds and not size:
        raise UserError("config.json has sliding layers in layer_types but no sliding_window.")
    return tuple(size if kind == SLIDING else None for kind in kinds)


def _kind(layer: int, hf: Fields, family: Family) -> str:
    """Of a layer, where the config does not list them."""
    if family.windows == "periodic":
        return SLIDING if (layer + 1) % hf.read("sliding_window_pattern", whole(), family.period) else FULL
    return SLIDING if layer >= hf.read("max_window_layers", whole(0), 28) else FULL


def config_to_hf(cfg: Config) -> dict[str, Any]:
    """The Hugging Face config dict of a Config: the inverse of `config_from_hf`.

    Raises:
      UserError: the family's Hugging Face class cannot express this architecture.
    """
    if cfg.family not in FAMILIES:
        raise unknown("model family", cfg.family, FAMILIES, where="save_pretrained")
    family = FAMILIES[cfg.family]
    hf: dict[str, Any] = {"model_type": cfg.family, "architectures": [family.classes[cfg.has_head]]}
    for field, key in family.fields.items():
        value = getattr(cfg, field)
        value = _act_name(value, key) if field == "act" else value
        hf[key.name] = value if value is None else key.write(value)
    if "d_embed" in family.fields:
        hf[family.fields["d_embed"].name] = cfg.d_embed or cfg.d_model
    if family.positions_counted_in:
        hf[family.fields["n_ctx"].name] += cfg.position_offset
    if cfg.image is not None:
        hf |= _image_to_hf(cfg, cfg.image)
    if family.derived is not None:
        hf |= family.derived[1](cfg)
    if cfg.rope is not None and family.rope is not None:
        hf |= ropes_to_hf(cfg.rope, cfg.local_rope, family.rope, cfg.d_head)
    hf |= _windows_to_hf(cfg, family)
    _check_same(cfg, config_from_hf(hf), family)
    return hf


def _act_name(act: str, key: Key) -> str:
    """The family's own word if that is its usual activation."""
    return key.default if ACTS.get(key.default) == act else _ACT_NAMES[act]


def _windows_to_hf(cfg: Config, family: Family) -> dict[str, Any]:
    size = next((w for w in cfg.windows if w), None)
    if family.windows == "never":
        return {}
    if family.windows == "always":
        return {"sliding_window": size}
    kinds = [SLIDING if w else FULL for w in cfg.windows or [None] * cfg.n_layers]
    if family.windows == "periodic":
        return {"sliding_window": size, "layer_types": kinds}
    return {"use_sliding_window": bool(cfg.windows), "sliding_window": size, "layer_types": kinds}


_DECIDED_BY_TENSORS: Final = ("has_head", "pooler")


def _check_same(cfg: Config, back: Config, family: Family) -> None:
    decided = (*_DECIDED_BY_TENSORS, "tied") if family.untied_if_stored else _DECIDED_BY_TENSORS
    names = [n for n in Config.__dataclass_fields__ if n not in decided]
    if different := [n for n in names if getattr(cfg, n) != getattr(back, n)]:
        listed = ", ".join(f"{n}={getattr(cfg, n)!r}" for n in different)
        raise UserError(f"a Hugging Face {cfg.family} model cannot express {listed}. Choose another family for saving.")
