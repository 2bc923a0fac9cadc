# SPDX-License-Identifier: Apache-2.0
"""What a study does, as frozen dataclasses: the same for the command line, run.json and Python."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro

from ..data import Bos, PictureFields, TextFields
from ..errors import UserError
from ..io.fields import check_counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TextFields):
    """How text becomes windows of tokens."""

    window: int = 128
    """Tokens per window."""
    max_tokens_per_group: int | None = 16_384
    """Use at most this much of each group, in windows drawn at random over all of it; None: all of it."""
    packing: Literal["auto", "apart", "windows", "documents"] = "auto"
    """apart: pieces of long documents, short ones together; no document is in two independent windows. windows: all
    documents one after another, which makes one block of neighbours. documents: one per row, cut. auto: apart for a
    decoder, documents for an encoder."""
    min_windows: int = 2
    """A group with fewer windows is refused, or left out:"""
    leave_out_small: bool = False
    """Leave groups out that have fewer windows, and say so, instead of refusing the study."""
    bos: Bos | None = None
    """Whether windows begin with the begin token: as the tokenizer's own convention has it (auto), always (GPT-2,
    Pythia) or never. None: as the files of `dictionary.path` say; without one, or if they do not, auto."""
    measured: float = 0.25
    """At most this share of every group's text, in whole documents, is kept to measure effects on."""
    without_ids: tuple[int, ...] = ()
    """Token ids that count nowhere, beside special tokens: a sink's, say."""
    without_positions: tuple[int, ...] = ()
    """Positions that count nowhere, 0 being the first token of each window: models without a begin token have their
    sink there."""
    max_norm: float | None = None
    """Tokens count nowhere whose residual stream, after any layer, is longer than so many times the median norm there
    (of the first batch): a few massive activations otherwise set scales and thresholds. None: all count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureConfig(PictureFields):
    """Which pictures are studied, and how many are measured."""

    most_per_group: int | None = 128
    """Of every group so many, drawn at random over all of it; None: all."""
    measured_per_group: int = 24
    """Of these, kept to measure effects on: about so many, at most the share `measured` of the group."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which neurons count as a group's."""

    by: Literal["expertise", "lape"] = "expertise"
    """Whose neurons are silenced and shown on cards: the group's best detectors by average precision, or LAPE's."""
    share: float = 0.02
    """expertise: a group gets at most this share of all neurons, and none that permuted labels explain."""

    site: str | None = None
    """Where neurons are read and silenced; None: `mlp.gate` of a gated MLP (as in LAPE), else `mlp.post`; of a
    convolutional network the blocks of its last stage, such as stage3.blocks.post."""
    top_rate: float | None = None
    """Share of all neurons that LAPE selects; None: 1 %, as published, or room for 20 per group where that is more."""
    filter_rate: float = 0.95
    """LAPE drops neurons whose firing rate is below this quantile in every group."""
    bar_ratio: float = 0.95
    """A selected neuron belongs to each group in which its firing rate is above this quantile."""
    shuffles: int = 500
    """Labellings with the labels permuted between documents, for the nulls."""
    responses_per_group: int = 64
    """Windows per group whose mean responses are kept for average precision, of as many documents as possible."""
    blocks_per_group: int = 32
    """Firing is counted per document for LAPE's null; with more documents than this several are counted together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EffectConfig:
    """The proof by silencing."""

    tokens_per_group: int = 768
    """Measured tokens per group, about; in windows spread evenly over the documents that are kept for it."""
    random_sets: int = 10
    """Random sets per group, matched in size per layer."""
    batch: int = 12
    """Windows per forward pass."""
    chunk: int = 8
    """Interventions run together; memory grows with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardConfig:
    """What the report shows of single neurons and latents."""

    per_group: int = 6
    """Neurons shown per group."""
    tokens: int = 10
    """Promoted and suppressed tokens per neuron."""
    examples: int = 5
    """Top examples per neuron and latent."""
    context: int = 12
    """Tokens shown on each side of an example's peak."""
    doses: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0, 8.0)
    """Clamped activations, in multiples of the neuron's largest observed absolute value."""
    dosed: int = 2
    """Neurons per group that get a dose-response."""
    dose_windows: int = 2
    """Measured windows per group for it."""
    latents: int = 60
    """Latents shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """The TopK dictionary, or a given one."""

    path: str | None = None
    """Judge and show this dictionary instead of training one: a folder, file or repository of the Hub, of any library
    that `jaxneuro.dictionaries.load_dictionary` reads."""
    subfolder: str | None = None
    """Of `path`."""
    site: str | None = None
    """Where it is trained or belongs; None: where its files say, else `resid_post` of the middle layer."""
    latents: tuple[int, ...] = ()
    """Those on cards; none named: the most group-selective and the most active (`cards.latents` in all)."""
    expansion: int = 16
    """n_latents / d_in."""
    k: int = 16
    steps: int = 1500
    batch: int = 1024
    """Tokens per step."""
    max_tokens: int = 120_000
    learning_rate: float | None = None
    """None: 2e-4 / sqrt(n_latents / 2^14)."""
    dead_after_tokens: int = 100_000
    """A latent that has not fired for this many tokens is dead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Find a model's group-specific neurons, prove them by silencing, name them, learn a dictionary, report."""

    model: str = "bundled"
    """A folder in Hugging Face layout, a name on the Hub, or `bundled`."""
    groups: str = "bundled"
    """A folder with one file (txt, jsonl, csv, parquet ...) or sub-folder per group; one file, a folder of
    `save_to_disk` or `hub:NAME` with the fields text and group; or `bundled`."""
    out: Path = Path("jaxneuro-study")
    """Folder for the results. An interrupted study goes on in it."""
    pictures: str | None = None
    """Instead of text, for a model of pictures: a folder with a sub-folder of pictures per group, or a table (jsonl,
    csv ...) with the fields path and group."""
    tower: Literal["image", "text"] | None = None
    """Of a folder with two models (CLIP, SigLIP): that of pictures or that of text. None: that of pictures."""
    title: str | None = None
    """Heading of the report; None: the model and the groups."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 32
    """Windows per forward pass."""
    text: Annotated[TextConfig, tyro.conf.OmitArgPrefixes] = TextConfig()
    picture: PictureConfig = PictureConfig()
    select: SelectConfig = SelectConfig()
    effect: EffectConfig = EffectConfig()
    cards: CardConfig = CardConfig()
    dictionary: DictionaryConfig = DictionaryConfig()
    preset: Literal["default", "small"] = "default"
    """small: a minute instead of minutes, for trying things out. It stands for window 64, max-tokens-per-group 4096,
    picture.most-per-group 48, picture.measured-per-group 8,
    select.shuffles 200, effect.tokens-per-group 320, cards.per-group 2, cards.dosed 1, cards.latents 12,
    dictionary.expansion 8, dictionary.steps 100 and dictionary.max-tokens 20000, where these are not given."""

    def resolved(self) -> "StudyConfig":
        """The study with its preset applied and its numbers checked.

        A preset supplies defaults: what differs from its default stays. (On the command line also what is given with
        the default's value.)
        """
        config = self
        for name, value in PRESETS[self.preset].items():
            part, field = name.split(".")
            given = getattr(config, part)
            if getattr(given, field) == getattr(type(given)(), field):
                config = dataclasses.replace(config, **{part: dataclasses.replace(given, **{field: value})})
        config = dataclasses.replace(config, preset="default")
        _check(config)
        return config

    @property
    def source(self) -> str:
        """Row of `sources.SOURCES`: what is read."""
        return "text" if self.pictures is None else "pictures"

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as flat JSON: `text.window` -> 128."""
        flat = {}
        for key, value in dataclasses.asdict(self).items():
            if key in ("out", "preset", "title"):
                continue
            items = value.items() if isinstance(value, dict) else [(None, value)]
            for inner, v in items:
                flat[key if inner is None else f"{key}.{inner}"] = list(v) if isinstance(v, tuple) else v
        return flat


PRESETS: Final[dict[str, dict[str, int]]] = {
    "default": {},
    "small": {
        "text.window": 64,  # measured, so that every group has enough windows for a verdict
        "text.max_tokens_per_group": 4096,
        "picture.most_per_group": 48,
        "picture.measured_per_group": 8,
        "select.shuffles": 200,
        "effect.tokens_per_group": 320,
        "cards.per_group": 2,
        "cards.dosed": 1,
        "cards.latents": 12,
        "dictionary.expansion": 8,
        "dictionary.steps": 100,
        "dictionary.max_tokens": 20_000,
    },
}


def preset_of(argv: Sequence[str]) -> StudyConfig:
    """The defaults that a command line asks for with --preset, so that every other option on it wins.

    Example:
      >>> preset_of(["study", "--preset", "small"]).dictionary.steps, preset_of(["study"]).dictionary.steps
      (100, 1500)
    """
    words = [w for a in argv for w in a.split("=", 1)] if any(a.startswith("--preset=") for a in argv) else list(argv)
    asked = [after for flag, after in itertools.pairwise(words) if flag == "--preset"]
    return StudyConfig(preset=asked[-1] if asked and asked[-1] in PRESETS else "default").resolved()  # type: ignore[arg-type]


_OF_TOKENS = ("without_ids", "without_positions", "max_norm")
_RANGES = {
    "seed": (0, None),
    "batch": (1, None),
    "text.max_tokens_per_group": (1, None),
    "text.window": (8, None),
    "picture.most_per_group": (2, None),
    "picture.measured_per_group": (1, None),
    "text.measured": (0.05, 0.9),
    "text.max_norm": (1.01, None),
    "select.share": (1e-6, 1.0),
    "select.top_rate": (1e-6, 1.0),
    "select.filter_rate": (0.0, 1.0),
    "select.bar_ratio": (0.0, 1.0),
    "text.min_windows": (2, None),
    "select.shuffles": (19, None),
    "select.blocks_per_group": (3, None),
    "select.responses_per_group": (1, None),
    "effect.tokens_per_group": (1, None),
    "effect.random_sets": (10, None),
    "effect.batch": (1, None),
    "effect.chunk": (1, None),
    "cards.per_group": (1, None),
    "cards.tokens": (1, None),
    "cards.examples": (1, None),
    "cards.context": (0, None),
    "cards.dosed": (0, None),
    "cards.dose_windows": (1, None),
    "cards.latents": (0, None),
    "dictionary.expansion": (1, None),
    "dictionary.k": (1, None),
    "dictionary.steps": (1, None),
    "dictionary.batch": (1, None),
    "dictionary.max_tokens": (1, None),
    "dictionary.dead_after_tokens": (1, None),
    "dictionary.learning_rate": (1e-12, 1e3),
    "dictionary.latents": (0, None),
    "text.without_ids": (0, None),
}


def check_ranges(flat: Mapping[str, Any], ranges: Mapping[str, tuple[float, float | None]]) -> None:
    """Raises: UserError: a number, or one of several, is below or above what its name allows."""
    for key, (low, high) in ranges.items():
        for value in flat[key] if isinstance(flat[key], list | tuple) else [flat[key]]:
            if value is not None and (value < low or (high is not None and value > high)):
                allowed = f"at least {low}" if high is None else f"between {low} and {high}"
                raise UserError(f"{key} = {value} is out of range: it must be {allowed}.")


def _check(config: StudyConfig) -> None:
    check_counts(config)
    flat = config.identity()
    check_ranges(flat, _RANGES)
    if config.pictures is not None and config.groups != StudyConfig.groups:
        raise UserError("groups (text) and pictures are both given. Leave one of them out: --groups or --pictures.")
    if config.pictures is not None and (wrong := [n for n in _OF_TOKENS if getattr(config.text, n) not in (None, ())]):
        raise UserError(f"`{wrong[0]}` is of tokens, and pictures are studied. Leave it out.")
    if not any(config.cards.doses):
        raise UserError(f"cards.doses = {config.cards.doses} holds no dose: give at least one that is not 0.")
