# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: the rotation, and the published rules that stretch its frequencies to longer texts.

Every angle is static (numpy, computed while tracing), so a compiled model holds two constant tables. A rule is a tiny
frozen dataclass whose fields are the keys of a Hugging Face `rope_scaling` entry; a new rule is a class and a line in
`RULES`. Each is a function (frequencies, theta, length) -> (frequencies, factor on cos and sin).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..axes import aligned
from ..errors import UserError, shown, unknown
from ..io.fields import FLAG, TEXT, Fields, Kind, many, null_or, number, whole
from .ranges import LONGEST_CONTEXT, STRETCH, THETA, Checked, check_fields, kinds_of

_LENGTH: Final = whole(2, LONGEST_CONTEXT)
_FACTORS: Final = many(number(above=0, high=1e6), least=1)
_TURNS: Final = number(above=0, high=1e6)
_WEIGHT: Final = number(low=0, high=1e6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Checked):
    """Position interpolation: every frequency divided by `factor`. Source: arXiv 2306.15595."""

    factor: Annotated[float, STRETCH]

    def __call__(self, freqs: np.ndarray, theta: float, length: int) -> tuple[np.ndarray, float]:
        return freqs / np.float32(self.factor), 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamic(Checked):
    """Dynamic NTK: a text longer than the original length raises theta, by how much depends on its (static) length.

        theta' = theta (factor length / original - (factor - 1)) ^ (dims / (dims - 2))

    Source: transformers, modeling_rope_utils.
    """

    factor: Annotated[float, STRETCH]
    original_max_position_embeddings: Annotated[int, _LENGTH]

    def __call__(self, freqs: np.ndarray, theta: float, length: int) -> tuple[np.ndarray, float]:
        dims, original = 2 * len(freqs), self.original_max_position_embeddings
        stretched = self.factor * max(length, original) / original - (self.factor - 1)
        return _frequencies(theta * stretched ** (dims / (dims - 2)), dims), 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3(Checked):
    """Llama 3.1: long waves divided by `factor`, short ones kept, a linear blend between. Source: transformers."""

    factor: Annotated[float, STRETCH]
    low_freq_factor: Annotated[float, _TURNS]
    high_freq_factor: Annotated[float, _TURNS]
    original_max_position_embeddings: Annotated[int, _LENGTH]

    def __post_init__(self):
        super().__post_init__()
        if self.low_freq_factor >= self.high_freq_factor:
            raise UserError(
                f"low_freq_factor={self.low_freq_factor} is not below high_freq_factor={self.high_freq_factor}."
            )

    def __call__(self, freqs: np.ndarray, theta: float, length: int) -> tuple[np.ndarray, float]:
        turns = self.original_max_position_embeddings * freqs / (2 * math.pi)  # within the original length
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0, 1)
        return (1 - blend) * freqs / self.factor + blend * freqs, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn(Checked):
    """YaRN: a ramp over dimensions between interpolated and original frequencies. Source: arXiv 2309.00071."""

    factor: Annotated[float, STRETCH]
    original_max_position_embeddings: Annotated[int, _LENGTH]
    beta_fast: Annotated[float, _TURNS] = 32.0
    beta_slow: Annotated[float, _TURNS] = 1.0
    attention_factor: Annotated[float, _TURNS] | None = None
    mscale: Annotated[float, _WEIGHT] | None = None
    mscale_all_dim: Annotated[float, _WEIGHT] | None = None
    truncate: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.beta_slow > self.beta_fast:
            raise UserError(f"beta_slow={self.beta_slow} is above beta_fast={self.beta_fast}.")

    def __call__(self, freqs: np.ndarray, theta: float, length: int) -> tuple[np.ndarray, float]:
        dims = 2 * len(freqs)
        low, high = (self._dimension(turns, dims, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        width = high - low if high != low else 0.001  # transformers' guard against 0/0
        ramp = np.clip((np.arange(len(freqs)) - low) / width, 0, 1)
        return ramp * freqs / self.factor + (1 - ramp) * freqs, self._attention()

    def _dimension(self, turns: float, dims: int, theta: float) -> float:
        """Which dimension turns that often within the original length."""
        return dims * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def _attention(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRope(Checked):
    """LongRoPE: one divisor per frequency, of two lists; which one depends on the (static) length of the text.

    Texts on either side of original_max_position_embeddings are therefore two compiled programs with different
    angles everywhere. Source: arXiv 2402.13753.
    """

    short_factor: Annotated[tuple[float, ...], _FACTORS]
    long_factor: Annotated[tuple[float, ...], _FACTORS]
    original_max_position_embeddings: Annotated[int, _LENGTH]
    factor: Annotated[float, STRETCH]
    """max / original length, unless the config says otherwise."""
    attention_factor: Annotated[float, _TURNS] | None = None

    def __call__(self, freqs: np.ndarray, theta: float, length: int) -> tuple[np.ndarray, float]:
        original = self.original_max_position_embeddings
        divisors = self.long_factor if length > original else self.short_factor
        if len(divisors) != len(freqs):
            raise UserError(
                f"longrope lists {len(divisors)} factors; heads of {2 * len(freqs)} have {len(freqs)} pairs."
            )
        attention = self.attention_factor
        if attention is None:
            attention = 1.0 if self.factor <= 1 else math.sqrt(1 + math.log(self.factor) / math.log(original))
        return freqs / np.asarray(divisors, np.float32), attention


RULES: Final = {"linear": Linear, "dynamic": Dynamic, "llama3": Llama3, "yarn": Yarn, "longrope": LongRope}
_ALIASES: Final = {"su": "longrope"}
"""Older names."""
_NAMES: Final = {rule: name for name, rule in RULES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotation of pairs of coordinates of q and k by the angle position * frequency_i.

        frequency_i = theta ** (-2 i / dims),  changed by `scaling` where a model was stretched to longer texts

    Source: arXiv 2104.09864; in the half-split form of Llama or with neighbours as pairs.
    """

    theta: Annotated[float, THETA] = 10000.0
    dims: Annotated[int, whole()] | None = None
    """The first so many coordinates of a head are turned; None: all."""
    interleaved: bool = False
    """Pairs are (2i, 2i + 1), as published (GPT-J), instead of (i, i + dims/2)."""
    scaling: Linear | Dynamic | Llama3 | Yarn | LongRope | None = None

    def __post_init__(self):
        check_fields(self, "rope.")
        if self.scaling is not None and type(self.scaling) not in _NAMES:
            raise UserError(f"rope.scaling={shown(self.scaling)} is none of {', '.join(r.__name__ for r in _NAMES)}.")

    def tables(self, d_head: int, length: int) -> tuple[Float[Array, "pos half"], Float[Array, "pos half"]]:
        """cos and sin of every angle, float32, for positions 0 .. length-1."""
        freqs, factor = self._stretched(d_head, length)
        angles = np.arange(length, dtype=np.float32)[:, None] * freqs.astype(np.float32)
        cos, sin = np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)
        return jnp.asarray(cos), jnp.asarray(sin)

    def same(self, d_head: int, length: int, other: int) -> bool:
        """Whether texts of two lengths are turned by the same angles at each position."""
        (one, by), (two, too) = (self._stretched(d_head, n) for n in (length, other))
        return by == too and np.array_equal(one, two)

    def _stretched(self, d_head: int, length: int) -> tuple[np.ndarray, float]:
        freqs = _frequencies(self.theta, self.dims or d_head)
        return (freqs, 1.0) if self.scaling is None else self.scaling(freqs, self.theta, length)


def _frequencies(theta: float, dims: int) -> np.ndarray:
    return 1.0 / np.float32(theta) ** (np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims))


def rotate(
    x: Float[Array, "batch pos head d_head"],
    cos: Float[Array, "*batch pos half"],
    sin: Float[Array, "*batch pos half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "batch pos head d_head"]:
    """Turn each pair of the first 2 * half coordinates by its angle, in float32; the dtype of x is kept.

    Pairs are (i, i + half), or (2i, 2i + 1) if `interleaved`.
    """
    turned, rest = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    turned = turned.astype(jnp.float32)
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else jnp.split(turned, 2, axis=-1)
    cos, sin = (aligned(v[..., None, :], a) for v in (cos, sin))
    pair = [a * cos - b * sin, b * cos + a * sin]
    turned = jnp.stack(pair, axis=-1).reshape(turned.shape) if interleaved else jnp.concatenate(pair, axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeKeys:
    """How a family's config.json spells its rope in transformers 4, and what holds where it says nothing."""

    theta: str = "rope_theta"
    default_theta: float = 10000.0
    part: str | None = None
    """Which part of a head is turned; None: all of it."""
    default_part: float = 1.0
    interleaved: bool = False
    local_theta: str | None = None
    """Key of the theta of layers with a window, which are not stretched."""
    default_local_theta: float = 10000.0


def ropes_from_hf(hf: Mapping[str, Any], keys: RopeKeys, d_head: int) -> dict[str, Rope | None]:
    """{"rope", "local_rope"} from the keys of transformers 4 or from `rope_parameters` (transformers 5).

    Where a file has both, `rope_scaling` counts, as in transformers: 4 knows no other, and 5 puts it in the place of
    `rope_parameters`, theta included (in a family with two ropes: on top of those of full_attention).

    Raises:
      UserError: a rope type that is not in `RULES`, a rule that lacks a key, a part of the head where there is none, a
        value of another type or out of range.
    """
    if not isinstance(hf, Fields):
        with Fields(hf, "config.json") as fields:
            return ropes_from_hf(fields, keys, d_head)
    old, new = hf.group("rope_scaling"), hf.group("rope_parameters")
    theta = hf.read(keys.theta, null_or(THETA), None) or keys.default_theta
    if keys.local_theta is None:
        given = old or new  # the old name wins in both versions; nothing of the other is read
        if _by_kind(given):
            raise UserError("config.json has one rope per kind of layer, which this model family cannot have.")
        return {"rope": _rope(given, theta, hf, keys, d_head), "local_rope": None}
    if _by_kind(old) or (new and not _by_kind(new)):
        raise UserError(
            "config.json of this model family has one rope per kind of layer in rope_parameters (full_attention, "
            "sliding_attention), and one rule for layers without a window in rope_scaling."
        )
    local_theta = hf.read(keys.local_theta, null_or(THETA), None) or keys.default_local_theta
    whole = Fields(
        {**new.group("full_attention"), **old}, hf.where, inside="rope of full_attention.", problems=hf.problems
    )
    return {
        "rope": _rope(whole, theta, hf, keys, d_head),
        "local_rope": _rope(new.group("sliding_attention"), local_theta, hf, keys, d_head),
    }


def _by_kind(given: Fields) -> bool:
    return any(isinstance(value, Mapping) for value in given.values())


def _rope(given: Fields, theta: float, hf: Fields, keys: RopeKeys, d_head: int) -> Rope:
    theta = given.read("rope_theta", null_or(THETA), None) or theta
    dims = _dims(given, hf, keys, d_head)
    kind = given.read("rope_type", TEXT, given.read("type", TEXT, "default"))
    kind = _ALIASES.get(kind, kind)
    turned = Rope(theta=theta, dims=None if dims == d_head else dims, interleaved=keys.interleaved)
    if kind == "default":
        if not {"rope_type", "type"} & set(given) and (odd := set(given) - {"rope_theta", "partial_rotary_factor"}):
            hf.note(f"{given.called(min(odd, key=str))} is given without a rope_type")  # 4 fails, 5 ignores it
        return turned
    if kind not in RULES:
        raise unknown("rope type", kind, ["default", *RULES], where="config.json")
    return dataclasses.replace(turned, scaling=_rule(kind, given, hf))


_PART: Final = number(above=0, high=1)


def _dims(given: Fields, hf: Fields, keys: RopeKeys, d_head: int) -> int:
    """How many coordinates of a head are turned."""
    if keys.part == "rotary_dim":
        return hf.read(keys.part, whole(), int(keys.default_part))
    share: Kind[Any] = _PART if keys.part else null_or(_PART)
    part = hf.read(keys.part or "partial_rotary_factor", share, keys.default_part)
    part = given.read("partial_rotary_factor", share, part)
    part = keys.default_part if part is None else part
    if keys.part is None and part != 1:
        raise UserError(f"config.json rotates only {part} of each head, which this model family cannot do.")
    dims = int(d_head * part)
    if abs(d_head * part - dims) > 1e-6:
        hf.note(f"{part:g} of a head of {d_head} is turned, {d_head * part:g} coordinates: not a whole number")
    return dims


def _rule(kind: str, given: Fields, hf: Fields) -> Any:
    rule, length = RULES[kind], "original_max_position_embeddings"
    lengths = [f.read(n, null_or(_LENGTH), None) for f, n in ((hf, length), (given, length))]
    longest = hf.read("max_position_embeddings", null_or(_LENGTH), None)
    trained = next(filter(None, lengths), None)
    # null is as good as absent, but for a switch, where transformers takes it for false.
    asked = {n: k if k is FLAG else null_or(k) for n, k in kinds_of(rule).items() if n in given}
    values = {n: given.read(n, k) for n, k in asked.items()}
    values[length] = trained or longest
    if values.get("factor") is None and trained and longest:
        values["factor"] = longest / trained
    fields = {f.name: f for f in dataclasses.fields(rule)}
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING and values.get(n) is None]
    if needed:
        raise UserError(f"config.json: the rope type {kind!r} needs {', '.join(needed)}.")
    return rule(**{n: v for n, v in values.items() if n in fields and v is not None})


def ropes_to_hf(rope: Rope, local: Rope | None, keys: RopeKeys, d_head: int) -> dict[str, Any]:
    """The keys of transformers 4, which every version reads."""
    dims = rope.dims or d_head
    out: dict[str, Any] = {keys.theta: rope.theta, "rope_scaling": None}
    if keys.part == "rotary_dim":
        out[keys.part] = dims
    elif keys.part is not None:
        out[keys.part] = dims / d_head
    if keys.local_theta and local is not None:
        out[keys.local_theta] = local.theta
    if rope.scaling is not None:
        values = {k: v for k, v in dataclasses.asdict(rope.scaling).items() if v is not None}
        out["rope_scaling"] = {"rope_type": _NAMES[type(rope.scaling)], **values}
    return out
