# SPDX-License-Identifier: Apache-2.0
"""What a model's folder says for generation alone: which tokens end a text, begin an answer, and fill a row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..errors import UserError
from .files import read_json

GENERATION: Final = "generation_config.json"


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
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    config = config if isinstance(config, dict) else {}
    return ids_of(key, {GENERATION: generation_config(folder), "config.json": config}, str(folder))


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
