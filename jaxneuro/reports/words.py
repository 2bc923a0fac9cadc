# SPDX-License-Identifier: Apache-2.0
"""Words of the page that stay the same from study to study: what a number, a class or a term means."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from .svg import number, percent

_WON: Final = "what setting the site {} costs and the reconstruction wins back; 100% is all of it, below 0% it is worse"


class Metric(NamedTuple):
    """How a number of a dictionary is shown: its name, what it means, and how it is printed."""

    name: str
    meaning: str
    show: Callable[[Any], str]


class Matter(NamedTuple):
    """What a study reads, in words: rows of positions, and what of them is independent.

    Example:
      >>> MATTERS["pictures"].say("on no {token} of the {windows}")
      'on no patch of the pictures'
    """

    name: str
    token: str
    tokens: str
    window: str
    windows: str
    documents: str
    """What is independent."""
    few: str
    """Of how little can be spoken where these are too few."""
    null: str
    """Between what labels are permuted, and why."""
    measured: str
    """On what effects are measured; n windows."""
    special: str
    """Positions that are in no statistic."""
    read: Callable[[Mapping[str, Any]], str]
    """What was read of a group, from `results.json`'s numbers."""

    def say(self, text: str) -> str:
        """A sentence of this module with its words."""
        return text.format_map(self._asdict())


def matter_of(data: Mapping[str, Any]) -> Matter:
    """Of a report's data."""
    return MATTERS[data.get("matter") or "text"]


def _text_read(t: Mapping[str, Any]) -> str:
    drawn = "" if t["tokens_used"] == t["tokens_of_all"] else f" of {t['tokens_of_all']:,}, drawn at random"
    return (
        f"{t['tokens_used']:,} tokens{drawn}; {t['documents_used']} documents, "
        f"{t['documents_studied']} of them studied, {t['documents_measured']} measured"
    )


def _pictures_read(t: Mapping[str, Any]) -> str:
    drawn = "" if t["windows_used"] == t["windows_of_all"] else f" of {t['windows_of_all']:,}, drawn at random"
    of = f" of {t['documents_used']} documents" if t["documents_used"] < t["windows_used"] else ""
    bad = t.get("windows_bad", 0)
    passed = f"; {bad:,} bad {'file' if bad == 1 else 'files'} passed over" if bad else ""
    return (
        f"{t['windows_used']:,} pictures{drawn}{of}; {t['windows_studied']} of them studied, "
        f"{t['windows_measured']} measured{passed}"
    )


MATTERS: Final[dict[str, Matter]] = {
    "text": Matter(
        "text", "token", "tokens", "window", "windows", "documents", "windows of the same documents",
        "The null permutes labels between whole documents: windows of one document are not independent.",
        "Effects are measured on {n} windows of documents on which nothing was chosen or trained.",
        "Special tokens and padding", _text_read,
    ),
    "pictures": Matter(
        "pictures", "patch", "patches", "picture", "pictures", "pictures", "these pictures",
        "The null permutes labels between pictures; copies of one file, and pictures of one document where a table "
        "names documents, go together.",
        "Effects are measured on {n} pictures on which nothing was chosen or trained.",
        "Class tokens and registers", _pictures_read,
    ),
}  # fmt: skip
"""Rows of what a study can read."""

METRICS: Final[dict[str, Metric]] = {
    "explained_variance": Metric("Explained variance", "of the site's values, by their reconstruction", percent),
    "fvu": Metric("FVU", "squared error of the reconstruction over squared distance from the mean; 0 is exact", number),
    "l0": Metric("L0", "mean number of active latents per {token}", number),
    "dead_fraction": Metric("Never on", "share of the latents that no judged {token} activates", percent),
    "ce_recovered_zero": Metric("{what} recovered, zero baseline", _WON.format("to zero"), percent),
    "ce_recovered_mean": Metric("{what} recovered, mean baseline", _WON.format("to its mean"), percent),
}
"""The numbers of a dictionary that the page shows, in this order. A key that is not here is not shown."""

CURVES: Final = {"dead_fraction": "Dead latents"}
"""Names of numbers that training counts otherwise: a latent is dead after far more tokens than the judged ones."""

SITES: Final = {
    "original": "as it is",
    "reconstructed": "replaced by its reconstruction",
    "mean": "set to its mean",
    "zero": "set to zero",
}
"""What is done to the site while the loss is measured: rows of the table, in this order."""

CLASSES: Final = {
    "expert": "tells its groups' {windows} from all others better than shuffled labels explain",
    "specific": "a rank: among the least even, and often active in one group",
    "related": "a rank: among the least even, and often active in several groups, not in all",
    "agnostic": "often active in every group",
    "none": "in none of the classes",
}
"""What the tag on a card says, in a tooltip."""

GLOSSARIES: Final = {
    "text": (
        ("Group", "one of the kinds of text that are compared: a language, a domain, a relation"),
        ("Window", "a stretch of text of fixed length, as the model reads it at once"),
    ),
    "pictures": (
        ("Group", "one of the kinds of pictures that are compared: a class, a style, a camera"),
        ("Patch", "a square of a picture, or a place of a map: where a value is"),
    ),
}
"""What a report's rows are."""

GLOSSARY: Final = (
    ("Neuron", "one coordinate inside a layer, at the site named above; it fires where its value is above 0"),
    ("Expert", "a neuron that " + CLASSES["expert"] + ", by average precision (AP)"),
    ("Specific, related", "ranks by how unevenly a neuron fires over groups: in one group, in several"),
    ("Agnostic", "often active in every group; says nothing about importance"),
    ("Entropy (LAPE)", "of a neuron's firing rates over groups: 0 if it fires in one only, ln K if alike in all K"),
    (
        "Shuffled labels",
        "the same rule with the group names dealt out at random to whole {documents}: what chance finds",
    ),
    ("Silenced", "set to zero at every {token} while the effect is measured"),
    ("Random sets", "as many neurons of each layer as the group's own, drawn at random: what silencing any would do"),
    ("z", "standard deviations of the random sets between their mean and the group's own neurons"),
    ("Held, clamped", "the neuron's value is replaced by a fixed one at every {token}"),
    ("Latent", "one direction of a dictionary, with the strength at which each {token} has it"),
    ("FVU", "fraction of variance unexplained by a dictionary's reconstruction; 1 minus the explained variance"),
)
"""(word, what it means on the page)."""
