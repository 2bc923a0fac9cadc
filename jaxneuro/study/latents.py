# SPDX-License-Identifier: Apache-2.0
"""Cards of a dictionary's latents: which groups they fire in, where they are strongest, which tokens they write."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..activations import ActivationArray
from ..dictionaries import SparseCoder
from ..dictionaries.examples import checked, group_rates, latent_examples, most_active, most_selective
from ..neurons import decode_written
from ..taps.names import parse
from .inputs import Inputs


def latent_cards(
    inputs: Inputs, dictionary: SparseCoder, acts: ActivationArray, latents: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """One card per chosen latent, in the report's shape.

    Args:
      latents: the chosen ones, in this order; None: `cards.latents` of them, the most group-selective and, a quarter,
        the most active.
    """
    c, rates = inputs.config.cards, group_rates(dictionary, acts, len(inputs.groups))
    chosen = default_latents(rates, c.latents) if latents is None else checked(dictionary, latents)
    if not chosen.size:
        return []
    options = {"n": c.examples, "context": c.context, "group_names": inputs.groups, "show": inputs.patches()}
    examples = latent_examples(dictionary, acts, inputs.windows, inputs.tokenizer, chosen, **options)
    density = (rates * np.bincount(acts.group, minlength=len(inputs.groups))).sum(1) / len(acts)
    tokens = _written(inputs, dictionary, chosen)
    return [
        _card(inputs, int(latent), rates[latent], float(density[latent])) | {"examples": examples[i], **tokens[i]}
        for i, latent in enumerate(chosen)
    ]


def default_latents(rates: np.ndarray, n: int) -> np.ndarray:
    """int32: three quarters of n most selective ones, then the most active of the others."""
    selective = most_selective(rates, n - n // 4)
    active = [i for i in most_active(rates, n) if i not in set(selective.tolist())]
    return np.array([*selective, *active][:n], np.int32)


def _card(inputs: Inputs, latent: int, rate: np.ndarray, density: float) -> dict[str, Any]:
    total = float(rate.sum())
    return {
        "latent": latent,
        "density": density,
        "rate": rate.tolist(),
        "group": inputs.groups[int(rate.argmax())] if total else None,
        "selectivity": float(rate.max()) / total if total else None,
    }


def _written(inputs: Inputs, dictionary: SparseCoder, latents: np.ndarray) -> list[dict[str, Any]]:
    """Tokens that each latent's decoder row promotes and suppresses, where the model has an unembedding."""
    nothing = [{"promoted": None, "suppressed": None}] * len(latents)
    if inputs.tokenizer is None:
        return nothing
    model, site = inputs.model, str(inputs.dictionary_site)
    layers, rows = parse(site).layers, dictionary.W_dec[latents]
    layer = layers[0] if layers else None
    decoded = decode_written(model.weights, model.cfg, site, layer, rows, inputs.config.cards.tokens)
    if decoded is None:
        return nothing
    return [
        {"promoted": inputs.named(up, s_up), "suppressed": inputs.named(down, s_down)}
        for up, s_up, down, s_down in zip(*map(np.asarray, decoded[:4]), strict=True)
    ]
