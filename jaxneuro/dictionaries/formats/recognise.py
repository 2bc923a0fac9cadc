# SPDX-License-Identifier: Apache-2.0
"""One loader for all formats: which one a folder or file is, told from what is in it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import UserError, quoted, shown, unknown
from ...io.torch_file import read_torch
from .. import native
from ..cross_layer import CrossLayerTranscoder
from ..dictionary import SparseCoder
from ..matching_pursuit import MatchingPursuit
from ..places import OURS, Placement, of_saelens, own_place
from . import circuit_tracer, dictionary_learning, gemma_scope, llama_scope, saelens, sparsify, strict
from .openai import load_openai
from .others import load_transcoder_circuits

type Loaded = SparseCoder | MatchingPursuit | dict[int, SparseCoder] | CrossLayerTranscoder


class _Format(NamedTuple):
    """How a format is told from others, read, and what it says of where the dictionary belongs."""

    fits: Callable[[Path], bool]
    load: Callable[[Path], Loaded]
    metadata: Callable[[Path], Mapping[str, Any]]
    place: Callable[[Mapping[str, Any], Path], Placement | None] = lambda metadata, path: _ours(metadata, path)
    """From these metadata and the files: where it belongs, in our words."""


def _ours(metadata: Mapping[str, Any], path: Path) -> Placement | None:
    return own_place(metadata.get(OURS), path)


def _has(*names: str, without: str | None = None) -> Callable[[Path], bool]:
    return lambda p: all((p / n).is_file() for n in names) and not (without and (p / without).exists())


def _pt_with(key: str) -> Callable[[Path], bool]:
    def fits(path: Path) -> bool:
        content = read_torch(path) if path.is_file() and path.suffix == ".pt" else None
        return isinstance(content, dict) and key in {*content, *_inner(content)}

    return fits


def _inner(content: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = content.get("state_dict", {})
    return inner if isinstance(inner, dict) else {}


def _is_gemma_scope(path: Path) -> bool:
    return (
        path.name in gemma_scope.FILES or path.suffix == ".npz" or any((path / n).is_file() for n in gemma_scope.FILES)
    )


def _nothing(path: Path) -> dict[str, Any]:
    return {}


def _json(*names: str) -> Callable[[Path], Mapping[str, Any]]:
    def read(path: Path) -> Mapping[str, Any]:
        found = [path / n for n in names if (path / n).is_file()]
        return strict.config_of(found[0]) if found else {}

    return read


_FORMATS: Final = {
    "jaxneuro": _Format(
        _has(native.RECORD, native.ARRAYS), native.load_native, _nothing, lambda _, path: native.native_place(path)
    ),
    "saelens": _Format(
        _has(saelens.CONFIG, saelens.WEIGHTS),
        saelens.load_saelens,
        lambda p: saelens.v6_config(p).get("metadata", {}),
        of_saelens,
    ),
    "sparsify": _Format(_has(sparsify.CONFIG, sparsify.WEIGHTS), sparsify.load_sparsify, _json(sparsify.CONFIG)),
    "dictionary_learning": _Format(
        _has(dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
        dictionary_learning.load_dictionary_learning,
        _json(dictionary_learning.CONFIG),
    ),
    "openai": _Format(_pt_with("pre_bias"), load_openai, _nothing),
    "gemma_scope": _Format(_is_gemma_scope, gemma_scope.load_gemma_scope, _json("config.json")),
    "llama_scope": _Format(
        lambda p: _has("hyperparams.json")(p) or _has("config.json", "sae_weights.safetensors", without="cfg.json")(p),
        llama_scope.load_llama_scope,
        _json("hyperparams.json", "config.json"),
    ),
    "circuit_tracer": _Format(
        _has(circuit_tracer.CONFIG),
        circuit_tracer.load_circuit_tracer,
        circuit_tracer.read_config,
        lambda config, path: _ours(config, path) or circuit_tracer.place_of(config, path),
    ),
    "transcoder_circuits": _Format(_pt_with("b_dec_out"), load_transcoder_circuits, _nothing),
}
_FETCHED: Final = tuple(
    dict.fromkeys(
        (
            *(
                native.RECORD,
                native.ARRAYS,
                *saelens.FILES,
                *sparsify.FILES,
                *dictionary_learning.FILES,
                *gemma_scope.FILES,
            ),
            *(*llama_scope.FILES, *circuit_tracer.FILES),
        )
    )
)


def load_dictionary(
    name: str | os.PathLike, format: str | None = None, *, subfolder: str | None = None, revision: str | None = None
) -> Loaded:
    """Read a dictionary of any library whose files say what they are.

    | format | library | returns |
    |---|---|---|
    | jaxneuro | `save_native` | any |
    | saelens | SAELens v5, v6 | `SparseCoder` or `MatchingPursuit` |
    | sparsify | sparsify | `SparseCoder` |
    | dictionary_learning | dictionary_learning | `SparseCoder` |
    | openai | openai/sparse_autoencoder (.pt) | `SparseCoder` |
    | gemma_scope | Gemma Scope 1 and 2 | `SparseCoder` |
    | llama_scope | Language-Model-SAEs | `SparseCoder` |
    | circuit_tracer | circuit-tracer | {layer: `SparseCoder`} or `CrossLayerTranscoder` |
    | transcoder_circuits | transcoder_circuits (.pt) | `SparseCoder` |

    What a format needs besides its files (a scaling factor, flags) only its own function takes: `load_saelens`, ...

    Args:
      name: a folder or file, or a repository of the Hugging Face Hub. The --out of a command that trained one
        dictionary stands for the folder `dictionary` in it.
      format: one of the table; None: the one that the files show.
      subfolder: inside the folder or repository. On the Hub only it is fetched: name it where you can.
      revision: branch, tag or commit of a Hub repository.
    Raises:
      UserError: no format fits, or several do; says what is there. What the format's own function raises.
    Example:
      >>> import tempfile
      >>> from jaxneuro.dictionaries import Relu, save_saelens
      >>> d = SparseCoder(W_enc=jnp.eye(2), W_dec=jnp.eye(2), b_enc=jnp.zeros(2), b_dec=jnp.zeros(2), activation=Relu())
      >>> folder = save_saelens(d, tempfile.mkdtemp(), {"hook_name": "blocks.3.hook_resid_post"})
      >>> load_dictionary(folder).n_latents, load_metadata(folder)["hook_name"]
      (2, 'blocks.3.hook_resid_post')
    """
    path, found = _opened(name, format, subfolder, revision)
    return found.load(path)


def load_metadata(
    name: str | os.PathLike, format: str | None = None, *, subfolder: str | None = None, revision: str | None = None
) -> dict[str, Any]:
    """What a dictionary's files say of where it belongs, in the words of their format: model, hook, training.

    SAELens' metadata, which `save_saelens` takes; else the whole config of the format; {} where it has none.
    """
    path, found = _opened(name, format, subfolder, revision)
    return dict(found.metadata(path))


def load_placement(
    name: str | os.PathLike, format: str | None = None, *, subfolder: str | None = None, revision: str | None = None
) -> Placement | None:
    """Where a dictionary belongs, in our words, whichever library wrote it; None where its files do not say.

    Read from SAELens' and circuit-tracer's hooks and from what our writers were told: `place=`.

    Example:
      >>> import tempfile
      >>> from jaxneuro.dictionaries import Relu, save_saelens
      >>> d = SparseCoder(W_enc=jnp.eye(2), W_dec=jnp.eye(2), b_enc=jnp.zeros(2), b_dec=jnp.zeros(2), activation=Relu())
      >>> folder = save_saelens(d, tempfile.mkdtemp(), {"hook_name": "blocks.3.hook_resid_post", "context_size": 64})
      >>> load_placement(folder).site, load_placement(folder).context
      (('blocks.3.resid_post',), 64)
    """
    path, found = _opened(name, format, subfolder, revision)
    return found.place(found.metadata(path), path)


def _opened(
    name: str | os.PathLike, format: str | None, subfolder: str | None, revision: str | None
) -> tuple[Path, _Format]:
    """Where the dictionary lies, and its format."""
    path = Path(name).expanduser()
    path = path if path.is_file() else strict.folder_of(name, subfolder, revision, _FETCHED)
    if format is None and _of_a_run(path):
        path = path / native.BELOW
    return path, _recognised(path, format)


def _fitting(path: Path) -> list[str]:
    return [name for name, f in _FORMATS.items() if f.fits(path)]


def _of_a_run(path: Path) -> bool:
    """Whether this is what a command wrote to its --out: a folder with a dictionary in `dictionary`, and no other."""
    if not (path / native.BELOW).is_dir() or _fitting(path):
        return False
    return [p.name for p in path.iterdir() if p.is_dir() and _fitting(p)] == [native.BELOW]


def _recognised(path: Path, format: str | None) -> _Format:
    if format is not None:
        if format not in _FORMATS:
            raise unknown("format", format, _FORMATS, where="load_dictionary")
        return _FORMATS[format]
    found = _fitting(path)
    if len(found) == 1:
        return _FORMATS[found[0]]
    there = [path] if path.is_file() else sorted(path.iterdir())
    what = f"could be {' or '.join(found)}" if found else f"is none of {', '.join(_FORMATS)}"
    text = f"{shown(path)} {what}: it holds {', '.join(strict.some(shown(p.name) for p in there)) or 'nothing'}."
    if not found and (inside := _inside(path)):
        listed = ", ".join(strict.some(f"subfolder={quoted(p, 200)}" for p in inside))
        raise UserError(f"{text} Choose one of its folders: {listed}.")
    raise UserError(f"{text} Give the folder of one dictionary, or pass format=.")


def _inside(path: Path, most: int = 500) -> list[str]:
    """Folders below this one that hold a dictionary, by name: of so many at most is asked, near ones first."""
    level, found, asked = [path] if path.is_dir() else [], [], 0
    while level and asked < most:
        level = [p for folder in level for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink()]
        level, asked = level[: most - asked], asked + len(level)
        found += [p for p in level if _fitting(p)]
    return [str(p.relative_to(path)) for p in found]
