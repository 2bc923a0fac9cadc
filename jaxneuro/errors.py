# SPDX-License-Identifier: Apache-2.0
"""One shape for every error a person can cause: what was asked, what exists, what to do."""

import difflib
import re
from collections.abc import Iterable
from typing import Final

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

    Example:
      >>> raise UserError("group 'de' is empty. Add text to it or leave it out.")
      Traceback (most recent call last):
      jaxneuro.errors.UserError: group 'de' is empty. Add text to it or leave it out.
    """


def unknown(kind: str, asked: object, known: Iterable[object], *, where: str = "", hint: str = "") -> UserError:
    """The error for a name that does not exist: the nearest names first, then all of them.

    Args:
      kind: what was looked for, in the singular ("site", "model type", "group").
      asked: the name that was given.
      known: every name that would have been right.
      where: who is speaking ("capture", a file name); put in front.
      hint: the next step, one sentence; put last.
    Example:
      >>> print(unknown("site", "embd", ["embed", "logits"], where="capture"))
      capture: no site 'embd'. Did you mean 'embed'? Known: embed, logits.
    """
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(asked), names, 3, 0.5)
    text = f"{where}: " if where else ""
    text += f"no {kind} {str(asked)!r}."
    if near:
        text += f" Did you mean {' or '.join(repr(n) for n in near)}?"
    shown = names if len(names) <= 40 else [*names[:40], f"... ({len(names)} in all)"]
    text += f" Known: {', '.join(shown) if shown else 'none'}."
    return UserError(text + (f" {hint}" if hint else ""))


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


def shown(name: object, limit: int = 80) -> str:
    """A name that a file, a user or another library gave, as it may stand in a message: `pictures`, cut at `limit`.

    Example:
      >>> shown("blocks.0\\nOK, all good"), shown("x" * 100_000, 5)
      ('blocks.0↵OK, all good', 'xxxx…')
    """
    text = pictures(str(name)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"
