# SPDX-License-Identifier: Apache-2.0
"""A whole study in miniature: a random two-layer Llama, a tiny tokenizer, two groups of text."""

import json

import jax
import pytest

from jaxneuro.models import Config, Transformer, init, save_pretrained

TEXT = {
    "fox": "The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of times. " * 30,
    "fuchs": "Der schnelle braune Fuchs springt über den faulen Hund. Größe und Straße, schön und grün. " * 30,
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("model")
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    t.train_from_iterator(TEXT.values(), trainer)
    t.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    cfg = Config(n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, d_head=8, d_mlp=100, d_vocab=320, n_ctx=64, tied=True)
    save_pretrained(Transformer(cfg, init(cfg, jax.random.key(0))), folder)
    return folder


@pytest.fixture(scope="session")
def groups_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("groups") / "text.jsonl"
    documents = [{"text": f"{i} {t[: len(t) // 6]}", "group": g} for g, t in TEXT.items() for i in range(6)]
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path
