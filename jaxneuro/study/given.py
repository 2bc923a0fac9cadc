# SPDX-License-Identifier: Apache-2.0
"""A dictionary that was trained elsewhere: opened, and refused where it cannot be judged at one site of a model."""

import math
from typing import Any, Final, NamedTuple

from ..data import Bos
from ..dictionaries import MatchingPursuit, Placement, SparseCoder, load_dictionary, load_placement
from ..dictionaries.examples import checked
from ..dictionaries.places import our_site
from ..errors import UserError, shown
from ..taps.names import parse
from .config import DictionaryConfig

SITE: Final = "--site blocks.3.resid_post (of `study`: --dictionary.site)"


_BOS: Final[dict[bool | None, Bos]] = {True: "always", False: "never", None: "auto"}


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


def begins(asked: Bos | None, place: Placement | None) -> Bos:
    """How texts begin: as was asked, else as the dictionary's texts did, else by the tokenizer's convention."""
    return asked or _BOS[place.prepend_bos if place else None]


def begin_of(path: str, subfolder: str | None) -> Bos:
    """How the texts of a given dictionary's training began, as its files say; else by the tokenizer's convention."""
    return begins(None, load_placement(path, subfolder=subfolder))


_WITH: Final = {True: "with", False: "without"}


def conventions(place: Placement | None, length: int, begin: str | None) -> str:
    """How texts are cut and begin, and whether the dictionary's files say that its training was otherwise.

    Args:
      length: tokens of a window.
      begin: what is in front of every text; None: nothing.
    Example:
      >>> conventions(Placement(site=("embed",), context=64, prepend_bos=True), 64, "<s>")
      'windows of 64 tokens that begin with <s>, as in its training'
    """
    context, bos = (place.context, place.prepend_bos) if place else (None, None)
    how = f"windows of {length} tokens that begin {f'with {shown(begin)}' if begin else 'without a begin token'}"
    if bos not in (None, begin is not None):
        return f"{how}, but it was trained {_WITH[bool(bos)]} one: --bos {begins(None, place)}"
    if context not in (None, length):
        return f"{how}; it was trained on windows of {context}: --window {context}"
    if bos is None:
        return f"{how}; its files do not say how its texts began: --bos always or never"
    return f"{how}, as in its training"


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
