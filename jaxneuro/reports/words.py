# SPDX-License-Identifier: Apache-2.0
"""Words of the page that stay the same from study to study: what a number, a class or a term means."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .svg import number, percent

_WON: Final = "what setting the site {} costs and the reconstruction wins back; 100% is all of it, below 0% it is worse"


class Metric(NamedTuple):
    """How a number of a dictionary is shown: its name, what it means, and how it is printed."""

    name: str
    meaning: str
    show: Callable[[Any], str]


METRICS: Final[dict[str, Metric]] = {
    "explained_variance": Metric("Explained variance", "of the site's values, by their reconstruction", percent),
    "fvu": Metric("FVU", "squared error of the reconstruction over squared distance from the mean; 0 is exact", number),
    "l0": Metric("L0", "mean number of active latents per token", number),
    "dead_fraction": Metric("Dead latents", "share that fired on no token", percent),
    "ce_recovered_zero": Metric("{what} recovered, zero baseline", _WON.format("to zero"), percent),
    "ce_recovered_mean": Metric("{what} recovered, mean baseline", _WON.format("to its mean"), percent),
}
"""The numbers of a dictionary that the page shows, in this order. A key that is not here is not shown."""

SITES: Final = {
    "original": "as it is",
    "reconstructed": "replaced by its reconstruction",
    "mean": "set to its mean",
    "zero": "set to zero",
}
"""What is done to the site while the loss is measured: rows of the table, in this order."""

CLASSES: Final = {
    "expert": "tells its groups' windows from all others better than shuffled labels explain",
    "specific": "a rank: among the least even, and often active in one group",
    "related": "a rank: among the least even, and often active in several groups, not in all",
    "agnostic": "often active in every group",
    "none": "in none of the classes",
}
"""What the tag on a card says, in a tooltip."""

GLOSSARY: Final = (
    ("Neuron", "one coordinate inside a layer, at the site named above; it fires where its value is above 0"),
    ("Group", "one of the kinds of text that are compared: a language, a domain, a relation"),
    ("Window", "a stretch of text of fixed length, as the model reads it at once"),
    ("Expert", "a neuron that " + CLASSES["expert"] + ", by average precision (AP)"),
    ("Specific, related", "ranks by how unevenly a neuron fires over groups: in one group, in several"),
    ("Agnostic", "often active in every group; says nothing about importance"),
    ("Entropy (LAPE)", "of a neuron's firing rates over groups: 0 if it fires in one only, ln K if alike in all K"),
    ("Shuffled labels", "the same rule with the group names dealt out at random to whole documents: what chance finds"),
    ("Silenced", "set to zero at every token while the loss is measured"),
    ("Random sets", "as many neurons of each layer as the group's own, drawn at random: what silencing any would do"),
    ("z", "standard deviations of the random sets between their mean and the group's own neurons"),
    ("Held, clamped", "the neuron's value is replaced by a fixed one at every token"),
    ("Latent", "one direction of a dictionary, with the strength at which each token has it"),
    ("FVU", "fraction of variance unexplained by a dictionary's reconstruction; 1 minus the explained variance"),
)
"""(word, what it means on the page)."""
