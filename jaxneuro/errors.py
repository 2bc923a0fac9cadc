# SPDX-License-Identifier: Apache-2.0
"""One shape for every error a person can cause: what was asked, what exists, what to do."""

import difflib
import itertools
import os
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Final

_LONGEST_MESSAGE: Final = 20_000
"""Characters of a message; what a file says can be megabytes."""
_UNSEEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"  # control characters, line ends, halves of surrogate pairs
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # format characters without a shape
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"  # joiners that have nothing to join
)
_PICTURES: Final = {"\n": "↵", "\t": "⇥", "\u2028": "↵", "\u2029": "↵", "\x7f": "␡"}


class UserError(ValueError):
    """A request that cannot be met. The command line prints its text without a traceback and exits with 2.

    Control characters and marks of direction are shown as pictures and megabytes are cut, whoever wrote the message; a
    name that a file brought goes through `shown`, which leaves it no line end either.

    Example:
      >>> raise UserError("group 'de' is empty. Add text to it or leave it out.")
      Traceback (most recent call last):
      jaxneuro.errors.UserError: group 'de' is empty. Add text to it or leave it out.
    """

    def __init__(self, message: str):
        super().__init__("\n".join(map(pictures, _whole(message).split("\n"))))


def pictures(text: object) -> str:
    """Text in which every character that has no shape of its own is seen: control, bidi and format characters.

    Such a character can clear a terminal, forge a line, turn the order of what follows, or hide. Control characters
    become their pictures, the others their number. Joiners between letters that need them (Persian, Hindi, emoji) stay.

    Example:
      >>> pictures("a\\nb\\x1b[2J"), pictures("\\u202egpj.exe")
      ('a↵b␛[2J', '[U+202E]gpj.exe')
    """
    return _UNSEEN.sub(_picture, str(text))


def _picture(match: re.Match[str]) -> str:
    c = match[0]
    return _PICTURES.get(c) or (chr(0x2400 + ord(c)) if ord(c) < 0x20 else f"[U+{ord(c):04X}]")


def shown(value: object, limit: int = 80) -> str:
    """What a file, a person or another library said, for a message: one line of at most `limit`, nothing unseen.

    Text and paths (which may have 400 characters) come as they are, other values as Python writes them. A value is cut
    before it is formatted, so a name of megabytes, a list nested deeply and a number of a thousand digits cost nothing.

    Example:
      >>> shown("blocks.0\\nOK, all good"), shown("x" * 100_000, 5), shown([1.5, None, "a"])
      ('blocks.0↵OK, all good', 'xxxx…', "[1.5, None, 'a']")
    """
    if isinstance(value, os.PathLike):
        value, limit = os.fspath(value), max(limit, 400)
    if isinstance(value, bytes):
        value = value[: limit + 1].decode("latin-1")
    if not isinstance(value, str):
        short = _Short()
        short.maxstring = short.maxother = limit
        value = short.repr(value)
    text = "".join(_unjoined(c) for c in pictures(value[: limit + 1]))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _unjoined(c: str) -> str:
    return c if c.isascii() or unicodedata.category(c) not in ("Cf", "Cn") else f"[U+{ord(c):04X}]"


def _whole(message: str) -> str:
    cut = len(message) > _LONGEST_MESSAGE
    return f"{message[:_LONGEST_MESSAGE]}… ({len(message):,} characters)" if cut else message


class _Short(reprlib.Repr):
    """Three levels, six things each; numbers of any size."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        if type(x) is bool or x.bit_length() < 256:
            return str(x)
        return f"a whole number of {x.bit_length():,} bits"

    def repr_dict(self, x: dict, level: int) -> str:
        first = dict(itertools.islice(x.items(), self.maxdict + 1))
        return super().repr_dict(first, level)


def unknown(
    kind: str,
    asked: object,
    known: Iterable[object],
    *,
    where: object = "",
    hint: str = "",
    most: int = 40,
) -> UserError:
    """The error for a name that does not exist: the nearest names first, then all of them.

    Args:
      kind: what was looked for, in the singular ("site", "model type", "group").
      asked: the name that was given.
      known: every name that would have been right.
      where: who is speaking ("capture", a file name); put in front.
      hint: the next step, one sentence; put last.
      most: how many of the known names are listed; 0: the nearest alone, at most five.
    Example:
      >>> print(unknown("site", "embd", ["embed", "logits"], where="capture"))
      capture: no site 'embd'. Did you mean 'embed'? Known: embed, logits.
    """
    names = [str(k) for k in known]
    text = f"{shown(where, 400)}: " if str(where) else ""
    text += f"no {kind} {quoted(asked)}."
    near = difflib.get_close_matches(str(asked)[:200], names, 3 if most else 5, 0.5)
    if near:
        text += f" Did you mean {' or '.join(quoted(n) for n in near)}?"
    if most:
        listed = [shown(n) for n in names[:most]]
        listed += [f"... ({len(names)} in all)"] if len(names) > most else []
        text += f" Known: {', '.join(listed) if listed else 'none'}."
    return UserError(text + (f" {hint}" if hint else ""))


def quoted(value: object, limit: int = 80) -> str:
    """`shown`, text in quotes.

    Example:
      >>> print(quoted("a b"), quoted(3))
      'a b' 3
    """
    return repr(shown(value, limit)) if isinstance(value, str | os.PathLike) else shown(value, limit)
