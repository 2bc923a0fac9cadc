# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/saelens_hooks.json: what SAELens' models do with dictionaries that jaxneuro exported.

    python scripts/golden/make_saelens_hooks.py --export FOLDER    with jaxneuro: writes the dictionaries
    python scripts/golden/make_saelens_hooks.py --record FOLDER    with Python 3.11, torch, sae-lens 6.54.12 and
                                                                   transformer-lens 3.9: opens them, splices each in

Models are two of the tests' tiny folders. Each dictionary goes where its own cfg.json says, by `run_with_saes`, and
must change the logits: a hook that SAELens does not find is passed over with a line in its log. resid_mid is not among
them: in TransformerLens 3.9's bridge an edit there reaches the MLP's norm alone, not the stream.
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


def record(root: Path) -> None:
    """Open every dictionary with SAELens, splice it in, keep the logits."""
    import torch
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    torch.set_grad_enabled(False)
    cases, tokens, tokenizer = {}, torch.tensor(TOKENS), _tokenizer(root / "tokenizer")
    for case, (name, *_) in CASES.items():
        model = SAETransformerBridge.boot_transformers(str(MODELS / name), device="cpu", tokenizer=tokenizer)
        folder = root / case.replace(" ", "-")
        sae = SAE.load_from_disk(folder)
        free, spliced = model(tokens), model.run_with_saes(tokens, saes=[sae])
        changed = (spliced - free).abs().max().item()
        assert changed > 0.05, f"{case}: logits change by {changed}: SAELens has no hook {sae.cfg.metadata.hook_name}"
        cases[case] = {
            "hook_name": sae.cfg.metadata.hook_name,
            "hook_name_out": sae.cfg.metadata.hook_name_out,
            "files": digest(folder),
            "changed": round(changed, 4),
            "logits": [[float(f"{v:.7g}") for v in row] for row in spliced[0].tolist()],
        }
        print(case, sae.cfg.metadata.hook_name, f"{changed:.3f}")
    packages = ("sae-lens", "transformer-lens", "transformers", "torch")
    versions = {package: importlib.metadata.version(package) for package in packages}
    lines = ",\n".join(f" {json.dumps(case)}: {json.dumps(found)}" for case, found in cases.items())
    head = f'"versions": {json.dumps(versions)},\n"tokens": {json.dumps(TOKENS)}'
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
