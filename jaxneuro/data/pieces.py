# SPDX-License-Identifier: Apache-2.0
"""Tokens as bytes: what one vocabulary entry contributes to a text, for each way that tokenizers write it."""

import functools
import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, Final

BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


LONGEST: Final = 4  # bytes of a character in UTF-8
_JOINER = "\u200d"
_MODIFIERS = re.compile("[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff\u200d]")
_LETTERS = re.compile("[\U0001f1e6-\U0001f1ff]")  # two of them are a flag


def _one_emoji(before: str, after: str) -> bool:
    """Whether the text `after` continues the emoji at the end of `before`."""
    if not before or not after or unicodedata.category(before[0]) not in ("So", "Sk"):
        return False
    flag = len(before) == 1 and len(after) == 1 and _LETTERS.match(before) and _LETTERS.match(after)
    return bool(flag or before.endswith(_JOINER) or _MODIFIERS.fullmatch(after[0]))


class Pieces:
    """The bytes of each token id of a Hugging Face tokenizer, and its form to be shown by itself."""

    def __init__(self, hf: Any):
        self._hf = hf
        self._added = {i: token.content for i, token in hf.added_tokens_decoder.items()}
        decoder = _decoder(hf)
        self._raw, self._shown = next((rule for kind, rule in RULES if kind in decoder), (_as_it_is, None))

    def raw(self, i: int) -> bytes:
        """What the token adds to running text."""
        token = self._token(i)
        if token is None:
            return f"[id {i}]".encode()
        return token.encode() if i in self._added else self._raw(token)

    def string(self, i: int) -> str:
        """The token by itself; bytes that are no whole character as \\xd0."""
        token = self._token(i)
        if token is not None and self._shown is not None:
            return self._shown(token)
        return self.raw(i).decode("utf-8", "backslashreplace")

    def joined(self, ids: list[int]) -> list[tuple[str, int]]:
        """(string, number of tokens): tokens that are one character, or one emoji, together."""
        out: list[tuple[str, int]] = []
        for run in self._runs(ids):
            string = self.string(run[0]) if len(run) == 1 else b"".join(map(self.raw, run)).decode()
            if out and _one_emoji(out[-1][0], string):
                before, n = out.pop()
                string, run = before + string, [*[0] * n, *run]
            out.append((string, len(run)))
        return out

    def _runs(self, ids: list[int]) -> list[list[int]]:
        """The ids cut where the bytes so far are whole characters; what never becomes whole stays single."""
        runs: list[list[int]] = []
        held: list[int] = []
        for i in ids:
            held.append(i)
            try:
                b"".join(map(self.raw, held)).decode()
            except UnicodeDecodeError as e:
                if e.reason == "unexpected end of data" and len(held) < LONGEST:
                    continue
                runs += [[j] for j in held]
            else:
                runs.append(held)
            held = []
        return runs + [[j] for j in held]

    def _token(self, i: int) -> str | None:
        if i in self._added:
            return self._added[i]
        try:
            return self._hf.convert_ids_to_tokens(i) if i >= 0 else None
        except (IndexError, KeyError):  # tokenizers that are not backed by `tokenizers`
            return None


@functools.cache
def _bytes_of() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in set(own))
    return {chr(b): b for b in own} | {chr(0x100 + n): b for n, b in enumerate(others)}


def _byte_level(token: str) -> bytes:
    table = _bytes_of()
    return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()


def _wordpiece(token: str) -> bytes:
    return token[2:].encode() if token.startswith("##") else f" {token}".encode()


def _sentencepiece(token: str) -> bytes:
    if match := BYTE.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("\u2581", " ").encode()


def _word_end(token: str) -> bytes:
    return (token.removesuffix("</w>") + " ").encode() if token.endswith("</w>") else token.encode()


def _as_it_is(token: str) -> bytes:
    return f" {token}".encode()


# Kind of decoder in tokenizer.json -> (bytes in running text, own form to be shown or None for the bytes').
RULES: Final[tuple[tuple[str, tuple[Callable[[str], bytes], Callable[[str], str] | None]], ...]] = (
    ("ByteLevel", (_byte_level, None)),
    ("WordPiece", (_wordpiece, str)),
    ("BPEDecoder", (_word_end, None)),
    ("ByteFallback", (_sentencepiece, None)),
    ("Metaspace", (_sentencepiece, None)),
    ("Replace", (_sentencepiece, None)),
)


def _decoder(hf: Any) -> str:
    """The decoder's description as JSON text, in which the kinds of RULES are looked for."""
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None:
        return "Metaspace"  # a Python tokenizer around sentencepiece
    return "" if backend.decoder is None else json.dumps(json.loads(backend.decoder.__getstate__()))
