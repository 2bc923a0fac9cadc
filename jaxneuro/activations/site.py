# SPDX-License-Identifier: Apache-2.0
"""A model seen through one site: the program that computes it and nothing above it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..errors import UserError
from ..protocols import Batch, Method
from ..taps import capture
from ..taps.names import parse

_LAST = ("ln_final.", "logits")
_NO_POSITION = ("attn.scores", "attn.pattern")


def stop_at(site: str) -> int | None:
    """How many layers of the stack a site needs; None: all of it and what follows.

    Raises:
      UserError: the site stands for several layers, for a gradient, or for pairs of positions.
    Example:
      >>> stop_at("blocks.3.mlp.post"), stop_at("embed"), stop_at("logits")
      (4, 0, None)
    """
    name, layers, single = parse(site)
    if "@" in name:
        raise UserError(f"{site!r} is a gradient; one forward pass has none. Ask for {site.partition('@')[0]!r}.")
    if name.endswith(_NO_POSITION):
        raise UserError(f"{site!r} has a value per pair of positions, not per token. Ask for 'attn.z' instead.")
    if name.startswith("blocks."):
        if layers is None or not single:
            raise UserError(f"{site!r} stands for several layers. Name one, 'blocks.3.{name.removeprefix('blocks.')}'.")
        return layers[0] + 1
    return None if name.startswith(_LAST) else 0


@functools.lru_cache(maxsize=64)
def reader(apply: Callable[..., Any], site: str) -> Callable[..., Float[Array, "batch pos d"]]:
    """(weights, tokens, mask) -> the site's values, [batch, pos, d]: axes after `pos` (heads) are joined.

    The model is run up to the site's layer only, by the `stop_at` argument of `apply`. The same function object
    comes back for the same arguments, so that jit compiles it once.

    Args:
      apply: the model's pure function, `model.apply`.
      site: one site of one layer, "blocks.3.mlp.post".
    Raises:
      UserError: see `stop_at`; when called: the model has no such site.
    """
    run = functools.partial(apply, stop_at=stop_at(site))

    def read(weights: Any, tokens: Array, mask: Array | None = None) -> Array:
        _, found = capture(run, [site])(weights, tokens, mask)
        value = found[site]
        if value.shape[:2] != tokens.shape:
            raise UserError(f"{site!r} has shape {value.shape}, not one row for each of the {tokens.shape} tokens.")
        return value.reshape(*tokens.shape, -1)

    return read


def at_site(apply: Callable[..., Any], site: str, method: Method) -> Method:
    """A method over activations as a method over token batches: both in one compiled program, nothing stored.

    Args:
      apply: the model's pure function; its weights come with the batches, `run(..., constants={"weights": w})`.
      site: one site of one layer.
      method: takes {"x": [n, d], "mask": bool [n], "group": int32 [n]}: all tokens of the batch, those to count
        being marked.
    Returns:
      A method over batches as `jaxneuro.data.batches` makes them.
    Example:
      >>> mean = at_site(model.apply, "blocks.3.resid_post", moments())            # doctest: +SKIP
      >>> run(mean, batches(rows, batch_size=32), constants={"weights": model.weights}, key=key)  # doctest: +SKIP
    """
    read = reader(apply, site)

    def rows(batch: Batch) -> dict[str, Array]:
        x = read(batch["weights"], batch["tokens"], batch["mask"])
        n = x.shape[0] * x.shape[1]
        group = jnp.broadcast_to(batch["group"][:, None], x.shape[:2])
        return {"x": x.reshape(n, -1), "mask": batch["counted"].reshape(n), "group": group.reshape(n)}

    return Method(
        init=lambda key, batch: method.init(key, jax.jit(rows)(batch)),
        step=lambda state, batch: method.step(state, rows(batch)),
        finish=method.finish,
    )
