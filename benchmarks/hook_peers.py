# SPDX-License-Identifier: Apache-2.0
"""One forward pass of PyTorch libraries, with and without hooks, timed on request. Runs under a Python that has them.

    python benchmarks/hook_peers.py PROGRAM MODEL BATCH POS THREADS

MODEL is a line of JSON: family, n_layers, d_model, n_heads, n_kv_heads, d_mlp, d_vocab, n_ctx. Weights are random.
Prints the library and its version, then for every line "STEPS" on standard input the milliseconds of one pass (mean of
so many).
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def hugging_face(m: dict[str, Any]) -> tuple[torch.nn.Module, list[torch.nn.Module]]:
    """The model, and in every layer the module whose input is the neurons' values."""
    import transformers as t

    if m["family"] == "gpt2":
        sizes = {"n_layer": m["n_layers"], "n_embd": m["d_model"], "n_head": m["n_heads"], "n_inner": m["d_mlp"]}
        model = t.GPT2LMHeadModel(t.GPT2Config(**sizes, vocab_size=m["d_vocab"], n_positions=m["n_ctx"]))
        return model, [block.mlp.c_proj for block in model.transformer.h]
    sizes = {
        "num_hidden_layers": m["n_layers"],
        "hidden_size": m["d_model"],
        "num_attention_heads": m["n_heads"],
        "intermediate_size": m["d_mlp"],
        "vocab_size": m["d_vocab"],
        "max_position_embeddings": m["n_ctx"],
    }
    if m["family"] == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**sizes, num_key_value_heads=m["n_kv_heads"]))
        return model, [layer.mlp.down_proj for layer in model.model.layers]
    model = t.BertModel(t.BertConfig(**sizes))
    return model, [layer.output.dense for layer in model.encoder.layer]


def forward(m: dict[str, Any], tokens: torch.Tensor) -> Callable[[], Any]:
    """transformers as it is."""
    model = hugging_face(m)[0].eval()
    return lambda: model(tokens)[0]


def hooked(m: dict[str, Any], tokens: torch.Tensor) -> Callable[[], Any]:
    """Forward hooks that add up what `firing_moments` does: counts, sums, squares and maxima of every neuron."""
    model, modules = hugging_face(m)
    sums: list[Any] = [None] * len(modules)

    def hook(layer: int) -> Callable:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[layer] = ((x > 0).sum(0), x.sum(0), (x * x).sum(0), x.amax(0))

        return add

    for i, module in enumerate(modules):
        module.register_forward_pre_hook(hook(i))
    model = model.eval()
    return lambda: (model(tokens)[0], sums)


def with_cache(m: dict[str, Any], tokens: torch.Tensor) -> Callable[[], Any]:
    """TransformerLens' run_with_cache of everything."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=m["n_layers"],
        d_model=m["d_model"],
        n_heads=m["n_heads"],
        d_head=m["d_model"] // m["n_heads"],
        d_mlp=m["d_mlp"],
        d_vocab=m["d_vocab"],
        n_ctx=m["n_ctx"],
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    model = HookedTransformer(config).eval()
    return lambda: model.run_with_cache(tokens)


PROGRAMS = {
    "transformers": ("transformers", forward),
    "transformers, hooks": ("transformers", hooked),
    "transformer_lens, run_with_cache": ("transformer-lens", with_cache),
}


def main() -> None:
    """See the module."""
    name, model, (batch, pos, threads) = sys.argv[1], json.loads(sys.argv[2]), map(int, sys.argv[3:])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print while they are imported
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    package, make = PROGRAMS[name]
    with torch.no_grad():
        run = make(model, torch.randint(0, model["d_vocab"], (batch, pos)))
        for _ in range(3):
            run()
        print(f"{package} {importlib.metadata.version(package)}, torch {torch.__version__}", file=answers, flush=True)
        for line in sys.stdin:
            steps = int(line)
            started = time.perf_counter()
            for _ in range(steps):
                run()
            print((time.perf_counter() - started) * 1e3 / steps, file=answers, flush=True)


if __name__ == "__main__":
    main()
