# SPDX-License-Identifier: Apache-2.0
"""Rows of a fixed length: documents packed into windows, or one document per row; random access, groups never mixed."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from ..errors import UserError, quoted, shown, unknown
from ..stats import permuted_labels
from .by_row import ByRow, counted_per_group
from .packing import PACKINGS, Apart, Concatenated, OneDocument, Packing
from .store import Progress, TokenStore, tokenize
from .tokenizer import Tokenizer

type Change = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Rows -> the same rows with another `counted`."""


class Windows(ByRow):
    """Rows of `length` tokens, by number, in order of the groups. Made by `windows`.

    `windows[i]` is a dict: tokens int32 [length]; mask bool [length], True at real tokens (special ones included);
    counted bool [length], True at real tokens that are not special; group and window int32 scalars (group number,
    and i). `rows(indices)` stacks several.
    """

    def __init__(self, packers: Mapping[str, Packing], tokenizer: Tokenizer, length: int, stores: Sequence[TokenStore]):
        self.group_names: tuple[str, ...] = tuple(packers)
        self.tokenizer, self.length = tokenizer, length
        self._packers = tuple(packers.values())
        sizes = np.array([len(p) for p in self._packers], np.int64)
        self._first = np.cumsum(sizes) - sizes
        self.group = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.tokens_per_group = _of(stores, "n_counted")
        self.truncated_documents = _of(stores, "truncated_documents")
        self.truncated_tokens = _of(stores, "truncated_tokens")
        self._prefix, self._suffix = (np.array(ids, np.int32) for ids in (tokenizer.prefix, tokenizer.suffix))
        self._max_id = max(int(s.ids.max()) for s in stores)
        if not self._packers[0].per_document and any(s.n_documents > 1 for s in stores):
            self._max_id = max(self._max_id, tokenizer.separator_id or 0)
        each = [p.block() for p in self._packers]
        first = np.cumsum([0, *(int(b[-1]) + 1 for b in each[:-1])])
        self.block = np.concatenate([b + f for b, f in zip(each, first, strict=True)])
        about = [length, _NAMES[type(self._packers[0])], *zip(packers, (s.fingerprint for s in stores), strict=True)]
        self.fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        self._changes: tuple[Change, ...] = ()

    group: np.ndarray
    """int32 [n_windows]: the group of every window, as a number into `group_names`."""
    block: np.ndarray
    """int64 [n_windows]: windows that share a document, directly or through other windows, have the same number. Blocks
    are what is independent: nulls permute them (`shuffled_labels`), and studied and measured text are split by them."""
    tokens_per_group: np.ndarray
    """int64 [n_groups]: counted tokens, over all windows."""
    truncated_documents: np.ndarray
    """int64 [n_groups]: documents longer than a row ("documents" packing), and `truncated_tokens` cut off them."""
    fingerprint: str
    """A hash of texts, tokenizer, length and packing: equal for equal rows."""

    def __len__(self) -> int:
        return len(self.group)

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Windows stacked on axis 0. An index past the end gives a filler row: mask False, window -1, group 0."""
        n = len(indices)
        tokens = np.full((n, self.length), self.tokenizer.fill_id, np.int32)
        mask = np.zeros((n, self.length), np.bool_)
        group, window = np.zeros(n, np.int32), np.full(n, -1, np.int32)
        for row, i in enumerate(map(int, indices)):
            if i < len(self):
                ids = self.tokens(i)
                tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
                group[row], window[row] = self.group[i], i
        counted = mask & ~self.tokenizer.is_special(tokens)
        found = {"tokens": tokens, "mask": mask, "counted": counted, "group": group, "window": window}
        for change in self._changes:
            found = change(found)
        return found

    def leaving_out(self, change: Change, name: str) -> "Windows":
        """These windows with fewer counted tokens, for all who read them.

        Args:
          change: rows -> the same rows with another `counted`, each decided by itself.
          name: what it leaves out; the fingerprint depends on it.
        """
        found = copy.copy(self)
        found._changes = (*self._changes, change)
        found.fingerprint = hashlib.sha256(f"{self.fingerprint} without {name}".encode()).hexdigest()
        found.tokens_per_group = counted_per_group(found)
        return found

    def tokens(self, i: int) -> np.ndarray:
        """int32 [at most length]: the real tokens of window i, special ones included."""
        g = self.group[i]
        return np.concatenate([self._prefix, self._packers[g].row(i - int(self._first[g])), self._suffix])

    def check_vocabulary(self, d_vocab: int) -> None:
        """A model of `d_vocab` embeddings has one for every id in these rows.

        Raises:
          UserError: one has none.
        """
        self.tokenizer.check_vocabulary(d_vocab, [self._max_id])

    def text(self, i: int) -> str:
        """What window i says, without the special tokens around it; separators between documents are shown."""
        ids = self.tokens(i)
        return self.tokenizer.decode(ids[len(self._prefix) : len(ids) - len(self._suffix)])

    def __repr__(self) -> str:
        sizes = zip(self.group_names, np.bincount(self.group, minlength=len(self.group_names)), strict=True)
        return f"Windows({len(self)} of {self.length} tokens: {', '.join(f'{g} {n}' for g, n in sizes)})"


_NAMES: Final = {Concatenated: "_Concatenated", OneDocument: "_OneDocument", Apart: "Apart"}
"""In fingerprints, where they stay what they were."""


def _of(stores: Sequence[TokenStore], name: str) -> np.ndarray:
    return np.array([getattr(s, name) for s in stores], np.int64)


def windows(
    groups: Mapping[str, Sequence[str]],
    tokenizer: Tokenizer,
    *,
    length: int,
    packing: str = "windows",
    max_tokens_per_group: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Windows:
    """Tokenize every group once and lay it out in rows of a fixed length.

    | packing | a row is | too long | too short |
    |---|---|---|---|
    | "windows" | the group's next tokens, `separator_id` between documents | never cut | only the last row is padded |
    | "apart" | a piece of one document, or whole short ones with `separator_id` between | cut into pieces | padded |
    | "documents" | one document | cut, and counted in `truncated_*` | padded |

    Every row begins and ends with the special tokens that the tokenizer's own convention puts around a text (BOS
    where it adds one, or always with `load_tokenizer(name, bos=True)`; [CLS] and [SEP]), inside `length`. Documents
    that spell them out (rendered chat templates) do not get them twice. Rows never mix groups. Special tokens,
    separators included, are real (`mask`) but not counted (`counted`).

    Args:
      groups: texts by group name, from `read_groups` or any mapping of sequences.
      length: tokens per row.
      max_tokens_per_group: use the first so many tokens of each group (after cutting to rows), special tokens aside.
      cache_dir: keep token ids there (`store.tokenize`); without it they are in memory, 4 bytes each.
      progress: called with (documents done, documents in all, group).
    Raises:
      UserError: unknown packing, no room in `length`, no groups, an empty group, or, in "windows" packing, a group
        with fewer tokens than one row.
    """
    _check_groups(groups)
    if packing not in PACKINGS:
        raise unknown("packing", packing, PACKINGS)
    capacity = length - len(tokenizer.prefix) - len(tokenizer.suffix)
    if capacity < 1:
        raise UserError(f"length {length} leaves no room beside the {length - capacity} special tokens of each row.")
    if max_tokens_per_group is not None and max_tokens_per_group < 1:
        raise UserError(f"max_tokens_per_group is {max_tokens_per_group}; give at least 1, or None for all.")
    pack = PACKINGS[packing]
    packers: dict[str, Packing] = {}
    stores = []
    for name, texts in groups.items():
        store = tokenize(
            texts,
            tokenizer,
            max_per_document=capacity if pack.per_document else None,
            max_tokens=max_tokens_per_group,
            cache_dir=cache_dir,
            progress=progress,
            name=name,
        )
        stores.append(store)
        packers[name] = pack(store, capacity, tokenizer.separator_id)
        _enough(name, packers[name], store, capacity, max_tokens_per_group, padded=pack is not Concatenated)
    return Windows(packers, tokenizer, length, stores)


def _check_groups(groups: Any) -> None:
    if not isinstance(groups, Mapping):
        raise UserError(
            f"windows: groups are texts by group name, not {shown(groups)}. Write {{'name': [text, ...]}}, or take "
            "what read_groups gives."
        )
    if not groups:
        raise UserError("no groups were given.")
    for name, texts in groups.items():
        if isinstance(texts, str | bytes):
            raise UserError(f"group {quoted(name)} is one text, where a sequence of texts belongs. Write [text].")


def _enough(name: str, packer: Packing, store: TokenStore, capacity: int, limit: int | None, *, padded: bool) -> None:
    if not len(packer):
        raise UserError(f"group {name!r} is empty: its text gives no tokens. Add text to it or leave it out.")
    if not padded and len(packer.row(0)) < capacity:
        cut = f" (max_tokens_per_group={limit})" if limit is not None and limit < capacity else ""
        raise UserError(
            f"group {name!r} has {len(store.ids)} tokens{cut}, fewer than one window of {capacity}. Add text to it, "
            f"choose a smaller `length`, or use packing='apart' or packing='documents' (padded rows)."
        )


def shuffled_labels(
    windows: Windows | np.ndarray, n_shuffles: int, seed: int, *, block: np.ndarray | None = None
) -> np.ndarray:
    """Group labels of all windows, true and permuted, for permutation nulls.

    A permutation moves labels between blocks: all windows of a document get one label, for they are not independent.
    Every group keeps its number of blocks (not its number of windows or tokens, as documents differ in length).

    Args:
      windows: `Windows`, or their labels, integers [n_windows].
      n_shuffles: how many permutations, at least 0.
      block: integers [n_windows], the windows' documents; None: `windows.block`, or, for labels alone, every window a
        block of its own, which is right only if each is of another document.
    Returns:
      int32 [n_windows, 1 + n_shuffles]: column 0 the true labels, the others permutations of it
      (`jaxneuro.stats.permuted_labels`). Index it with a batch's `window`; mask the filler rows, whose window is -1.
    Raises:
      UserError: n_shuffles or seed is negative, or a block lies in two groups.
    Example:
      >>> labels = shuffled_labels(np.array([0, 0, 1]), 2, seed=0, block=np.array([0, 0, 1]))
      >>> labels.shape, labels[:, 0].tolist(), bool((labels[0] == labels[1]).all())
      ((3, 3), [0, 0, 1], True)
    """
    if not isinstance(windows, np.ndarray):
        windows, block = windows.group, windows.block if block is None else block
    return permuted_labels(windows, n_shuffles, seed, block=block)
