# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro train-dictionary`: flags are the fields of `TrainConfig`, with a file for those that are not given."""

import argparse
from collections.abc import Sequence
from typing import Any

import tyro

from ..io import read_json
from ..training import TrainConfig
from ..training.config import config_of

USAGE = """Train dictionaries on a model's activations, as it runs or stored: one, or a sweep on one pass of the data.

    jaxneuro train-dictionary --out DIR --steps 1000 live --site blocks.3.resid_post topk --n-latents 4096 --k 32
    jaxneuro train-dictionary --sweep k=16,32 seed=0,1 ... store --path ACTIVATIONS batch-topk --n-latents 4096 --k 32
    jaxneuro train-dictionary --config DIR/config.json --out OTHER

Flags of the run come first, then where activations come from (live, store, array), then the method. --config FILE takes
what is not given from the config.json of another run. The same command again goes on where it stopped."""


def parsed(argv: Sequence[str]) -> TrainConfig:
    """The configuration that the flags stand for.

    Raises:
      UserError: from the file: an unknown key, a missing one, a value of another type.
      SystemExit: from the flags (code 2), and after --help (0).
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    found, rest = files.parse_known_args(argv)
    given: dict[str, Any] = {}
    if found.config is not None:
        given["default"] = config_of(read_json(found.config), found.config)
    return tyro.cli(
        TrainConfig,
        args=rest,
        prog="jaxneuro train-dictionary",
        description=USAGE,
        config=(tyro.conf.OmitSubcommandPrefixes,),
        **given,
    )
