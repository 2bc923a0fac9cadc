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


RULES: Final = {"linear": Linear, "llama3": Llama3, "yarn": Yarn, "longrope": LongRope}
_NAMES: Final = {rule: name for name, rule in RULES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotation of the coordinate pairs (i, i + d_head/2) of q and k by the angle position * frequency_i.

        frequency_i = theta ** (-2 i / d_head),  changed by `scaling` where a model was stretched to longer texts

    Source: arXiv 2104.09864, in the half-split form of Llama.
    """

    theta: float = 10000.0
    scaling: Linear | Llama3 | Yarn | LongRope | None = None

    def tables(self, d_head: int, length: int) -> tuple[Float[Array, "pos half"], Float[Array, "pos half"]]:
        """cos and sin of every angle, float32, for positions 0 .. length-1."""
        freqs = 1.0 / np.float32(self.theta) ** (np.arange(0, d_head, 2, dtype=np.float32) / np.float32(d_head))
        factor = 1.0
        if self.scaling is not None:
            freqs, factor = self.scaling(freqs, self.theta, length)
        angles = np.arange(length, dtype=np.float32)[:, None] * freqs.astype(np.float32)
        cos, sin = np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)
        return jnp.asarray(cos), jnp.asarray(sin)


def rotate(
    x: Float[Array, "batch pos head d_head"], cos: Float[Array, "pos half"], sin: Float[Array, "pos half"]
) -> Float[Array, "batch pos head d_head"]:
    """Turn each pair (x_i, x_{i + d_head/2}) by its angle, in float32; the dtype of x is kept."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rope_from_hf(hf: dict[str, Any]) -> Rope:
    """Read `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).

    Raises:
      UserError: a rope type that is not in `RULES`, a rule that lacks a key, rotation of a part of the head.
    """
    given = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if any(isinstance(v, dict) for v in given.values()):
        raise UserError("config.json has one rope per kind of layer, which this model family cannot have.")
    kind = given.get("rope_type", given.get("type", "default"))
    if (part := given.get("partial_rotary_factor", hf.get("partial_rotary_factor"))) not in (None, 1, 1.0):
        raise UserError(f"config.json rotates only {part} of each head (partial_rotary_factor); only 1 is supported.")
    theta = float(given.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    if kind == "default":
        return Rope(theta=theta)
    if kind not in RULES:
        raise unknown("rope type", kind, ["default", *RULES], where="config.json")
    return Rope(theta=theta, scaling=_rule(kind, given, hf))


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


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """The keys `rope_theta` and `rope_scaling`, which every transformers version reads."""
    if rope.scaling is None:
        return {"rope_theta": rope.theta, "rope_scaling": None}
    values = {k: v for k, v in dataclasses.asdict(rope.scaling).items() if v is not None}
    return {"rope_theta": rope.theta, "rope_scaling": {"rope_type": _NAMES[type(rope.scaling)], **values}}
