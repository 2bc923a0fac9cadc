# SPDX-License-Identifier: Apache-2.0
"""What came out: results.json for machines, the report for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np

from ..data import PictureRows, Windows
from ..errors import shown
from ..io import or_null, read_json, write_json
from ..neurons import CLASSES, MEASURES, GroupStatistics, has_tokens
from ..reports import write_report
from ..reports.findings import findings
from ..reports.report import plain
from ..reports.svg import shortened
from ..reports.words import MATTERS, Matter
from ..versions import versions
from .config import StudyConfig
from .folder import RunFolder
from .inputs import Inputs, is_mlp_neuron
from .thumbnails import shown_in, thumbnails

_CHOSEN: Final = {
    "expertise": "each group's expert neurons, the best detectors of its {windows} by average precision",
    "lape": "each group's LAPE neurons, those of low entropy of the firing rates over groups",
}

MOST_GROUPS: Final = 10
"""Named in a title."""

NULL: Final = (
    "labels permuted between whole documents. expert and significant: with 95 % confidence over all groups at most "
    "5 % of a group's neurons are false; of meaningless groups at most 5 % of studies report any. claim: 'documents' "
    "of the group, or, with too few documents to say more, only other 'windows' of the same documents. smallest_p: no "
    "test of the group can give less, however clear its neurons are."
)

LEGEND: Final = {
    "specific": "neurons of LAPE's finer variant whose rate is high in one group",
    "related": "the same, high in some groups; a neuron counts in each",
    "agnostic": "neurons whose rate is high in every group",
    "lape": "neurons of the lowest entropies that LAPE gives to the group: a fixed share, whatever the data",
    "significant": "of those, the ones whose entropy is lower than permuted labels explain",
    "expert": "neurons whose average precision for the group is higher than permuted labels explain",
    "shuffled": "means over permuted labellings, which find nothing but for a few that find much; share_with_any",
    "point_95": "what one labelling in twenty exceeds, of shuffled's numbers; _in_all: of all groups together",
}

TEXT_LEGEND: Final = {
    "tokens_of_all": "counted tokens of the whole group",
    "used": "drawn at random over the whole group with the seed, in windows",
    "studied": "for statistics, selection and training",
    "measured": "for effects and reconstructions: windows of other documents (split_by_document), or of the only one",
    "documents": "documents, or windows of several short ones: what the null permutes",
}

_LEGENDS: Final[dict[str, dict[str, str]]] = {
    "text": {},
    "pictures": {
        "tokens_of_all": "counted patches of the group's pictures that were drawn",
        "windows_of_all": "pictures in the group before any were drawn; files found to be bad are not counted",
        "windows_bad": "files that were found to be no whole pictures and passed over",
        "windows": "pictures",
        "documents": "pictures that are no copies of each other, or the documents of a table: what the null permutes",
    },
}

DICTIONARY_LEGEND: Final = {
    "fvu": "squared error over squared distance from the mean, a share; 0 is exact",
    "explained_variance": "1 - fvu",
    "explained_variance_centred": "the same with the mean error taken away first",
    "l0": "active latents per token",
    "dead_fraction": "share of the latents that no measured token activates",
    "shrinkage": "length of the reconstruction over length of the activation, a ratio; 1 is none",
    "cosine": "mean cosine between activation and reconstruction",
    "ce_recovered_zero": "share of the loss of setting the site to zero that the reconstruction wins back",
    "ce_recovered_mean": "the same of setting the site to its mean",
    "recovered_values": "the measure with the site as it is, reconstructed, at zero and at its mean, in effect.unit",
    "measured_tokens": "tokens these numbers are over, none of them trained on",
}

_UNCLASSED: Final = {"expertise": "expert", "lape": CLASSES[0]}


def write_results(inputs: Inputs, folder: RunFolder) -> None:
    """Write results.json and report.html from the files of the steps before."""
    found, effect = read_json(folder / "neurons.json"), read_json(folder / "effect.json")
    dictionary = read_json(folder / "dictionary.json")
    results = _about(inputs) | {
        "neurons": counts(inputs, found),
        "effect": effect,
        "dictionary": dictionary.get("metrics"),
    }
    _write(results, report_data(inputs, folder, results, found, dictionary), folder)


def write_shown(inputs: Inputs, folder: RunFolder) -> None:
    """Write results.json and report.html of a dictionary alone."""
    found = read_json(folder / "dictionary.json")
    results = _about(inputs) | {"dictionary": found["metrics"], "site": found["site"]}
    data: dict[str, Any] = {
        "title": inputs.config.title or f"{Path(found['path']).name}, {title(inputs.config, inputs.groups)}",
        "run": run_data(inputs, folder, results, given_notes(inputs), None),
        "groups": list(inputs.groups),
        "dictionary": dictionary_data(found),
        "matter": inputs.config.source,
        "pictures": small(inputs, found["latents"]),
    }
    _write(results, data, folder)


def _write(results: dict[str, Any], data: dict[str, Any], folder: RunFolder) -> None:
    results |= {"title": data["title"], "findings": [f._asdict() for f in findings(plain(data))]}
    write_json(folder / "results.json", results)
    write_report(data, folder / "report.html")


def _about(inputs: Inputs) -> dict[str, Any]:
    """What every results.json says of its run."""
    legend = {"neurons": LEGEND, "dictionary": DICTIONARY_LEGEND, "text": TEXT_LEGEND | _LEGENDS[inputs.config.source]}
    return {
        "matter": inputs.config.source,
        "groups": list(inputs.groups),
        "tokens": {name: t["tokens_used"] for name, t in inputs.texts.items()},
        "text": inputs.texts,
        "left_out": list(inputs.left_out),
        "legend": legend,
        "versions": versions(),
        "seed": inputs.config.seed,
        "config": inputs.config.identity(),
        "device": jax.devices()[0].device_kind,
        "fingerprint": inputs.fingerprint(),
    }


def counts(inputs: Inputs, found: dict[str, Any]) -> dict[str, Any]:
    """Neurons per class and group, the same under permuted labels (means), and what can be claimed."""
    true, null = found["counts"], found["null"]

    def named(per_group: Any) -> dict[str, Any]:
        return dict(zip(inputs.groups, np.asarray(per_group).tolist(), strict=True))

    kinds = ("specific", "related", "lape", "significant", "expert")
    return {
        **{kind: named(np.sum(true[kind], -1)) for kind in kinds},
        "agnostic": int(np.sum(true["agnostic"])),
        "shuffled": {
            **{kind: named(np.sum(null[kind], -1)) for kind in kinds},
            "agnostic": float(np.sum(null["agnostic"])),
            "n_shuffles": found["n_shuffles"],
            "point_95": {
                k: dict(zip(inputs.groups, v, strict=True)) if isinstance(v, list) else v
                for k, v in found.get("null_high", {}).items()
            },
            "share_with_any": found["null_any"],
        },
        "null": {
            "what": NULL,
            "claim": named(found["claim"]),
            "documents": named(found["documents"]),
            "smallest_p": named(found["smallest_p"]),
        },
        "entropy": found["entropy"],
    }


def report_data(
    inputs: Inputs, folder: RunFolder, results: dict[str, Any], found: dict[str, Any], dictionary: dict[str, Any]
) -> dict[str, Any]:
    """The report's data: see jaxneuro.reports for the keys."""
    null_specific, neurons = np.asarray(found["null"]["specific"]).sum(0), neuron_cards(inputs, folder)
    return {
        "title": title(inputs.config, inputs.groups),
        "run": run_data(inputs, folder, results, notes(inputs, found), inputs.site),
        "groups": list(inputs.groups),
        "counts": {k: v for k, v in results["neurons"].items() if k not in ("lape", "significant")}
        | {"shuffled": {k: v for k, v in results["neurons"]["shuffled"].items() if k not in ("lape", "significant")}},
        "profile": {
            "specific": found["counts"]["specific"],
            "related": found["counts"]["related"],
            "agnostic": found["counts"]["agnostic"],
            "shuffled_specific": null_specific.tolist(),
            "expert": found["counts"]["expert"],
            "shuffled_expert": np.asarray(found["null"]["expert"]).sum(0).tolist(),
        },
        "selectivity": sizes(folder, found),
        "effect": results["effect"]
        | {"windows": np.bincount(inputs.measured.group, minlength=len(inputs.groups)).tolist()},
        "neurons": neurons,
        **({"dictionary": dictionary_data(dictionary)} if dictionary else {}),
        "matter": inputs.config.source,
        "pictures": small(inputs, neurons, dictionary.get("latents")),
    }


def small(inputs: Inputs, *cards: Any) -> dict[str, Any]:
    """The pictures on these cards, where the rows are pictures."""
    return thumbnails(inputs.windows, shown_in(*cards)) if isinstance(inputs.windows, PictureRows) else {}


def run_data(
    inputs: Inputs, folder: RunFolder, results: dict[str, Any], said: list[str], site: str | None
) -> dict[str, Any]:
    """The report's `run`, with notes and the site of neurons."""
    cfg, run = inputs.model.cfg, read_json(folder / "run.json")
    sizes = {key: getattr(cfg, key, None) for key in ("n_layers", "d_model", "d_mlp")}  # a ResNet has other ones
    return {
        "model": {
            "name": inputs.config.model,
            "family": cfg.family,
            **sizes,
            "n_parameters": sum(x.size for x in jax.tree.leaves(inputs.model.weights)),
            "site": site,
        },
        "config": results["config"],
        "versions": results["versions"],
        "seed": inputs.config.seed,
        "device": results["device"],
        "started": run["started"],
        "seconds": round(sum(s["seconds"] for s in folder.records().values()), 1),
        "tokens": results["tokens"],
        "text": inputs.config.pictures or inputs.config.groups,
        "folder": folder.path.resolve().name,
        "notes": said,
    }


def title(config: StudyConfig, groups: Sequence[str]) -> str:
    """What a page is called: as asked, else the model and the groups.

    Example:
      >>> title(StudyConfig(model="models/gpt2"), ["code", "poems"])
      'gpt2 on code, poems'
    """
    named = [shortened(g, 24) for g in groups[:MOST_GROUPS]]
    rest = f" and {len(groups) - MOST_GROUPS} more" if len(groups) > MOST_GROUPS else ""
    return config.title or f"{Path(config.model).name or config.model} on {', '.join(named)}{rest}"


def sizes(folder: RunFolder, found: dict[str, Any]) -> dict[str, Any]:
    """How selective the ranked neurons are: the classes alone say only who comes first."""
    table = folder.arrays("neurons.npz")
    entropy, label = table["entropy"], table["label"]
    known = np.isfinite(entropy)

    def ends(kind: str) -> list[float] | None:
        mine = entropy[known & (label == CLASSES.index(kind))]
        return [float(mine.min()), float(mine.max())] if mine.size else None

    lowest = float(entropy[known].min()) if known.any() else None
    return {"share": found["top_rate"], "lowest": lowest, "specific": ends("specific"), "related": ends("related")}


def dictionary_data(found: dict[str, Any]) -> dict[str, Any]:
    """The report's `dictionary`, from dictionary.json."""
    parts = {key: found[key] for key in ("site", "n_latents", "k", "metrics", "curves", "latents")}
    tokens = found["metrics"].get("measured_tokens")
    return parts | {"tokens": tokens, "recovered": recovered_values(found["metrics"]), "path": found.get("path")}


def recovered_values(metrics: dict[str, Any]) -> dict[str, Any]:
    """The measure with the site as it is, reconstructed, at its mean and at zero, with its name and unit."""
    measure = MEASURES[metrics["recovered_measure"]]
    names = (
        ("Cross entropy", "CE") if measure.name == "loss" else (measure.name.capitalize(), measure.name.capitalize())
    )
    return metrics["recovered_values"] | {"measure": names[0], "short": names[1], "unit": measure.unit}


def notes(inputs: Inputs, neurons: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the numbers right."""
    words = inputs.words
    found = [
        *(line + "." for line in inputs.said()),
        f"A neuron is one coordinate of {inputs.site}; it fires where its value is above 0.",
        f"{words.special} are in no statistic.",
        f"Silenced and shown on cards: {words.say(_CHOSEN[inputs.config.select.by])}.",
        words.measured.format(n=len(inputs.measured)),
        words.null,
        *few_documents(inputs.groups, neurons, words),
    ]
    if inputs.tokenizer is not None and not has_tokens(inputs.model.cfg, inputs.site):
        found.append(f"No tokens are shown: {inputs.site} writes nothing to the stream that an unembedding reads.")
    if not is_mlp_neuron(inputs.site):
        found.append(f"Coordinates of {inputs.site} are no neurons of an MLP.")
    elif inputs.site != inputs.dosed_site:
        found.append(
            f"Neurons are read and silenced at {inputs.site}, and held at {inputs.dosed_site} for the dose and "
            "response: that is what a neuron hands on, so a value there means the same in every model."
        )
    found += _MEASURED.get(inputs.measure, ())
    found += given_notes(inputs)
    if inputs.tokenizer is None:
        found.append("No tokens and no classes are decoded from neurons: what they promote is not in this report.")
    if inputs.dictionary_site is None:
        found.append("No dictionary is trained: of convolutional networks a study has statistics and effects only.")
    if isinstance(inputs.windows, Windows) and (cut := int(inputs.windows.truncated_documents.sum())):
        found.append(f"{cut} documents were longer than {inputs.windows.length} tokens and were cut.")
    return found


_MEASURED: Final = {
    "embedding_shift": (
        "This model has no next-token loss; effects are shifts of its mean-pooled last hidden state, 1 - cosine.",
    ),
    "own_loss": (
        "The effect is the cross entropy of the class that the model itself predicts without silencing; labels of the "
        "pictures are not used for it.",
    ),
    "picture_shift": ("This model has no classes; effects are shifts of its vector of the picture, 1 - cosine.",),
}
"""What a reader has to know of a measure."""


def few_documents(groups: Sequence[str], neurons: dict[str, Any], words: Matter = MATTERS["text"]) -> list[str]:
    """What cannot be claimed of groups with too few documents (or pictures)."""
    each = zip(groups, neurons["claim"], neurons["documents"], neurons["smallest_p"], strict=True)
    return [
        f"Group {name} has {n} studied {words.documents if n != 1 else words.documents[:-1]}: of its expert neurons "
        f"nothing can be claimed beyond {words.few} (no test over {words.documents} could give less than p = {p:.2g})."
        for name, claim, n, p in each
        if claim == "windows"
    ]


def given_notes(inputs: Inputs) -> list[str]:
    """What a reader has to know of a dictionary that was trained elsewhere."""
    if inputs.given is None:
        return []
    found = [
        f"The dictionary was not trained here: it is read from {shown(inputs.config.dictionary.path, 200)}.",
        f"Rates, selectivity and examples are of the studied {inputs.words.windows}, the numbers of the others.",
    ]
    if inputs.tokenizer is not None:
        found.insert(1, f"Its text: {inputs.conventions}. What stands around a text is in no number.")
    if inputs.tokenizer is not None and inputs.measure != "loss":
        found.append("This model has no next-token loss; what is lost is the shift of its pooled last hidden state.")
    return found


def neuron_cards(inputs: Inputs, folder: RunFolder) -> list[dict[str, Any]]:
    """One card per chosen neuron."""
    stats, shown = GroupStatistics.load(folder / "statistics.npz"), read_json(folder / "cards.json")
    table = folder.arrays("neurons.npz")
    found = []
    for i, (layer, neuron) in enumerate(zip(shown["layer"], shown["neuron"], strict=True)):
        at = (layer, neuron)
        mine = np.flatnonzero(table["chosen"][at])
        best = int(np.argmax(table["ap"][at]))
        found.append(
            {
                "layer": layer,
                "neuron": neuron,
                "class": CLASSES[table["label"][at]] if table["label"][at] else _UNCLASSED[inputs.config.select.by],
                "groups": [inputs.groups[k] for k in mine],
                "lape": or_null(float(table["entropy"][at])),
                "lape_largest": float(np.log(len(inputs.groups))),
                "lape_groups": or_null(float(np.exp(table["entropy"][at]))),
                "ap": float(table["ap"][at][best]),
                "ap_group": inputs.groups[best],
                "rate": stats.rate[at].tolist(),
                "histogram": {"edges": stats.edges.tolist(), "counts": stats.histogram[at].tolist()},
                "examples": shown["examples"][i],
                "promoted": shown.get("promoted", [None] * (i + 1))[i],
                "suppressed": shown.get("suppressed", [None] * (i + 1))[i],
                "dose": shown["dose"][i],
            }
        )
    return found
