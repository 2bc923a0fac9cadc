# SPDX-License-Identifier: Apache-2.0
"""Kinds of files that jaxneuro reads: whole examples of each, made of the repository's fixtures, and their loaders."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np

REPOSITORY: Final = Path(__file__).parents[2]
DICTIONARIES: Final = REPOSITORY / "tests" / "dictionaries" / "fixtures"
MODELS: Final = REPOSITORY / "tests" / "parity" / "fixtures"
_GOLDEN: Final = ("expected.npz", "pair.npz", "resized.npz", "hidden.npz", "gaps.npz")
"""Numbers of the tests beside the files, which no loader reads."""
_NORMS: Final = {"in": 3.5, "out": 2.8}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One row of the table."""

    weight: int
    """Of 100 mutants, about how many."""
    make: Callable[[Path], dict[str, Path]]
    """Into a folder -> {case: folder or file}: whole examples."""
    load: Callable[[Path], Any]
    checksummed: bool = False
    """A changed byte that matters must be noticed."""
    is_data: bool = False
    """Any finite or broken number is legal: nothing is done with it yet."""
    is_text: bool = False
    """Cut text and another name of a token are other text."""


def _folders(root: Path, marks: tuple[str, ...]) -> dict[str, Path]:
    found = sorted(p.parent for mark in marks for p in root.rglob(mark))
    return {str(p.relative_to(root)): p for p in dict.fromkeys(found)}


def _copied(cases: Mapping[str, Path], into: Path) -> dict[str, Path]:
    out = {}
    for case, path in cases.items():
        to = into / case.replace("/", "-")
        if path.is_dir():
            shutil.copytree(path, to, ignore=shutil.ignore_patterns(*_GOLDEN))
        else:
            to.mkdir(parents=True)
            to = Path(shutil.copy(path, to))
        out[case] = to
    return out


def _dictionaries(into: Path) -> dict[str, Path]:
    marks = ("cfg.json", "config.yaml", "ae.pt", "params.*", "hyperparams.json")
    cases = _folders(DICTIONARIES, marks) | {"llama_scope/distill": DICTIONARIES / "llama_scope" / "distill"}
    files = ("openai/topk/7.pt", "openai/relu/7.pt", "transcoder_circuits/transcoder.pt", "saex/sae.safetensors")
    return _copied(cases | {f.rpartition("/")[0]: DICTIONARIES / f for f in files}, into)


def _load_dictionary(path: Path) -> Any:
    from jaxneuro.dictionaries import load_dictionary, load_llama_scope, load_saex

    if path.name == "llama_scope-distill":
        return load_llama_scope(path, average_norm=_NORMS)
    if path.parent.name == "saex":
        return load_saex(path, use_encoder_bias=False, remove_decoder_bias=True)
    return load_dictionary(path)


def _own(into: Path) -> dict[str, Path]:
    from jaxneuro.dictionaries import Placement, load_dictionary, save_native

    place = Placement(site=("blocks.1.resid_post",), model="bundled", context=64, prepend_bos=False)
    cases = ("saelens/topk", "saelens/gated", "saelens/jumprelu", "saelens/skip_transcoder", "saelens/matching_pursuit",
             "sparsify/sae_groupmax", "circuit_tracer/clt_jumprelu", "circuit_tracer/clt")  # fmt: skip
    return {c: save_native(load_dictionary(DICTIONARIES / c), into / c.replace("/", "-"), place=place) for c in cases}


def _models(into: Path) -> dict[str, Path]:
    return _copied(_folders(MODELS, ("config.json",)), into)


def _load_model(path: Path) -> Any:
    import jaxneuro
    from jaxneuro.models import load_pair

    if path.name.startswith("pairs-"):
        pair = load_pair(path)  # its hf_config is kept to be written back; nothing is computed with it
        return {"weights": pair.weights, "image": pair.image.cfg, "text": pair.text.cfg}
    model = jaxneuro.load(path)
    return {"weights": model.weights, "cfg": model.cfg}


def _sharded(into: Path) -> dict[str, Path]:
    from jaxneuro.io import read_safetensors, write_safetensors

    out = _copied({name: MODELS / name for name in ("llama-gqa", "gpt2", "bert", "qwen3_moe", "opt")}, into)
    for folder in out.values():
        whole = read_safetensors(folder / "model.safetensors")
        names, where = sorted(whole), {}
        for i in range(3):
            shard = f"model-{i + 1:05}-of-00003.safetensors"
            write_safetensors(folder / shard, {n: whole[n] for n in names[i::3]}, metadata={"format": "pt"})
            where |= dict.fromkeys(names[i::3], shard)
        (folder / "model.safetensors").unlink()
        total = {"total_size": sum(whole[n].nbytes for n in names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": where}))
    return out


def _bundled(into: Path) -> dict[str, Path]:
    from jaxneuro.io.sources import BUNDLED

    return _copied({"bundled": BUNDLED}, into)


def _safetensors(into: Path) -> dict[str, Path]:
    return _copied(
        {
            "topk": DICTIONARIES / "saelens/topk/sae_weights.safetensors",
            "bfloat16": DICTIONARIES / "saelens/standard_bfloat16/sae_weights.safetensors",
            "llama": MODELS / "llama-gqa/model.safetensors",
            "opt": MODELS / "opt/model.safetensors",
        },
        into,
    )


def _load_safetensors(path: Path) -> Any:
    from jaxneuro.io import read_safetensors

    return {name: np.array(a) for name, a in read_safetensors(path).items()}


def _torch(into: Path) -> dict[str, Path]:
    pts = {str(p.relative_to(DICTIONARIES).with_suffix("")): p for p in sorted(DICTIONARIES.rglob("*.pt"))}
    return _copied(pts, into)


def _load_torch(path: Path) -> Any:
    from jaxneuro.io import read_torch

    return read_torch(path)


def _stores(into: Path) -> dict[str, Path]:
    from jaxneuro.activations.store import Layout
    from jaxneuro.activations.writer import Writer

    out = {}
    for dtype in ("float32", "bfloat16", "int8"):
        x = np.random.default_rng(0).normal(size=(96, 8)) * 30
        rows = np.arange(96, dtype=np.int32)
        layout = Layout.of(96, 8, dtype)
        more = {"scale": np.full(96, 0.1, np.float32)} if "scale" in layout.columns else {}
        with contextlib.closing(Writer(into / dtype, {"site": "blocks.1.resid_post"}, layout)) as w:
            x = x.astype(layout.columns["x"][0])
            w.append({"x": x, **more, "window": rows, "pos": rows % 16, "group": rows % 3})
            w.mark(1)
            w.finish()
        out[dtype] = into / dtype
    return out


def _load_store(path: Path) -> Any:
    from jaxneuro.activations import open_activations

    store = open_activations(path)
    return {"layout": store.layout, "rows": list(store.batches(batch_size=len(store), seed=None, epochs=1))}


def _text(into: Path) -> dict[str, Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = {"de": ["Guten Tag.", "Wie geht es?\nGut."], "ru": ["Да, конечно.", "Нет."], "en": ["Good day.", "Well."]}
    out = {name: into / name for name in ("folder", "records", "parquet", "sub")}
    for folder in out.values():
        folder.mkdir(parents=True)
    (out["folder"] / "de.txt").write_text("\n\n".join(texts["de"]))
    (out["folder"] / "ru.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts["ru"]))
    pq.write_table(pa.table({"text": texts["en"]}), out["folder"] / "en.parquet")
    records = [{"text": t, "group": g} for g, each in texts.items() for t in each]
    (out["records"] / "all.jsonl").write_text("\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), out["parquet"] / "all.parquet")
    for name, each in texts.items():
        (out["sub"] / name).mkdir()
        (out["sub"] / name / "a.txt").write_text("\n\n".join(each))
    return {**out, "records": out["records"] / "all.jsonl", "parquet": out["parquet"] / "all.parquet"}


def _load_text(path: Path) -> Any:
    from jaxneuro.data import read_groups

    return {name: list(documents) for name, documents in read_groups(path).items()}


def _tokenizers(into: Path) -> dict[str, Path]:
    from jaxneuro.io.sources import BUNDLED

    out = _copied({"bundled": BUNDLED}, into)
    (out["bundled"] / "model.safetensors").unlink()
    return out


def _load_tokenizer(path: Path) -> Any:
    from jaxneuro.data import load_tokenizer

    tokenizer = load_tokenizer(path)
    ids = [tokenizer.encode(text) for text in ("Die Datei ist nicht vorhanden.", "def f(x): return x", "Да.")]
    return {"ids": ids, "text": [tokenizer.decode(i) for i in ids], "special": sorted(tokenizer.special_ids)}


KINDS: Final = {
    "safetensors alone": Kind(12, _safetensors, _load_safetensors, is_data=True),
    "dictionaries of other libraries": Kind(38, _dictionaries, _load_dictionary),
    "own dictionary format": Kind(6, _own, _load_dictionary),
    "model folders": Kind(20, _models, _load_model),
    "model folders with shards and index": Kind(5, _sharded, _load_model),
    "bundled model": Kind(1, _bundled, _load_model),
    ".pt (zip and legacy)": Kind(8, _torch, _load_torch, is_data=True),
    "activation stores (zarr)": Kind(5, _stores, _load_store, checksummed=True),
    "text (txt, jsonl, parquet)": Kind(4, _text, _load_text, is_text=True),
    "tokenizer": Kind(1, _tokenizers, _load_tokenizer, is_text=True),
}


class Room:
    """Seeds of one process, made when they are first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    @functools.cache  # noqa: B019
    def cases(self, kind: str) -> dict[str, Path]:
        """{case: path}."""
        into = self.folder / str(list(KINDS).index(kind))
        into.mkdir(parents=True)
        return KINDS[kind].make(into)

    @functools.cache  # noqa: B019
    def reference(self, kind: str, case: str) -> str:
        """Digest of what the whole example holds."""
        path = self.cases(kind)[case]
        return digest(KINDS[kind].load(path), path)


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of containers, dataclasses and pytrees, arrays as numpy."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield "class", type(value).__name__
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from ((f"{name}.{at}", leaf) for at, leaf in leaves(inner))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from ((f"{i}.{at}", leaf) for at, leaf in leaves(inner))
    else:
        yield "", np.asarray(value) if isinstance(value, jax.Array) else value


def digest(value: Any, path: Path) -> str:
    """Of everything that was read, without the name of the folder it was in."""
    hashed = hashlib.blake2b(digest_size=12)
    for at, leaf in leaves(value):
        hashed.update(at.encode("utf-8", "replace"))
        if isinstance(leaf, np.ndarray):
            hashed.update(f"{leaf.dtype}{leaf.shape}".encode())
            hashed.update(np.ascontiguousarray(leaf).tobytes())
        else:
            hashed.update(repr(leaf).replace(os.fspath(path), "").encode("utf-8", "replace"))
    return hashed.hexdigest()


def broken(value: Any) -> list[str]:
    """Where numbers are NaN or infinite that may not be: Mamba-2's time steps may be without end."""
    return [at for at, leaf in leaves(value) if _nonfinite(leaf) and not at.endswith("dt_limits.1.")]


def _nonfinite(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "fV" and not np.isfinite(leaf.astype(np.float32)).all()
    return isinstance(leaf, float) and not np.isfinite(leaf)
