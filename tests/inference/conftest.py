# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import numpy as np
import pytest

from jaxneuro.models import Config, Rope, Transformer, shapes
from jaxneuro.models.layout import nest
from jaxneuro.taps import intervene

from ..by_numpy import by_numpy

CFG = Config(
    n_layers=3,
    d_model=16,
    n_heads=4,
    n_kv_heads=2,
    d_head=4,
    d_mlp=24,
    d_vocab=40,
    n_ctx=32,
    windows=(None, 6, None),
    rope=Rope(theta=100.0),
)
WIDTH = 24  # the naive loop's one shape


def random_weights(cfg, seed=0):
    """Weights in which nothing is 0 or 1."""
    rng = np.random.default_rng(seed)
    around = {leaf: 1.0 if leaf.endswith("scale") else 0.0 for leaf in shapes(cfg)}
    leaves = {leaf: rng.normal(around[leaf], 0.3, shape).astype(np.float32) for leaf, shape in shapes(cfg).items()}
    return nest(jax.device_put(leaves))


@pytest.fixture(scope="session")
def model():
    return Transformer(CFG, random_weights(CFG))


@pytest.fixture(scope="session")
def prompts():
    return np.random.default_rng(5).integers(0, CFG.d_vocab, (2, 7)).astype(np.int32)


def word_tokenizer(n):
    """The words w2, w3, ... below n between spaces; <pad> is 0, and </s>, behind every text, 1."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, n)}
    fast = Fast(models.WordLevel(vocabulary, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="</s>")


def begin_tokenizer(n, extra=()):
    """The words w3 to w(n-1) between spaces, <bos> (1) before every text; <pad> is 0, <eos> 2, `extra` from n on."""
    from tokenizers import AddedToken, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    from jaxneuro.data import Tokenizer

    names = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, n))]
    fast = Fast(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.add_special_tokens([AddedToken(w, special=True) for w in (*names[:3], *extra)])
    fast.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return Tokenizer.from_hf(PreTrainedTokenizerFast(tokenizer_object=fast, **named))


@functools.cache
def _whole(cfg):
    def run(weights, tokens, mask, edits):
        return intervene(Transformer(cfg, weights).apply, edits)(weights, tokens, mask)

    return by_numpy(run)


def naive(model, tokens, new, mask=None, edits=()):
    """Greedy tokens [batch, new] and their logits by the whole text, again for every token, without a cache."""
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    text, real = (np.zeros((len(tokens), WIDTH), t) for t in (np.int32, bool))
    text[:, : tokens.shape[1]], real[:, : tokens.shape[1]] = tokens, mask
    at = tokens.shape[1] - mask[:, ::-1].argmax(1)
    rows, out, scores = np.arange(len(tokens)), [], []
    for _ in range(new):
        logits = np.asarray(_whole(model.cfg)(model.weights, text, real, edits))[rows, at - 1]
        out.append(logits.argmax(-1))
        scores.append(logits)
        text[rows, at], real[rows, at] = out[-1], True
        at = at + 1
    return np.stack(out, 1), np.stack(scores, 1)
