# SPDX-License-Identifier: Apache-2.0
"""Cards of neurons and latents: the drawn half of each (for an inert <template>), and the JSON half that is searched.

Tokens are by far the larger half, so they travel as JSON and become elements only when a card is shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from . import figures
from .sections import Data, Panel
from .spread import entropy_of, in_groups, of_most
from .svg import finite, number, percent, shortened
from .words import Matter, matter_of

MOST_WORDS = 12  # promoted and suppressed tokens shown per card
NEARLY = 0.7  # share of common tokens from which an example is said to repeat another


def neurons(data: Data) -> list[dict[str, Any]]:
    """One card per chosen neuron: id L<layer>N<neuron>, class, groups, scores, figures, tokens."""
    return [_neuron(n, data["groups"], i, data.get("pictures") or {}) for i, n in enumerate(data.get("neurons") or [])]


def latents(data: Data) -> list[dict[str, Any]]:
    """One card per shown latent: id F<latent>, its group, density, selectivity, figures, tokens."""
    part = data.get("dictionary") or {}
    return [
        _latent(f, data["groups"], i, matter_of(data), data.get("pictures") or {})
        for i, f in enumerate(part.get("latents") or [])
    ]


def _neuron(n: Data, groups: Sequence[str], order: int, pictures: Data) -> dict[str, Any]:
    layer, unit, own = n.get("layer"), n.get("neuron"), list(n.get("groups") or [])
    name = f"Layer {layer}, neuron {unit}"
    spread = entropy_of(n.get("rate") or [])
    facts = [("Fires as if in", in_groups(spread, len(groups)), SPREAD)] if spread is not None else []
    facts.append(_lape(n.get("lape"), len(groups)))
    if n.get("ap") is not None:
        words = "average precision of the activation as a detector of this group; 1 is perfect"
        facts.append((f"AP for {shortened(n.get('ap_group') or '–', 24)}", number(n["ap"]), words))
    card = _common(n, groups, own, name, pictures)
    card |= {"id": f"L{layer}N{unit}", "name": name, "class": n.get("class") or "", "groups": own, "facts": facts}
    card["dose"] = _dose(n.get("dose"), own, name)
    keys = {"layer": layer, "unit": unit, "lape": n.get("lape"), "ap": n.get("ap"), "rate": _peak(n), "order": order}
    card["json"] |= {"id": card["id"], "also": f"{name} {layer}.{unit}", "keys": keys} | _tags(card)
    return card


SPREAD: Final = "exp of the entropy of its firing rates over groups: so many groups, if it fired evenly in them"


def _lape(nats: Any, n_groups: int) -> tuple[str, str, str]:
    words = "entropy of the firing rates over groups; low is selective, the most is even firing in all groups"
    if not finite(nats):
        return ("LAPE", "not ranked", "LAPE ranks only neurons that fire often in some group; this one does not")
    return ("LAPE", of_most(nats, n_groups), words)


def _latent(f: Data, groups: Sequence[str], order: int, m: Matter, pictures: Data) -> dict[str, Any]:
    own = [f["group"]] if f.get("group") is not None else []
    name = f"Latent {f.get('latent')}"
    facts = [
        ("Density", percent(f.get("density")), f"share of {m.tokens} on which the latent is active"),
        (
            "Selectivity",
            number(f.get("selectivity")),
            "how much of its firing, summed over the rates of all groups, is in its own; 1 is all",
        ),
    ]
    card = _common(f, groups, own, name, pictures)
    card |= {"id": f"F{f.get('latent')}", "name": name, "class": "", "groups": own, "facts": facts, "dose": None}
    keys = {"unit": f.get("latent"), "density": f.get("density"), "selectivity": f.get("selectivity"), "order": order}
    card["json"] |= {"id": card["id"], "also": name, "keys": keys} | _tags(card)
    return card


def _common(item: Data, groups: Sequence[str], own: Sequence[str], name: str, pictures: Data) -> dict[str, Any]:
    promoted, suppressed = (_words(item.get(key)) for key in ("promoted", "suppressed"))
    examples = _marked([_example(e, pictures) for e in item.get("examples") or []])
    for shown, e in zip(examples, item.get("examples") or [], strict=True):
        shown += [[str(e["window"]), *e["grid"], e.get("peak_value")]] if e.get("grid") else []
    words = [t for t, _ in (*promoted, *suppressed)]
    return {
        "activation": _activation(item, groups, own, name),
        "promoted": promoted,
        "suppressed": suppressed,
        "json": {"examples": examples, "words": words},
    }


def _tags(card: Data) -> dict[str, Any]:
    return {"class": card["class"], "groups": card["groups"]}


def _words(pairs: Sequence[Sequence[Any]] | None) -> list[tuple[str, str]]:
    """(token with its spaces visible, printed score)."""
    return [(str(t).replace(" ", "␣"), number(s, 2)) for t, s in (pairs or [])[:MOST_WORDS]]


def _example(e: Data, pictures: Data) -> list[Any]:
    """[group, tokens, values, peak]; of a picture its file's name stands for the tokens."""
    values = [float(f"{v:.3g}") if finite(v) else None for v in e.get("values") or []]
    of = pictures.get(str(e.get("window"))) or {}
    tokens = [of.get("name") or "–"] if e.get("grid") else e.get("tokens") or []
    return [str(e.get("group") or ""), [str(t) for t in tokens], values, e.get("peak")]


def _marked(examples: list[list[Any]]) -> list[list[Any]]:
    """Each with the number, from 1, of an earlier example that it nearly repeats; else 0."""
    words = [set(tokens) for _, tokens, *_ in examples]
    for i, example in enumerate(examples):
        shared = [len(words[i] & words[j]) / max(len(words[i] | words[j]), 1) for j in range(i)]
        example.append(next((j + 1 for j, share in enumerate(shared) if share >= NEARLY), 0))
    return examples


def _peak(n: Data) -> float | None:
    return max((r for r in n.get("rate") or [] if finite(r)), default=None)


def _activation(item: Data, groups: Sequence[str], own: Sequence[str], name: str) -> Panel | None:
    """Histogram per group if there is one, else the firing rates alone; either way the rates are printed."""
    rate, histogram = item.get("rate"), item.get("histogram")
    shown = dict(zip(groups, map(percent, rate), strict=True)) if rate else {}
    words = "Firing rate: " + ", ".join(f"{g} {r}" for g, r in shown.items()) if shown else ""
    if histogram:
        rows = dict(zip(groups, histogram["counts"], strict=True))
        title = f"{name}: activation per group"
        svg = figures.histogram(
            histogram["edges"], rows, title=title, desc=words, emphasis=own, notes=shown, x_label="activation"
        )
        return Panel("Activation per group", svg)
    if not rate:
        return None
    notes = list(shown.values())
    title = f"{name}: firing rate per group"
    svg = figures.levels(groups, rate, notes=notes, title=title, desc=words, emphasis=own)
    return Panel("Firing rate per group", svg)


class Dose(NamedTuple):
    """Its figure, and its axes in words: they are too long to stand in it."""

    title: str
    svg: str
    caption: str


def _dose(dose: Mapping[str, Any] | None, own: Sequence[str], name: str) -> Dose | None:
    if not dose or not dose.get("curves"):
        return None
    curves, what = dose["curves"], f"Dose and response, {name}"
    words = "; ".join(f"{g}: {number(row[0])} to {number(row[-1])}" for g, row in curves.items() if row)
    heavy = [g for g in curves if g in own]
    svg = figures.lines(dose["values"], curves, title=what, desc=words, emphasis=heavy, size=(320, 190))
    caption = f"Across: the value that the neuron is held at (clamped to), in {dose.get('unit') or 'activation'}. "
    return Dose("Dose and response", svg, f"{caption}Up: {dose.get('y') or 'effect'}.")
