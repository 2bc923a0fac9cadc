# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: prompts are tokenized, stop strings found however they are cut into tokens."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from ..data import Tokenizer
from ..errors import UserError
from ..models import Transformer
from .checks import check_model
from .generate import generate
from .sampling import greedy

_UNFINISHED = "\ufffd"


class Completion(NamedTuple):
    """How a prompt goes on."""

    prompt: str
    text: str
    """What follows the prompt, up to a stop string or the end token, which are not in it."""
    tokens: list[int]
    """The new tokens, with those of what stopped it."""
    reason: Literal["stop", "length"]
    """A stop string or the end token came, or max_new was reached."""
    log_probs: list[float]
    """Of the tokens; see `Generated.log_probs`."""


class Running:
    """The text of one row as its tokens come: each character when it is complete, nothing behind a stop string.

    Decoded behind a few tokens of context, so that spaces and characters that several tokens share come out right.

    Example:
      >>> from jaxneuro.data import load_tokenizer
      >>> tokenizer = load_tokenizer("bundled")
      >>> row = Running(tokenizer, tokenizer.encode("Eins,"), stop=["drei"], end=())
      >>> for token in tokenizer.encode(" zwei, drei, vier"): row.push(token)
      >>> row.text, row.stopped
      (' zwei, ', True)
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str], end: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False
        self._tokenizer, self._stop, self._end = tokenizer, stop, end
        self._ids = list(prompt[-8:])
        self._start, self._read = 0, len(self._ids)
        self._shown = 0

    def push(self, token: int) -> None:
        """One more token; none is taken after the row has stopped."""
        if self.stopped:
            return
        self.tokens.append(token)
        if token in self._end:
            self.close()
            self.stopped = True
            return
        self._ids.append(token)
        new = self._new()
        if new and not new.endswith(_UNFINISHED):
            self._start, self._read = self._read, len(self._ids)
            self._take(new)

    def close(self) -> None:
        """The row has ended: what was not a complete character is shown as it is."""
        if not self.stopped:
            self._take(self._new())
            self._start = self._read = len(self._ids)

    def news(self) -> str:
        """What can be shown since the last call: not what may be the beginning of a stop string."""
        ready = len(self.text) - (0 if self.stopped else self._begun())
        new, self._shown = self.text[self._shown : ready], max(self._shown, ready)
        return new

    def _new(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._ids[self._start :])[len(decode(self._ids[self._start : self._read])) :]

    def _take(self, new: str) -> None:
        start = max(0, len(self.text) - max(map(len, self._stop), default=0))
        self.text += new
        found = [at for s in self._stop if (at := self.text.find(s, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _begun(self) -> int:
        ends = (n for s in self._stop for n in range(1, len(s)) if self.text.endswith(s[:n]))
        return max(ends, default=0)


def _padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask) [row, pos], shorter rows filled on the right."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(mask.shape, fill, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new: int = 64,
    sampler: Any = greedy,
    key: Key[Array, ""] | None = None,
    edits: Any = (),
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    every: int = 4,
) -> list[Completion]:
    """Go on with texts, each as if it were alone: shorter ones are padded on the right, where it changes nothing.

    A model with an encoder (T5) answers them: its encoder reads each text as its tokenizer wraps it, its decoder begins
    with `Transformer.start_token`.

    Args:
      model, tokenizer: a decoder, with an encoder or without, and its tokenizer. Its begin token, if it has one, is put
        before each prompt.
      prompts: texts.
      max_new, sampler, key, edits: as in `generate`.
      stop: strings at whose first occurrence a text is cut, however they are cut into tokens. The end token stops too.
      on_text: called as on_text(i, piece) with what is new of prompt i.
      every: steps between two looks at the text: more is faster, and runs up to so many steps in vain.
    Returns:
      One Completion per prompt.
    Raises:
      UserError: as `generate`; no prompts, an empty prompt or stop string, a tokenizer with more tokens than the model.
    Example:
      >>> import jaxneuro
      >>> model, tokenizer = jaxneuro.load("bundled"), jaxneuro.load_tokenizer("bundled")
      >>> complete(model, tokenizer, ["Die Datei ist nicht"], max_new=8, stop=["."])[0].reason
      'stop'
    """
    check_model(model.cfg)
    tokenizer.check_vocabulary(model.cfg.d_vocab)
    if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise UserError("complete: prompts is a list of texts, at least one.")
    if "" in prompts:
        raise UserError(f"prompt {list(prompts).index('')} is empty. Give it at least one word.")
    if isinstance(stop, str) or "" in stop:
        raise UserError("complete: stop is a list of strings, none of them empty.")
    fill = min(tokenizer.fill_id, model.cfg.d_vocab - 1)
    end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    ids = tokenizer.encode_batch(prompts)
    if model.cfg.encoder is None:
        ids = [[*tokenizer.prefix, *row] for row in ids]
        given: dict[str, Any] = dict(zip(("tokens", "mask"), _padded(ids, fill), strict=True))
        rows = [Running(tokenizer, row, stop, end) for row in ids]
    else:
        given = dict(zip(("context", "context_mask"), _padded([tokenizer.wrap(row) for row in ids], fill), strict=True))
        given["tokens"] = np.full((len(ids), 1), model.start_token, np.int32)
        rows = [Running(tokenizer, (), stop, end) for _ in ids]

    def look(done: int, tokens: np.ndarray, finished: np.ndarray) -> np.ndarray:
        for i, (row, new) in enumerate(zip(rows, tokens, strict=True)):
            before = row.stopped
            for token in new[len(row.tokens) :].tolist():
                row.push(token)
            if done == max_new:
                row.close()
            if on_text is not None and not before and (piece := row.news()):
                on_text(i, piece)
        return finished | np.array([row.stopped for row in rows])

    found = generate(
        model,
        **given,
        max_new=max_new,
        sampler=sampler,
        key=key,
        edits=edits,
        stop=end,
        fill=fill,
        on_token=look,
        every=every,
    )
    log_probs = np.asarray(found.log_probs).tolist()
    return [
        Completion(p, r.text, r.tokens, "stop" if r.stopped else "length", scores[: len(r.tokens)])
        for p, r, scores in zip(prompts, rows, log_probs, strict=True)
    ]
