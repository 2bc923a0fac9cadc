# SPDX-License-Identifier: Apache-2.0
"""Models of pictures and text whose text model is one of ours: it is read alone, as its own folder would have it."""

import re
from typing import Any, Final, NamedTuple

from ...console import say
from ...errors import UserError, unknown
from ...io.fields import FLAG, OBJECT, TEXT, Fields
from ...io.safetensors import Tensors


class Wrapper(NamedTuple):
    """One `model_type` with a text_config."""

    text: tuple[str, ...]
    """Families of its text model; the first where the config does not say."""


WRAPPERS: Final = {
    "gemma3": Wrapper(("gemma3_text",)),
    "mistral3": Wrapper(("mistral",)),
    "llava": Wrapper(("llama", "mistral")),
}


def _sizes(vocab: int, width: int, mlp: int, layers: int, heads: int) -> dict[str, int]:
    sizes = {"vocab_size": vocab, "hidden_size": width, "intermediate_size": mlp}
    return {**sizes, "num_hidden_layers": layers, "num_attention_heads": heads}


# Sizes that a text_config leaves out where they are transformers' default; the rows of families hold the other keys.
_SIZES: Final = {
    "gemma3_text": _sizes(262208, 2304, 9216, 26, 8),
    "mistral": _sizes(32000, 4096, 14336, 32, 32),
    "llama": _sizes(32000, 4096, 11008, 32, 32),
}
_NAMES: Final = (
    (re.compile(r"^(model\.)?language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "model."),  # transformers 4
    (re.compile(r"^model\.language_model\."), "model."),  # transformers 5
    (re.compile(r"^lm_head\."), "lm_head."),
)
_OTHERS: Final = re.compile(r"^(model\.)?(vision_tower|vision_model|multi_modal_projector)\.")


def text_model(hf: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    """The config and tensors of the text model of a wrapper; of any other folder what was given.

    Raises:
      UserError: a text model that is not the wrapper's, or tensors that belong to neither part.
    """
    wrapper = WRAPPERS.get(hf["model_type"]) if isinstance(hf, dict) and isinstance(hf.get("model_type"), str) else None
    if wrapper is None:
        return hf, tensors
    with Fields(hf, "config.json") as fields:
        text = fields.read("text_config", OBJECT)
        inner = fields.group("text_config")
        kind = inner.read("model_type", TEXT, wrapper.text[0])
        ties = [part.read("tie_word_embeddings", FLAG, None) for part in (fields, inner)]
    if kind not in wrapper.text:
        raise unknown("text model", kind, wrapper.text, where=f"config.json of this {hf['model_type']}")
    names = {name: _renamed(name) for name in tensors if not _OTHERS.match(name)}
    if strange := [name for name, new in names.items() if new is None]:
        from ..match import listed

        raise UserError(f"not part of a {hf['model_type']}'s text or picture model: {listed(strange)}.")
    skipped = sorted({m[0].rstrip(".") for name in tensors if (m := _OTHERS.match(name))})
    say(f"{hf['model_type']}: the text model ({kind}) alone; passed over: {', '.join(skipped) or 'nothing'}")
    # transformers 4 asks the inner config whether the head is tied, 5 the outer; a tied head is not stored.
    tied = "lm_head.weight" not in names.values() and any(said is not False for said in ties)
    alone = {**_SIZES[kind], **text, "tie_word_embeddings": tied, "model_type": kind, "architectures": None}
    return alone, tensors.renamed({name: new for name, new in names.items() if new})


def _renamed(name: str) -> str | None:
    """A tensor as the text model's own folder calls it; None: it is none of it."""
    return next((pattern.sub(new, name) for pattern, new in _NAMES if pattern.match(name)), None)
