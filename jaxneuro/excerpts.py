# SPDX-License-Identifier: Apache-2.0
"""Text with a number at each token, pictures with one at each patch, as a person reads them."""

from collections.abc import Sequence
from typing import Any


def excerpt(tokenizer: Any, ids: Sequence[int], values: Sequence[float], peak: int) -> dict[str, Any]:
    """Token strings, the value of each and the place of the peak.

    An emoji is two to seven tokens of a byte-level tokenizer. Where the tokenizer has `joined_strings`, they are one
    string, and its value is that of the token of largest |value|: the peak keeps its value.

    Args:
      tokenizer: has `joined_strings(ids) -> [(string, number of tokens)]`, or `token_strings(ids) -> [string]`.
    Returns:
      tokens, values, peak (an index into both).
    Example:
      >>> class Words:
      ...     def joined_strings(self, ids):
      ...         return [("a", 1), ("😀", 2)]
      >>> excerpt(Words(), [5, 6, 7], [0.5, -3.0, 1.0], 2)
      {'tokens': ['a', '😀'], 'values': [0.5, -3.0], 'peak': 1}
    """
    ids, values = [int(i) for i in ids], [float(v) for v in values]
    join = getattr(tokenizer, "joined_strings", None)
    pieces = join(ids) if join is not None else [(s, 1) for s in tokenizer.token_strings(ids)]
    tokens, kept, place, start = [], [], 0, 0
    for string, n in pieces:
        tokens.append(string)
        kept.append(max(values[start : start + n], key=abs))
        place += start + n <= peak
        start += n
    return {"tokens": tokens, "values": kept, "peak": place}


def patches(values: Sequence[float], peak: int, *, grid: tuple[int, int], first: int = 0) -> dict[str, Any]:
    """A picture with a number at each of its patches, as `excerpt` has it of text.

    Args:
      values: of every position of the picture.
      peak: the position of the largest.
      grid: rows and columns of its patches; `first` other positions (class token, registers) are before them.
    Returns:
      grid, values (of the patches in reading order, three digits), peak (an index into them; None: the largest value is
      at no patch), peak_value.
    Example:
      >>> patches([9.0, 1.0, 2.0, 3.0, 4.0], 4, grid=(2, 2), first=1)
      {'grid': [2, 2], 'values': [1.0, 2.0, 3.0, 4.0], 'peak': 3, 'peak_value': 4.0}
    """
    shown = [float(f"{float(v):.3g}") for v in values]
    at = peak - first if peak >= first else None
    return {"grid": list(grid), "values": shown[first:], "peak": at, "peak_value": shown[peak]}
