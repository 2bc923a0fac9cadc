# SPDX-License-Identifier: Apache-2.0
"""What a model's folder says of its texts: which tokens end one, begin an answer, fill a row, and how long they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..errors import UserError, shown
from .files import read_json

GENERATION: Final = "generation_config.json"
READ_PADDING: Final = ("siglip", "siglip_text_model")
"""`model_type` of models that were trained on texts filled up to all of their positions, without a mask."""
LONGEST: Final = 2**16
_LENGTH: Final = "max_position_embeddings"


def generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json of a folder; {} without one.

    Raises:
      UserError: it is not a JSON object.
    """
    path = folder / GENERATION
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not an object of settings. Download it again.")
    return found


def generation_ids(folder: Path, key: str) -> tuple[int, ...]:
    """The ids that generation_config.json and config.json of a folder name, the first file's first, each once.

    Raises:
      UserError: a file that cannot be read, or something that is no id.
    """
    return ids_of(key, {GENERATION: generation_config(folder), "config.json": _config(folder)}, str(folder))


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return config if isinstance(config, dict) else {}


def filled_length(folder: Path) -> int | None:
    """How many tokens every text of a model has that reads padding as any other token; None: the model masks it.

    Raises:
      UserError: a number of positions that is none.
    """
    config = _config(folder)
    if config.get("model_type") not in READ_PADDING:
        return None
    text = config.get("text_config", config)
    length = text.get(_LENGTH, 64) if isinstance(text, dict) else None
    if type(length) is not int or not 0 < length <= LONGEST:
        raise UserError(f"{folder}: {_LENGTH} of config.json is {shown(length)}; it is how many positions a text has.")
    return length


def ids_of(key: str, configs: Mapping[str, Mapping[str, Any]], where: str) -> tuple[int, ...]:
    """The ids of one key in several configurations: null, a whole number or a list of them.

    Raises:
      UserError: anything else.
    Example:
      >>> ids_of("eos_token_id", {"a.json": {"eos_token_id": [2, 7]}, "b.json": {"eos_token_id": 2}}, "folder")
      (2, 7)
    """
    found: dict[int, None] = {}
    for file, config in configs.items():
        value = config.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if bad := [i for i in listed if type(i) is not int]:
            raise UserError(f"{where}: {key} of {file} is {bad[0]!r}; it is a token id, a list of them, or null.")
        found |= dict.fromkeys(i for i in listed if i >= 0)  # some files write "none" as -1
    return tuple(found)


def token_names(tokenizer: Any) -> dict[str, int | None]:
    """What config.json says of a tokenizer's begin, end and padding tokens; None: there is none.

    Args:
      tokenizer: with bos_id, eos_id and pad_id; None: nothing is known of one.
    """
    return {f"{role}_token_id": getattr(tokenizer, f"{role}_id", None) for role in ("bos", "eos", "pad")}
