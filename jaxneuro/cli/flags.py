# SPDX-License-Identifier: Apache-2.0
"""Advice in the spelling of the command line: `packing='documents'` of a message becomes `--packing documents`.

Messages are written once, as Python's arguments. What follows here is read off the command's configuration; advice for
which the command has no flag is left out.
"""

import dataclasses
import re
import types
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

_GIVEN: Final = re.compile(r"(?<![\w.\[-])([a-z][a-z_0-9]*(?:\.[a-z_0-9]+)*)=('[^'\s]*'|\"[^\"\s]*\"|[\w.+-]*\w)")


class Option(NamedTuple):
    """A flag of a command."""

    path: str
    """The field's name, with those of the groups that it is in: `text.window`."""
    flag: str
    """As it is typed; in capitals where it is a place and no flag."""
    hint: Any
    """What the field takes."""
    required: bool
    is_group: bool
    """Several flags, or a word that chooses among such groups."""


def options_of(kind: type, given: Any = None) -> list[Option]:
    """Every flag of a configuration, outer ones first.

    Args:
      kind: a dataclass.
      given: one of that kind; decides which of several groups (source, method) is meant. None: none of them.
    """
    found, level = [], [(kind, given, "", "")]
    for kind, given, path, before in level:
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            hint, value = hints[field.name], getattr(given, field.name, None)
            spelled = f"{before}{_typed_name(hint) or field.name.replace('_', '-')}"
            flag = field.name.upper() if tyro.conf.Positional in get_args(hint) else f"--{spelled}"
            required = field.default is field.default_factory is dataclasses.MISSING
            several = _is_subcommand(hint) and all(
                dataclasses.is_dataclass(plain(kind)) for kind in get_args(plain(hint))
            )
            is_group = several or dataclasses.is_dataclass(plain(hint))
            found.append(Option(f"{path}{field.name}", flag, hint, required, is_group))
            group = type(value) if dataclasses.is_dataclass(value) else plain(hint)
            if dataclasses.is_dataclass(group):
                without = _is_subcommand(hint) or tyro.conf.OmitArgPrefixes in get_args(hint)
                level.append((group, value, f"{path}{field.name}.", before if without else f"{spelled}."))
    return found


def flags_of(config: Any) -> dict[str, str]:
    """{name of a field, alone and with the names before it: its flag}, of a command's configuration.

    A name that several groups have stands for the outermost.

    Example:
      >>> @dataclasses.dataclass
      ... class Cards:
      ...     per_group: int = 1
      >>> @dataclasses.dataclass
      ... class Job:
      ...     cards: Cards = dataclasses.field(default_factory=Cards)
      >>> flags_of(Job())
      {'cards': '--cards', 'per_group': '--cards.per-group', 'cards.per_group': '--cards.per-group'}
    """
    found: dict[str, str] = {}
    for option in options_of(type(config), config):
        for name in (option.path.rpartition(".")[2], option.path):
            found.setdefault(name, option.flag)
    return found


def plain(hint: Any) -> Any:
    """A type without what `Annotated` says beside it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _typed_name(hint: Any) -> str | None:
    """The name that an annotation gives a flag in place of its field's."""
    return next((name for mark in get_args(hint)[1:] if (name := getattr(mark, "name", None))), None)


def _is_subcommand(hint: Any) -> bool:
    """Options of the chosen one of several groups stand without its name."""
    hint = plain(hint)
    return get_origin(hint) in (Union, types.UnionType) and len(get_args(hint)) > 1


_OF_TEXT: Final = ("study", "train-dictionary", "show-dictionary", "capture")
_OLD: Final = ((re.compile(r"--text\.(?=[a-z][\w-]*(?:$|=))"), "--"), (re.compile(r"--context(?=$|=)"), "--window"))
"""Spellings that were documented once: how text is read is said by the same flags in every command that reads it."""


def current(words: Sequence[str]) -> list[str]:
    """A command line with its flags as they are spelled now.

    Example:
      >>> current(["study", "--text.window=64", "--context", "--cards.context", "--title", "--text. A text"])
      ['study', '--window=64', '--window', '--cards.context', '--title', '--text. A text']
    """
    return [_current(word) for word in words] if words and words[0] in _OF_TEXT else list(words)


def _current(word: str) -> str:
    for old, new in _OLD:
        if found := old.match(word):
            return new + word[found.end() :]
    return word


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
_STATED: Final = re.compile(r"(?<![\w.\[-])([a-z][a-z_0-9]*(?:\.[a-z_0-9]+)*) = (?=\S)")
"""What was given, `seed = -1`."""
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
    message = _STATED.sub(lambda found: f"{flag_of(found[1])} " if flag_of(found[1]) else found[0], message)
    message = _FLAG.sub(of_this_command, _GIVEN.sub(spelled, message))
    message = _IN_PROSE.sub(lambda found: flag_of(found[1]) or found[0], message)
    return _without_python(message)


def _choices(config: Any) -> dict[str, tuple[Any, ...]]:
    """{flag: the values that it takes}, of flags with a list of them."""
    options = options_of(type(config), config)
    return {o.flag: get_args(plain(o.hint)) for o in options if get_origin(plain(o.hint)) is Literal}


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
