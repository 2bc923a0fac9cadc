# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/peer_hooks.json: what sparsify and circuit-tracer do with dictionaries that jaxneuro exported.

    python scripts/golden/make_peer_hooks.py --export FOLDER    with jaxneuro: writes the dictionaries
    python scripts/golden/make_peer_hooks.py --record FOLDER    with Python 3.11, torch, eai-sparsify 1.3.3,
                                                                circuit-tracer 0.5.0, transformers 4.57.3 and
                                                                nnsight 0.6.3 (0.8 lacks a module that it imports)

Models are the tests' tiny folders. sparsify splices a coder in at the module that its folder is named after; in
circuit-tracer one feature is set to another value, in its nnsight backend, whose hooks are those that config.yaml
names. Both must change the logits.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

TESTS: Final = Path(__file__).parents[2] / "tests"
TO: Final = TESTS / "golden" / "peer_hooks.json"
MODELS: Final = TESTS / "parity" / "fixtures"
TOKENS: Final = (1, 17, 8, 30, 2, 11)
N_LATENTS: Final = 48
N_LAYERS: Final = 3
WIDTH: Final = 16
K: Final = 6
SET_TO: Final = 3.0
"""What circuit-tracer is told to set a feature to."""


class Case(NamedTuple):
    """One export: for sparsify of one layer, for circuit-tracer of all of them."""

    library: str
    model: str
    family: str
    activation: str
    site: str
    target: str = ""
    layer: int = 0
    skip: bool = False
    crossing: bool = False


CASES: Final = {
    "sparsify llama resid_post": Case("sparsify", "llama-gqa", "llama", "topk", "resid_post", layer=1),
    "sparsify gpt2 mlp_out": Case("sparsify", "gpt2", "gpt2", "groupmax", "mlp_out", layer=1),
    "sparsify gpt_neox attn_out": Case("sparsify", "gpt_neox", "gpt_neox", "topk", "attn_out"),
    "sparsify gemma2 mlp_out": Case("sparsify", "gemma2", "gemma2", "topk", "mlp_out", layer=2),
    "sparsify llama transcoder": Case("sparsify", "llama-gqa", "llama", "topk", "mlp.in", "mlp_out", layer=1),
    "sparsify qwen3 skip": Case("sparsify", "qwen3", "qwen3", "topk", "mlp.in", "mlp_out", layer=2, skip=True),
    "tracer llama": Case("tracer", "llama-gqa", "llama", "relu", "mlp.in", "mlp_out"),
    "tracer llama skip": Case("tracer", "llama-gqa", "llama", "jumprelu", "resid_mid", "mlp_out", 1, skip=True),
    "tracer llama clt": Case("tracer", "llama-gqa", "llama", "jumprelu", "mlp.in", "mlp_out", crossing=True),
    "tracer gemma2": Case("tracer", "gemma2", "gemma2", "jumprelu", "resid_mid", "mlp_out"),
    "tracer gemma2 clt": Case("tracer", "gemma2", "gemma2", "relu", "ln2.normalized", "mlp_out", 1, crossing=True),
    "tracer qwen3 skip": Case("tracer", "qwen3", "qwen3", "relu", "mlp.in", "mlp_out", skip=True),
}


def exported(name: str, root: Path) -> tuple[Any, Any]:
    """Write one case below `root`; (what was written, where it belongs)."""
    from jaxneuro.dictionaries import Placement, save_circuit_tracer, save_sparsify
    from jaxneuro.dictionaries.places import sparsify_hookpoint

    case = CASES[name]
    layers = range(N_LAYERS) if case.library == "tracer" else (case.layer,)
    place = Placement(
        site=tuple(f"blocks.{i}.{case.site}" for i in layers),
        target=tuple(f"blocks.{i}.{case.target}" for i in layers if case.target),
        family=case.family,
        context=len(TOKENS),
        prepend_bos=True,
    )
    rng = np.random.default_rng(list(CASES).index(name))
    if case.library == "sparsify":
        coder = _coder(case, rng)
        save_sparsify(coder, root / (sparsify_hookpoint(place) or ""), place=place)
        return coder, place
    written: Any = _crossing(case, rng) if case.crossing else {i: _coder(case, rng) for i in layers}
    save_circuit_tracer(written, root, place=place)
    return written, place


def _normal(rng: np.random.Generator, *shape: int) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(0.4 * rng.normal(size=shape).astype(np.float32))


def _activation(case: Case, rng: np.random.Generator, *layers: int) -> Any:
    from jaxneuro.dictionaries import GroupMax, JumpReLU, Relu, TopK

    made: dict[str, Callable[[], Any]] = {
        "relu": Relu,
        "jumprelu": lambda: JumpReLU(abs(_normal(rng, *layers, N_LATENTS))),
        "topk": lambda: TopK(K),
        "groupmax": lambda: GroupMax(K),
    }
    return made[case.activation]()


def _coder(case: Case, rng: np.random.Generator) -> Any:
    from jaxneuro.dictionaries import SparseCoder

    shapes = {"W_enc": (WIDTH, N_LATENTS), "W_dec": (N_LATENTS, WIDTH), "b_enc": (N_LATENTS,), "b_dec": (WIDTH,)}
    return SparseCoder(
        **{key: _normal(rng, *shape) for key, shape in shapes.items()},
        activation=_activation(case, rng),
        W_skip=_normal(rng, WIDTH, WIDTH) if case.skip else None,
        apply_b_dec_to_input=not case.target,
    )


def _crossing(case: Case, rng: np.random.Generator) -> Any:
    from jaxneuro.dictionaries import CrossLayerTranscoder

    return CrossLayerTranscoder(
        W_enc=_normal(rng, N_LAYERS, WIDTH, N_LATENTS),
        b_enc=_normal(rng, N_LAYERS, N_LATENTS),
        W_dec=tuple(_normal(rng, N_LAYERS - i, N_LATENTS, WIDTH) for i in range(N_LAYERS)),
        b_dec=_normal(rng, N_LAYERS, WIDTH),
        activation=_activation(case, rng, N_LAYERS),
    )


def digest(root: Path) -> str:
    """Of every file below a folder, with its name."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    content = b"".join(str(p.relative_to(root)).encode() + p.read_bytes() for p in files)
    return hashlib.sha256(content).hexdigest()


def _model_folder(name: str, root: Path) -> Path:
    """A copy that transformers 4.57 opens: rope_theta at its old place, and a tokenizer, which encodes nothing."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = root / "models" / name
    shutil.copytree(MODELS / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    config |= {key: rope[old] for key, old in (("rope_theta", "rope_theta"), ("rotary_pct", "partial_rotary_factor"))
               if old in rope}  # fmt: skip
    if config["model_type"] == "gpt_neox":
        config["rotary_emb_base"] = rope["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    names = {"bos_token": "w1", "eos_token": "w0", "pad_token": "w0"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


def _sparsify(root: Path, folder: Path, case: Case) -> dict[str, Any]:
    import torch
    from sparsify import SparseCoder
    from transformers import AutoModelForCausalLM

    ((hookpoint, coder),) = SparseCoder.load_many(str(root), local=True).items()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()  # caps of scores
    tokens, found = torch.tensor([TOKENS]), {}
    free = model(tokens).logits

    def splice(module: Any, inputs: Any, outputs: Any) -> Any:
        y = outputs[0] if isinstance(outputs, tuple) else outputs
        x = inputs[0] if coder.cfg.transcode else y
        out = coder(x.flatten(0, 1), y.flatten(0, 1))
        found["features"] = torch.zeros(len(TOKENS), N_LATENTS).scatter_(1, out.latent_indices, out.latent_acts)
        spliced = out.sae_out.reshape(y.shape)
        return (spliced, *outputs[1:]) if isinstance(outputs, tuple) else spliced

    handle = model.base_model.get_submodule(hookpoint).register_forward_hook(splice)
    spliced = model(tokens).logits
    handle.remove()
    return {"hooks": [hookpoint], "features": found["features"][None], "free": free, "logits": spliced}


def _tracer(root: Path, folder: Path, case: Case) -> dict[str, Any]:
    import torch
    from circuit_tracer import ReplacementModel

    repository = f"local/{root.name}"
    _cached(root, repository)
    model = ReplacementModel.from_pretrained(
        str(folder), repository, backend="nnsight", device=torch.device("cpu"), dtype=torch.float32
    )
    tokens = torch.tensor(TOKENS)
    free, features = model.get_activations(tokens)
    layer, pos = case.layer, len(TOKENS) - 2
    latent = int(features[layer, pos].argmax())
    set_to = [(layer, pos, latent, SET_TO + float(features[layer, pos, latent]))]
    logits, _ = model.feature_intervention(tokens, set_to)  # attention patterns stay as they were
    hooks = [model.transcoders.feature_input_hook, model.transcoders.feature_output_hook]
    return {"hooks": hooks, "features": features, "free": free, "logits": logits, "set": [layer, pos, latent]}


def _cached(root: Path, repository: str) -> None:
    """A folder laid out as the Hub's cache: circuit-tracer opens nothing else."""
    cache = Path(os.environ["HF_HUB_CACHE"]) / f"models--{repository.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True, exist_ok=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(root, cache / "snapshots" / ("0" * 40), dirs_exist_ok=True)


RECORDERS: Final = {"sparsify": _sparsify, "tracer": _tracer}


def record(root: Path) -> None:
    """Open every case with its library, keep features and logits."""
    os.environ |= {"HF_HUB_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
    import torch

    torch.set_grad_enabled(False)
    cases = {}
    for name, case in CASES.items():
        folder = root / "exports" / name.replace(" ", "-")
        found = RECORDERS[case.library](folder, _model_folder(case.model, root), case)
        changed = (found["logits"] - found["free"]).abs().max().item()
        assert changed > 0.01, f"{name}: logits change by {changed}"
        numbers = {key: _rounded(found[key]) for key in ("features", "logits")}
        more = {"set": found["set"]} if "set" in found else {}
        cases[name] = {
            "hooks": found["hooks"],
            "files": digest(folder),
            "changed": round(changed, 5),
            **more,
            **numbers,
        }
        print(name, found["hooks"], f"{changed:.4f}")
    packages = ("eai-sparsify", "circuit-tracer", "nnsight", "transformers", "torch")
    versions = {package: importlib.metadata.version(package) for package in packages}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(found)}" for name, found in cases.items())
    head = f'"versions": {json.dumps(versions)},\n"tokens": {json.dumps(TOKENS)}'
    TO.write_text(f'{{{head},\n"cases": {{\n{lines}\n}}}}\n')


def _rounded(tensor: Any) -> dict[str, Any]:
    """Shape and the numbers that are not 0, to six digits: {"shape": [...], "at": [...], "values": [...]}."""
    flat = tensor.to_dense().detach().numpy().ravel() if tensor.is_sparse else tensor.detach().numpy().ravel()
    at = np.flatnonzero(flat)
    return {"shape": list(tensor.shape), "at": at.tolist(), "values": [float(f"{v:.6g}") for v in flat[at]]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    if args.export:
        for name in CASES:
            exported(name, args.export / "exports" / name.replace(" ", "-"))
    if args.record:
        record(args.record)


if __name__ == "__main__":
    main()
