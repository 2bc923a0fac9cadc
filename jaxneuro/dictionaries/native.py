# SPDX-License-Identifier: Apache-2.0
"""Any of our dictionaries in a folder of two files, and back, bitwise: arrays in safetensors, the rest in JSON.

    dictionary.json          {"format": 1, "dictionary": {"class": "SparseCoder", "fields": {"W_enc": {"array": ...
    dictionary.safetensors   every array under its path, "activation.threshold"

A third key, "place", says where it belongs (places.py), if that is known. Other libraries' formats hold some
dictionaries (`formats/`); this one holds all of them.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UserError, unknown
from ..io import read_json, read_safetensors, write_json, write_safetensors
from .activations import AbsTopK, Gated, GroupMax, JumpReLU, Relu, TopK
from .cross_layer import CrossLayerTranscoder
from .dictionary import SparseCoder
from .kmeans import KMeansDictionary
from .matching_pursuit import MatchingPursuit
from .pca import PCADictionary
from .places import Placement, own_place, own_words
from .semi_nmf import SemiNMFDictionary

FORMAT: Final = 1
RECORD: Final = "dictionary.json"
ARRAYS: Final = "dictionary.safetensors"
CLASSES: Final[Mapping[str, type]] = {
    c.__name__: c
    for c in (
        *(SparseCoder, CrossLayerTranscoder, MatchingPursuit, PCADictionary, KMeansDictionary, SemiNMFDictionary),
        *(TopK, AbsTopK, GroupMax, JumpReLU, Relu, Gated),
    )
}
"""What can be stored: dataclasses of arrays, plain values, and each other."""


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
    record, arrays = read_json(folder / RECORD), dict(read_safetensors(folder / ARRAYS))
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, Mapping) else type(record).__name__
        raise UserError(f"{folder / RECORD} has format {found!r}; this version of jaxneuro reads {FORMAT}.")
    dictionary = _value(record.get("dictionary"), str(folder / RECORD), arrays)
    if arrays:
        raise UserError(f"{folder / ARRAYS} holds arrays that {RECORD} does not name: {', '.join(sorted(arrays))}.")
    return dictionary


def native_place(folder: Path) -> Placement | None:
    """Where `save_native` was told that the dictionary belongs."""
    record = read_json(folder / RECORD)
    return own_place(record.get("place")) if isinstance(record, Mapping) else None


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


def _value(node: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    """The value of `_node`; arrays are taken out of `arrays`."""
    if not isinstance(node, Mapping):
        return node
    if node.keys() == {"tuple"}:
        return tuple(_value(v, f"{where}[{i}]", arrays) for i, v in enumerate(node["tuple"]))
    if node.keys() == {"array", "dtype", "shape"}:
        return _array(node, where, arrays)
    if node.keys() != {"class", "fields"}:
        raise UserError(f"{where}: {sorted(node)} is nothing that save_native writes.")
    if node["class"] not in CLASSES:
        raise unknown("class", node["class"], CLASSES, where=where)
    kind, given = CLASSES[node["class"]], node["fields"]
    names = {f.name for f in dataclasses.fields(kind)}
    if given.keys() != names:
        missing, more = ", ".join(sorted(names - given.keys())), ", ".join(sorted(given.keys() - names))
        raise UserError(f"{where}: {node['class']} lacks {missing or 'nothing'}, and has no {more or 'other field'}.")
    return kind(**{name: _value(v, f"{where}: {name}", arrays) for name, v in given.items()})


def _array(node: Mapping[str, Any], where: str, arrays: dict[str, np.ndarray]) -> jax.Array:
    found = arrays.pop(node["array"], None)
    if found is None:
        raise UserError(f"{where}: the array {node['array']!r} is not in {ARRAYS}.")
    said, is_ = f"{node['dtype']}{node['shape']}", f"{found.dtype}{list(found.shape)}"
    if said != is_:
        raise UserError(f"{where}: recorded as {said}, but {ARRAYS} has {is_}.")
    return jnp.asarray(found)
