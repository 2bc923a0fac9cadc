# SPDX-License-Identifier: Apache-2.0
"""The section of the dictionary: its numbers, what the model loses, how training went."""

from typing import Any

from . import figures
from .sections import Data, Panel, Table
from .svg import brief, finite, fixed, number
from .words import CURVES, METRICS, SITES, Matter, matter_of


def dictionary(data: Data) -> dict[str, Any] | None:
    """Quality of the dictionary and how it came about."""
    part = data.get("dictionary")
    if not part:
        return None
    recovered = part.get("recovered") or {}
    return {
        "facts": _facts(part, recovered.get("short") or "CE", matter_of(data)),
        "path": part.get("path"),
        "site": part.get("site", "–"), "n_latents": number(part.get("n_latents")), "k": number(part.get("k")),
        "kept": _kept(recovered), "tokens": number(n) if finite(n := part.get("tokens")) else None,
        "curves": _curves(part.get("curves") or {}),
    }  # fmt: skip


def _facts(part: Data, what: str, m: Matter) -> list[tuple[str, str, str]]:
    """(name, printed value, meaning); the FVU stands beside the explained variance, of which it is the rest."""
    metrics, n = part.get("metrics") or {}, part.get("tokens")
    known = {k: metrics[k] for k in METRICS if finite(metrics.get(k))}
    meanings = {k: m.say(METRICS[k].meaning) for k in known}
    if "dead_fraction" in known and finite(n):
        meanings["dead_fraction"] = f"share of the latents that none of the {number(n)} judged {m.tokens} activates"
    if "explained_variance" in known and "fvu" in known:
        meanings["explained_variance"] += f"; the rest, the fraction unexplained (FVU), is {number(known.pop('fvu'))}"
    return [(METRICS[k].name.format(what=what), METRICS[k].show(v), meanings[k]) for k, v in known.items()]


def _kept(recovered: Data) -> Table | None:
    """The loss with the site as it is, reconstructed, at its mean and at zero, in one format."""
    known = {k: recovered[k] for k in SITES if finite(recovered.get(k))}
    if not known:
        return None
    show = fixed(max(map(abs, known.values())))
    base = known.get("original")
    head = ["The site is", f"{recovered.get('measure') or 'Loss'}, {recovered.get('unit') or 'nats per token'}", "More"]
    more = {
        k: "–" if base is None or k == "original" else f"+{show(v - base)}".replace("+−", "−") for k, v in known.items()
    }
    return Table(head, [[SITES[k], show(v), more[k]] for k, v in known.items()])


def _curves(curves: Data) -> list[Panel]:
    x = curves.get("tokens") or []
    out = []
    for key, row in curves.items():
        if key not in METRICS or not row:
            continue
        name = CURVES.get(key, METRICS[key].name)
        last = next((v for v in reversed(row) if finite(v)), None)
        words = (
            f"{name} over {brief(x[-1]) if x and finite(x[-1]) else '–'} training tokens; last value {number(last)}."
        )
        svg = figures.lines(
            x, {name: row}, title=name, desc=words, x_label="training tokens", from_zero=True, size=(330, 190)
        )
        step = max(1, len(x) // 12)
        rows = [[number(x[i]), number(row[i])] for i in range(0, len(x), step)]
        out.append(Panel(f"{name}: {number(last)} at the end", svg, Table(["Tokens", name], rows)))
    return out
