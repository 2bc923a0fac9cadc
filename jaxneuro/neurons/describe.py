# SPDX-License-Identifier: Apache-2.0
"""Descriptions without a language model: tokens at and near a neuron's peaks that are commoner there than elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

OFFSETS: Final = (0, -1, -2, -3, 1)
"""Places looked at, relative to the peak; 0 first."""


def token_counts(rows: Sequence[Mapping[str, Any]], n_vocab: int) -> np.ndarray:
    """int64 [n_vocab]: how often each token occurs at counted positions of these windows or batches."""
    total = np.zeros(n_vocab, np.int64)
    for row in rows:
        total += np.bincount(np.asarray(row["tokens"])[np.asarray(row["counted"])], minlength=n_vocab)
    return total


def pmi(active: np.ndarray, background: np.ndarray, weight: float = 0.5) -> np.ndarray:
    """Smoothed pointwise mutual information of every token with being active.

        score(w) = log p(w | active) - weight log p(w),   p = (c + 0.5) / (N + 0.5 |W|)

    Args:
      active: int [V], counts at active places.
      background: int [V], counts everywhere.
      weight: 1 is plain PMI, which prefers rare tokens; 0 plain frequency.
    Returns:
      float64 [V], nats.
    Source: the objective of MILAN (evandez/neuron-descriptions) with counts in place of a captioner.
    """
    p, q = ((c + 0.5) / (c.sum() + 0.5 * len(c)) for c in (np.asarray(active), np.asarray(background)))
    return np.log(p) - weight * np.log(q)


def describe(
    peaks: Sequence[tuple[np.ndarray, int]],
    background: np.ndarray,
    token_strings: Any,
    *,
    weight: float = 0.5,
    min_support: int = 5,
    top: int = 3,
) -> dict[str, Any]:
    """What a neuron's largest examples have in common, as counts and one sentence from a template.

    Args:
      peaks: per example its token ids [T] and the peak's position (`GroupStatistics.examples`).
      background: int [n_vocab], from `token_counts`.
      token_strings: ids -> list of strings (a tokenizer's method).
      min_support: a token needs this many examples; with less, score tables prefer whatever is rare.
    Returns:
      {"text", "evidence": [{"token", "offset", "score", "support", "recall", "lift"}]}; evidence is empty, and the text
      says so, if nothing has the support. recall = support / examples; lift = recall / frequency in the text.
    Example:
      >>> peaks = [(np.array([2]), 0)] * 6
      >>> describe(peaks, np.array([50, 40, 10]), lambda ids: [f"t{i}" for i in ids])["text"]
      "fires on 't2' (6 of 6 examples)"
    """
    found = []
    for offset in OFFSETS:
        ids = np.array([t[p + offset] for t, p in peaks if 0 <= p + offset < len(t)], np.int64)
        active = np.bincount(ids, minlength=len(background))
        score = pmi(active, background, weight)
        for token in np.flatnonzero(active >= min_support):
            recall = active[token] / len(peaks)
            lift = recall / max(background[token] / max(background.sum(), 1), 1e-12)
            found.append((score[token], OFFSETS.index(offset), int(token), offset, int(active[token]), recall, lift))
    found = sorted((f for f in found if f[6] > 1), key=lambda f: (-f[0], f[1], f[2]))[:top]
    evidence = [
        {"token": token_strings([token])[0], "offset": offset, "score": float(score), "support": support,
         "recall": float(recall), "lift": float(lift)}
        for score, _, token, offset, support, recall, lift in found
    ]  # fmt: skip
    if not evidence:
        return {"text": f"no token is common to {min_support} of its {len(peaks)} top examples", "evidence": []}
    parts = [f"{_where(e['offset'])} {e['token']!r} ({e['support']} of {len(peaks)} examples)" for e in evidence]
    return {"text": "fires " + ", ".join(parts), "evidence": evidence}


def _where(offset: int) -> str:
    if offset == 0:
        return "on"
    return "after" if offset == -1 else "before" if offset == 1 else f"{-offset} tokens after"
