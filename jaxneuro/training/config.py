# SPDX-License-Identifier: Apache-2.0
"""What a training run does, as frozen dataclasses: the same for the command line, config.json and Python."""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from ..data import Bos, TextFields
from ..docs import doc
from ..errors import UserError
from ..io.fields import LARGEST, check_counts
from .options import OPTIONS, literal
from .strict import plain, read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    """Activations of a model as it runs: capture and training are one compiled program, nothing above the site runs."""

    kind: ClassVar[str] = "live"
    site: tuple[str, ...]
    """One site of one layer, such as blocks.3.resid_post. Several: side by side, for crosscoders and the like."""
    target: tuple[str, ...] = ()
    """What a transcoder writes, such as blocks.3.mlp_out. (): the site itself."""
    model: str = "bundled"
    """A folder in Hugging Face layout, a name on the Hub, or `bundled`."""
    groups: str = "bundled"
    """Text: a folder, a file, `hub:NAME` or `bundled`, as for `jaxneuro study`. All groups are used."""
    text: Annotated[TextFields, tyro.conf.OmitArgPrefixes] = TextFields()
    """What in these files is text."""
    context: Annotated[int, tyro.conf.arg(name="window")] = 128
    """Tokens per window. `batch` is a multiple of it."""
    bos: Bos = "auto"
    """Whether windows begin with the begin token: as the tokenizer's own convention has it, always (GPT-2, Pythia) or
    never."""
    max_tokens_per_group: int | None = None
    """Use at most this much of each group; None: all of it."""
    without_ids: tuple[int, ...] = ()
    """Token ids that are left out of training and judging, beside special tokens: a sink's, say."""
    without_positions: tuple[int, ...] = ()
    """Positions that are left out, 0 being the first token of each window: models without a begin token have their sink
    there. For tokens by the size of their activations: training.max_norm."""
    buffer_tokens: int = 65_536
    """Activations that wait in random order: a batch then holds tokens of many windows. 0: no buffer."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """Activations that `jaxneuro.activations.harvest` wrote."""

    kind: ClassVar[str] = "store"
    path: Path
    held_out: Path | None = None
    """Another store, to judge on. None: judged on rows that were trained on, and results.json says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """Activations in one file, which must not change meanwhile: .npy with x [n, d], or .npz or .safetensors with x and,
    for transcoders, y."""

    kind: ClassVar[str] = "array"
    path: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Over how many devices one run is spread."""

    data: int = 1
    """Parts of a batch."""
    latent: int = 1
    """Parts of a dictionary."""


def _texts_of_a_sweep(texts: list[str]) -> dict[str, tuple[Any, ...]]:
    found = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"{text!r} is not option=value,value")
        found[name.replace("-", "_")] = tuple(literal(v) for v in values.split(","))
    return found


_SWEEP: Final = PrimitiveConstructorSpec(
    nargs="*",
    metavar="OPTION=VALUE,VALUE...",
    instance_from_str=_texts_of_a_sweep,
    is_instance=lambda value: isinstance(value, Mapping),
    str_from_instance=lambda value: [f"{name}={','.join(map(str, values))}" for name, values in value.items()],
)

SOURCES: Final = {c.kind: c for c in (Live, Store, Array)}
"""Name of a source -> the dataclass of its options."""
if TYPE_CHECKING:
    type Source = Live | Store | Array
    type Options = Any
else:
    Source = functools.reduce(
        operator.or_, [Annotated[c, tyro.conf.subcommand(kind, description=doc(c))] for kind, c in SOURCES.items()]
    )
    Options = functools.reduce(
        operator.or_,
        [Annotated[c, tyro.conf.subcommand(name.replace("_", "-"))] for name, c in OPTIONS.items()],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train dictionaries on a model's activations, as it runs or stored: one, or a sweep on one pass of the data."""

    source: Source
    """Where activations come from."""
    method: Options
    """Which dictionary, with its options: the arguments of the function of that name in jaxneuro.dictionaries."""
    out: Path = Path("jaxneuro-dictionary")
    """Folder for the results. An interrupted run goes on in it."""
    steps: int | None = None
    """Updates. None, and no `tokens`: 10,000. More than a finished run had, and it goes on (if it was told to keep its
    checkpoints)."""
    tokens: int | None = None
    """Instead of steps: at least so many tokens, in whole batches."""
    batch: int = 4096
    """Tokens per step, those that do not count (padding, special tokens) included."""
    seed: int = 0
    """Of the start, the order of the data and the buffer."""
    decay: bool = True
    """The learning rate falls to 0 over the last fifth of the run."""
    sweep: Annotated[Mapping[str, tuple[Any, ...]], _SWEEP] = dataclasses.field(default_factory=dict)
    """Options with several values, k=16,32 learning_rate=1e-3,3e-4: every combination is trained, all on the same pass.
    Any option of the method or of training, seed, and site (with target, in pairs)."""
    devices: Devices = Devices()
    """Over how many devices one run is spread."""
    evaluate_tokens: int = 65_536
    """Held out, to judge on at the end: windows spread over the text (at least so many tokens), the last rows of an
    array; for a store see there. 0: no judgement."""
    export: tuple[Literal["saelens", "sparsify", "circuit-tracer"], ...] = ()
    """Other libraries' formats to write beside our own. circuit-tracer wants a transcoder of every layer, no top-k:
    jumprelu, relu, batch-topk or matryoshka with a sweep over site and target; or one cross-layer-transcoder."""
    checkpoint_every: int | None = None
    """Steps. None: every five minutes."""
    keep: bool = False
    """Keep the checkpoints when the run is complete."""
    log_every: int = 20
    """Steps between two lines of metrics."""
    metrics: Literal["jsonl", "tensorboard", "wandb"] = "jsonl"
    """metrics.jsonl in the folder; TensorBoard's files there; or Weights & Biases."""
    nonfinite: Literal["skip", "stop"] = "skip"
    """Tokens with NaN or infinity are left out and counted, batches of nothing else or with such a loss skipped and
    counted. stop: the run ends at the next log point after one was seen."""

    @property
    def updates(self) -> int:
        """Steps that a method makes."""
        if self.tokens is not None:
            return -(-self.tokens // self.batch)
        return 10_000 if self.steps is None else self.steps

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON."""
        return {name: value for name, value in plain(self).items() if name not in FREE}


FREE: Final = ("out", "checkpoint_every", "keep", "nonfinite")
"""What may differ when a run goes on."""
LENGTH: Final = ("steps", "tokens")
"""What may grow when a finished run goes on."""
_LEAST: Final = {
    "steps": 1,
    "tokens": 1,
    "batch": 1,
    "seed": 0,
    "evaluate_tokens": 0,
    "checkpoint_every": 1,
    "log_every": 1,
    "source.context": 2,
    "source.max_tokens_per_group": 1,
    "source.buffer_tokens": 0,
    "devices.data": 1,
    "devices.latent": 1,
}

_MOST: Final[dict[str, int]] = {"batch": 2**26, "tokens": 2**62, "evaluate_tokens": 2**40}
"""Larger than any run."""


def check(config: TrainConfig) -> None:
    """Raises: UserError: numbers out of range, or that contradict each other."""
    for name, least in _LEAST.items():
        owner, _, field = name.rpartition(".")
        value = getattr(getattr(config, owner) if owner else config, field, None)
        if value is not None and value < least:
            raise UserError(f"{name} = {value} is below {least}.")
    check_counts(config, _MOST)
    if config.steps is not None and config.tokens is not None:
        raise UserError(f"steps = {config.steps} and tokens = {config.tokens}: give one of them.")
    if config.updates > LARGEST:
        raise UserError(f"tokens = {config.tokens} in batches of {config.batch} are more than {LARGEST} steps.")
    source = config.source
    if isinstance(source, Live) and config.batch % source.context:
        near = max(1, config.batch // source.context) * source.context
        raise UserError(
            f"batch = {config.batch} tokens are no whole windows of context = {source.context}: choose {near}, say."
        )
    if isinstance(source, Live) and not source.site:
        raise UserError("source.site is empty: name a site, such as blocks.3.resid_post. See `jaxneuro sites`.")


def config_of(value: Mapping[str, Any], where: str = "config") -> TrainConfig:
    """A `TrainConfig` from JSON: what config.json holds, or its "config" alone.

    Raises:
      UserError: an unknown key, with the nearest; a missing one; a value of another type.
    """
    return read(TrainConfig, value.get("config", value) if isinstance(value, Mapping) else value, where)
