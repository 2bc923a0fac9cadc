# SPDX-License-Identifier: Apache-2.0
"""The model's tokenizer, frozen, with tokens that can be shown."""

import codecs
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np

from ..errors import UserError, shown
from ..io.files import read_json
from ..io.generation import filled_length, generation_ids
from ..io.sources import TOKENIZER_FILES, resolve
from .pieces import Pieces
from .records import check_utf8
from .rows import TokenBatch, around, padded, without

NAMED: Final = ("bos", "eos", "pad", "cls", "sep", "mask")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Tokenizer:
    """A thin wrapper around a Hugging Face tokenizer (`hf`): text to token ids and back, nothing implicit.

    `batch` makes of texts what a model takes: ids with the special tokens that the tokenizer's own convention puts
    around a text (`prefix` and `suffix`: [CLS] and [SEP], or <s>, or nothing), padded, and a mask. `encode` adds no
    special tokens; `wrap` adds them to ids. A special token that is spelled out in a text is read as that token, as in
    transformers, and not put there a second time. Statistics leave out `special_ids` by default: begin, end, padding,
    class, separator, mask and unknown token, and added tokens that are marked special.
    """

    hf: Any
    name: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special_ids: frozenset[int]
    n_vocab: int
    """Largest id + 1. A model may have more rows (its table is padded), or fewer, where the last ids never occur."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None
    end_ids: tuple[int, ...] = ()
    """Ids that end a text which a model writes: the tokenizer's own, and what the folder's generation_config.json and
    config.json name (`<end_of_turn>`, `<|eot_id|>`)."""
    filled: int | None = None
    """Tokens of every row of `batch`, all of them real, filling too: of a model that was trained on such texts and
    reads their padding as any other token (SigLIP). None: a batch is as wide as its longest row, padding is masked."""

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
            end_ids=() if hf.eos_token_id is None else (hf.eos_token_id,),
            **{f"{role}_id": getattr(hf, f"{role}_token_id") for role in NAMED},
        )

    def __repr__(self) -> str:
        return f"Tokenizer({self.name}, n_vocab={self.n_vocab})"

    def check_vocabulary(self, d_vocab: int, ids: Iterable[int] = ()) -> None:
        """A model of `d_vocab` embeddings has one for each of these ids, and for those around a text.

        A tokenizer may have more tokens than its model has rows (an added padding token, `<image_soft_token>` of a
        text-only Gemma 3), as long as they do not occur.

        Raises:
          UserError: one of them has none.
        """
        if bad := [i for i in (*self.prefix, *self.suffix, *_ints(ids)) if i >= d_vocab]:
            raise UserError(
                f"token {bad[0]} ({self.token_strings(bad[:1])[0]!r} of the tokenizer {self.name}) has no row in the "
                f"model's table of {d_vocab}. Leave it out of the text, or use the tokenizer that the model was "
                "trained with (load_tokenizer with the model's name)."
            )

    def with_bos(self, bos: bool | None = True) -> "Tokenizer":
        """The tokenizer with another convention of what texts begin with.

        Args:
          bos: True: the begin token where its own convention puts nothing in front (GPT-2, Pythia, whose begin token
            is their end token), as dictionaries of SAELens with `prepend_bos` were trained. False: nothing. None: as
            it is.
        Raises:
          UserError: it has no begin, class or end token.
        Example:
          >>> tokenizer = load_tokenizer("bundled")
          >>> tokenizer.prefix, tokenizer.with_bos().prefix
          ((), (0,))
        """
        if bos is None or (bos and self.prefix):
            return self
        prefix = (self._begin(),) if bos else ()
        return dataclasses.replace(self, prefix=prefix, special_ids=self.special_ids | {*prefix})

    def _begin(self) -> int:
        found = next((i for i in (self.bos_id, self.cls_id, self.eos_id) if i is not None), None)
        if found is None:
            raise UserError(f"the tokenizer {self.name} has no token that a text could begin with. Leave bos out.")
        return found

    def batch(
        self,
        texts: str | Sequence[str],
        *,
        bos: bool | None = None,
        side: Literal["right", "left"] = "right",
        length: int | None = None,
    ) -> TokenBatch:
        """Texts as a model takes them: `tokens, mask = tokenizer.batch(texts)`.

        Every row is a text between the special tokens of the tokenizer's convention, none of them twice, and padding.
        `complete`, `windows` and every command make their rows in the same way.

        Args:
          texts: one or more.
          bos: False: nothing in front; True: the begin token, also where the convention has none; None: the convention.
          side: of the padding. Models give each row what it would get alone, on either side.
          length: columns; None: those of the longest row, or `filled`. A longer text is refused, not cut.
        Returns:
          (tokens int32 [batch, pos], mask bool [batch, pos], True at real tokens), NumPy arrays.
        Raises:
          UserError: no texts, something that is not a text, a text that gives no token or more than `length`; padding
            on the left for a model that reads padding, which was trained with it behind the text.
        Example:
          >>> tokens, mask = load_tokenizer("bundled").batch(["Die Datei", "ja"], side="left")
          >>> tokens.shape == mask.shape, mask[1].tolist()
          (True, [False, True])
        """
        rows = self.with_bos(bos).rows(texts)
        if self.filled is None:
            return padded(rows, self.fill_id, side=side, length=length)
        if side == "left":
            raise UserError(
                f"the model of {self.name} reads padding, and was trained with it on the right. Leave side out."
            )
        tokens, mask = padded(rows, self.fill_id, side=side, length=self.filled if length is None else length)
        return TokenBatch(tokens, np.ones_like(mask))

    def rows(self, texts: str | Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens around it, without padding.

        Raises:
          UserError: something that is not a text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return [self.wrap(ids) for ids in self.encode_batch(texts)]

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens, never truncated."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, on all cores where the tokenizer can.

        Raises:
          UserError: something that is not a text, or half a surrogate pair in one.
        """
        _check_texts(texts)
        if (backend := _backend(self.hf)) is not None:
            # 1.5 times as fast as hf(texts), which makes character offsets and masks as well.
            return [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return _plain_call(self.hf, list(texts), add_special_tokens=False)

    def wrap(self, ids: Iterable[int]) -> list[int]:
        """The ids between the special tokens that the tokenizer's convention puts around a text, none of them twice."""
        return around(_ints(ids), self.prefix, self.suffix)

    def bare(self, ids: Iterable[int]) -> list[int]:
        """The ids without special tokens that the text spells out itself where `wrap` would put them."""
        return without(_ints(ids), self.prefix, self.suffix)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included. An id that the tokenizer does not have adds nothing to it;
        `token_strings` shows where one is."""
        return self.hf.decode(_ints(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """Each token by itself, to be shown.

        A space in front means "begins a word" in byte-level BPE and sentencepiece; WordPiece keeps its own sign,
        "##" for a continuation. Bytes that are only a part of a character read \\xd0. An id that the tokenizer
        does not have (padding rows of the model's table) reads [id 32001]. White space is left as it is.
        """
        return [self._pieces.string(i) for i in _ints(ids)]

    def joined_strings(self, ids: Iterable[int]) -> list[tuple[str, int]]:
        """`token_strings` in which the tokens of one character are one: (string, number of its tokens).

        A character that is cut at either end stays in its bytes. What an emoji consists of (skin tone, joiner, two
        letters of a flag) is joined too.
        """
        return self._pieces.joined(_ints(ids))

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


_JSON: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
)
"""What transformers reads of a tokenizer, as far as it is JSON."""


def load_tokenizer(name: str | os.PathLike, *, revision: str | None = None, bos: bool | None = None) -> Tokenizer:
    """The tokenizer of a model: "bundled", "all-MiniLM-L6-v2", a folder, or a Hub name (`jaxneuro.io.sources`).

    Loaded by transformers' AutoTokenizer. Code that comes with a repository is never run.

    Args:
      bos: whether texts begin with the begin token, see `Tokenizer.with_bos`; None: the tokenizer's convention.
    Raises:
      UserError: there is no such model, or no tokenizer in it; a JSON file that is damaged or has a key twice; `bos`
        and no token to begin with.
    """
    folder = resolve(name, revision=revision, files=TOKENIZER_FILES, kind="tokenizer")
    for file in filter(os.path.exists, (folder / name for name in _JSON)):
        read_json(file)  # whose parser takes the last of two values, and waits for a pipe
    with _no_advice():
        from transformers import AutoTokenizer
    try:
        hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # transformers raises whatever its many tokenizers raise
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:20])
        reason = shown((str(e).strip() or "no message").splitlines()[0].rstrip("."), 400)
        raise UserError(
            f"no tokenizer can be loaded from {folder}: {type(e).__name__}: {reason}. Expected tokenizer.json (and "
            f"tokenizer_config.json) there; found: {found}."
        ) from e
    found = Tokenizer.from_hf(hf, os.fspath(name))
    ends = dict.fromkeys((*generation_ids(folder, "eos_token_id"), *found.end_ids))
    return dataclasses.replace(found, end_ids=tuple(ends), filled=filled_length(folder)).with_bos(bos)


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


def _check_texts(texts: Sequence[Any]) -> None:
    if bad := [t for t in texts if not isinstance(t, str)]:
        raise UserError(f"texts are strings, one or a list of them; there is a {type(bad[0]).__name__} among them.")
    for i, text in enumerate(texts):
        check_utf8(text, f"text {i}")


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
