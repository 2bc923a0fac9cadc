# SPDX-License-Identifier: Apache-2.0
"""A method's own signature as a dataclass: what `jaxneuro.dictionaries` can be told is what the command line offers."""

import ast
import collections.abc
import dataclasses
import functools
import inspect
import itertools
import json
import operator
import re
import textwrap
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeAliasType, Union, get_args, get_origin

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from ..dictionaries import Training, atoms, batch_topk, gated, group_max, jumprelu, matryoshka, multi_topk, relu, topk
from ..dictionaries import transcoder as transcoder
from ..dictionaries.clt import cross_layer_transcoder
from ..dictionaries.crosscoder import crosscoder
from ..dictionaries.kmeans import kmeans
from ..dictionaries.matching_pursuit import matching_pursuit
from ..dictionaries.pca import pca
from ..dictionaries.semi_nmf import semi_nmf
from ..docs import doc
from .strict import read

METHODS: Final = {
    f.__name__: f
    for f in (
        *(topk, batch_topk, matryoshka, multi_topk, group_max, matching_pursuit, relu, jumprelu, gated, atoms),
        *(transcoder, cross_layer_transcoder, crosscoder, pca, kmeans, semi_nmf),
    )
}
"""Every method of the command: a new one is a name here, and its file."""
FROM_THE_RUN: Final = ("steps", "mesh", "data_axis")
"""What `Training` is told by the run, and not by a person."""
_PLAIN: Final = (bool, int, float, str, types.NoneType)


def options(function: Callable[..., Any], *, leave_out: tuple[str, ...] = ()) -> type:
    """A frozen, keyword-only dataclass of what a function takes, with its defaults and the words of its docstring.

    Alternatives that nobody can type (functions, meshes) are left out. `kind` is the function's name, `make` itself.

    Example:
      >>> made = options(topk)(n_latents=8, k=2)
      >>> made.kind, made.k, made.training.accumulate
      ('topk', 2, 1)
    """
    words, fields = described(function), []
    for name, p in inspect.signature(function).parameters.items():
        offered = _offered(p.annotation)
        if name in leave_out or not set(offered) - {types.NoneType}:
            continue
        default = TrainingOptions() if isinstance(p.default, Training) else p.default
        given = {} if default is p.empty else {"default": default}
        kind: Any = functools.reduce(operator.or_, offered)
        fields.append((name, Annotated[kind, *_marks(offered, words.get(name, ""))], dataclasses.field(**given)))
    space = {"kind": function.__name__, "make": staticmethod(function), "__doc__": doc(function).partition("\n")[0]}
    return dataclasses.make_dataclass(
        function.__name__, fields, frozen=True, kw_only=True, namespace=space, module=__name__
    )


def _offered(kind: Any) -> list[Any]:
    """The alternatives of an annotation that text can stand for."""
    if isinstance(kind, TypeAliasType):
        return _offered(kind.__value__)
    if kind is Training:
        return [TrainingOptions]
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return [one for part in args for one in _offered(part)]
    if origin is collections.abc.Sequence:
        return [tuple[args[0], ...]]
    return [kind] if kind in _PLAIN or origin in (tuple, Literal) or dataclasses.is_dataclass(kind) else []


def _marks(offered: list[Any], words: str) -> tuple[Any, ...]:
    """What tyro is told of a field; a dataclass that may be None is one flag, `--auxk none` or `--auxk k=8`."""
    parts = [one for one in offered if dataclasses.is_dataclass(one) and types.NoneType in offered]
    return (tyro.conf.arg(help=words), *(_assignments(part) for part in parts))


def _assignments(kind: Any) -> PrimitiveConstructorSpec:
    """One flag for a dataclass of plain fields, as `none` or as name=value."""

    def made(texts: list[str]) -> Any:
        if texts in (["none"], ["None"]):
            return None
        return read(kind, dict(_pair(text) for text in texts), kind.__name__)

    def shown(value: Any) -> list[str]:
        pairs = dataclasses.asdict(value).items() if value is not None else ()
        return [f"{name}={json.dumps(v)}" for name, v in pairs] if value is not None else ["none"]

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="none|" + " ".join(f"{f.name}=..." for f in dataclasses.fields(kind)),
        instance_from_str=made,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=shown,
    )


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not name=value")
    return name, literal(value)


def literal(text: str) -> Any:
    """JSON where it is, else the text itself.

    Example:
      >>> literal("1e-3"), literal("null"), literal("muon")
      (0.001, None, 'muon')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def described(function: Callable[..., Any]) -> dict[str, str]:
    """What a docstring says of each argument; where it says "see `topk`", what is said there.

    Example:
      >>> described(multi_topk)["k"]
      'active latents per token.'
    """
    if dataclasses.is_dataclass(function):
        return _said_of_fields(function)
    text = doc(function)
    section = re.search(r"^Args:\n((?:  .*\n?)+)", text, re.M)
    found = {}
    for names, words in re.findall(r"^  (\w+(?:, \w+)*): (.*(?:\n    .*)*)", section[1] if section else "", re.M):
        if not re.match(r"see `", words):
            found |= dict.fromkeys(names.split(", "), re.sub(r"\s+", " ", words))
    elsewhere = [name for name in re.findall(r"see `(\w+)`", text) if name in METHODS and name != function.__name__]
    return {**(described(METHODS[elsewhere[0]]) if elsewhere else {}), **found}


def _said_of_fields(kind: Any) -> dict[str, str]:
    """The strings below the fields of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: re.sub(r"\s+", " ", str(said.value.value))
        for field, said in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(said, ast.Expr)
        if isinstance(said.value, ast.Constant)
    }


TrainingOptions: Any = options(Training, leave_out=FROM_THE_RUN)
"""`Training`, without what the run decides."""
OPTIONS: Final[Mapping[str, Any]] = {name: options(f) for name, f in METHODS.items()}
"""Name of a method -> the dataclass of its options."""


def made(chosen: Any, **from_the_run: Any) -> Any:
    """The `Method` (or `Training`) of options.

    Raises:
      UserError: numbers out of range, from the method.
    """
    given = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)}
    for name, value in given.items():
        if isinstance(value, TrainingOptions):
            given[name] = made(value, **from_the_run)
    return chosen.make(**given, **(from_the_run if isinstance(chosen, TrainingOptions) else {}))
