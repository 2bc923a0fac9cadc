# SPDX-License-Identifier: Apache-2.0
"""A dictionary that was trained elsewhere: opened, and refused where it cannot be judged at one site of a model."""

import math
from typing import Any, Final, NamedTuple

from ..dictionaries import MatchingPursuit, Placement, SparseCoder, load_dictionary, load_placement
from ..dictionaries.examples import checked
from ..dictionaries.places import our_site
from ..errors import UserError, shown
from ..taps.names import parse
from .config import DictionaryConfig

SITE: Final = "--site blocks.3.resid_post (of `study`: --dictionary.site)"


class Given(NamedTuple):
    """A dictionary, the site that it belongs to, and what its files say of its training."""

    dictionary: Any
    site: str
    place: Placement | None
    path: str


def open_given(config: DictionaryConfig) -> Given | None:
    """The dictionary of `config.path`, if one is asked for.

    Raises:
      UserError: as `load_dictionary`; a latent that it does not have; several dictionaries, a transcoder, or files that
        do not name its site.
    """
    if config.path is None:
        return None
    found = load_dictionary(config.path, subfolder=config.subfolder)
    place = load_placement(config.path, subfolder=config.subfolder)
    name = shown(config.path, 200)
    if not isinstance(found, SparseCoder | MatchingPursuit):
        raise UserError(
            f"{name} holds dictionaries of several layers, or one that reads several. Give the folder of a dictionary "
            "of one site, or choose it with --subfolder (of `study`: --dictionary.subfolder)."
        )
    if _transcodes(found, place):
        raise UserError(
            f"{name} is a transcoder: it reads one site and writes another. Only dictionaries that reconstruct their "
            "own site can be judged by a command; use jaxneuro.dictionaries.reconstruction in Python."
        )
    checked(found, config.latents)
    return Given(found, our_site(config.site) if config.site else _site(name, place), place, config.path)


def _transcodes(dictionary: SparseCoder | MatchingPursuit, place: Placement | None) -> bool:
    elsewhere = place is not None and place.target not in ((), place.site)
    return elsewhere or dictionary.d_in != dictionary.d_out or getattr(dictionary, "W_skip", None) is not None


def _site(name: str, place: Placement | None) -> str:
    sites = list(place.site) if place else []
    if not sites:
        raise UserError(f"the files of {name} do not say at which site it belongs. Name it: {SITE}.")
    if len(sites) > 1:
        raise UserError(f"{name} reads {len(sites)} sites side by side; only one can be judged by a command.")
    layers = parse(sites[0]).layers
    if layers is None or len(layers) != 1:
        raise UserError(f"the files of {name} name {shown(sites[0])!r}, no site of one layer. Name it: {SITE}.")
    return sites[0]


def check_width(given: Given, site: str, shape: tuple[int, ...]) -> None:
    """The site is of one layer and as wide as the dictionary reads (heads are joined).

    Raises:
      UserError: it is not.
    """
    layers = parse(site).layers
    if layers is None or len(layers) != 1 or len(shape) < 3:
        raise UserError(f"{site!r} is not a site of one layer with a value at every token. Name one: {SITE}.")
    width = math.prod(shape[2:])
    if width != given.dictionary.d_in:
        raise UserError(
            f"{shown(given.path, 200)} reads vectors of {given.dictionary.d_in}, but {site} of this model has {width}. "
            f"Choose the model that it was trained on with --model, or its site: {SITE}."
        )
