# SPDX-License-Identifier: Apache-2.0
"""Tiny tokenizers, trained here and saved as Hugging Face folders."""

import json

import pytest

TEXT = [
    "The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of times.",
    "Der schnelle braune Fuchs springt über den faulen Hund. Größe und Straße, schön und grün.",
    "Быстрая лиса прыгает через ленивую собаку. Это было лучшее из времён.",
    "def hello(name):\n    return f'hello {name}'\n",
]


def save(folder, tokenizer, config):
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    return folder


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory):
    """Byte-level BPE in Llama 3's manner: the tokenizer itself puts <s> in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(TEXT * 3, trainer)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return save(tmp_path_factory.mktemp("tokenizers") / "bpe", t, names)


@pytest.fixture(scope="session")
def wordpiece_folder(tmp_path_factory):
    """WordPiece in BERT's manner: [CLS] text [SEP]; tokenizer.json asks for truncation, which must not happen."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer()
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(
        TEXT * 3, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False)
    )
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    t.enable_truncation(6)
    t.enable_padding(length=9)
    config = {k: f"[{k[:-6].upper()}]" for k in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}
    return save(tmp_path_factory.mktemp("tokenizers") / "wordpiece", t, config)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory):
    """BPE over sentencepiece's ▁ with byte fallback, no special token added, as in Mistral's tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "h", "i", "a", "▁hi"]
    merges = [("▁", "h"), ("▁h", "i")]
    vocab = {w: i for i, w in enumerate([*words, "▁h"])}
    t = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    t.add_special_tokens(["<unk>", "</s>"])
    folder = tmp_path_factory.mktemp("tokenizers") / "sentencepiece"
    return save(folder, t, {"eos_token": "</s>", "unk_token": "<unk>"})


@pytest.fixture(scope="session")
def bpe(bpe_folder):
    from jaxneuro.data import load_tokenizer

    return load_tokenizer(bpe_folder)


@pytest.fixture(scope="session")
def wordpiece(wordpiece_folder):
    from jaxneuro.data import load_tokenizer

    return load_tokenizer(wordpiece_folder)


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_folder):
    from jaxneuro.data import load_tokenizer

    return load_tokenizer(sentencepiece_folder)
