# SPDX-License-Identifier: Apache-2.0
"""From words to a configuration; what cannot be understood is one sentence with the nearest flag, not tyro's boxes."""

import contextlib
import difflib
import io
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Union, get_args, get_origin

import tyro

from ..errors import UserError, quoted, shown, unknown
from .flags import Option, options_of, plain

_FLAG: Final = re.compile(r"--?[a-zA-Z][\w.-]*")
_EVERY: Final = ("--help", "--quiet")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


class Part(NamedTuple):
    """Words that say one part of a configuration: the command's own, a source's, a method's."""

    name: str
    """What they follow: `study`, `live`."""
    kind: Any
    """The dataclass of that part."""
    words: Sequence[str]
    more: tuple[str, ...] = ()
    """Flags that are read elsewhere."""

    @property
    def options(self) -> list[Option]:
        """Every flag that may stand here; a group of flags, or a choice that a word stands for, is none."""
        return [o for o in options_of(self.kind) if not o.is_group]

    def given(self) -> list[tuple[str, list[str]]]:
        """(flag as it is spelled in --help, the words after it), as often as it is given."""
        found: list[tuple[str, list[str]]] = []
        for word in self.words:
            if _FLAG.fullmatch(flag := word.partition("=")[0]):
                found.append((flag.replace("_", "-"), [word.partition("=")[2]] if "=" in word else []))
            elif found:
                found[-1][1].append(word)
        return found


def parsed(kind: Any, words: Sequence[str], parts: Sequence[Part], *, prog: str = "jaxneuro", **how: Any) -> Any:
    """What the words stand for.

    Args:
      parts: the same words, part by part, to say what is wrong with them.
      how: for `tyro.cli`; `default` supplies what is not given.
    Raises:
      UserError: a flag that does not exist, with the nearest; a missing or wrong value; a missing flag.
      SystemExit: after --help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=words, prog=prog, config=(tyro.conf.OmitSubcommandPrefixes,), **how)
    except SystemExit as e:
        if not e.code:
            raise
        raise what_is_wrong(_sections(said.getvalue()), parts, complete="default" in how) from None


def what_is_wrong(sections: Sequence[str], parts: Sequence[Part], *, complete: bool = False) -> UserError:
    """The error for words that tyro refused.

    Args:
      sections: what tyro said, without its boxes.
      complete: whether nothing is required.
    """
    command = " ".join(part.name for part in parts)
    said = next((text for text in sections if ":" in text or "." in text), "not understood.")  # else a title
    found = next((error for part in parts for error in _of_flags(part, parts, said)), None)
    if found is None and (missing := [o for part in parts for o in _missing(part)]) and not complete:
        found = f"{command} needs {' and '.join(f'{o.flag} ({wanted(o.hint)})' for o in missing)}."
    if found is None and (stray := re.match(r"Unrecognized(?: or misplaced)? options: (.*)", said)):
        found = f"{command}: nothing takes {quoted(re.sub(r' [(]applied to [^()]*[)]', '', stray[1]))}."
    see = f"jaxneuro {command}".strip()
    return UserError(f"{found or f'{command}: {shown(said, 400)}'}".removeprefix(": ") + f" See `{see} --help`.")


def _missing(part: Part) -> list[Option]:
    """What is required and not given."""
    place = not part.words or part.words[0].startswith("-")
    required = [o for o in part.options if o.required and "." not in o.path]
    return [o for o in required if (o.flag not in dict(part.given()) if o.flag.startswith("--") else place)]


def _of_flags(part: Part, parts: Sequence[Part], said: str) -> Iterator[str]:
    """What is wrong with the flags of one part, in order."""
    options, known = {o.flag: o for o in part.options}, _spellings(part)
    for flag, values in part.given():
        hint = plain(options[flag].hint) if flag in options else None
        if flag not in known:
            yield _unknown_flag(flag, part, parts)
        elif hint is bool and values:
            yield f"{flag} takes no value, not {shown(' '.join(values))}."
        elif (
            hint
            and hint is not bool
            and (f"Missing value for argument '{flag}'" in said if values else get_origin(hint) is not tuple)
        ):
            yield f"{flag} needs a value: {wanted(hint)}."
        elif hint and re.search(rf"(argument|parsing) '?{re.escape(flag)}(?![\w.-]*\w)", said):
            values = _refused([words for name, words in part.given() if name == flag], said)
            detail = re.search(r"parsing \S+: (.*)", said)
            more = f" ({shown(detail[1], 200).rstrip('.')})" if detail and wanted(hint).startswith("name=") else ""
            yield f"{flag} {shown(' '.join(values)) or repr('')}: {wanted(hint)} is needed{more}."


def _refused(given: Sequence[list[str]], said: str) -> list[str]:
    """Of the values that one flag was given, time after time, those that tyro quotes; else the last, which count."""
    quotes = said.partition(". Expected")[0]  # then: what may stand there
    return next((values for values in reversed(given) if any(repr(v) in quotes for v in values)), given[-1])


def _unknown_flag(flag: str, part: Part, parts: Sequence[Part]) -> str:
    if elsewhere := next((p for p in parts if flag in _spellings(p)), None):
        order = " ".join(f"{p.name} {f'{flag} ' if p is elsewhere else ''}..." for p in parts)
        return f"{flag} belongs to {elsewhere.name}: jaxneuro {order}."
    known, last = _spellings(part), flag.rpartition(".")[2].lstrip("-")
    near = difflib.get_close_matches(flag.lower(), known, 2, 0.7)
    near = near or [k for k in known if k.rpartition(".")[2].lstrip("-") == last][:3]
    return f"{part.name}: no option {quoted(flag)}.{f' Did you mean {_either(near)}?' if near else ''}"


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(quoted, names))


def _spellings(part: Part) -> list[str]:
    options = [o for o in part.options if o.flag.startswith("--")]
    no = [re.sub(r"^--(.*\.)?", r"--\g<1>no-", o.flag) for o in options if plain(o.hint) is bool]
    return [*(o.flag for o in options), *no, *part.more, *_EVERY]


_WORDS: Final = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "None",
}


def wanted(hint: Any) -> str:
    """What a flag takes, in words.

    Example:
      >>> wanted(int | None), wanted(tuple[float, ...]), wanted(Literal["a", "b"])
      ('a whole number or None', 'a number, or several', 'one of a, b')
    """
    hint = plain(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(wanted(a) for a in args))
    if origin is tuple:
        return f"{wanted(args[0])}, or several"
    if isinstance(hint, type) and issubclass(hint, Path):
        return "a path"
    return _WORDS.get(hint, "name=value")


def _sections(boxes: str) -> list[str]:
    """Tyro's boxes, which are drawn in ASCII where a stream has no other characters, as sentences, one per section."""
    found = [""]
    for line in _COLOUR.sub("", boxes).splitlines():
        text = line.strip().strip("│|").strip()
        if line.lstrip().startswith(("╭", "╰", "+-")) or not text.strip("─-"):
            found.append("")
        else:
            found[-1] = f"{found[-1]} {text}".strip()
    return [text for text in found if text]


def command_of(words: Sequence[str], commands: Sequence[str]) -> str:
    """The command that a command line begins with.

    Raises:
      UserError: there is none of that name, with the nearest.
    """
    see = "See `jaxneuro --help`."
    if not words:
        raise UserError(f"name a command: {', '.join(commands)}. {see}")
    if words[0].startswith("-"):
        raise UserError(f"{quoted(words[0])} stands in front of the command: name one of {', '.join(commands)} first.")
    if words[0] not in commands:
        begun = [name for name in commands if name.startswith(words[0])]
        raise unknown("command", words[0], commands, hint=f"{f'Did you mean {_either(begun)}? ' if begun else ''}{see}")
    return words[0]
