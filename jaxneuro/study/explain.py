# SPDX-License-Identifier: Apache-2.0
"""Files that explain themselves: every array of a study's .npz beside its axes, its unit and what it is."""

import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from ..io import json_text, save_npz


class Array(NamedTuple):
    """Axes, a space between two; unit; what the numbers are."""

    axes: str
    unit: str
    what: str


_LFK: Final = "layer neuron group"
ARRAYS: Final[dict[str, Array]] = {
    # statistics.npz
    "site": Array("", "", "where the neurons are read; a neuron is one coordinate of it"),
    "threshold": Array("", "activation", "a neuron fires where its value is above this"),
    "tokens": Array("labelling group", "tokens", "counted tokens; labelling 0 is the truth"),
    "fired": Array(f"labelling {_LFK}", "tokens", "tokens on which the neuron fires; labelling 0 is the truth"),
    "windows": Array("group", "windows", "studied windows with a counted token"),
    "mean": Array(_LFK, "activation", "mean over the group's counted tokens"),
    "m2": Array(_LFK, "activation squared", "sum of squared deviations from the mean; over tokens: the variance"),
    "high": Array(_LFK, "activation", "largest value"),
    "low": Array(_LFK, "activation", "smallest value"),
    "edges": Array("edge", "activation", "edges of the histogram's bins; the outer bins also hold what lies beyond"),
    "histogram": Array(f"{_LFK} bin", "tokens", "values per bin"),
    "example_value": Array(f"{_LFK} rank", "activation", "largest value of a window, the largest windows first"),
    "example_window": Array(f"{_LFK} rank", "number", "which window; -1: none"),
    "example_position": Array(f"{_LFK} rank", "position", "where in the window the value is"),
    "responses": Array("row layer neuron", "activation", "mean over the counted tokens of one window"),
    "response_group": Array("row", "number", "group of the window of each row"),
    "response_window": Array("row", "number", "the window of each row"),
    "block_fired": Array("block layer neuron", "tokens", "tokens on which the neuron fires, per document or documents"),
    "block_tokens": Array("block", "tokens", "counted tokens per block of documents"),
    "block_group": Array("block", "number", "group of each block; -1: nothing counted"),
    # neurons.npz
    "entropy": Array("layer neuron", "nats", "of the firing rates over groups, at most ln K; inf: too rare for LAPE"),
    "rate": Array(_LFK, "share of tokens", "firing rate"),
    "lape_member": Array(_LFK, "true or false", "LAPE gives the neuron to the group: lowest entropies, a fixed share"),
    "score": Array("layer neuron", "1", "score of the finer variant; low: selected. inf: too rare"),
    "label": Array(
        "layer neuron", "class", "0 none, 1 specific (one group), 2 related (some), 3 agnostic (all groups)"
    ),
    "member": Array(_LFK, "true or false", "groups of the specific and related neurons"),
    "n_active": Array("layer neuron", "groups", "groups in which the rate is high"),
    "significant": Array(
        "layer neuron", "true or false", "entropy lower than labels permuted between documents explain"
    ),
    "ap": Array(_LFK, "1", "average precision of the window's mean activation as a detector of the group"),
    "ap_negative": Array(_LFK, "1", "the same of the negative activation: small values speak for the group"),
    "chance": Array("group", "1", "mean average precision of random responses"),
    "expert": Array(_LFK, "true or false", "average precision higher than permuted labels explain"),
    "chosen": Array(_LFK, "true or false", "silenced and shown: the best experts, or LAPE's members (select.by)"),
    "rank": Array(_LFK, "1", "order of the chosen neurons within a group, lowest first: -ap, or the entropy"),
    # effect.npz
    "matrix": Array(
        "silenced_group measured_group", "effect", "measure with the group's neurons silenced minus without"
    ),
    "random": Array("silenced_group random_set measured_group", "effect", "the same of random sets of the same sizes"),
    "base": Array("measured_group", "effect", "the measure without intervention"),
    "weight": Array("measured_group", "tokens or windows", "what the means are over"),
    "set_size": Array("silenced_group layer", "neurons", "silenced neurons"),
}
"""Unit "effect": the unit that results.json names (nats per token, or 1 - cosine)."""


def save_explained(path: str | os.PathLike, groups: Sequence[str], **arrays: Any) -> None:
    """Write arrays with `groups`, the names along every axis "group", and `axes`: JSON, name -> axes, unit, what.

    Example:
      >>> import json, tempfile
      >>> file = tempfile.mkdtemp() + "/x.npz"
      >>> save_explained(file, ["de", "en"], chance=np.array([0.5, 0.5]))
      >>> with np.load(file) as z:
      ...     print(z["groups"].tolist(), json.loads(str(z["axes"]))["chance"]["axes"])
      ['de', 'en'] ['group']
    """
    about = {name: {"axes": a.axes.split(), "unit": a.unit, "what": a.what} for name in arrays for a in [ARRAYS[name]]}
    values = {name: np.asarray(v) for name, v in arrays.items()}
    save_npz(path, **values, groups=np.array(list(groups)), axes=np.array(json_text(about)))
