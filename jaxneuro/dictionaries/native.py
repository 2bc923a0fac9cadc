# SPDX-License-Identifier: Apache-2.0
"""Any of our dictionaries in a folder of two files, and back, bitwise: arrays in safetensors, the rest in JSON.

    dictionary.json          {"format": 1, "dictionary": {"class": "SparseCoder", "fields": {"W_enc": {"array": ...
    dictionary.safetensors   every array under its path, "activation.threshold"

A third key, "place", says where it belongs (places.py), if that is known. Other libraries' formats hold some
dictionaries (`formats/`); this one holds all of them.
"""

import dataclasses
import os
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UserError, quoted, shown, unknown
from ..io import read_json, read_safetensors, write_json, write_safetensors
from ..io.fields import FLAG, OBJECT, TEXT, Fields, Kind, choice, number, whole
from .activations import AbsTopK, Activation, Gated, GroupMax, JumpReLU, Relu, TopK, check_k
from .cross_layer import CrossLayerTranscoder
from .dictionary import INPUT_NORMS, SparseCoder
from .kmeans import KMeansDictionary
from .matching_pursuit import MatchingPursuit
from .pca import PCADictionary
from .places import Placement, own_place, own_words
from .semi_nmf import SemiNMFDictionary

FORMAT: Final = 1
FLOATS: Final = tuple(jnp.dtype(t) for t in ("float32", "bfloat16", "float16", "float64"))
RECORD: Final = "dictionary.json"
ARRAYS: Final = "dictionary.safetensors"
BELOW: Final = "dictionary"
"""Folder of what was trained, in the folder of the run that trained it."""
_ACTIVATIONS: Final = (TopK, AbsTopK, GroupMax, JumpReLU, Relu, Gated)
_DICTIONARIES: Final = (
    *(SparseCoder, CrossLayerTranscoder, MatchingPursuit, PCADictionary, KMeansDictionary, SemiNMFDictionary),
)
CLASSES: Final[Mapping[str, type]] = {c.__name__: c for c in (*_DICTIONARIES, *_ACTIVATIONS)}
"""What can be stored: dataclasses of arrays, plain values, and each other."""
_HELD: Final = {Activation: _ACTIVATIONS, Any: tuple(CLASSES.values())}
"""Type of a field -> the classes that it may hold."""
_PLAIN: Final[dict[Any, Kind[Any]]] = {
    int: whole(),
    float: number(low=0, high=1e30),
    bool: FLAG,
    str: choice(INPUT_NORMS),
}
"""Type of a field -> what it may be: counts, a tolerance, switches, the name of a normalisation."""


def save_native(dictionary: Any, folder: str | os.PathLike, *, place: Placement | None = None) -> Path:
    """Write a dictionary, and where it belongs; the JSON file is written last, a folder with it is whole.

    Raises:
      UserError: a class that is not in `CLASSES`, something in a field that has no place in the file.
    Example:
      >>> import tempfile
      >>> d = MatchingPursuit(W_dec=jnp.eye(2), b_dec=jnp.zeros(2), max_steps=1)
      >>> load_native(save_native(d, tempfile.mkdtemp())).max_steps
      1
    """
    if type(dictionary) not in CLASSES.values():
        raise unknown("class", type(dictionary).__name__, CLASSES, where="save_native")
    folder, arrays = Path(folder), {}
    record = {"format": FORMAT, "dictionary": _node(dictionary, "", arrays)}
    if place is not None:
        record["place"] = own_words(place)
    (folder / RECORD).unlink(missing_ok=True)
    write_safetensors(folder / ARRAYS, arrays)
    write_json(folder / RECORD, record)
    return folder


def load_native(folder: str | os.PathLike) -> Any:
    """Read what `save_native` wrote.

    Raises:
      UserError: a file is missing; another format or class; a field, an array or a shape that is not as recorded.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder} holds no dictionary of ours: it has no {RECORD}. Other formats: load_dictionary.")
    record, arrays = Fields(read_json(folder / RECORD), folder / RECORD), dict(read_safetensors(folder / ARRAYS))
    if type(record.get("format")) is not int or record["format"] != FORMAT:
        said = quoted(record.get("format"))
        raise UserError(f"{shown(folder / RECORD)} has format {said}; this version of jaxneuro reads {FORMAT}.")
    record.only("format", "dictionary", "place")
    with record:
        node = record.read("dictionary", OBJECT)
    dictionary = _value(node, Any, shown(folder / RECORD), arrays, {})
    if arrays:
        more = ", ".join(map(shown, sorted(arrays)[:20]))
        raise UserError(f"{shown(folder / ARRAYS)} holds arrays that {RECORD} does not name: {more}.")
    return dictionary


def native_place(folder: Path) -> Placement | None:
    """Where `save_native` was told that the dictionary belongs."""
    return own_place(Fields(read_json(folder / RECORD), folder / RECORD).get("place"), folder / RECORD)


def _node(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; its arrays are put aside under their paths."""
    if type(value) in CLASSES.values():
        inner = f"{path}." if path else ""
        fields = {f.name: _node(getattr(value, f.name), inner + f.name, arrays) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_node(v, f"{path}.{i}", arrays) for i, v in enumerate(value)]}
    if isinstance(value, jax.Array | np.ndarray):
        arrays[path] = np.asarray(value)
        return {"array": path, "dtype": str(value.dtype), "shape": list(value.shape)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    where = f" in {path!r}" if path else ""
    raise unknown("class", type(value).__name__, CLASSES, where=f"save_native{where}")


def _value(node: Any, hint: Any, where: str, arrays: dict[str, np.ndarray], sizes: dict[str, int]) -> Any:
    """The value of `_node`, of the type that its field has; arrays are taken out of `arrays`."""
    if get_origin(hint) in (Union, types.UnionType):
        if node is None and types.NoneType in get_args(hint):
            return None
        hint = next(h for h in get_args(hint) if h is not types.NoneType)
    if hint in _PLAIN:
        return _PLAIN[hint].of(node, where)
    node = node if isinstance(node, Mapping) else {None: node}
    keys = set(node)
    if get_origin(hint) is tuple and keys == {"tuple"} and isinstance(node["tuple"], list):
        inner = get_args(hint)[0]
        return tuple(_value(v, inner, f"{where}[{i}]", arrays, sizes) for i, v in enumerate(node["tuple"]))
    if hasattr(hint, "dim_str") and keys == {"array", "dtype", "shape"}:
        return _array(node, hint.dim_str.split(), where, arrays, sizes)
    if keys == {"class", "fields"} and isinstance(node["fields"], dict):
        return _instance(node, _HELD.get(hint, ()), where, arrays, sizes)
    raise UserError(f"{where} = {shown(node.get(None, node))} is nothing that save_native writes there.")


def _instance(
    node: Any, held: Collection[type], where: str, arrays: dict[str, np.ndarray], sizes: dict[str, int]
) -> Any:
    known = {kind.__name__: kind for kind in held}
    if not isinstance(node["class"], str) or node["class"] not in known:
        raise unknown("class", node["class"], known, where=where)
    kind, given = known[node["class"]], node["fields"]
    hints = {f.name: get_type_hints(kind)[f.name] for f in dataclasses.fields(kind)}
    if given.keys() != hints.keys():
        missing, more = (
            ", ".join(map(shown, sorted(names)[:20])) for names in (hints.keys() - given, given.keys() - hints)
        )
        raise UserError(f"{where}: {node['class']} lacks {missing or 'nothing'}, and has no {more or 'other field'}.")
    made = kind(**{name: _value(given[name], hint, f"{where}: {name}", arrays, sizes) for name, hint in hints.items()})
    if isinstance(made, TopK | AbsTopK | GroupMax) and "n_latents" in sizes:
        check_k(made, sizes["n_latents"])
    return made


def _array(
    node: Mapping[str, Any], axes: list[str], where: str, arrays: dict[str, np.ndarray], sizes: dict[str, int]
) -> jax.Array:
    """A floating, finite array of these axes; an axis has one size in the whole dictionary, "to_layers" any."""
    name = TEXT.of(node["array"], f"{where}: array")
    found = arrays.pop(name, None)
    if found is None:
        raise UserError(f"{where}: the array {quoted(name)} is not in {ARRAYS}.")
    if (node["dtype"], node["shape"]) != (str(found.dtype), list(found.shape)):
        said = f"{shown(node['dtype'])}{shown(node['shape'])}"
        raise UserError(f"{where}: recorded as {said}, but {ARRAYS} has {found.dtype}{list(found.shape)}.")
    if axes and axes[0].startswith("*"):  # one number for all, or one for each
        axes = [axes[0][1:]] if found.ndim == 1 else ["n_layers", "n_latents"][: found.ndim]
    ends = [sizes.setdefault(axis, n) if axis != "to_layers" else n for axis, n in zip(axes, found.shape, strict=False)]
    if found.ndim != len(axes) or list(found.shape) != ends or 0 in ends:
        raise UserError(f"{where} has shape {list(found.shape)}, not [{', '.join(axes)}] = {ends}.")
    if found.dtype not in FLOATS or not np.isfinite(found.astype(np.float32)).all():
        raise UserError(f"{where} is {found.dtype}, and must be floating, without NaN or infinity.")
    return jnp.asarray(found)
