# SPDX-License-Identifier: Apache-2.0
"""Cut the labelled excerpts that ship with jaxneuro out of the held-out part of the corpus, and write their NOTICE.

    python scripts/build_bundled_text.py --corpus corpus --out jaxneuro/assets

Writes OUT/text/GROUP.jsonl (fields text, page) and OUT/NOTICE.
"""

import dataclasses
import json
from pathlib import Path

import tyro

from jaxneuro.io import read_json, write_text

NOTICE = """\
Notices for the files in this folder
====================================

jaxneuro itself is licensed under Apache-2.0. The files below this folder are data from other works, or made from them,
and keep their licences.

text/GROUP.jsonl
    Excerpts of manual pages and of Python's standard library, none of which the bundled model was trained on.
    de es fr it pl pt ru: the project manpages-l10n, as packaged by Debian; GPL-3.0-or-later, translators named in each
        page and in /usr/share/doc/PACKAGE/copyright of the packages below.
    en: the Linux man-pages project and the manual pages of the packages below; each under the licence stated in its
        source (GPL-2.0-or-later, GPL-3.0-or-later, GFDL-1.3-or-later, BSD, Linux-man-pages-copyleft, public domain).
    code: Python's standard library, Python Software Foundation License Version 2.

bundled/
    A language model (weights, config, tokenizer) trained from scratch with scripts/train_bundled_model.py on the other
    pages of the same sources. It is a statistical summary made for tests and demonstrations.

Sources (Debian package and version; Python version)
{sources}

Pages
{pages}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How much to cut."""

    corpus: Path = Path("corpus")
    out: Path = Path("jaxneuro/assets")
    characters_per_group: int = 64_000
    characters_per_document: int = 6_000


def excerpt(text: str, limit: int) -> str:
    """The start of a document up to the last whole paragraph within the limit."""
    if len(text) <= limit:
        return text
    return text[: text.rfind("\n\n", 0, limit)] if "\n\n" in text[:limit] else text[: text.rfind("\n", 0, limit)]


def cut(docs: list[dict], config: Config) -> list[dict]:
    """Excerpts of as many documents as fit; when there are few, more of each."""
    per_document = max(config.characters_per_document, config.characters_per_group // max(len(docs), 1))
    kept, total = [], 0
    for doc in docs:
        text = excerpt(doc["text"], min(per_document, config.characters_per_group - total))
        if len(text) >= 300:
            kept.append({"text": text, "page": doc["page"]})
            total += len(text)
    return kept


def main(config: Config) -> None:
    """Write every group and the NOTICE."""
    pages = []
    for path in sorted((config.corpus / "heldout").glob("*.jsonl")):
        kept = cut([json.loads(line) for line in path.open(encoding="utf-8")], config)
        text = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in kept)
        write_text(config.out / "text" / path.name, text)
        pages.append(f"    {path.stem}: " + ", ".join(d["page"] for d in kept))
        print(f"{path.stem:5s} {len(kept):4d} excerpts {len(text.encode()) / 1e3:.0f} kB")
    sources = "\n".join(f"    {k} {v}" for k, v in sorted(read_json(config.corpus / "sources.json").items()))
    write_text(config.out / "NOTICE", NOTICE.format(sources=sources, pages="\n".join(pages)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
