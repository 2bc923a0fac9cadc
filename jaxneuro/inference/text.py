# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: prompts are tokenized, stop strings found however they are cut into tokens."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from ..data import Tokenizer
from ..data.rows import around, padded
from ..errors import UserError
from ..models import Transformer
from .checks import check_model, check_outside
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
    prefix: Sequence[int] = ()
    """What was put in front of the prompt's own tokens: position 0 is its first, or the prompt's first without one.
    Of a model with an encoder what its answer begins with."""


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


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new: int = 64,
    sampler: Any = greedy,
    key: Key[Array, ""] | None = None,
    edits: Any = (),
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    every: int = 4,
    bos: bool | None = None,
) -> list[Completion]:
    """Go on with texts, each as if it were alone: shorter ones are padded on the right, where it changes nothing.

    A model with an encoder (T5) answers them: its encoder reads each text as its tokenizer wraps it, its decoder begins
    with `Transformer.start_token`.

    Args:
      model, tokenizer: a decoder, with an encoder or without, and its tokenizer. Its begin token, if its convention has
        one, is put before each prompt that does not begin with it (`Completion.prefix`).
      prompts: texts, or the token ids of texts, which are taken as they are.
      max_new, sampler, key: as in `generate`.
      edits: as in `generate`. Positions count from each row's first token, the prefix included, so `pos=0` is the begin
        token where there is one; -1 is each row's newest token, in the prompt its own last.
      stop: strings at whose first occurrence a text is cut, however they are cut into tokens. What the tokenizer, the
        model's config.json and its generation_config.json name as end tokens stops too.
      on_text: called as on_text(i, piece) with what is new of prompt i.
      every: steps between two looks at the text: more is faster, and runs up to so many steps in vain.
      bos: False: no begin token; True: one also where the convention has none; None: the convention.
    Returns:
      One Completion per prompt.
    Raises:
      UserError: as `generate`; no prompts, an empty prompt or stop string, a token without a row in the model's table.
    Example:
      >>> import jaxneuro
      >>> model, tokenizer = jaxneuro.load("bundled"), jaxneuro.load_tokenizer("bundled")
      >>> complete(model, tokenizer, ["Die Datei ist nicht"], max_new=8, stop=["."])[0].reason
      'stop'
    """
    check_outside("complete")
    check_model(model.cfg)
    if isinstance(stop, str) or "" in stop:
        raise UserError("complete: stop is a list of strings, none of them empty.")
    fronts, ids = _rows(model, tokenizer.with_bos(bos), prompts)
    fill, end = min(tokenizer.fill_id, model.cfg.d_vocab - 1), _ends(model, tokenizer)
    given: dict[str, Any] = dict(zip(("tokens", "mask"), padded(ids, fill), strict=True))
    if model.cfg.encoder is None:
        rows = [Running(tokenizer, row, stop, end) for row in ids]
    else:
        given = {"context": given["tokens"], "context_mask": given["mask"], "tokens": np.array(fronts, np.int32)}
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
    texts = [p if isinstance(p, str) else tokenizer.decode(p) for p in prompts]
    return [
        Completion(p, r.text, r.tokens, "stop" if r.stopped else "length", scores[: len(r.tokens)], front)
        for p, r, scores, front in zip(texts, rows, log_probs, fronts, strict=True)
    ]


def _rows(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str | Sequence[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """(what is put before each prompt, the ids that the model reads of it), after everything about them was checked."""
    given = [] if isinstance(prompts, str) else list(prompts)
    if not given or not all(isinstance(p, str) or _are_ids(p) for p in given):
        raise UserError("complete: prompts is a list of texts, at least one, or of lists of token ids.")
    texts = iter(tokenizer.encode_batch([p for p in given if isinstance(p, str)]))
    encoder = model.cfg.encoder is not None
    fronts, rows = [], []
    for i, prompt in enumerate(given):
        own = next(texts) if isinstance(prompt, str) else [int(t) for t in prompt]
        row = around(own, tokenizer.prefix, tokenizer.suffix if encoder else ()) if isinstance(prompt, str) else own
        if not own and not tokenizer.prefix:
            raise UserError(f"prompt {i} is empty. Give it at least one word.")
        tokenizer.check_vocabulary(model.cfg.d_vocab, row)
        fronts.append([model.start_token] if encoder else row[: len(row) - len(own)])
        rows.append(row)
    return fronts, rows


def _are_ids(prompt: Any) -> bool:
    return np.ndim(prompt) == 1 and (not len(prompt) or np.asarray(prompt).dtype.kind in "iu")


def _ends(model: Transformer, tokenizer: Tokenizer) -> list[int]:
    """Every id that ends a text, and that the model can write."""
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return [i for i in dict.fromkeys((*model.end_tokens, *tokenizer.end_ids, *own)) if i < model.cfg.d_vocab]
