# SPDX-License-Identifier: Apache-2.0
"""One shape for every error a person can cause: what was asked, what exists, what to do."""

import difflib
from collections.abc import Iterable


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
