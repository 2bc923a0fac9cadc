# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/saelens_hooks.json: what SAELens' models do with dictionaries that jaxneuro exported.

    python scripts/golden/make_saelens_hooks.py --export FOLDER    with jaxneuro: writes the dictionaries
    python scripts/golden/make_saelens_hooks.py --record FOLDER    with Python 3.11, torch, sae-lens 6.54.12 and
                                                                   transformer-lens 3.9: opens them, splices each in

Models are two of the tests' tiny folders. Each dictionary goes where its own cfg.json says, by `run_with_saes`, and
must change the logits: a hook that SAELens does not find is passed over with a line in its log.

resid_mid is not among them: in TransformerLens 3.9's bridge it is another name of ln2.hook_in, at which an edit reaches
the MLP's norm alone. For it the logits of transformers are kept, a vector added once to the stream and once to what the
norm reads; that the bridge does the second is checked here.
"""

import argparse
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

TESTS: Final = Path(__file__).parents[2] / "tests"
TO: Final = TESTS / "golden" / "saelens_hooks.json"
MODELS: Final = TESTS / "parity" / "fixtures"
TOKENS: Final = [[3, 17, 8, 30, 2, 11]]
N_LATENTS: Final = 48
MID: Final = 1
CASES: Final[dict[str, tuple[str, str, int, str | None]]] = {
    "gpt2 resid_post": ("gpt2", "blocks.1.resid_post", 16, None),
    "gpt2 attn.z": ("gpt2", "blocks.1.attn.z", 16, None),
    "gpt2 mlp.post": ("gpt2", "blocks.0.mlp.post", 64, None),
    "gpt2 transcoder": ("gpt2", "blocks.1.mlp.in", 16, "blocks.1.mlp_out"),
    "llama resid_post": ("llama-gqa", "blocks.1.resid_post", 16, None),
    "llama attn.z": ("llama-gqa", "blocks.0.attn.z", 32, None),
    "gpt2 ln2.normalized": ("gpt2", "blocks.2.ln2.normalized", 16, None),
    "llama mlp_out": ("llama-gqa", "blocks.1.mlp_out", 16, None),
    "llama transcoder": ("llama-gqa", "blocks.2.mlp.in", 16, "blocks.2.mlp_out"),
}
"""Name -> (model, site, its width, what a transcoder writes)."""


def parameters(case: str) -> dict[str, np.ndarray]:
    """Of a ReLU dictionary: random, decoder rows of different norms, biases not zero."""
    _, _, d, _ = CASES[case]
    rng = np.random.default_rng(list(CASES).index(case))
    shapes = {"W_enc": (d, N_LATENTS), "W_dec": (N_LATENTS, d), "b_enc": (N_LATENTS,), "b_dec": (d,)}
    return {name: 0.4 * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def exported(case: str, folder: Path) -> Any:
    """Write one dictionary as save_saelens does; the dictionary."""
    import jax.numpy as jnp

    from jaxneuro.dictionaries import Placement, Relu, SparseCoder, save_saelens

    _, site, _, target = CASES[case]
    arrays: dict[str, Any] = {name: jnp.asarray(a) for name, a in parameters(case).items()}
    dictionary = SparseCoder(**arrays, activation=Relu(), apply_b_dec_to_input=target is None)
    place = Placement(site=(site,), target=(target,) if target else (), context=len(TOKENS[0]), prepend_bos=False)
    save_saelens(dictionary, folder, place=place)
    return dictionary


def digest(folder: Path) -> str:
    """Of the two files that SAELens opens."""
    files = ("cfg.json", "sae_weights.safetensors")
    return hashlib.sha256(b"".join((folder / f).read_bytes() for f in files)).hexdigest()


def _tokenizer(folder: Path) -> Any:
    """The folders have none, and TransformerLens wants one; nothing is encoded with it."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "w0")
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def added(d_model: int) -> np.ndarray:
    """What is added to resid_mid of layer MID."""
    return np.random.default_rng(0).normal(size=d_model).astype(np.float32)


def _resid_mid(name: str, bridge: Any) -> dict[str, Any]:
    """Logits of transformers with a vector added to the stream, and to what the MLP's norm reads."""
    import torch
    from transformers import AutoModelForCausalLM

    model, tokens = AutoModelForCausalLM.from_pretrained(MODELS / name).eval(), torch.tensor(TOKENS)
    layer = model.transformer.h[MID] if name == "gpt2" else model.model.layers[MID]
    attention, norm = (layer.attn, layer.ln_2) if name == "gpt2" else (layer.self_attn, layer.post_attention_layernorm)
    vector, free, seen = torch.tensor(added(model.config.hidden_size)), model(tokens).logits, []
    stream = _hooked(model, tokens, attention.register_forward_hook(lambda _, x, y: (y[0] + vector, *y[1:])))
    alone = _hooked(model, tokens, norm.register_forward_pre_hook(lambda _, x: (seen.append(x[0]), x[0] + vector)[1:]))
    hook = bridge.blocks[MID].hook_aliases["hook_resid_mid"]
    assert hook == "ln2.hook_in", hook
    kept = []
    edit = (f"blocks.{MID}.{hook}", lambda x, hook: (kept.append(x), x + vector)[1])
    bridged = bridge.run_with_hooks(tokens, fwd_hooks=[edit])
    assert (kept[0] - seen[0]).abs().max() < 1e-5, "the bridge reads another value"
    assert (bridged - alone).abs().max() < 1e-5, "the bridge edits something else"
    assert (bridged - stream).abs().max() > 0.1 < (alone - free).abs().max()
    return {key: _rows(logits) for key, logits in (("stream", stream), ("norm alone", alone))}


def _hooked(model: Any, tokens: Any, handle: Any) -> Any:
    logits = model(tokens).logits
    handle.remove()
    return logits


def _rows(logits: Any) -> list[list[float]]:
    return [[float(f"{v:.7g}") for v in row] for row in logits[0].tolist()]


def record(root: Path) -> None:
    """Open every dictionary with SAELens, splice it in, keep the logits."""
    import torch
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    torch.set_grad_enabled(False)
    cases, middle, tokens, tokenizer = {}, {}, torch.tensor(TOKENS), _tokenizer(root / "tokenizer")
    for case, (name, *_) in CASES.items():
        model = SAETransformerBridge.boot_transformers(str(MODELS / name), device="cpu", tokenizer=tokenizer)
        folder = root / case.replace(" ", "-")
        sae = SAE.load_from_disk(folder)
        middle = middle if name in middle else {**middle, name: _resid_mid(name, model)}
        free, spliced = model(tokens), model.run_with_saes(tokens, saes=[sae])
        changed = (spliced - free).abs().max().item()
        assert changed > 0.05, f"{case}: logits change by {changed}: SAELens has no hook {sae.cfg.metadata.hook_name}"
        cases[case] = {
            "hook_name": sae.cfg.metadata.hook_name,
            "hook_name_out": sae.cfg.metadata.hook_name_out,
            "files": digest(folder),
            "changed": round(changed, 4),
            "logits": _rows(spliced),
        }
        print(case, sae.cfg.metadata.hook_name, f"{changed:.3f}")
    packages = ("sae-lens", "transformer-lens", "transformers", "torch")
    versions = {package: importlib.metadata.version(package) for package in packages}
    lines = ",\n".join(f" {json.dumps(case)}: {json.dumps(found)}" for case, found in cases.items())
    head = f'"versions": {json.dumps(versions)},\n"tokens": {json.dumps(TOKENS)},\n"resid_mid": {json.dumps(middle)}'
    TO.write_text(f'{{{head},\n"cases": {{\n{lines}\n}}}}\n')


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    if args.export:
        for case in CASES:
            exported(case, args.export / case.replace(" ", "-"))
    if args.record:
        record(args.record)


if __name__ == "__main__":
    main()
