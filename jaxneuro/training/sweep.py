# SPDX-License-Identifier: Apache-2.0
"""The members of a sweep: which dictionaries a run trains, each by its name, and all of them as one method."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp

from ..activations.together import together
from ..errors import UserError, unknown
from ..protocols import Batch, Method
from .config import Live, TrainConfig
from .options import TrainingOptions, made
from .strict import read

PLACED: dict[str, Any] = {"site": str, "target": str}
"""Options of a sweep that are the source's."""


class Member(NamedTuple):
    """One dictionary of a run."""

    place: str
    """The site, where sites are swept, else ""."""
    rest: str
    """What else is swept, "k=16,seed=1", or ""."""
    options: Any
    """Of its method."""
    seed: int
    """Of its start."""

    @property
    def name(self) -> str:
        """Of its folder and its metrics; "" where it is the only one."""
        return "/".join(part for part in (self.place, self.rest) if part)


class Place(NamedTuple):
    """Where a model is read."""

    site: tuple[str, ...]
    target: tuple[str, ...]


def places(config: TrainConfig) -> dict[str, Place]:
    """The sites of a live run by name: those of the sweep, or the source's alone under "".

    Raises:
      UserError: sites of a source that has none; targets that are not one for each site.
    """
    swept = {name: tuple(config.sweep[name]) for name in PLACED if name in config.sweep}
    if not isinstance(config.source, Live):
        if swept:
            raise UserError(f"a sweep over {', '.join(swept)} needs a live source: this one is {config.source.kind}.")
        return {"": Place((), ())}
    if not swept:
        return {"": Place(config.source.site, config.source.target)}
    sites = swept.get("site", config.source.site[:1] * len(swept.get("target", ())))
    targets = swept.get("target", config.source.target[:1] * len(sites))
    if targets and len(targets) != len(sites):
        raise UserError(f"sweep: {len(sites)} sites and {len(targets)} targets: they go in pairs.")
    names = sites if "site" in swept else targets
    return {n: Place((s,), targets[i : i + 1]) for i, (n, s) in enumerate(zip(names, sites, strict=True))}


def members(config: TrainConfig) -> tuple[Member, ...]:
    """Every combination of the sweep's values, checked.

    Raises:
      UserError: an option that does not exist (with the nearest), a value of another type, the same value twice.
    """
    own = get_type_hints(type(config.method), include_extras=True)
    training = get_type_hints(TrainingOptions, include_extras=True) if "training" in own else {}
    known = {**training, **{n: t for n, t in own.items() if n != "training"}, "seed": int, **PLACED}
    for name in config.sweep.keys() - known.keys():
        raise unknown("option", name, known, where="sweep")
    swept = {n: read(tuple[known[n], ...], v, f"sweep.{n}") for n, v in config.sweep.items()}
    for name, values in swept.items():
        if not values or len(set(values)) < len(values):
            raise UserError(f"sweep: {name} = {list(values)}: give different values, at least one.")
    at = places(config)
    others = {name: values for name, values in swept.items() if name not in PLACED}
    found = []
    for place in at:
        for values in itertools.product(*others.values()):
            chosen = dict(zip(others, values, strict=True))
            rest = ",".join(f"{name}={value}" for name, value in chosen.items()).replace("/", "_")
            seed = chosen.pop("seed", config.seed)
            found.append(Member(place, rest, _with(config.method, chosen, set(own)), seed))
    return tuple(found)


def _with(options: Any, chosen: Mapping[str, Any], own: set[str]) -> Any:
    inner = {name: v for name, v in chosen.items() if name not in own}
    if inner:
        chosen = {**chosen, "training": dataclasses.replace(options.training, **inner)}
    return dataclasses.replace(options, **{name: v for name, v in chosen.items() if name in own})


_CARRY = 1 << 30
"""Tokens are counted in two int32: billions of them are usual."""


def counted(method: Method, seed: int) -> Method:
    """The method from a key of its own, its `nonfinite_tokens` summed over all steps, and `tokens_seen` beside."""

    def init(key: jax.Array, batch: Batch) -> dict[str, Any]:
        del key
        seen = jnp.zeros(2, jnp.int32)
        return {"method": method.init(jax.random.key(seed), batch), "nonfinite": jnp.int32(0), "seen": seen}

    def step(state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        inner, info = method.step(state["method"], batch)
        total = state["nonfinite"] + info["nonfinite_tokens"]
        low = state["seen"][1] + info["tokens"].astype(jnp.int32)
        seen = jnp.stack([state["seen"][0] + low // _CARRY, low % _CARRY])
        tokens = seen[0].astype(jnp.float32) * _CARRY + seen[1].astype(jnp.float32)
        new = {"method": inner, "nonfinite": total, "seen": seen}
        return new, {**info, "nonfinite_tokens": total, "tokens_seen": tokens}

    return Method(init, step, lambda state: method.finish(state["method"]))


def methods(config: TrainConfig, mesh: Any) -> dict[str, Method]:
    """Place -> the method of its members, all on the same batches; `finish` gives {member's name: dictionary}.

    Raises:
      UserError: from the methods, k above n_latents and the like.
    """
    found: dict[str, dict[Member, Method]] = {}
    for member in members(config):
        told = {"steps": config.updates if config.decay else None, "mesh": mesh}
        found.setdefault(member.place, {})[member] = counted(made(member.options, **told), member.seed)
    return {place: _joined(each) for place, each in found.items()}


def _joined(each: Mapping[Member, Method]) -> Method:
    if len(each) == 1:
        ((member, method),) = each.items()
        return method._replace(finish=lambda state: {member.name: method.finish(state)})
    all_of_them = together({member.rest: method for member, method in each.items()})
    names = {member.rest: member.name for member in each}
    return all_of_them._replace(
        finish=lambda state: {names[rest]: found for rest, found in all_of_them.finish(state).items()}
    )
