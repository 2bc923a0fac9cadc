# SPDX-License-Identifier: Apache-2.0
"""A dictionary judged on text that it was not trained on: reconstruction, what the model loses, training, latents."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..activations import ActivationArray, harvest, rich_progress
from ..dictionaries import Reconstruction, Recovered, reconstruction, recovered
from ..io import or_null
from ..neurons import MEASURES
from .folder import RunFolder
from .inputs import Inputs
from .latents import latent_cards

METRICS: Final = "dictionary-metrics.jsonl"


def activations(inputs: Inputs, folder: RunFolder) -> tuple[ActivationArray, ActivationArray]:
    """The dictionary's site over the studied and over the measured windows."""
    with rich_progress("activations") as progress:
        studied, measured = (
            harvest(
                inputs.model,
                rows,
                str(inputs.dictionary_site),
                folder.unfinished / name,
                max_tokens=inputs.config.dictionary.max_tokens,
                batch_size=inputs.config.batch,
                seed=inputs.config.seed,
                progress=progress,
            )
            for name, rows in (("studied", inputs.studied), ("measured", inputs.measured))
        )
    return studied, measured


def judged_dictionary(
    inputs: Inputs, folder: RunFolder, dictionary: Any, studied: ActivationArray, measured: ActivationArray
) -> dict[str, Any]:
    """The contents of dictionary.json: numbers on the measured windows, latents on the studied ones."""
    batch = min(inputs.config.dictionary.batch, len(measured))
    found = reconstruction(dictionary, measured.batches(batch_size=batch, seed=None, epochs=1))
    kept = recovered(
        inputs.output,
        inputs.model.weights,
        str(inputs.dictionary_site),
        dictionary,
        found.mean,
        inputs.measured_batches(),
        judge=MEASURES[inputs.measure].fn,
    )
    return {
        "site": inputs.dictionary_site,
        "path": inputs.config.dictionary.path,
        "n_latents": int(dictionary.n_latents),
        "k": getattr(dictionary, "k", None),
        "metrics": _judgement(inputs, found, kept),
        "curves": _curves(folder / METRICS),
        "latents": latent_cards(inputs, dictionary, studied, inputs.config.dictionary.latents or None),
    }


def _judgement(inputs: Inputs, found: Reconstruction, kept: Recovered) -> dict[str, Any]:
    """The numbers of results.json; `recovered_measure` says of what measure the recovered scores are."""
    numbers = ("fvu", "explained_variance", "explained_variance_centred", "l0", "dead_fraction", "shrinkage", "cosine")
    ends = {"original": kept.original, "reconstructed": kept.reconstructed, "zero": kept.zero, "mean": kept.mean}
    return {
        **{name: getattr(found, name) for name in numbers},
        "ce_recovered_zero": or_null(kept.recovered_zero),
        "ce_recovered_mean": or_null(kept.recovered_mean),
        "recovered_measure": inputs.measure,
        "recovered_values": ends,
        "measured_tokens": found.tokens,
    }


def _curves(metrics: Path) -> dict[str, list[float | None]]:
    """Training curves of the report: tokens seen, and three numbers of each logged step; none of a given dictionary.

    What no step says is left out, such as the dead fraction of a run too short to count dead latents; None: not yet.
    """
    if not metrics.exists():
        return {}
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    seen = np.cumsum([r["tokens"] * (r["step"] - before) for r, before in _with_previous_step(rows)])
    found = {name: [row.get(name) for row in rows] for name in ("fvu", "l0", "dead_fraction")}
    return {"tokens": seen.tolist()} | {name: row for name, row in found.items() if any(v is not None for v in row)}


def _with_previous_step(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    return list(zip(rows, [0, *(r["step"] for r in rows[:-1])], strict=True))
