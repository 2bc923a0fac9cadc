# SPDX-License-Identifier: Apache-2.0
"""The summary: what the numbers of a study say, in plain sentences, computed, whichever way they point."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .spread import in_groups, near_uniform, of_most
from .svg import Number, finite, number, percent, shortened
from .words import matter_of

CLEAR = 2.0  # standard deviations of the random sets above which an effect is called clear
FEWEST_WINDOWS = 5  # measured windows of a group below which its effect is shown without a verdict
MOST = 0.9  # share of the neurons that the named layers hold
NAME = 40  # most characters of a group's name in a sentence


class Finding(NamedTuple):
    """A claim, the numbers behind it, and whether they carry it (None: a description, nothing is claimed)."""

    claim: str
    detail: str
    holds: bool | None


class Row(NamedTuple):
    """One group of the effect study; `z` and `ratio` compare the diagonal with the random sets."""

    group: str
    size: Number
    base: Number
    own: Number
    mean: Number
    std: Number
    z: Number
    ratio: Number
    others: Number
    hit: str
    """The group that lost most when this one's neurons were silenced."""

    @property
    def tested(self) -> bool:
        """Whether there was anything to silence and the result is a number."""
        return self.size != 0 and finite(self.own)


def effect_rows(groups: Sequence[str], effect: Mapping[str, Any]) -> list[Row]:
    """The diagonal of the effect matrix beside its random baseline.

        z = (own - mean) / std        ratio = own / mean

    z is missing where std is 0 or unknown, the ratio unless both are positive.
    Example:
      >>> effect_rows(["a", "b"], {"matrix": [[4, 1], [0, 2]], "random_mean": [[1, 1], [1, 1]],
      ...                          "random_std": [[0.5, 1], [1, 0]]})[0].z
      6.0
    """
    k = len(groups)
    mean, std = effect.get("random_mean"), effect.get("random_std")
    size, base = effect.get("set_size") or [None] * k, effect.get("base") or [None] * k
    out = []
    for i, row in enumerate(effect["matrix"]):
        own, m, s = row[i], mean[i][i] if mean else None, std[i][i] if std else None
        z = (own - m) / s if finite(own) and finite(m) and finite(s) and s > 0 else None
        ratio = own / m if finite(own) and finite(m) and own > 0 and m > 0 else None
        rest = [v for j, v in enumerate(row) if j != i and finite(v)]
        known = [j for j in range(k) if finite(row[j])]
        hit = groups[max(known, key=lambda j: row[j])] if known else "–"
        others = sum(rest) / len(rest) if rest else None
        out.append(Row(groups[i], size[i], base[i], own, m, s, z, ratio, others, hit))
    return out


def findings(data: Mapping[str, Any]) -> list[Finding]:
    """At most five findings, in the order of the report; parts the data lacks are left out.

    Args:
      data: a checked study, as `write_report` takes it.
    """
    makers = (_experts, _neurons, _layers, _effect, _dictionary)
    return [f for make in makers for f in [make(data)] if f is not None]


def _experts(data: Mapping[str, Any]) -> Finding | None:
    counts, m = data.get("counts") or {}, matter_of(data)
    found, null = counts.get("expert"), (counts.get("shuffled") or {}).get("expert")
    if not found or not null:
        return None
    least, most = min(found.values()), max(found.values())
    high = _high(counts, "expert")
    below = [g for g, v in found.items() if not _above(v, null.get(g), high.get(g))]
    claim = f"{number(least)} to {number(most)} neurons" if least < most else f"{number(least)} neurons"
    claim += f" per group detect its {m.name} better than shuffled labels explain; "
    claim += f"with shuffled labels, {number(_sum(null.values()) / len(null), 2)} on average."
    detail = f"Average precision over {m.windows}; at most 5 % of a group's are false, with 95 % confidence. "
    detail += f"Per group: {_listed(found)}."
    if below:
        detail += f" Not above chance{' (95 % point)' if high else ''}: {_names(below)}."
    claims = (counts.get("null") or {}).get("claim") or {}
    if few := [g for g in found if claims.get(g) == "windows"]:
        detail = f"Too few {m.documents} to say more than of {m.few} ({_names(few)}). {detail}"
    return Finding(claim, detail, None if few else not below)


def _neurons(data: Mapping[str, Any]) -> Finding | None:
    counts = data.get("counts") or {}
    specific = counts.get("specific")
    if not specific:
        return None
    total, each = _sum(specific.values()), _listed(specific)
    detail = f"Per group: {each}."
    if counts.get("related"):
        detail += f" Group-related (a few groups): {_listed(counts['related'])}."
    if finite(counts.get("agnostic")):
        detail += f" Agnostic: {number(counts['agnostic'])}."
    shuffled = counts.get("shuffled") or {}
    if not shuffled.get("specific"):
        return Finding(f"{number(total)} neurons are specific to one group.", f"{detail} No shuffled baseline.", None)
    chance, n, high = _sum(shuffled["specific"].values()), shuffled.get("n_shuffles"), _high(counts, "specific")
    below = [g for g, v in specific.items() if not _above(v, shuffled["specific"].get(g), high.get(g))]
    claim = f"{number(total)} neurons are specific to one group; "
    claim += f"under shuffled labels the same rule finds {number(chance)}."
    if finite(n):
        detail += f" The shuffled number is the mean of {number(n)} shuffle{'s' if n != 1 else ''}."
    if below and total > 0:
        detail += f" Not above chance{' (95 % point)' if high else ''}: {_names(below)}."
    more = _more_than_chance(counts)
    if not more:
        claim += " That is no more than chance."
    size, even = _size(data)
    return Finding(claim + even, f"{detail} {size}".strip(), None if even else more and not below)


def _size(data: Mapping[str, Any]) -> tuple[str, str]:
    """(how selective the ranked neurons are, a warning if even the first of them fires about evenly)."""
    part, k = data.get("selectivity") or {}, len(data["groups"])
    said = []
    if finite(part.get("share")):
        said.append(
            f"The class is a rank, the {percent(part['share'])} of all neurons whose firing is least even, not a size."
        )
    for kind in ("specific", "related"):
        low, high = part.get(kind) or (None, None)
        if finite(low) and finite(high):
            said.append(
                f"Entropy of the {kind}: {low:.2f} to {of_most(high, k)}, as if they fired evenly in "
                f"{math.exp(low):.1f} to {in_groups(high, k)}."
            )
    lowest = part.get("lowest")
    even = f" Even the most selective neuron fires in all groups nearly alike ({of_most(lowest, k)})."
    return " ".join(said), even if near_uniform(lowest, k) else ""


def _layers(data: Mapping[str, Any]) -> Finding | None:
    if not _more_than_chance(data.get("counts") or {}):
        return None  # where neurons of chance lie says nothing
    table = (data.get("profile") or {}).get("specific")
    layers = [_sum(c) for c in zip(*table, strict=True)] if table else []
    total = sum(layers)
    if len(layers) < 3 or not total:
        return None
    order = sorted(range(len(layers)), key=lambda i: -layers[i])
    held = list(itertools.accumulate(layers[i] for i in order))
    n = next(i for i, v in enumerate(held, 1) if v >= MOST * total)
    named = ", ".join(map(str, sorted(order[:n])))
    claim = f"{percent(held[n - 1] / total)} of the group-specific neurons are in "
    claim += f"layer {named}." if n == 1 else f"{n} of {len(layers)} layers: {named}."
    evenly = math.ceil(MOST * len(layers) - 1e-9)
    even = f"The fewest layers that hold {percent(MOST)} of them; spread evenly they would be {evenly} layers."
    each = f" Per layer: {', '.join(f'{i}: {number(n)}' for i, n in enumerate(layers))}." if len(layers) <= 12 else ""
    return Finding(claim, even + each, None)


def _effect(data: Mapping[str, Any]) -> Finding | None:
    effect = data.get("effect")
    if not effect:
        return None
    rows = [r for r in effect_rows(data["groups"], effect) if r.tested]
    what, unit = effect.get("measure", "effect"), effect.get("unit", "")
    unit = unit if unit[:1].isalpha() else f"({unit})"
    if not rows:
        return Finding("The effect of silencing was not measured: no group had neurons to silence.", "", None)
    own = _sum(r.own for r in rows) / len(rows)
    most = sum(r.hit == r.group for r in rows)
    rows_said = f"In {most} of {len(rows)} rows the silenced group is the one hurt most."
    if not any(finite(r.mean) for r in rows):
        claim = f"Silencing a group's own neurons: mean {what} {number(own)} {unit} on that group."
        return Finding(claim, f"{rows_said} No random baseline, so nothing is proved.", None)
    chance = [r.mean for r in rows if finite(r.mean)]
    mean = _sum(chance) / len(chance)
    clear = [r for r in rows if finite(r.z) and r.z > CLEAR]
    times = f" ({number(own / mean, 2)} times as much)" if mean > 0 and own > 0 else ""
    claim = (
        f"Silencing a group's own neurons: mean {what} {number(own)} {unit} on that group; "
        f"random sets of the same size per layer: {number(mean)}{times}."
    )
    detail = f"The diagonal is more than {number(CLEAR)} standard deviations above the random sets "
    detail += f"in {len(clear)} of {len(rows)} groups"
    scored = [r for r in rows if finite(r.z)]
    if scored:
        low, high = min(scored, key=lambda r: r.z or 0.0), max(scored, key=lambda r: r.z or 0.0)
        detail += f" (z from {number(low.z, 2)}, {_names([low.group])}, to {number(high.z, 2)}, {_names([high.group])})"
    unclear = [r.group for r in rows if r not in clear]
    detail += f". {rows_said}" + (f" Not clear: {_names(unclear)}." if unclear else "")
    if empty := [r.group for r in effect_rows(data["groups"], effect) if r.size == 0]:
        detail += f" No neurons to silence: {_names(empty)}."
    few = too_few(effect, data["groups"], matter_of(data).windows)
    return Finding(claim, f"{few} {detail}".strip(), None if few else not unclear)


def too_few(effect: Mapping[str, Any], groups: Sequence[str], windows: str = "windows") -> str:
    """A sentence if a group has too few measured windows (or pictures) for a verdict; else ""."""
    measured = effect.get("windows") or []
    few = {g: n for g, n in zip(groups, measured, strict=False) if finite(n) and n < FEWEST_WINDOWS}
    if not few:
        return ""
    return f"Too few {windows} to judge ({_listed(few)}; at least {FEWEST_WINDOWS} of each group are needed)."


def _dictionary(data: Mapping[str, Any]) -> Finding | None:
    part = data.get("dictionary") or {}
    m = part.get("metrics") or {}
    if not any(finite(m.get(name)) for name in ("explained_variance", "fvu")):
        return None
    explained = m["explained_variance"] if finite(m.get("explained_variance")) else 1 - m["fvu"]
    claim = f"A dictionary of {number(part.get('n_latents'))} latents explains {percent(explained)} of the variance"
    claim += f" with {number(m['l0'])} active per {matter_of(data).token}." if finite(m.get("l0")) else "."
    what = str((part.get("recovered") or {}).get("measure") or "cross entropy").lower()
    judged = f"{number(part['tokens'])} judged" if finite(part.get("tokens")) else "judged"
    never = f"of the latents are on at none of the {judged} {matter_of(data).tokens}"
    said = [
        f"{percent(m['dead_fraction'])} {never}" if finite(m.get("dead_fraction")) else "",
        f"{percent(m['ce_recovered_zero'])} of the {what} is recovered (baseline: site set to zero)"
        if finite(m.get("ce_recovered_zero"))
        else "",
        f"{percent(m['ce_recovered_mean'])} (baseline: site set to its mean)"
        if finite(m.get("ce_recovered_mean"))
        else "",
    ]
    detail = "; ".join(s for s in said if s)
    return Finding(claim, f"Site {part.get('site', '–')}. {detail[:1].upper()}{detail[1:]}.", None)


def _above(value: Number, chance: Number, high: Number) -> bool:
    """Above what shuffled labels give: their 95 % point where it is known, at least their mean."""
    return finite(value) and all(value > v for v in (chance, high) if finite(v))


def _high(counts: Mapping[str, Any], kind: str) -> Mapping[str, Number]:
    """The 95 % points over shuffles of a class's numbers, by group; older studies have none."""
    return ((counts.get("shuffled") or {}).get("point_95") or {}).get(kind) or {}


def _more_than_chance(counts: Mapping[str, Any]) -> bool:
    """Whether the specific neurons of all groups are more than under shuffled labels; so too without a baseline."""
    shuffled = counts.get("shuffled") or {}
    if not counts.get("specific") or not shuffled.get("specific"):
        return True
    chance = _sum(shuffled["specific"].values())
    return _above(_sum(counts["specific"].values()), chance, (shuffled.get("point_95") or {}).get("specific_in_all"))


def _listed(counts: Mapping[str, Number]) -> str:
    return ", ".join(f"{shortened(g, NAME)} {number(v)}" for g, v in counts.items())


def _names(groups: Sequence[str]) -> str:
    return ", ".join(shortened(g, NAME) for g in groups)


def _sum(values) -> float:
    return sum(v for v in values if finite(v))
