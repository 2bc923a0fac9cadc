# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro train-dictionary`: flags are the fields of `TrainConfig`, with a file for those that are not given."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any

import tyro

from ..errors import UserError, unknown
from ..io import read_json
from ..training import TrainConfig
from ..training.config import SOURCES, config_of
from ..training.options import OPTIONS

USAGE = """Train dictionaries on a model's activations, as it runs or stored: one, or a sweep on one pass of the data.

    jaxneuro train-dictionary --out DIR --steps 1000 live --site blocks.3.resid_post topk --n-latents 4096 --k 32
    jaxneuro train-dictionary --sweep k=16,32 seed=0,1 ... store --path ACTIVATIONS batch-topk --n-latents 4096 --k 32
    jaxneuro train-dictionary --config DIR/config.json --out OTHER

Flags of the run come first, then where activations come from (live, store, array), then the method. --config FILE takes
what is not given from the config.json of another run. The same command again goes on where it stopped."""


def parsed(argv: Sequence[str]) -> TrainConfig:
    """The configuration that the flags stand for.

    Raises:
      UserError: from the file: an unknown key, a missing one, a value of another type; no method is named.
      SystemExit: from the flags (code 2), and after --help (0).
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    found, rest = files.parse_known_args(argv)
    given: dict[str, Any] = {}
    if found.config is not None:
        given["default"] = config_of(read_json(found.config), found.config)
    else:
        _check_method(rest)
    return tyro.cli(
        TrainConfig,
        args=rest,
        prog="jaxneuro train-dictionary",
        description=USAGE,
        config=(tyro.conf.OmitSubcommandPrefixes,),
        **given,
    )


def _check_method(words: Sequence[str]) -> None:
    """A source is followed by a method. Where its name is misspelt, the list of a flag before it takes it for a value.

    Raises:
      UserError: no method is there; names the word that is most like one.
    """
    methods = [name.replace("_", "-") for name in OPTIONS]
    source = next((i for i, word in enumerate(words) if word in SOURCES), None)
    if source is None or {"-h", "--help", *methods} & set(words):
        return
    bare = [word for word in words[source + 1 :] if not word.startswith("-")]
    like = {word: difflib.get_close_matches(word.lower(), methods, 1, 0.6) for word in bare}
    if near := [word for word, found in like.items() if found]:
        raise unknown("method", near[0], methods, where="train-dictionary", most=len(methods))
    raise UserError(
        f"train-dictionary: no method is named. After {words[source]} and its flags comes one of {', '.join(methods)}, "
        "then the method's flags."
    )
