# SPDX-License-Identifier: Apache-2.0
"""Train the small multilingual causal language model that ships with jaxneuro.

    python scripts/build_corpus.py --out corpus
    python scripts/train_bundled_model.py --corpus corpus --out jaxneuro/assets/bundled

Llama layout (RMSNorm, rope, grouped-query attention, gated MLP, tied embedding), byte-level BPE, trained from scratch
on parallel manual pages in eight languages and on Python code. Writes config.json, model.safetensors (bfloat16) and the
tokenizer in Hugging Face layout. Deterministic for a given corpus, seed and machine. About 45 minutes on two CPU cores.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import tyro

from jaxneuro.data import load_tokenizer
from jaxneuro.io import write_json
from jaxneuro.models import Config as ModelConfig
from jaxneuro.models import Transformer, forward, init, save_pretrained, token_loss

EOS, PAD = "<|endoftext|>", "<|pad|>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to train."""

    corpus: Path = Path("corpus")
    """Folder written by build_corpus.py."""
    out: Path = Path("jaxneuro/assets/bundled")
    """Where the Hugging Face folder goes."""
    vocabulary: int = 6144
    layers: int = 6
    d_model: int = 192
    heads: int = 6
    kv_heads: int = 2
    d_mlp: int = 512
    window: int = 256
    batch: int = 8
    steps: int = 2600
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    smoothing: float = 0.35
    """A group is drawn with probability proportional to its size to this power: small languages are seen more often."""
    seed: int = 0
    save_every: int = 500


def read(corpus: Path, part: str) -> dict[str, list[str]]:
    """{group: documents} of one part of the corpus."""
    files = sorted((corpus / part).glob("*.jsonl"))
    return {p.stem: [json.loads(line)["text"] for line in p.open(encoding="utf-8")] for p in files}


def train_tokenizer(texts: dict[str, list[str]], config: Config):
    """Byte-level BPE over about the same number of characters of every group."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = ["\n\n".join(docs)[:1_500_000] for docs in texts.values()]
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def save_tokenizer(tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "pad_token": PAD}
    write_json(folder / "tokenizer_config.json", settings | {"clean_up_tokenization_spaces": False})


def encode(tokenizer, texts: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """{group: one long row of token ids}, documents separated by the end-of-text token."""
    eos = tokenizer.token_to_id(EOS)
    rows = {}
    for group, docs in texts.items():
        ids = [np.array([*e.ids, eos], np.int32) for e in tokenizer.encode_batch(docs)]
        rows[group] = np.concatenate(ids)
    return rows


def sample_batch(rng: np.random.Generator, rows: dict[str, np.ndarray], config: Config) -> np.ndarray:
    """int32 [batch, window]: random windows, groups weighted by size ** smoothing."""
    weights = np.array([len(r) for r in rows.values()], float) ** config.smoothing
    groups = rng.choice(len(rows), config.batch, p=weights / weights.sum())
    names = list(rows)
    starts = [rng.integers(len(rows[names[g]]) - config.window) for g in groups]
    return np.stack([rows[names[g]][s : s + config.window] for g, s in zip(groups, starts, strict=True)])


def model_config(config: Config) -> ModelConfig:
    """The model's shape, as a Hugging Face Llama config would say it."""
    from jaxneuro.models import config_from_hf

    return config_from_hf(
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": config.vocabulary,
            "hidden_size": config.d_model,
            "intermediate_size": config.d_mlp,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.d_model // config.heads,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 1,
        }
    )


def matrices(weights):
    """Which leaves Muon orthogonalises, per layer, and which of their axes are read and written; the rest is Adam's."""

    def spec(path, leaf):
        names = [p.key for p in path]
        if leaf is None or names[0] != "blocks" or leaf.ndim < 3:
            return None
        reads = (1, 2) if names[-1] == "wo" else (1,)
        writes = tuple(range(1 + len(reads), leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(reads, writes)

    return jax.tree_util.tree_map_with_path(spec, weights)


def main(config: Config) -> None:
    """Train, printing the loss and the speed, and saving along the way."""
    texts = read(config.corpus, "train")
    tokenizer = train_tokenizer(texts, config)
    save_tokenizer(tokenizer, config.out)
    rows = encode(tokenizer, texts)
    print({g: f"{len(r) / 1e6:.2f}M tokens" for g, r in rows.items()}, flush=True)

    cfg = model_config(config)
    weights = init(cfg, jax.random.key(config.seed))
    print(f"{sum(x.size for x in jax.tree.leaves(weights)) / 1e6:.2f}M parameters", flush=True)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, 100, config.steps, config.learning_rate * 0.02
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_b2=0.98,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=matrices,
        ),
    )

    def loss(weights, tokens):
        nll, valid = token_loss(forward(weights, tokens, cfg=cfg), tokens, jnp.ones(tokens.shape, bool))
        return jnp.sum(nll * valid) / jnp.sum(valid)

    @jax.jit
    def step(weights, state, tokens):
        value, gradient = jax.value_and_grad(loss)(weights, tokens)
        updates, state = optimiser.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, value

    state, rng = optimiser.init(weights), np.random.default_rng(config.seed)
    started, smooth = time.time(), None
    for i in range(1, config.steps + 1):
        weights, state, value = step(weights, state, sample_batch(rng, rows, config))
        if i % 25 == 0:
            smooth = float(value) if smooth is None else 0.7 * smooth + 0.3 * float(value)
            rate = i * config.batch * config.window / (time.time() - started)
            print(f"step {i} loss {smooth:.3f} nats/token {rate:.0f} tokens/s", flush=True)
        if i % config.save_every == 0 or i == config.steps:
            half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
            save_pretrained(Transformer(cfg, half), config.out, load_tokenizer(config.out))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
