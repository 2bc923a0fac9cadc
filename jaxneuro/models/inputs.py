# SPDX-License-Identifier: Apache-2.0
"""What a model of text is given: checked where its values are known, and harmless where they are not."""

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ..console import say
from ..errors import UserError
from .config import Config

_HOW: Final = "load_tokenizer makes them of texts: tokens, mask = load_tokenizer(name).batch(texts)."
NO_LABEL: Final = -100
"""The target that means "none here", as in transformers."""


def embedded(
    table: Float[Array, "id d_model"], ids: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None = None
) -> Float[Array, "batch pos d_model"]:
    """Rows of a table: NaN for an id that it does not have, below 0 or beyond; at padding row 0 for such an id.

    Example:
      >>> embedded(jnp.eye(2), jnp.array([[1, -1, 2]]), jnp.array([[True, True, False]]))[0].tolist()
      [[0.0, 1.0], [nan, nan], [1.0, 0.0]]
    """
    n, ids = table.shape[0], jnp.asarray(ids, jnp.int32)
    known = (ids >= 0) & (ids < n)
    other = n if mask is None else jnp.where(mask, jnp.int32(n), jnp.int32(0))
    return jnp.take(table, jnp.where(known, ids, other), axis=0, mode="fill")


def check_inputs(
    cfg: Config, tokens: Any, mask: Any = None, *, token_types: Any = None, context: Any = None,
    context_mask: Any = None, resid: Any = None, **other: Any,
) -> None:  # fmt: skip
    """What `forward` is given is what it takes: shapes and types always, ids where they are known.

    Raises:
      UserError: tokens that are no whole numbers [batch, pos] with a row and a position, an id without a row in the
        model's table at a real token, a mask that is not boolean or of another shape.
    """
    if cfg.image is None:
        _check_text(tokens, mask, cfg.d_vocab if resid is None else None, "tokens")
        if token_types is not None:
            _check_text(token_types, mask, max(cfg.n_token_types, 1), "token_types")
        if cfg.encoder is not None and np.ndim(context) == 2 and not _is_float(context):
            _check_text(context, context_mask, cfg.d_vocab, "context")
        return
    if resid is None:
        check_pictures(tokens)
    if mask is not None and not _is_mask(mask):
        raise UserError(f"a mask is boolean, True at what is seen; this one is {_described(mask)}.")


def check_length(cfg: Config, length: int, asked: str, advice: str) -> None:
    """The one rule of how long a text may be: as long as the table of positions, where there is one.

    Rotary and relative positions go on, as in transformers. Where they pass the longest text of training, it is said,
    once.

    Args:
      length: positions of the longest row.
      asked: what has so many, in words.
      advice: what to do instead.
    Raises:
      UserError: more than a table of learned positions has.
    """
    if cfg.longest is not None and length > cfg.longest:
        raise UserError(f"{asked}, but this model has learned only {cfg.longest}. {advice}")
    if cfg.n_ctx and length > cfg.n_ctx:
        _say_once(
            f"this {cfg.family} model was trained on texts of {cfg.n_ctx} tokens at most; its positions go on, but "
            "what it makes of longer texts nobody promises"
        )


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def check_pictures(pixels: Any) -> None:
    """Pixels are real numbers of one picture at least; their size is the model's to say.

    Raises:
      UserError: they are not.
    """
    dtype = getattr(pixels, "dtype", None)
    real = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in (np.floating, np.integer, np.bool_))
    if not real or np.shape(pixels)[:1] == (0,):
        raise UserError(
            "pictures are real numbers [batch, row, column, channel], of one picture at least; this is "
            f"{_described(pixels)}. load_processor makes them: pixels = load_processor(name)(pictures)."
        )


def check_call(cfg: Config, weights: Any, tokens: Any, mask: Any = None, **part: Any) -> None:
    """`check_inputs` of the arguments of `Transformer.apply`, before they are traced."""
    if not isinstance(tokens, jax.ShapeDtypeStruct):
        check_inputs(cfg, tokens, mask, **part)


def check_given(weights: Any, tokens: Any, *, cfg: Config, **part: Any) -> None:
    """`check_inputs` of the arguments of `forward`."""
    check_call(cfg, weights, tokens, **part)


def check_read(weights: Any, tokens: Any, *, cfg: Config, **part: Any) -> None:
    """`check_inputs` of the arguments of `encode`."""
    if cfg.encoder is not None:
        check_call(cfg.encoder, weights, tokens, **part)


def check_pooled(weights: Any, inputs: Any, cfg: Config, mask: Any = None, **part: Any) -> None:
    """`check_inputs` of the arguments of `pooled`."""
    check_call(cfg, weights, inputs, mask, **part)


def check_ids(ids: Any, n: int, what: str, real: Any = None, *, also: int | None = None) -> None:
    """Ids below n, where their values are known.

    Args:
      real: where they matter; None: everywhere.
      also: an id that is allowed beside them.
    Raises:
      UserError: another one.
    """
    known = _known(ids)
    if known is None or not known.size:
        return
    bad = (known < 0) | (known >= n)
    bad &= True if also is None else known != also
    if real is not None:
        real = _known(real)
        bad &= real if real is not None else False
    if bad.any():
        raise UserError(
            f"{what} holds the id {known[bad].flat[0]}; this model has {n}, 0 to {n - 1}: they are of another "
            f"tokenizer or no ids. {_HOW}"
        )


def _check_text(tokens: Any, mask: Any, n: int | None, what: str) -> None:
    dtype = getattr(tokens, "dtype", None)
    whole = dtype is not None and (jnp.issubdtype(dtype, jnp.integer))
    if not whole or np.ndim(tokens) != 2 or 0 in np.shape(tokens):
        raise UserError(
            f"{what} is an array of whole numbers [batch, pos], a row and a position at least; this is "
            f"{_described(tokens)}. {_HOW}"
        )
    check_mask(mask, np.shape(tokens), what)
    if n is not None:
        check_ids(tokens, n, what, mask)


def check_mask(mask: Any, shape: tuple[int, ...], what: str) -> None:
    """A mask of what has this shape: boolean, and of that shape too.

    Raises:
      UserError: it is not.
    """
    if mask is not None and not (_is_mask(mask) and np.shape(mask) == shape):
        raise UserError(
            f"the mask of {what} {list(shape)} is boolean and of the same shape, True at real tokens; this is "
            f"{_described(mask)}. {_HOW}"
        )


def _is_float(value: Any) -> bool:
    """Hidden states, or ids of a wrong dtype, which `check_context` tells apart."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def _is_mask(mask: Any) -> bool:
    return hasattr(mask, "dtype") and jnp.issubdtype(mask.dtype, jnp.bool_)


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return f"a {type(value).__name__}"
    return f"{dtype} {list(np.shape(value))}"


def _known(value: Any) -> np.ndarray | None:
    """The value, if there is one here."""
    if isinstance(value, Tracer | jax.ShapeDtypeStruct):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)
