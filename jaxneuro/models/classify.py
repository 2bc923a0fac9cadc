# SPDX-License-Identifier: Apache-2.0
"""Classifiers of pictures: one row of logits from the last hidden state, linear in a few of its tokens."""

from collections.abc import Callable
from typing import Final

from jaxtyping import Array, Float

from .config import Config
from .layout import Weights


def classified(head: Weights, x: Float[Array, "batch pos d_model"], cfg: Config) -> Float[Array, "batch d_vocab"]:
    """Logits by the rule `Config.classify` names, without the bias `head.b`.

    Source: transformers' ViTForImageClassification, Dinov2ForImageClassification and
    DeiTForImageClassificationWithTeacher.
    """
    assert cfg.classify is not None
    return _RULES[cfg.classify]({leaf: w.astype(x.dtype) for leaf, w in head.items() if leaf != "norm"}, x, cfg)


def _cls(head: Weights, x: Array, cfg: Config) -> Array:
    return x[:, 0] @ head["w"]


def _cls_and_patches(head: Weights, x: Array, cfg: Config) -> Array:
    image = cfg.image
    assert image is not None
    patches = x[:, len(image.prefix) + image.registers :]
    return x[:, 0] @ head["w"] + patches.mean(1) @ head["w_patches"]


def _distilled(head: Weights, x: Array, cfg: Config) -> Array:
    cls, distillation = (x[:, i] @ head[f"w_{t}"] + head[f"b_{t}"][None] for i, t in enumerate(("cls", "distillation")))
    return (cls + distillation) / 2


_RULES: Final[dict[str, Callable[[Weights, Array, Config], Array]]] = {
    "cls": _cls,
    "cls_and_patches": _cls_and_patches,
    "distilled": _distilled,
}
