# SPDX-License-Identifier: Apache-2.0
"""One forward pass of PyTorch libraries, with and without hooks, timed on request. Runs under a Python that has them.

    python benchmarks/hook_peers.py PROGRAM MODEL BATCH POS THREADS DEVICE DTYPE

MODEL is a line of JSON: sizes and soft-caps of a `Config`, and as hf a whole config.json or null. Weights are random.
Prints the library and its version, then for every line "STEPS" on standard input the milliseconds of one pass (mean of
so many). float32 is multiplied as TF32 on a GPU, which is JAX's default there.
"""

import functools
import importlib.metadata
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def hugging_face(m: dict[str, Any]) -> tuple[torch.nn.Module, list[torch.nn.Module]]:
    """The model, and in every layer the module whose input is the neurons' values."""
    import transformers as t

    if m["hf"] is not None:
        model = t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(**m["hf"]))
        last = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj")
        return model, [module for name, module in model.named_modules() if name.endswith(last)]
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


def _llama(m: dict[str, Any]) -> dict[str, Any]:
    return {
        "act_fn": "silu", "normalization_type": "RMS", "final_rms": True, "gated_mlp": True,
        "positional_embedding_type": "rotary", "rotary_dim": m["d_head"], "n_key_value_heads": m["n_kv_heads"],
    }  # fmt: skip


def _neox(m: dict[str, Any]) -> dict[str, Any]:
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": m["d_head"] // 4}
    return {"act_fn": "gelu", "normalization_type": "LN", "parallel_attn_mlp": True, **rotary}


def _gemma2(m: dict[str, Any]) -> dict[str, Any]:
    caps = {"attn_scores_soft_cap": m["attn_softcap"], "output_logits_soft_cap": m["logit_softcap"]}
    local = {"use_local_attn": True, "window_size": 4096, "attn_types": ["local", "global"] * (m["n_layers"] // 2)}
    return _llama(m) | caps | local | {"act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True}


FAMILIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "gpt2": lambda m: {"act_fn": "gelu_new", "normalization_type": "LN"},
    "gpt_neox": _neox,
    "llama": _llama,
    "gemma2": _gemma2,
}
"""What TransformerLens is told of a family beside its sizes."""


def hooked_transformer(m: dict[str, Any]) -> Any:
    """TransformerLens' model of the same shape."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=m["n_layers"],
        d_model=m["d_model"],
        n_heads=m["n_heads"],
        d_head=m["d_head"],
        d_mlp=m["d_mlp"],
        d_vocab=m["d_vocab"],
        n_ctx=min(m["n_ctx"], 2048),  # of which it keeps the square
        **FAMILIES[m["family"]](m),
        device=str(torch.get_default_device()),
        dtype=torch.get_default_dtype(),
    )
    return HookedTransformer(config).eval()


def with_cache(m: dict[str, Any], tokens: torch.Tensor) -> Callable[[], Any]:
    """TransformerLens' run_with_cache of everything."""
    model = hooked_transformer(m)
    return lambda: model.run_with_cache(tokens)


def ablations(m: dict[str, Any], tokens: torch.Tensor, *, skip: bool = False) -> Callable[[], Any]:
    """One neuron after the other, layer by layer in turn, silenced by TransformerLens' hooks: the last logits.

    skip: start at the edited layer, from residual streams that were kept.
    """
    model, n, layers = hooked_transformer(m), itertools.count(), m["n_layers"]
    entering = [model(tokens, stop_at_layer=layer) for layer in range(layers)] if skip else []

    def run() -> Any:
        turn, layer = divmod(next(n), layers)
        neuron = turn % m["d_mlp"]

        def silence(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value[:, :, neuron] = 0
            return value

        hooks = [(f"blocks.{layer}.mlp.hook_post", silence)]
        if skip:
            return model.run_with_hooks(entering[layer], start_at_layer=layer, fwd_hooks=hooks)[0, -1]
        return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]

    return run


PROGRAMS = {
    "transformers": ("transformers", forward),
    "transformers, hooks": ("transformers", hooked),
    "transformer_lens, run_with_cache": ("transformer-lens", with_cache),
    "transformer_lens, loop over hooks": ("transformer-lens", ablations),
    "transformer_lens, loop from the edited layer": ("transformer-lens", functools.partial(ablations, skip=True)),
}


def main() -> None:
    """See the module."""
    name, model = sys.argv[1], json.loads(sys.argv[2])
    batch, pos, threads = map(int, sys.argv[3:6])
    device, dtype = sys.argv[6:]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print while they are imported
    torch.set_num_threads(threads)
    torch.set_default_device(device)
    torch.set_default_dtype(getattr(torch, dtype))
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    package, make = PROGRAMS[name]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.no_grad():
        run = make(model, torch.randint(0, model["d_vocab"], (batch, pos)))
        for _ in range(3):
            run()
        wait()
        print(f"{package} {importlib.metadata.version(package)}, torch {torch.__version__}", file=answers, flush=True)
        for line in sys.stdin:
            steps = int(line)
            started = time.perf_counter()
            for _ in range(steps):
                run()
            wait()
            print((time.perf_counter() - started) * 1e3 / steps, file=answers, flush=True)


if __name__ == "__main__":
    main()
