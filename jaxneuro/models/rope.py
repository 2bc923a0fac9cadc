# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: the rotation, and the published rules that stretch its frequencies to longer texts.

Every angle is static (numpy, computed while tracing), so a compiled model holds two constant tables. A rule is a tiny
frozen dataclass whose fields are the keys of a Hugging Face `rope_scaling` entry; a new rule is a class and a line in
`RULES`. Each is a function (frequencies, theta, length) -> (frequencies, factor on cos and sin).
"""

import dataclasses
import math
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import UserError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Position interpolation: every frequency divided by `factor`. Source: arXiv 2306.15595."""

    factor: float

    def __call__(self, freqs: np.ndarray, theta: float, length: int) -> tuple[np.ndarray, float]:
        return freqs / np.float32(self.factor), 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamic:
    """Dynamic NTK: a text longer than the original length raises theta, by how much depends on its (static) length.

        theta' = theta (factor length / original - (factor - 1)) ^ (dims / (dims - 2))

    Source: transformers, modeling_rope_utils.
    """

    factor: float
    original_max_position_embeddings: int

    def __call__(self, freqs: np.ndarray, theta: float, length: int) -> tuple[np.ndarray, float]:
        dims, original = 2 * len(freqs), self.original_max_position_embeddings
        stretched = self.factor * max(length, original) / original - (self.factor - 1)
        return _frequencies(theta * stretched ** (dims / (dims - 2)), dims), 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3:
    """Llama 3.1: long waves divided by `factor`, short ones kept, a linear blend between. Source: transformers."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __call__(self, freqs: np.ndarray, theta: float, length: int) -> tuple[np.ndarray, float]:
        turns = self.original_max_position_embeddings * freqs / (2 * math.pi)  # within the original length
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0, 1)
        return (1 - blend) * freqs / self.factor + blend * freqs, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN: a ramp over dimensions between interpolated and original frequencies. Source: arXiv 2309.00071."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

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
class LongRope:
    """LongRoPE: one divisor per frequency, of two lists; which one depends on the (static) length of the text.

    Texts on either side of original_max_position_embeddings are therefore two compiled programs with different
    angles everywhere. Source: arXiv 2402.13753.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float
    """max / original length, unless the config says otherwise."""
    attention_factor: float | None = None

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

    theta: float = 10000.0
    dims: int | None = None
    """The first so many coordinates of a head are turned; None: all."""
    interleaved: bool = False
    """Pairs are (2i, 2i + 1), as published (GPT-J), instead of (i, i + dims/2)."""
    scaling: Linear | Dynamic | Llama3 | Yarn | LongRope | None = None

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
    cos, sin = cos[..., None, :], sin[..., None, :]
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


def ropes_from_hf(hf: dict[str, Any], keys: RopeKeys, d_head: int) -> dict[str, Rope | None]:
    """{"rope", "local_rope"} from the keys of transformers 4 or from `rope_parameters` (transformers 5).

    Raises:
      UserError: a rope type that is not in `RULES`, a rule that lacks a key, a part of the head where there is none.
    """
    given = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    by_kind = {k: v for k, v in given.items() if isinstance(v, dict)}
    if keys.local_theta is None:
        if by_kind:
            raise UserError("config.json has one rope per kind of layer, which this model family cannot have.")
        return {"rope": _rope(given, hf, keys, d_head), "local_rope": None}
    local = by_kind.get("sliding_attention", {})
    theta = local.get("rope_theta") or hf.get(keys.local_theta) or keys.default_local_theta
    whole = by_kind.get("full_attention", {} if by_kind else given)
    plain = {**local, "rope_theta": theta}
    return {"rope": _rope(whole, hf, keys, d_head), "local_rope": _rope(plain, hf, keys, d_head)}


def _rope(given: dict[str, Any], hf: dict[str, Any], keys: RopeKeys, d_head: int) -> Rope:
    part = given.get("partial_rotary_factor", hf.get(keys.part or "partial_rotary_factor"))
    part = keys.default_part if part is None else part
    if keys.part is None and part != 1:
        raise UserError(f"config.json rotates only {part} of each head, which this model family cannot do.")
    kind = given.get("rope_type", given.get("type", "default"))
    kind = _ALIASES.get(kind, kind)
    theta = float(given.get("rope_theta") or hf.get(keys.theta) or keys.default_theta)
    dims = int(part if keys.part == "rotary_dim" else d_head * part)
    turned = Rope(theta=theta, dims=None if dims == d_head else dims, interleaved=keys.interleaved)
    if kind == "default":
        return turned
    if kind not in RULES:
        raise unknown("rope type", kind, ["default", *RULES], where="config.json")
    return dataclasses.replace(turned, scaling=_rule(kind, given, hf))


def _rule(kind: str, given: dict[str, Any], hf: dict[str, Any]) -> Any:
    trained = hf.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    values = {**given, "original_max_position_embeddings": trained or hf.get("max_position_embeddings")}
    if values.get("factor") is None and trained:
        values["factor"] = hf["max_position_embeddings"] / trained
    fields = {f.name: f for f in dataclasses.fields(RULES[kind])}
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING and values.get(n) is None]
    if needed:
        raise UserError(f"config.json: the rope type {kind!r} needs {', '.join(needed)}.")
    known = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in fields and v is not None}
    return RULES[kind](**known)


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
