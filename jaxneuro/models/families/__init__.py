# SPDX-License-Identifier: Apache-2.0
"""One row per model family: what its config keys and its tensors are called in a Hugging Face folder.

A family is data. `keys` maps a tensor to a leaf of `layout` and spells the tensor's axes by name; the transform in both
directions follows from the names (see `convert`), so load and save cannot disagree:

    "model.layers.{i}.self_attn.q_proj.weight": ("blocks.attn.wq", "(heads head) embed")

Several leaves for one tensor are its slices along the axis called `part`.
"""

from typing import Final

from .bert import ENCODERS
from .family import REQUIRED as REQUIRED
from .family import Family as Family
from .gpt import DECODERS
from .llama import LLAMA_LIKE
from .moe import MIXTURES
from .ssm import RECURRENT
from .t5 import T5_LIKE
from .towers import PAIRS as PAIRS
from .towers import TOWERS
from .vision import VISION

FAMILIES: Final[dict[str, Family]] = {
    **DECODERS,
    **LLAMA_LIKE,
    **MIXTURES,
    **RECURRENT,
    **ENCODERS,
    **T5_LIKE,
    **VISION,
    **TOWERS,
}
"""`model_type` -> its row."""
