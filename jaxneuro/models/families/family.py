# SPDX-License-Identifier: Apache-2.0
"""What a row of the family table says, and how rows are written short."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from ...io.fields import FLAG, MISSING, TEXT, Fields, Kind, many, null_or, whole
from ..config import Config, Image
from ..ranges import SIZE, kinds_of
from ..rope import RopeKeys

type Keys = Mapping[str, tuple[str | tuple[str, ...], str]]

REQUIRED: Final = MISSING

_NULL_IS_DERIVED: Final = ("n_kv_heads", "d_head")
"""Fields that follow from others where a config says null, in every family."""


class Key(NamedTuple):
    """One key of config.json."""

    name: str
    default: Any
    """What transformers takes when the key is absent."""
    read: Callable[[Any], Any] = lambda value: value
    """Its value -> that of the Config field."""
    write: Callable[[Any], Any] = lambda value: value
    """And back."""
    kind: Kind[Any] | None = None
    """What may stand there; None: what the Config field may hold, or a switch where the default is one."""

    def kind_of(self, field: str) -> Kind[Any]:
        """What may stand there, null included where transformers takes it."""
        kind = self.kind or (FLAG if type(self.default) is bool else kinds_of(Config)[field])
        kind = whole() if kind is SIZE else kind  # a file that has a size has no 0
        return null_or(kind) if self.default is None or field in _NULL_IS_DERIVED else kind


def classes_of(hf: Fields) -> tuple[str, ...]:
    """The class names that a config gives itself; often one, sometimes none."""
    return hf.read("architectures", null_or(many(TEXT)), None) or ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` is spelled."""

    fields: Mapping[str, Key]
    """{Config field: where it is}."""
    fixed: Mapping[str, Any]
    """Config fields that are the same for every model of the family."""
    keys: Keys
    keys_of: Callable[[Config], Keys] | None = None
    """Instead of `keys` where the same leaf has other names in another configuration."""
    fused_keys: Keys | None = None
    """Instead of `keys` where experts are stored as one tensor; what is saved has the names of `keys`."""
    prefix: str
    """In front of every tensor but the head's; absent when the base model alone was saved."""
    classes: tuple[str, str]
    """transformers' class without and with a head."""
    rope: RopeKeys | None = None
    image: Image | None = None
    """For models of pictures: what the config's own keys leave open, with transformers' default sizes."""
    derived: tuple[Callable[[Fields, dict], dict], Callable[[Any], dict]] | None = None
    """(config, Config fields so far) -> further fields; a Config -> their config keys."""
    windows: str = "never"
    """never | always (sliding_window for every layer) | by_layer (layer_types, use_sliding_window ...) | periodic
    (layer_types, or every `period`-th layer sees all)."""
    window: int | None = 4096
    """What transformers takes when sliding_window is absent."""
    period: int = 1
    acts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Activation names that mean something else in this family."""
    positions_counted_in: bool = False
    """The config's number of positions includes the rows before position 0."""
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Config keys that change the mathematics in ways not ported, with the values that do not."""
    ignored: tuple[str, ...] = ()
    """Patterns of buffers in checkpoints that hold no weights."""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{tensor: the one it repeats}; accepted when equal, or in its place."""
    untied_if_stored: bool = False
    """Whether the unembedding is tied is decided by the tensors: it is unless there is one."""
    optional: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """{Config field: tensor, or one of several, whose presence in the checkpoint decides it}."""

    def spelled(self, names: Iterable[str]) -> "Family":
        """The family with the keys that these tensors of a checkpoint have."""
        marks = [key.partition("{i}")[2] for key in (self.fused_keys or {}) if key not in self.keys]
        fused = any(name.endswith(mark) for name in names for mark in marks if ".experts." in mark)
        return dataclasses.replace(self, keys=self.fused_keys) if fused else self

    def tensors(self, cfg: Config) -> Keys:
        """The keys of this configuration."""
        return self.keys if self.keys_of is None else self.keys_of(cfg)

    @property
    def head(self) -> str | None:
        """The tensor of an unembedding that is not tied."""
        return next((name for name, (leaf, _) in self.keys.items() if leaf == "head.w"), None)


def linear(name: str, leaf: str, axes: str, bias: str = "", bias_axes: str = "") -> dict[str, Any]:
    """The rows of a linear map, with its bias if that is named."""
    out = {f"{name}.weight": (leaf, axes)}
    return out | {f"{name}.bias": (bias, bias_axes)} if bias else out


def norm(name: str, leaf: str, axis: str = "embed") -> dict[str, Any]:
    """The rows of a norm; without a bias where the layout has none."""
    return linear(name, f"{leaf}.scale", axis, f"{leaf}.bias", axis)


def attention(prefix: str, q: str, k: str, v: str, o: str, leaf: str = "blocks.attn") -> dict[str, Any]:
    """The rows of four linear maps as torch keeps them, [out, in], with the biases that the layout has."""
    heads = {"q": (q, "heads"), "k": (k, "kv_heads"), "v": (v, "kv_heads")}
    rows: dict[str, Any] = {}
    for letter, (name, axis) in heads.items():
        spelled = f"{leaf}.w{letter}", f"({axis} head) embed", f"{leaf}.b{letter}", f"({axis} head)"
        rows |= linear(f"{prefix}.{name}", *spelled)
    return rows | linear(f"{prefix}.{o}", f"{leaf}.wo", "embed (heads head)", f"{leaf}.bo", "embed")


def mlp(prefix: str, up: str, down: str, gate: str | None = None) -> dict[str, Any]:
    """The rows of two linear maps, or three."""
    rows = linear(f"{prefix}.{gate}", "blocks.mlp.gate", "mlp embed", "blocks.mlp.b_gate", "mlp") if gate else {}
    rows |= linear(f"{prefix}.{up}", "blocks.mlp.up", "mlp embed", "blocks.mlp.b_up", "mlp")
    return rows | linear(f"{prefix}.{down}", "blocks.mlp.down", "embed mlp", "blocks.mlp.b_down", "embed")
