# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro train-dictionary`: flags are the fields of `TrainConfig`, with a file for those that are not given."""

import argparse
import difflib
from collections.abc import Collection, Sequence
from typing import Any, Final, NoReturn

from ..errors import UserError, unknown
from ..io import read_json
from ..training import TrainConfig
from ..training.config import SOURCES, config_of
from ..training.options import OPTIONS
from .words import Part, parsed

USAGE = """Train dictionaries on a model's activations, as it runs or stored: one, or a sweep on one pass of the data.

    jaxneuro train-dictionary --out DIR --steps 1000 live --site blocks.3.resid_post topk --n-latents 4096 --k 32
    jaxneuro train-dictionary --sweep k=16,32 seed=0,1 ... store --path ACTIVATIONS batch-topk --n-latents 4096 --k 32
    jaxneuro train-dictionary --config DIR/config.json --out OTHER

Flags of the run come first, then where activations come from (live, store, array), then the method. --config FILE takes
what is not given from the config.json of another run. The same command again goes on where it stopped."""


def config_of_words(argv: Sequence[str]) -> TrainConfig:
    """The configuration that the flags stand for.

    Raises:
      UserError: from the file: an unknown key, a missing one, a value of another type; no source or method is named;
        as `words.parsed`.
      SystemExit: after --help (0).
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files.add_argument("--config")
    try:
        found, rest = files.parse_known_args(argv)
    except argparse.ArgumentError:
        raise UserError("--config needs a value: a path.") from None
    given: dict[str, Any] = {}
    if found.config is not None:
        given["default"] = config_of(read_json(found.config), found.config)
    else:
        _check_method(rest)
    parts = _parts(rest, given.get("default"))
    return parsed(TrainConfig, rest, parts, prog="jaxneuro train-dictionary", description=USAGE, **given)


def _parts(words: Sequence[str], default: TrainConfig | None) -> list[Part]:
    """The words of the run, of the source, of the method; what is not named is that of the file, and has none."""
    source = next((i for i, word in enumerate(words) if word in SOURCES), None)
    method = next((i for i in range(source or 0, len(words)) if words[i] in METHODS), len(words))
    source = method if source is None else source
    found = [Part("train-dictionary", TrainConfig, words[:source], ("--config",))]
    for start, end, kinds, given in (
        (source, method, SOURCES, default and default.source),
        (method, len(words), METHODS, default and default.method),
    ):
        if start < end:
            found.append(Part(words[start], kinds[words[start]], words[start + 1 : end]))
        elif given:
            found.append(Part(next(name for name, kind in kinds.items() if kind is type(given)), type(given), ()))
    return found


METHODS: Final = {name.replace("_", "-"): kind for name, kind in OPTIONS.items()}


def _check_method(words: Sequence[str]) -> None:
    """A source is followed by a method. Where its name is misspelt, the list of a flag before it takes it for a value.

    Raises:
      UserError: no source or method is there; names the word that is most like one.
    """
    if {"-h", "--help"} & set(words):
        return
    source = next((i for i, word in enumerate(words) if word in SOURCES), None)
    if source is None:
        _no_name("source", words, SOURCES, "After the flags of the run comes")
    elif not set(METHODS) & set(words[source:]):
        _no_name("method", words[source + 1 :], METHODS, f"After {words[source]} and its flags comes")


def _no_name(kind: str, words: Sequence[str], names: Collection[str], order: str) -> NoReturn:
    bare = [word for word in words if not word.startswith("-")]
    like = {word: difflib.get_close_matches(word.lower(), names, 1, 0.6) for word in bare}
    if near := [word for word, found in like.items() if found]:
        raise unknown(kind, near[0], names, where="train-dictionary", most=len(names))
    raise UserError(
        f"train-dictionary: no {kind} is named. {order} one of {', '.join(names)}, then the {kind}'s flags."
    )
