# SPDX-License-Identifier: Apache-2.0
"""Advice in the spelling of the command line: `packing='documents'` of a message becomes `--text.packing documents`.

Messages are written once, as Python's arguments. What follows here is read off the command's configuration; advice for
which the command has no flag is left out.
"""

import dataclasses
import re
import types
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

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


_ALIASES: Final = {
    "length": ("window", "context"),
    "batch_size": ("batch",),
    "text_field": ("field",),
    "skip_bad": ("skip_bad_rows",),
}
"""An argument of the library: the fields that commands have for it."""
_IN_PROSE: Final = re.compile(r"`([a-z_]+)`")
_FLAG: Final = re.compile(r"(?<![\w-])--(?:no-)?([a-z][a-z-]*\.[a-z-]+)(?![\w.-]*\w)")
"""With a group: such names differ between commands."""
_PYTHON: Final = re.compile(
    r"\b[a-z_]+=(?=['\"\s.,;)]|True\b|False\b|None\b|$)|\b(?:models\.)?load(?:_\w+|\()|`[a-z_]+`"
)
"""What nobody can type on a command line."""
_LISTING: Final = re.compile(r"jaxneuro\.(?:taps\.)?sites\([^()]*\)")


def in_flags(message: str, config: Any) -> str:
    """A message with the arguments that are options of this command in the command's spelling.

    `name=value` and a name in backquotes become flags, and flags of another command this command's. Of the advice,
    which is what follows the first sentence, alternatives that only Python has are left out.

    Example:
      >>> @dataclasses.dataclass
      ... class Job:
      ...     packing: str = "fixed"
      ...     window: int = 8
      >>> in_flags("use packing='documents', not n=3", Job())
      'use --packing documents, not n=3'
      >>> in_flags("Too few. Add text, choose a smaller `length`, or pass strict=False.", Job())
      'Too few. Add text or choose a smaller --window.'
    """
    flags = flags_of(config)
    choices = _choices(config)

    def flag_of(name: str) -> str | None:
        return next((flags[n] for n in (name, *_ALIASES.get(name, ())) if n in flags), None)

    def spelled(found: re.Match[str]) -> str:
        flag, value = flag_of(found[1]), found[2].strip("'\"")
        if flag is None or value not in choices.get(flag, (value,)):
            return found[0]
        if value in ("True", "False"):
            return flag if value == "True" else re.sub(r"^--(.*\.)?", r"--\g<1>no-", flag)
        return f"{flag} {value}"

    def of_this_command(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        flag = flags.get(name) or flag_of(name.rpartition(".")[2])
        return found[0] if found[0] in flags.values() else flag or f"`{name.rpartition('.')[2]}`"

    message = _LISTING.sub("`jaxneuro sites`", message)
    message = _FLAG.sub(of_this_command, _GIVEN.sub(spelled, message))
    message = _IN_PROSE.sub(lambda found: flag_of(found[1]) or found[0], message)
    return _without_python(message)


def _choices(config: Any) -> dict[str, tuple[Any, ...]]:
    """{flag: the values that it takes}, of flags with a list of them."""
    flags, found = flags_of(config), {}
    level = [config]
    while level:
        group = level.pop()
        hints = get_type_hints(type(group))
        for field in dataclasses.fields(group):
            if get_origin(hints[field.name]) is Literal:
                found[flags[field.name]] = get_args(hints[field.name])
            if dataclasses.is_dataclass(value := getattr(group, field.name)):
                level.append(value)
    return found


def _without_python(message: str) -> str:
    first, *advice = re.split(r"(?<=[.;:]) (?=[A-Za-z])", message)
    return " ".join([first, *(kept for sentence in advice if (kept := _alternatives(sentence)))])


def _alternatives(sentence: str) -> str:
    """The alternatives of a sentence that can be typed; "": there is none."""
    if not _PYTHON.search(sentence):
        return sentence
    sentence = re.sub(r" \([^()]*\)", lambda found: "" if _PYTHON.search(found[0]) else found[0], sentence)
    if not _PYTHON.search(sentence):
        return sentence
    end = sentence[-1] if sentence[-1] in ".;:" else ""
    parts = re.split(r",? or (?=[a-z]+ )|, (?=[a-z]+ )", sentence.removesuffix(end))
    kept = [part for part in parts if not _PYTHON.search(part)]
    if not kept:
        return ""
    text = " or ".join([", ".join(kept[:-1]), kept[-1]] if len(kept) > 1 else kept)
    return text[0].upper() + text[1:] + (end or ".") if sentence[0].isupper() else text + end
