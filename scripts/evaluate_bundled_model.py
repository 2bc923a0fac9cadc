# SPDX-License-Identifier: Apache-2.0
"""Held-out bits per byte of a causal model per group, beside a 5-gram byte model trained on the same text.

    python scripts/evaluate_bundled_model.py --corpus corpus --out benchmarks/results/bundled-model.json

Both numbers are -log2 p(text) / bytes(text) over the whole held-out part. The model reads the text in windows, each
starting from nothing but an end-of-text token, which costs it a little at window starts; the 5-gram sees the four bytes
before each byte without interruption.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxneuro
from jaxneuro.io import write_json
from jaxneuro.models import token_loss
from jaxneuro.study.results import versions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    model: str = "bundled"
    corpus: Path = Path("corpus")
    out: Path | None = None
    order: int = 5
    window: int = 256
    batch: int = 16


def read(corpus: Path, part: str) -> dict[str, str]:
    """{group: its documents joined by a blank line}."""
    files = sorted((corpus / part).glob("*.jsonl"))
    return {p.stem: "\n\n".join(json.loads(line)["text"] for line in p.open(encoding="utf-8")) for p in files}


def grams(data: np.ndarray, n: int) -> np.ndarray:
    """uint64 keys of all n-grams of a byte array, the first byte most significant."""
    key = np.zeros(len(data) - n + 1, np.uint64)
    for j in range(n):
        key = key * np.uint64(256) + data[j : j + len(key)].astype(np.uint64)
    return key


def lookup(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """values of sorted unique keys at `asked`, 0 where absent."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)


def kneser_ney_bits(train: bytes, test: bytes, order: int) -> float:
    """Bits per byte of an interpolated Kneser-Ney n-gram over bytes (one discount per order, n1 / (n1 + 2 n2)).

        p_n(w|h) = max(c(hw) - D, 0) / c(h) + D N(h.) / c(h) * p_{n-1}(w|h')

    with raw counts at the highest order and continuation counts (distinct left neighbours) below; p_0 = 1/256.
    """
    a, b = np.frombuffer(train, np.uint8), np.frombuffer(test, np.uint8)
    keys, counts = np.unique(grams(a, order), return_counts=True)
    tables = {order: (keys, counts)}
    for n in range(order - 1, 0, -1):
        keys, counts = np.unique(tables[n + 1][0] % np.uint64(256**n), return_counts=True)
        tables[n] = (keys, counts)
    p = np.full(len(b) - order + 1, 1 / 256)
    for n in range(1, order + 1):
        keys, counts = tables[n]
        n1, n2 = np.sum(counts == 1), np.sum(counts == 2)
        discount = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
        contexts, start = np.unique(keys // np.uint64(256), return_index=True)
        total = np.add.reduceat(counts, start)
        distinct = np.diff(np.append(start, len(keys)))
        asked = grams(b, n)[order - n :]
        c, h = lookup(keys, counts, asked), asked // np.uint64(256)
        total, distinct = lookup(contexts, total, h), lookup(contexts, distinct, h)
        safe = np.maximum(total, 1)
        seen = np.maximum(c - discount, 0) / safe + discount * distinct / safe * p
        p = np.where(total > 0, seen, p)
    return float(-np.log2(p).mean())


def model_bits(model, tokenizer, text: str, config: Config) -> float:
    """Bits per byte of the model over a text."""
    ids = np.array(tokenizer.encode(text), np.int32)
    body = config.window - 1
    rows = -(-len(ids) // body)
    tokens = np.zeros((-(-rows // config.batch) * config.batch, config.window), np.int32)
    mask = np.zeros(tokens.shape, bool)
    tokens[:, 0] = tokenizer.eos_id
    for r in range(rows):
        piece = ids[r * body : (r + 1) * body]
        tokens[r, 1 : 1 + len(piece)] = piece
        mask[r, : 1 + len(piece)] = True

    @jax.jit
    def nats(weights, tokens, mask):
        nll, valid = token_loss(model.apply(weights, tokens, mask), tokens, mask)
        return jnp.sum(nll * valid)

    blocks = range(0, len(tokens), config.batch)
    total = sum(float(nats(model.weights, tokens[i : i + config.batch], mask[i : i + config.batch])) for i in blocks)
    return total / np.log(2) / len(text.encode())


def main(config: Config) -> None:
    """Print the table and write it."""
    model = jaxneuro.load(config.model, dtype=jnp.float32)
    tokenizer = jaxneuro.load_tokenizer(config.model)
    train, heldout = read(config.corpus, "train"), read(config.corpus, "heldout")
    result = {}
    for group, text in heldout.items():
        ours = model_bits(model, tokenizer, text, config)
        ngram = kneser_ney_bits(train[group].encode(), text.encode(), config.order)
        size = len(text.encode())
        result[group] = {"model": ours, f"{config.order}-gram": ngram, "bytes": size}
        print(f"{group:5s} model {ours:.3f}  {config.order}-gram {ngram:.3f} bits per byte ({size} bytes)")
    if config.out:
        where = {"device": jax.devices()[0].device_kind, "versions": versions()}
        write_json(config.out, {"bits_per_byte": result, "window": config.window, **where})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
