# SPDX-License-Identifier: Apache-2.0
"""What a study works on: the model, the windows or pictures of every group, and how damage is measured."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np

from ..activations import fingerprint
from ..data import PictureRows, Subset, Tokenizer, batches, counted_per_row, in_turns
from ..dictionaries import Placement
from ..errors import UserError, shown
from ..excerpts import patches
from ..reports.words import MATTERS, Matter
from .config import StudyConfig
from .given import Given, check_width, conventions, open_given
from .sources import SOURCES, Opened, Read, shapes_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything the steps share; none of it changes during a run."""

    config: StudyConfig
    model: Any
    """A `Transformer`, or what looks like one to statistics."""
    tokenizer: Tokenizer | None
    """Of text."""
    windows: Read
    used: Subset
    """The windows drawn for this study, of which the two below are parts."""
    studied: Subset
    """Windows for statistics, examples and training."""
    measured: Subset
    """Windows of other documents, on which effects and reconstructions are measured."""
    left_out: tuple[str, ...]
    """Groups that were too small, if these are left out."""
    given: Any
    """The dictionary to judge in place of a trained one; None: train one."""
    place: Placement | None
    """What its files say of its training."""
    site: str
    """Where a neuron is read, all layers: blocks.mlp.gate, say."""
    dosed_site: str
    """Where single neurons are held at a value: what an MLP's neurons hand on, else `site` itself."""
    dictionary_site: str | None
    """Where the dictionary is trained, one layer; None: there is none."""
    output: Callable[..., Any]
    """Pure function (weights, tokens, mask) whose result damage is measured on."""
    measure: str
    """Row of neurons.MEASURES."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order of every axis K."""
        return self.windows.group_names

    @functools.cached_property
    def texts(self) -> dict[str, dict[str, int | bool]]:
        """What was read of every group: see `results.json`."""
        parts = {"used": self.used, "studied": self.studied, "measured": self.measured}
        found: dict[str, dict[str, int | bool]] = {}
        for k, name in enumerate(self.groups):
            mine = found[name] = {"tokens_of_all": int(self.windows.tokens_per_group[k])}
            if isinstance(self.windows, PictureRows):
                mine["windows_of_all"] = int(self.windows.of_all[k])
                mine["windows_bad"] = int(self.windows.bad[k])
            for part, rows in parts.items():
                mine[f"tokens_{part}"] = int(rows.tokens_per_group[k])
                mine[f"windows_{part}"] = int(np.sum(rows.group == k))
                mine[f"documents_{part}"] = len(np.unique(rows.block[rows.group == k]))
            both = np.intersect1d(self.studied.block[self.studied.group == k], self.measured.block)
            mine["split_by_document"] = not len(both)
        return found

    @property
    def conventions(self) -> str:
        """How texts are cut and begin, beside the texts that the given dictionary was trained on."""
        assert self.tokenizer is not None
        begin = "".join(self.tokenizer.token_strings(self.tokenizer.prefix)) or None
        return conventions(self.place, self.windows.length, begin)

    @property
    def words(self) -> Matter:
        """What the rows are called."""
        return MATTERS[self.config.source]

    def said(self) -> list[str]:
        """What a user should know of the text or the pictures before the study begins, one line each."""
        of_text = self.given is not None and self.tokenizer is not None
        lines, words = [f"the dictionary: {self.conventions}"] if of_text else [], self.words
        for name, t in self.texts.items():
            lines.append(f"{shown(name)}: {words.read(t)}")
            if not t["split_by_document"]:
                lines.append(
                    f"{shown(name)}: one document, so what is studied and what is measured are {words.windows} of the "
                    "same one"
                )
        lines += [
            f"{shown(name)}: left out, fewer than {self.config.text.min_windows} windows" for name in self.left_out
        ]
        return lines

    def patches(self) -> Callable[[Any, int], dict[str, Any]] | None:
        """How an example of a picture is shown; None: the rows are text."""
        if not isinstance(self.windows, PictureRows):
            return None
        return functools.partial(patches, grid=self.windows.places.grid, first=self.windows.places.first)

    def measured_batches(self, per_group: int | None = None) -> list[dict[str, np.ndarray]]:
        """The measured windows, or the first `per_group` of each group, in batches of one shape."""
        rows, group = self.measured, self.measured.group
        if per_group is not None:
            first = [np.flatnonzero(group == k)[:per_group] for k in range(len(self.groups))]
            rows = Subset(self.windows, rows.indices[np.concatenate(first)])
        return list(batches(rows, batch_size=min(self.config.effect.batch, len(rows))))

    def named(self, tokens: np.ndarray, scores: np.ndarray) -> list[list[Any]]:
        """[[token string, score], ...] of one row of token ids."""
        assert self.tokenizer is not None
        strings = self.tokenizer.token_strings(np.asarray(tokens).tolist())
        return [[t, float(s)] for t, s in zip(strings, scores, strict=True)]

    def fingerprint(self) -> dict[str, str]:
        """What text (or which pictures) and which model this is, by content."""
        found = {"text": self.windows.fingerprint, "model": fingerprint(self.model.weights)}
        return found if self.given is None else found | {"dictionary": fingerprint(self.given)}


def load_inputs(config: StudyConfig, *, neurons: bool = True) -> Inputs:
    """Load the model and the text, and refuse what cannot be studied.

    Args:
      neurons: False: only a dictionary is looked at; one group is enough, and the model may have no MLP.
    Raises:
      UserError: what is wrong with the model, the tokenizer, the text or the site, and what to do.
    """
    opened = SOURCES[config.source](config)
    given = open_given(config.dictionary)
    dictionary_site = _dictionary_site(config, opened, given)
    site = opened.neurons(config.select.site) if neurons else str(dictionary_site)
    shapes = shapes_of(opened, [site, *([dictionary_site] if dictionary_site else [])])
    if neurons:
        opened.check(site, shapes[site])
    if given and dictionary_site:
        check_width(given, dictionary_site, shapes[dictionary_site])
    elif dictionary_site:
        _check_trained(dictionary_site, shapes[dictionary_site], config)
    rows, left_out = opened.read(site, 2 if neurons else 1)
    used = opened.draw(rows)
    rows = cast(Read, used.base)  # of text without what is left out
    studied, measured = _split(used, config.seed, opened.measured[0], opened.measured[1](rows))
    return Inputs(
        config=config,
        model=opened.model,
        tokenizer=opened.tokenizer,
        windows=rows,
        used=used,
        studied=studied,
        measured=measured,
        left_out=left_out,
        given=given and given.dictionary,
        place=given and given.place,
        site=site,
        dosed_site="blocks.mlp.post" if is_mlp_neuron(site) else site,
        dictionary_site=dictionary_site,
        output=opened.output,
        measure=opened.measure,
    )


def _dictionary_site(config: StudyConfig, opened: Opened, given: Given | None) -> str | None:
    """Where it is trained or belongs; None: such a model has none.

    Raises:
      UserError: one is asked for that it cannot have.
    """
    asked = given.site if given else config.dictionary.site
    if asked and opened.dictionary_site is None:
        raise UserError(
            "dictionaries are trained and judged by a study at sites of transformers only; this model is a "
            "convolutional network. Leave --dictionary.site and --dictionary.path out."
        )
    return asked or opened.dictionary_site


def is_mlp_neuron(site: str) -> bool:
    """Whether coordinate j of the site is neuron j of the MLP, with its direction in W_down and its tokens."""
    return site in MLP_NEURONS


MLP_NEURONS: Final = tuple(f"blocks.mlp.{name}" for name in ("pre", "gate", "pre_linear", "post"))
"""Values of one neuron on its way; coordinates of every other site are no neurons of an MLP, whatever their number."""


LEAST_DOCUMENTS = 3
"""Measured, where a group has the text for it: fewer say more of themselves than of their group."""


def _split(rows: Subset, seed: int, share: float, enough: int) -> tuple[Subset, Subset]:
    """Every group's documents into studied and measured ones; of the measured as many windows as are wanted.

    Documents are taken at random until they hold `enough` tokens and are `LEAST_DOCUMENTS`, at most this share of the
    group's tokens, but at least one. A group of one document is split by windows.
    """
    tokens, studied, measured = counted_per_row(rows), [], []
    for k in range(len(rows.group_names)):
        mine, rng = np.flatnonzero(rows.group == k), np.random.default_rng([seed, k])
        block = rows.block[mine] if len(np.unique(rows.block[mine])) > 1 else np.arange(len(mine))
        kept = _kept_blocks(block, tokens[mine], share, enough, rng)
        whole = Subset(rows.base, rows.indices[mine[np.isin(block, kept)]])
        turns = in_turns(whole, seed)
        wanted = np.searchsorted(np.cumsum(counted_per_row(turns)), enough) + 1
        studied.append(rows.indices[mine[~np.isin(block, kept)]])
        measured.append(np.sort(turns.indices[:wanted]))
    return Subset(rows.base, np.concatenate(studied)), Subset(rows.base, np.concatenate(measured))


def _kept_blocks(
    block: np.ndarray, tokens: np.ndarray, share: float, enough: int, rng: np.random.Generator
) -> np.ndarray:
    """The blocks of one group that are measured: not all."""
    names, number = np.unique(block, return_inverse=True)
    size = np.bincount(number, tokens)
    most, kept, have = share * size.sum(), [], 0.0
    for b in rng.permutation(len(names)):
        if have >= enough and len(kept) >= LEAST_DOCUMENTS:
            break
        if have + size[b] <= most and len(kept) < len(names) - 1:
            kept.append(b)
            have += size[b]
    return names[kept or [int(np.argmin(size))]]


def _check_trained(site: str, shape: tuple[int, ...], config: StudyConfig) -> None:
    if len(shape) != 3:
        raise UserError(
            f"dictionary.site = {site!r} has the shape {shape}; a dictionary needs one "
            "layer's [batch, pos, width], such as blocks.3.resid_post."
        )
    n_latents = config.dictionary.expansion * shape[-1]
    if config.dictionary.k > n_latents:
        raise UserError(
            f"dictionary.k = {config.dictionary.k} is more than the {n_latents} latents (dictionary.expansion = "
            f"{config.dictionary.expansion} times the width {shape[-1]}). Choose a smaller k."
        )
