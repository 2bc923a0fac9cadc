# SPDX-License-Identifier: Apache-2.0
"""Advice in the spelling of the command line: `packing='documents'` of a message becomes `--text.packing documents`.

Messages are written once, as Python's arguments. What follows here is read off the command's configuration.
"""

import dataclasses
import re
import types
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import tyro

_GIVEN: Final = re.compile(r"(?<![\w.\[-])([a-z][a-z_0-9]*(?:\.[a-z_0-9]+)*)=('[^'\s]*'|\"[^\"\s]*\"|[\w.+-]*\w)")


def flags_of(config: Any) -> dict[str, str]:
    """{name of a field, alone and with the names before it: its flag}, of a command's configuration.

    A name that several groups have stands for the outermost.

    Example:
      >>> @dataclasses.dataclass
      ... class Text:
      ...     max_tokens: int = 1
      >>> @dataclasses.dataclass
      ... class Job:
      ...     text: Text = dataclasses.field(default_factory=Text)
      >>> flags_of(Job())
      {'text': '--text', 'max_tokens': '--text.max-tokens', 'text.max_tokens': '--text.max-tokens'}
    """
    found: dict[str, str] = {}
    level = [(config, "", "")]
    while level:
        inner = []
        for group, path, flag in level:
            hints = get_type_hints(type(group), include_extras=True)
            for field in dataclasses.fields(group):
                value = getattr(group, field.name)
                spelled = f"{flag}{field.name.replace('_', '-')}"
                positional = tyro.conf.Positional in get_args(hints[field.name])
                for name in (field.name, f"{path}{field.name}"):
                    found.setdefault(name, field.name.upper() if positional else f"--{spelled}")
                if dataclasses.is_dataclass(value):
                    before = "" if _is_subcommand(hints[field.name]) else f"{spelled}."
                    inner.append((value, f"{path}{field.name}.", before))
        level = inner
    return found


def _is_subcommand(hint: Any) -> bool:
    """Options of the chosen one of several groups stand without its name."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_origin(hint) in (Union, types.UnionType) and len(get_args(hint)) > 1


def in_flags(message: str, config: Any) -> str:
    """A message with the arguments that are options of this command in the command's spelling.

    Example:
      >>> @dataclasses.dataclass
      ... class Job:
      ...     packing: str = "fixed"
      >>> in_flags("use packing='documents', not n=3", Job())
      'use --packing documents, not n=3'
    """
    flags = flags_of(config)

    def spelled(found: re.Match[str]) -> str:
        flag, value = flags.get(found[1]), found[2].strip("'\"")
        if flag is None:
            return found[0]
        if value in ("True", "False"):
            return flag if value == "True" else re.sub(r"^--(.*\.)?", r"--\g<1>no-", flag)
        return f"{flag} {value}"

    return _GIVEN.sub(spelled, message)
