# SPDX-License-Identifier: Apache-2.0
"""One mutant: made from its number, loaded within a time, and what came out."""

import contextlib
import random
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from .mutations import CUT, DAMAGE, Mutation, linked, mutate
from .seeds import KINDS, Kind, Room, broken, digest
from .values import LEGAL, LIES, NONSENSE, OTHER

GOOD: Final = ("clear error", "same values", "undetectable")
"""Undetectable: other values, and nothing in the files could tell: flipped bits of numbers without a checksum, another
legal value, other text. A token, a name or a document that somebody wrote over is other text, hostile or not: it is
what the file says, and what shows it (messages, pages, terminals) makes it harmless, which tests of its own see to."""
BAD: Final = ("raw", "unsafe text", "hang", "memory", "crash", "wrong")
"""Traceback; a message with control characters, forged lines or megabytes; over the time; over the memory; the process
died; accepted, with a nonsense value or other values."""
_LONGEST: Final = 21_000  # characters of a message
_UNSEEN: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_FORGED: Final = re.compile(r"^OK, all good", re.MULTILINE)

type Record = dict[str, Any]


class TimeUpError(BaseException):
    """Not an Exception: no loader may catch it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeUpError after so long, where Python gets to run."""

    def up(*_: Any) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one(
    room: Room, seed: int, i: int, work: Path, *, timeout: float, most: int | None, told: Callable[[Record], None]
) -> Record:
    """Make mutant i and load it.

    Args:
      room: where whole examples are.
      work: an empty place for it.
      timeout: seconds.
      most: use so many cases of a kind, spread over all; None: every one.
      told: hears what is about to be loaded, in case this process does not survive it.
    """
    rng = random.Random(f"{seed}:{i}")
    name = rng.choices(list(KINDS), [kind.weight for kind in KINDS.values()])[0]
    cases = sorted(room.cases(name))
    if most is not None and len(cases) > most:
        cases = [cases[round(at * (len(cases) - 1) / max(1, most - 1))] for at in range(most)]
    case = rng.choice(cases)
    want = room.reference(name, case)
    path = linked(room.cases(name)[case], work / str(i))
    done = mutate(rng, path)
    record = {"seed": seed, "i": i, "kind": name, "case": case, **done._asdict()}
    told(record)
    begun = time.monotonic()
    outcome, detail = _loaded(KINDS[name], path, done, want, timeout)
    shutil.rmtree(work / str(i), ignore_errors=True)
    return {**record, "outcome": outcome, "detail": detail, "ms": round(1e3 * (time.monotonic() - begun), 1)}


def _loaded(kind: Kind, path: Path, done: Mutation, want: str, timeout: float) -> tuple[str, str]:
    from jaxneuro.errors import UserError

    try:
        with within(timeout):
            value = kind.load(path)
            got, nonfinite = digest(value, path), [] if kind.is_data else broken(value)
    except UserError as e:
        return ("unsafe text" if _unsafe(str(e)) else "clear error"), str(e)[:300]
    except MemoryError as e:
        return "memory", _last(e)
    except TimeUpError as e:
        return "hang", _last(e)
    except Exception as e:  # this is what is looked for
        return "raw", _last(e)
    if got == want:
        return "same values", ""
    if nonfinite:
        return "wrong", f"{', '.join(nonfinite[:5])} not finite"
    return ("wrong" if _noticeable(kind, done.means) else "undetectable"), ""


def _noticeable(kind: Kind, means: str) -> bool:
    """Whether a loader that gives other values should have refused."""
    return {
        LEGAL: False,
        LIES: True,
        NONSENSE: not kind.is_data,
        OTHER: not kind.is_text,
        DAMAGE: kind.checksummed,
        CUT: not kind.is_text,
    }[means]


def _unsafe(message: str) -> bool:
    return len(message) > _LONGEST or bool(_UNSEEN.search(message) or _FORGED.search(message))


def _last(e: BaseException) -> str:
    """What it was, and the lines of this package's that it came through, the last ones."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "jaxneuro" in f.filename]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[:-4:-1])
    return f"{type(e).__name__}: {str(e)[:120]} at {where}"
