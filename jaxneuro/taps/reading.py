# SPDX-License-Identifier: Apache-2.0
"""How equations that hold other programs are read: the one file that may break with a JAX release.

Everything else builds programs through JAX's public transforms. Checked with jax 0.11.2, also with JAX_REMAT3=1.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.sharding import AxisType, NamedSharding

from ..errors import UserError
from .primitive import tap_p

_KINDS = {
    "jit": "jit",
    "pjit": "jit",
    "closed_call": "call",
    "core_call": "call",
    "call": "call",
    "eval_jaxpr": "call",
    "remat2": "remat",
    "checkpoint": "remat",
    "remat": "remat",
    "RematTraced": "remat",
    "scan": "scan",
    "while": "while",
    "cond": "cond",
    "custom_jvp_call": "custom_jvp",
    "custom_vjp_call": "custom_vjp",
    "shard_map": "shard_map",
}


def kind(eqn: JaxprEqn) -> str:
    """What an equation is, in our words; the primitive's own name for those we have no word for."""
    name = type(eqn.params["_prim"]).__name__ if "_prim" in eqn.params else eqn.primitive.name
    if name == "cond" and eqn.params.get("branches_platforms") is not None:
        return "platform_dependent"
    return _KINDS.get(name, name)


def params(eqn: JaxprEqn) -> dict[str, Any]:
    """The parameters; under JAX_REMAT3 they are an object's inside the equation."""
    return {**eqn.params, **eqn.params["_prim"].params} if "_prim" in eqn.params else eqn.params


def programs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The programs inside an equation, in the order of its parameters."""
    found = []
    for value in params(eqn).values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                found.append(item)
    return found


def opened(program: Any) -> tuple[Jaxpr, list[Any]]:
    """(jaxpr, constants). JAX 0.11 has one class for open and closed programs; earlier it had two."""
    return getattr(program, "jaxpr", program), list(getattr(program, "consts", ()))


def value_of(atom: Any, values: dict[Any, Any]) -> Any:
    """The value of an equation's input."""
    return atom.val if isinstance(atom, Literal) else values[atom]


def bind(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """Run an equation as it is."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


class Scan(NamedTuple):
    body: Jaxpr
    n_consts: int
    n_carry: int
    length: int
    reverse: bool
    unroll: int | bool


def scan(eqn: JaxprEqn) -> Scan:
    p = eqn.params
    if "num_consts" in p:  # before 0.11
        counts = p["num_consts"], p["num_carry"]
    else:
        consts, carry, _ = p["ft_in"].unpack()
        counts = len(consts), len(carry)
    return Scan(p["jaxpr"], *counts, p["length"], p["reverse"], p["unroll"])


class While(NamedTuple):
    cond: Jaxpr
    n_cond_consts: int
    body: Jaxpr
    n_body_consts: int


def while_loop(eqn: JaxprEqn) -> While:
    p = eqn.params
    return While(p["cond_jaxpr"], p["cond_nconsts"], p["body_jaxpr"], p["body_nconsts"])


class Remat(NamedTuple):
    body: Jaxpr
    prevent_cse: bool | tuple[bool, ...]
    policy: Callable[..., Any] | None
    recomputes: bool
    """It may be the second run of something: the backward half of a differentiated program."""


def remat(eqn: JaxprEqn) -> Remat:
    p = params(eqn)
    return Remat(p["jaxpr"], p["prevent_cse"], p["policy"], p.get("differentiated", True))


class Jit(NamedTuple):
    body: Jaxpr
    name: str
    options: tuple[tuple[str, Any], ...]
    """What jax.jit is to be called with, for a function of (plan, *inputs) -> (outputs, frame)."""


def jit(eqn: JaxprEqn) -> Jit:
    p = eqn.params
    if any(layout is not None for layout in (*p["in_layouts"], *p["out_layouts"])):
        raise UserError(
            f"jit of {p['name']!r} fixes memory layouts, which cannot be kept around a site that is read or edited. "
            "Call the function without jit inside, and put jax.jit with the layouts outside."
        )
    ins, outs = ([_sharding(s) for s in p[k]] for k in ("in_shardings", "out_shardings"))
    options: dict[str, Any] = {"keep_unused": p["keep_unused"], "inline": p["inline"]}
    if any(s is not None for s in ins):
        options["in_shardings"] = (None, *ins)
    if any(s is not None for s in outs):
        options["out_shardings"] = (tuple(outs), None)
    if any(p["donated_invars"]):
        options["donate_argnums"] = tuple(1 + i for i, donated in enumerate(p["donated_invars"]) if donated)
    return Jit(p["jaxpr"], p["name"], tuple(options.items()))


def _sharding(sharding: Any) -> Any:
    return None if type(sharding).__name__ == "UnspecifiedValue" else sharding


class ShardMap(NamedTuple):
    body: Jaxpr
    mesh: Any
    in_specs: tuple[Any, ...]
    out_specs: tuple[Any, ...]
    check_vma: bool
    axes: frozenset[str]


def shard_map(eqn: JaxprEqn) -> ShardMap:
    p = eqn.params
    axes = frozenset(p["newly_manual_axes"])
    return ShardMap(p["jaxpr"], p["mesh"], tuple(p["in_specs"]), tuple(p["out_specs"]), p["check_vma"], axes)


def varies_over(x: Any) -> frozenset[str]:
    """The mesh axes over which a value inside shard_map may differ."""
    kind_of_value = jax.typeof(x)
    if (vma := getattr(kind_of_value, "vma", None)) is not None:
        return frozenset(vma)
    return frozenset(kind_of_value.manual_axis_type.varying)


def type_sharding(x: Any) -> NamedSharding | None:
    """How a value is split over a mesh, where that is part of its type (explicit mode)."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


_names: "weakref.WeakKeyDictionary[Jaxpr, frozenset[str]]" = weakref.WeakKeyDictionary()


def site_names(program: Jaxpr) -> frozenset[str]:
    """Names of all sites anywhere in a program."""
    jaxpr, _ = opened(program)
    if jaxpr not in _names:
        here = {e.params["name"] for e in jaxpr.eqns if e.primitive is tap_p}
        _names[jaxpr] = frozenset(here).union(*(site_names(p) for e in jaxpr.eqns for p in programs(e)))
    return _names[jaxpr]


def holds_site(eqn: JaxprEqn) -> bool:
    """Whether an equation has a program with a site inside."""
    return any(site_names(p) for p in programs(eqn))
