# SPDX-License-Identifier: Apache-2.0
"""Pickles of torch.save, read without running them.

A pickle is a program. Python's unpickler runs it and may call anything it names. Here its instructions are read one by
one (`pickletools.genops`, which runs nothing) by a machine that knows dict, list, tuple, numbers, text, and the few
names in _SYMBOLS that torch uses for tensors. Any other name, and any instruction that could make an object of
another kind, ends the reading. Source: torch 2.13, torch/_utils.py; Python's pickletools.
"""

import pickletools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, Final, NamedTuple, cast

import ml_dtypes
import numpy as np

from ..errors import shown

LONGEST_PICKLE: Final = 10_000_000
"""Bytes: a tensor takes about a hundred, and its numbers lie outside."""
DEEPEST: Final = 64
_DTYPES: Final = {
    "FloatStorage": np.dtype("f4"),
    "DoubleStorage": np.dtype("f8"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Storage(NamedTuple):
    """What a persistent id of the pickle says: some memory outside of it."""

    dtype: np.dtype
    key: str
    numel: int


class TensorOf(NamedTuple):
    """A strided view of a storage, not yet read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Refused(Exception):
    """The pickle asks for something else than tensors and plain containers."""


def interpret(f: BinaryIO) -> Any:
    """The value of one pickle, with `TensorOf` where torch put a tensor; the file is left behind its end.

    Raises:
      Refused: it holds something else than tensors, plain containers, numbers and text.
      EOFError, ValueError, LookupError, TypeError: it is damaged.
    Example:
      >>> import io, pickle
      >>> interpret(io.BytesIO(pickle.dumps({"k": [1, 2.5, "a", None]})))
      {'k': [1, 2.5, 'a', None]}
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in damaged names
        return _run(f)


def _run(f: BinaryIO) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    deep = _Depths()

    def to_mark() -> list[Any]:
        start = marks.pop()
        out = stack[start:]
        del stack[start:]
        return out

    for op, argument, position in pickletools.genops(f):
        name, arg = op.name, cast(Any, argument)
        if (position or 0) > LONGEST_PICKLE:
            raise ValueError(f"its pickle has more than {LONGEST_PICKLE:,} bytes")
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(arg)
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _BUILD_FROM_MARK:
            stack.append(deep.noted(_BUILD_FROM_MARK[name](to_mark())))
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(deep.noted(tuple(reversed(items))))
        elif name in _FILL:
            items = to_mark() if name.endswith("S") else _popped(stack, 1 + (name == "SETITEM"))
            _FILL[name](stack[-1], items)
            deep.noted(stack[-1], items)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(arg)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(arg)])
        elif name == "GLOBAL":
            stack.append(_symbol(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_symbol(*_popped(stack, 2)))
        elif name == "REDUCE":
            function, arguments = _popped(stack, 2)
            if not any(function is known for known in _CALLED.values()):
                raise Refused("a call of something that is no constructor of tensors")
            stack.append(deep.noted(function(*arguments)))
        elif name == "BUILD":
            (state,) = _popped(stack, 1)
            if not (isinstance(stack[-1], dict) and isinstance(state, dict) and [*state] == ["_metadata"]):
                raise Refused(f"an object with attributes ({type(stack[-1]).__name__})")
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "STOP":
            (value,) = stack
            return value
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"the pickle instruction {name}")
    raise EOFError("its pickle has no end")


class _Depths:
    """How deeply containers lie in one another, counted as they are made: nothing may walk one that has no end."""

    def __init__(self):
        self._of: dict[int, tuple[int, Any]] = {}  # by id; the container is kept, so that its id stays its own

    def noted[T](self, container: T, items: Iterable[Any] | None = None) -> T:
        """The container itself, if it is not too deep with what it holds or what was just put into it.

        A dict or list that was put into another before it was filled counts there as it was: what then contains
        itself, or is deeper than it seems, is refused when tensors are put in the place of their descriptions.
        """
        if isinstance(container, dict | list | tuple) and not isinstance(container, Storage | TensorOf):
            if items is None:
                items = container.values() if isinstance(container, dict) else container
            levels = [self._of[id(v)][0] for v in items if id(v) in self._of]
            before = self._of.get(id(container), (1, None))[0]
            depth = max(before, 1 + max(levels, default=0))
            if depth > DEEPEST:
                raise Refused(f"containers nested more than {DEEPEST} levels deep")
            self._of[id(container)] = (depth, container)
        return container


def _dict(items: list[Any]) -> dict[Any, Any]:
    """Keys are looked at before they are hashed: hashing a tuple of tuples takes as long as its writer likes."""
    keys = items[::2]
    if not all(isinstance(key, str | int | float | None) for key in keys):
        raise Refused("a dict whose keys are not text or numbers")
    return dict(zip(keys, items[1::2], strict=True))


def _popped(stack: list[Any], n: int) -> list[Any]:
    out = stack[-n:]
    del stack[-n:]
    return out


def _set_items(into: Any, items: list[Any]) -> None:
    if type(into) is not dict:
        raise Refused(f"items set on a {type(into).__name__}")
    into |= _dict(items)


def _extend(into: Any, items: list[Any]) -> None:
    if type(into) is not list:
        raise Refused(f"items appended to a {type(into).__name__}")
    into += items


_CONSTANTS: Final[Mapping[str, Callable[[], Any]]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_LITERALS: Final = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    )
)
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_BUILD_FROM_MARK: Final[Mapping[str, Callable[[list[Any]], Any]]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": _dict,
}
_FILL: Final = {"SETITEM": _set_items, "SETITEMS": _set_items, "APPEND": _extend, "APPENDS": _extend}


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_ignored: Any) -> TensorOf:
    if not all(isinstance(x, list | tuple) and len(x) <= 32 for x in (shape, strides)):
        raise ValueError("a tensor's shape and strides are not lists of at most 32 counts")
    counts = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or any(type(n) is not int or not 0 <= n < 2**63 for n in counts):
        raise ValueError("a tensor is not described by a storage and counts")
    shape, strides = tuple(shape), tuple(strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} has strides {strides}")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.numel:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.numel} elements")
    if np.prod(shape, dtype=object) > max(storage.numel, 1):
        raise ValueError(f"a tensor of shape {shape} repeats the {storage.numel} elements of its storage")
    return TensorOf(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_ignored: Any) -> TensorOf:
    if not isinstance(tensor, TensorOf):
        raise ValueError("a parameter is not made of a tensor")
    return tensor


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    pairs = list(items.items()) if isinstance(items, dict) else items
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise ValueError("an OrderedDict is not made of pairs")
    return _dict([x for pair in pairs for x in pair])


def _size(shape: Any = ()) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or not all(type(n) is int for n in shape):
        raise ValueError("a torch.Size is not made of counts")
    return tuple(shape)


_CALLED: Final = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
}
_SYMBOLS: Final = {**_CALLED, **{("torch", name): dtype for name, dtype in _DTYPES.items()}}


def _symbol(module: Any, name: Any) -> Any:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Refused("an object whose name is no text")
    if (module, name) not in _SYMBOLS:
        raise Refused(f"the object {shown(module)}.{shown(name)}")
    return _SYMBOLS[module, name]


def _storage(persistent_id: Any) -> Storage:
    if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
        raise ValueError("a persistent id describes no storage")
    kind, dtype, key, _location, numel, *_view = persistent_id
    sound = isinstance(kind, str) and kind == "storage" and isinstance(dtype, np.dtype)
    if not sound or not isinstance(key, str | int) or type(numel) is not int or not 0 <= numel < 2**63:
        raise ValueError(f"{shown(persistent_id)} describes no storage")
    if _view and _view[0] is not None:
        raise ValueError("a storage is a view of another, as torch before 0.4 wrote it")
    return Storage(dtype, str(key)[:100], numel)
