# SPDX-License-Identifier: Apache-2.0
"""write_report: a study as one HTML file that needs nothing else, not even a network."""

import base64
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..errors import UserError, unknown
from ..io.files import json_text, or_null, write_text
from . import cards, coder, palette, sections, words
from .findings import findings
from .svg import visible

_TEMPLATES = Path(__file__).parent / "templates"
_KEYS: Final = (
    "title",
    "run",
    "groups",
    "counts",
    "selectivity",
    "profile",
    "effect",
    "neurons",
    "dictionary",
    "matter",
    "pictures",
)
_SHAPES: Final = {
    "profile.specific": "KL", "profile.related": "KL", "profile.agnostic": "L", "profile.shuffled_specific": "L",
    "profile.expert": "KL", "profile.shuffled_expert": "L",
    "effect.matrix": "KK", "effect.random_mean": "KK", "effect.random_std": "KK", "effect.set_size": "K",
    "effect.base": "K", "effect.windows": "K",
}  # fmt: skip
"""Tables and the axes they must have: K groups, L layers (as many as the first table over layers has)."""


def write_report(data: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write a study as one self-contained HTML page; returns its path.

    Every text is escaped, and the page forbids itself any network access and any script but its own (a content
    security policy with the script's hash), so documents may contain anything. NaN and infinities are shown as "–".

    Args:
      data: title, run, groups, and what there is of counts, profile, effect, neurons, dictionary (the keys are listed
        in the documentation of the room). Arrays may be numpy or JAX. An absent part is named as absent on the page.
        `profile.shuffled_specific` [L]: all groups together, the mean over shuffles.
      path: the .html file; replaced whole, or left as it was.
    Raises:
      UserError: a part is missing, unknown or of the wrong shape (all problems at once), or the file cannot be written.
    Example:
      >>> import tempfile
      >>> page = write_report({"title": "t", "run": {}, "groups": ["de"]}, tempfile.mkdtemp() + "/report.html")
      >>> "<h1>t</h1>" in page.read_text()
      True
    """
    write_text(path, render(data))
    return Path(path)


def render(data: Mapping[str, Any]) -> str:
    """The page of `write_report` as a string."""
    data = plain(data)
    check(data)
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    neurons, latents = cards.neurons(data), cards.latents(data)
    return _template().render(
        title=data["title"], groups=data["groups"], findings=findings(data), run=sections.run(data),
        selectivity=sections.selectivity(data),
        neurons_too=not data.get("dictionary") or any(data.get(k) for k in ("counts", "profile", "effect", "neurons")),
        counts=sections.counts(data), experts=sections.counts(data, "Expert neurons per group", ("expert",)),
        n_shuffles=((data.get("counts") or {}).get("shuffled") or {}).get("n_shuffles"),
        profile=sections.profile(data), expert_profile=sections.profile(data, ("expert",)),
        effect=sections.effect(data), unchosen=sections.unchosen(data), dictionary=coder.dictionary(data),
        m=(m := words.matter_of(data)), meanings={k: m.say(v) for k, v in words.CLASSES.items()},
        glossary=[(word, m.say(meaning)) for word, meaning in (*words.GLOSSARIES[m.name], *words.GLOSSARY)],
        lists={"neurons": neurons, "latents": latents}, scales=palette.SCALES, script=script, digest=digest,
        classes=list(dict.fromkeys(c["class"] for c in neurons if c["class"])),
        style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        embedded={
            "neurons": [c["json"] for c in neurons], "latents": [c["json"] for c in latents],
            "pictures": data.get("pictures") or {},
        },
    )  # fmt: skip


@functools.cache
def _template():
    import jinja2
    from markupsafe import Markup

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["svg"] = lambda s: Markup(_inline(s))
    env.filters["script_json"] = lambda v: Markup(script_json(v))
    env.filters["own"] = Markup  # our own script and style sheet, never data
    return env.get_template("report.html")


def _inline(svg: str) -> str:
    """A figure inside HTML: the namespace is implied (so the page names no address), and the style sheet paints."""
    svg = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1).replace(' stroke-opacity="0.3"', "")
    return svg.replace(' stroke="currentColor" fill="none"', "")


def script_json(value: object) -> str:
    """JSON that may stand inside <script>: no character in it can end the element or open another.

    Example:
      >>> script_json({"a": "</script><!--"})
      '{"a":"\\\\u003c/script\\\\u003e\\\\u003c!--"}'
    """
    text = json_text(value, ensure_ascii=False, separators=(",", ":"))
    for c in "<>&\u2028\u2029":
        text = text.replace(c, f"\\u{ord(c):04x}")
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)  # lone halves have no UTF-8


def plain(value: Any) -> Any:
    """Arrays to lists, NaN and infinities to None, mapping keys to text, text to what is seen (`pictures`).

    Here once, for markup, tooltips and the JSON that the page's script compares with them.
    """
    if isinstance(value, Mapping):
        return {visible(k): plain(v) for k, v in value.items()}
    if isinstance(value, str):
        return visible(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return or_null(value) if isinstance(value, float) else value


def check(data: Mapping[str, Any]) -> None:
    """Raise one UserError that names everything wrong with the data of a report."""
    for key in data:
        if key not in _KEYS:
            raise unknown("part", key, _KEYS, where="report", hint="Rename it or leave it out.")
    if data.get("matter") not in (None, *words.MATTERS):
        raise unknown("matter", data["matter"], words.MATTERS, where="report")
    problems = [f"{k!r} is missing" for k in ("title", "run", "groups") if data.get(k) is None]
    problems += [] if problems else list(_misshapen(data))
    if problems:
        raise UserError(
            f"cannot write the report: {'; '.join(problems)}. See jaxneuro.reports for what each part holds."
        )


def _misshapen(data: Mapping[str, Any]) -> Iterator[str]:
    sizes: dict[str, tuple[int, str]] = {"K": (len(data["groups"]), "groups")}
    if data.get("effect") and not data["effect"].get("matrix"):
        yield "effect has no matrix"
    for name, axes in _SHAPES.items():
        part, key = name.split(".")
        table = (data.get(part) or {}).get(key)
        found = _shape(table)
        if table is None:
            continue
        if -1 in found:
            yield f"{name} has rows of different lengths"
            continue
        for axis, n in zip(axes, found, strict=False):
            sizes.setdefault(axis, (n, name))
        wanted = tuple(sizes[a][0] if a in sizes else 0 for a in axes)
        if found != wanted:
            because = " and ".join(f"{sizes[a][1]} has {sizes[a][0]}" for a in dict.fromkeys(axes) if a in sizes)
            yield f"{name} has shape {list(found)} but should have {list(wanted)} ({because})"
    for i, n in enumerate(data.get("neurons") or []):
        yield from _misfit(n, f"neurons[{i}]", len(data["groups"]))
    for i, f in enumerate((data.get("dictionary") or {}).get("latents") or []):
        yield from _misfit(f, f"dictionary.latents[{i}]", len(data["groups"]))


def _misfit(item: Mapping[str, Any], name: str, k: int) -> Iterator[str]:
    for key, row in (("rate", item.get("rate")), ("histogram.counts", (item.get("histogram") or {}).get("counts"))):
        if row is not None and len(row) != k:
            yield f"{name}.{key} has {len(row)} rows for {k} groups"
    for j, e in enumerate(item.get("examples") or []):
        n_tokens, n_values = len(e.get("tokens") or []), len(e.get("values") or [])
        if n_tokens != n_values and e.get("grid") is None:
            yield f"{name}.examples[{j}] has {n_tokens} tokens and {n_values} values"


def _shape(table: Any) -> tuple[int, ...]:
    """The shape of nested lists; -1 where lengths differ."""
    if not isinstance(table, list):
        return ()
    inner = {_shape(row) for row in table}
    return (len(table), *(inner.pop() if len(inner) == 1 else (-1,) if inner - {()} else ()))
