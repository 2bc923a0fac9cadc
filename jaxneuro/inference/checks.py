# SPDX-License-Identifier: Apache-2.0
"""What cannot be generated, said before anything is computed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..errors import UserError
from ..models import Config, Weights
from ..models.cross import check_context
from ..models.half import check_finite, in_half
from ..models.inputs import check_length, check_mask
from ..taps import Edit
from ..taps.compiled import staging
from ..taps.definitions import LAST_SITES
from ..taps.names import parse

ENCODER = "encoder."
"""Where the sites of an encoder are."""
_POSITIONS = ("pos", "query", "key")


def check_outside(what: str, *arrays: Any) -> None:
    """Generation is loops and programs of its own, which ask for numbers in between.

    Raises:
      UserError: inside jit, capture, intervene, grad or vmap.
    """
    if staging() or any(isinstance(a, Tracer) for a in jax.tree.leaves(arrays)):
        raise UserError(
            f"{what} cannot run inside capture, intervene, jit, grad or vmap: it asks for numbers between programs. "
            "Give it edits=, and to read sites of what was generated, capture model.apply on the prompt with the new "
            "tokens."
        )


def check_model(cfg: Config) -> None:
    """Only a decoder with a head goes on with a text.

    Raises:
      UserError: an encoder, a model of pictures, a model without a head.
    """
    if not cfg.causal or cfg.image is not None:
        raise UserError(f"this {cfg.family} model cannot generate: it is not causal. Load a decoder.")
    if not cfg.has_head:
        raise UserError(f"this {cfg.family} model cannot generate: it has no head. Load the checkpoint with its head.")


def check_scores(cfg: Config, weights: Weights, log_probs: Any) -> None:
    """A model in float16 has not passed what that holds: the scores of what was drawn say so, and are few.

    Raises:
      UserError: it has; bfloat16 is named.
    """
    if in_half(weights):
        check_finite(log_probs, f"this {cfg.family} model, on these prompts and under these edits,")


def check_source(cfg: Config, context: Any, mask: Any, batch: int) -> tuple[Any, Any]:
    """(context, mask) as `forward` takes them, after everything about them was checked.

    Raises:
      UserError: as `forward`; no tokens, a row of padding alone, ids outside the vocabulary.
    """
    context, mask = (a if a is None else np.asarray(a) for a in (context, mask))
    check_context(cfg, context, mask, None, batch)
    if context is not None and context.ndim == 2:
        context, mask = check_rows(cfg, context, mask, "context")
    return jax.tree.map(jnp.asarray, (context, mask))


def check_prompt(cfg: Config, tokens: Any, mask: Any, new: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask) as int32 and bool [batch, pos], after everything about them was checked.

    Raises:
      UserError: no tokens, a row of padding alone, ids outside the vocabulary, more positions than were learned.
    """
    tokens, mask = check_rows(cfg, tokens, mask, "prompt")
    if type(new) is not int or new < 1:
        raise UserError(f"max_new={new!r}; it is how many tokens to generate, at least 1.")
    length = tokens.shape[1]
    most = max(0, (cfg.longest or 0) - length + 1)
    asked = f"a prompt of {length} tokens and {new} new ones need {length + new - 1} positions"
    check_length(cfg, length + new - 1, asked, f"Shorten the prompt or generate at most {most}.")
    return tokens, mask


def check_rows(cfg: Config, tokens: Any, mask: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask) as int32 and bool [batch, pos].

    Raises:
      UserError: no tokens, a row of padding alone, ids outside the vocabulary.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not len(tokens):
        raise UserError(
            f"a {what} is whole numbers [batch, pos]; these have shape {list(tokens.shape)} and type {tokens.dtype}."
        )
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    check_mask(mask, tokens.shape, what)
    if len(empty := np.flatnonzero(~mask.any(1))):
        raise UserError(f"{what} {empty[0]} is empty. Give it at least one token, the begin token for instance.")
    if ((tokens < 0) | (tokens >= cfg.d_vocab))[mask].any():
        bad = tokens[((tokens < 0) | (tokens >= cfg.d_vocab)) & mask][0]
        raise UserError(
            f"token {bad} is not in the vocabulary of {cfg.d_vocab}: the tokenizer does not belong to this model."
        )
    return np.where(mask, tokens, 0).astype(np.int32), mask


def check_ids(cfg: Config, ids: Any, what: str) -> np.ndarray:
    """Token ids as int32 [n].

    Raises:
      UserError: not whole numbers, or outside the vocabulary.
    """
    found = np.asarray(ids)
    if found.size and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= cfg.d_vocab):
        raise UserError(f"{what}={np.asarray(ids).tolist()!r}; it must be token ids below {cfg.d_vocab}.")
    return found.astype(np.int32).reshape(-1)


def edits_of(edits: Any) -> list[Edit]:
    """The edits of a pytree of them."""
    return jax.tree.leaves(edits, is_leaf=lambda e: isinstance(e, Edit))


def of_encoder(edit: Edit) -> bool:
    """It acts while the encoder reads the context, which is before the loop."""
    return edit.site.startswith(ENCODER)


class Rows(NamedTuple):
    """Where each row of a batch of prompts begins and ends, in columns."""

    first: np.ndarray
    """int [batch]: of its first real token, which is position 0."""
    end: np.ndarray
    """int [batch]: one behind its last."""

    @classmethod
    def of(cls, mask: np.ndarray) -> "Rows":
        """Of a mask in which every row has a real token."""
        return cls(mask.argmax(1), mask.shape[1] - mask[:, ::-1].argmax(1))

    @property
    def longest(self) -> int:
        """Positions of the longest row."""
        return int((self.end - self.first).max())

    def first_column(self, index: Any) -> int:
        """The lowest column that a selector of positions selects in any row; 0 if it is not known."""
        if isinstance(index, Tracer):
            return 0
        found = np.asarray(index)
        if found.dtype == bool:
            found = np.argmax(found, -1) if found.any(-1).all() else np.zeros(1, np.int64)
        found = found.reshape(-1, 1)
        here = np.where(found < 0, found + self.end, found + self.first)
        # A row that is too short for a negative position has none there.
        here = here[here >= self.first]
        return int(here.min()) if here.size else int(self.end.max())


def check_positions(edits: Any, rows: Rows, new: int, context: int = 0) -> None:
    """Positions that edits name must be reached in the longest row; of what the encoder reads: in the longest text.

    Args:
      new: tokens that are generated; the last of them is not run.
    Raises:
      UserError: a position behind the last token that the model will see, or before the first.
    """
    prompt, slots = rows.longest, rows.longest + new - 1
    for edit in edits_of(edits):
        for axis in {*_POSITIONS} & {*getattr(edit, "at", {})}:
            index = edit.at[axis]
            if isinstance(index, Tracer) or np.asarray(index).dtype == bool:
                continue
            found = np.asarray(index).reshape(-1)
            if of_encoder(edit) or (axis == "key" and ".cross_attn." in edit.site):
                if len(bad := found[(found >= context) | (found < -context)]):
                    raise UserError(
                        f"an edit of {edit.site!r} at {axis}={bad[0]}: the context has {context} positions."
                    )
            elif len(bad := found[(found >= slots) | (found < -prompt)]):
                raise UserError(
                    f"an edit of {edit.site!r} at {axis}={bad[0]}: the prompt has {prompt} positions and {slots} are "
                    f"run in all, so 0 to {slots - 1} exist, and -1 (the newest) to {-prompt}."
                )


def longest(context: Any, mask: Any) -> int:
    """Positions of the longest text that the encoder reads; 0 without one."""
    if context is None:
        return 0
    return context.shape[1] if mask is None else Rows.of(np.asarray(mask)).longest


def first_layer(edits: Any, n_layers: int) -> int:
    """The layer of their stack that must run again for these edits; -1 if the embedding must, n_layers if only what
    follows the layers."""
    return min((_layer(e, n_layers) for e in edits_of(edits)), default=n_layers)


def _layer(edit: Edit, n_layers: int) -> int:
    site = parse(edit.site)
    name = site.name.removeprefix(ENCODER)
    if not name.startswith("blocks."):
        return n_layers if name in LAST_SITES else -1
    if site.layers is not None:
        return min(site.layers)
    if edit.layer is None or isinstance(edit.layer, Tracer):
        return 0
    return _first_layer(edit.layer, n_layers)


def _first_layer(index: Any, n_layers: int) -> int:
    """The lowest layer that a selector selects; n_layers if none, 0 if it is not known."""
    found = np.asarray(index)
    if found.dtype == bool:
        return int(found.argmax(-1).min()) if found.any(-1).all() else 0
    found = np.where(found < 0, found + n_layers, found).reshape(-1)
    return int(max(0, found.min())) if found.size else n_layers


def last_real(mask: np.ndarray) -> tuple[int, bool]:
    """(position behind the last real token of the row where that is first; whether it is the same in all)."""
    ends = mask.shape[1] - mask[:, ::-1].argmax(1)
    return int(ends.min()), bool((ends == mask.shape[1]).all())


def dtype_of(weights: Weights) -> Any:
    """The dtype in which a model computes."""
    return weights["embed"]["tok"].dtype
