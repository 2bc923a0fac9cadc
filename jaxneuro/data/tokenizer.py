# SPDX-License-Identifier: Apache-2.0
"""The model's tokenizer, frozen, with tokens that can be shown."""

import codecs
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from ..errors import UserError
from ..io.sources import TOKENIZER_FILES, resolve
from .pieces import Pieces

NAMED: Final = ("bos", "eos", "pad", "cls", "sep", "mask")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Tokenizer:
    """A thin wrapper around a Hugging Face tokenizer (`hf`): text to token ids and back, nothing implicit.

    `encode` adds no special tokens; `prefix` and `suffix` are what the tokenizer's own convention puts around a
    text ([CLS] and [SEP], or <s>, or nothing), and `wrap` adds them. A special token that is spelled out in a text
    is read as that token, as in transformers. Statistics leave out `special_ids` by default: begin, end, padding,
    class, separator, mask and unknown token, and added tokens that are marked special.
    """

    hf: Any
    name: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special_ids: frozenset[int]
    n_vocab: int
    """Largest id + 1. A model may have more rows (its table is padded), never fewer."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None

    @classmethod
    def from_hf(cls, hf: Any, name: str = "tokenizer") -> "Tokenizer":
        """Wrap a transformers tokenizer that is already loaded; it belongs to the wrapper from then on.

        Raises:
          UserError: its special tokens do not simply stand before and after a text.
        """
        prefix, suffix = _surroundings(hf, name)
        added = {i for i, token in hf.added_tokens_decoder.items() if token.special}
        return cls(
            hf=hf,
            name=name,
            prefix=prefix,
            suffix=suffix,
            special_ids=frozenset({*hf.all_special_ids, *added, *prefix, *suffix}),
            n_vocab=1 + max(hf.get_vocab().values()),
            **{f"{role}_id": getattr(hf, f"{role}_token_id") for role in NAMED},
        )

    def __repr__(self) -> str:
        return f"Tokenizer({self.name}, n_vocab={self.n_vocab})"

    def check_vocabulary(self, d_vocab: int) -> None:
        """A model of `d_vocab` embeddings has one for every token.

        Raises:
          UserError: it has fewer.
        """
        if self.n_vocab > d_vocab:
            raise UserError(
                f"the tokenizer {self.name} has {self.n_vocab} tokens, the model only {d_vocab}: they do not belong "
                "together. Use the tokenizer that the model was trained with."
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens, never truncated."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, on all cores where the tokenizer can."""
        if (backend := _backend(self.hf)) is not None:
            # 1.5 times as fast as hf(texts), which makes character offsets and masks as well.
            return [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return _plain_call(self.hf, list(texts), add_special_tokens=False)

    def wrap(self, ids: Iterable[int]) -> list[int]:
        """The ids between the special tokens that the tokenizer's convention puts around a text."""
        return [*self.prefix, *_ints(ids), *self.suffix]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.hf.decode(_ints(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """Each token by itself, to be shown.

        A space in front means "begins a word" in byte-level BPE and sentencepiece; WordPiece keeps its own sign,
        "##" for a continuation. Bytes that are only a part of a character read \\xd0. An id that the tokenizer
        does not have (padding rows of the model's table) reads [id 32001]. White space is left as it is.
        """
        return [self._pieces.string(i) for i in _ints(ids)]

    def text_pieces(self, ids: Iterable[int]) -> list[str]:
        """Running text, cut at its tokens: one string per token; joined they are the text.

        A character split between tokens stands at the token that completes it; the others have "" in its place.
        Exact for byte-level tokenizers; for WordPiece and sentencepiece up to spaces, which these do not keep.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [decoder.decode(self._pieces.raw(i)) for i in _ints(ids)]
        if pieces:
            pieces[-1] += decoder.decode(b"", True)
        return pieces

    def is_special(self, ids: np.ndarray) -> np.ndarray:
        """Which ids are special tokens: a boolean array of the same shape."""
        return np.isin(ids, self._special)

    @property
    def separator_id(self) -> int | None:
        """What stands between two documents: the end token, else the begin token, else [SEP], else nothing."""
        return next((i for i in (self.eos_id, self.bos_id, self.sep_id) if i is not None), None)

    @property
    def fill_id(self) -> int:
        """What fills a row behind its text, masked everywhere: the padding token, else the separator, else 0."""
        return next((i for i in (self.pad_id, self.separator_id) if i is not None), 0)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a text gets."""
        backend = _backend(self.hf)
        how = backend.to_str() if backend is not None else json.dumps(sorted(self.hf.get_vocab().items()))
        parts = [type(self.hf).__name__, how, self.prefix, self.suffix, sorted(self.special_ids)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def _special(self) -> np.ndarray:
        return np.array(sorted(self.special_ids), np.int32)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.hf)


def load_tokenizer(name: str | os.PathLike, *, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a model: "bundled", "all-MiniLM-L6-v2", a folder, or a Hub name (`jaxneuro.io.sources`).

    Loaded by transformers' AutoTokenizer. Code that comes with a repository is never run.

    Raises:
      UserError: there is no such model, or no tokenizer in it.
    """
    folder = resolve(name, revision=revision, files=TOKENIZER_FILES)
    with _no_advice():
        from transformers import AutoTokenizer
    try:
        hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # transformers raises whatever its many tokenizers raise
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:20])
        reason = (str(e).strip() or "no message").splitlines()[0].rstrip(".")
        raise UserError(
            f"no tokenizer can be loaded from {folder}: {type(e).__name__}: {reason}. Expected tokenizer.json (and "
            f"tokenizer_config.json) there; found: {found}."
        ) from e
    return Tokenizer.from_hf(hf, os.fspath(name))


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """transformers says at import that PyTorch is missing; here that is as it should be. Its own switch, put back."""
    switch = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def _backend(hf: Any) -> Any:
    """The Rust tokenizer, or None. It is cleared of truncation and padding, which tokenizer.json (MiniLM's cuts at 128
    tokens) or an earlier call of `hf` may have left in it."""
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is not None and (backend.truncation is not None or backend.padding is not None):
        backend.no_truncation()
        backend.no_padding()
    return backend


def _surroundings(hf: Any, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text, found by comparing a text with and without."""
    bare = _plain_call(hf, ["a"], add_special_tokens=False)[0]
    full = _plain_call(hf, ["a"], add_special_tokens=True)[0]
    for start in range(len(full) - len(bare) + 1):
        if bare and full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise UserError(
        f"tokenizer {name!r}: 'a' gives the ids {bare}, and with special tokens {full}, which does not contain them. "
        f"Special tokens inside a text are not supported."
    )


def _plain_call(hf: Any, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
    return hf(texts, add_special_tokens=add_special_tokens, truncation=False, verbose=False)["input_ids"]


def _ints(ids: Iterable[int]) -> list[int]:
    return [int(i) for i in ids]
