# SPDX-License-Identifier: Apache-2.0
"""Parallel text for the bundled model: Debian's translated manual pages and Python's standard library.

    python scripts/build_corpus.py --out corpus

Needs a Debian system (apt-get, dpkg-deb) and mandoc. Writes OUT/train/GROUP.jsonl and OUT/heldout/GROUP.jsonl with the
fields text, page and source, and OUT/sources.json with the version of every package. A page is held out in every
language at once, so no translation of a held-out page is ever trained on; a long line that occurs twice in a language
(licences, boilerplate) is kept once, held-out text first, so no held-out line is trained on either.
"""

import dataclasses
import gzip
import hashlib
import json
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tyro

from jaxneuro.io import write_json, write_text

LANGUAGES = {
    "de": ("manpages-de", "manpages-de-dev"),
    "en": (
        *("manpages", "manpages-dev", "coreutils", "util-linux", "findutils", "tar", "grep", "sed", "procps"),
        *("e2fsprogs", "systemd", "mount", "passwd", "dpkg", "apt"),
    ),
    "es": ("manpages-es", "manpages-es-dev"),
    "fr": ("manpages-fr", "manpages-fr-dev"),
    "it": ("manpages-it", "manpages-it-dev"),
    "pl": ("manpages-pl", "manpages-pl-dev"),
    "pt": ("manpages-pt-br", "manpages-pt-br-dev"),
    "ru": ("manpages-ru", "manpages-ru-dev"),
}
FOLDER = {"en": "man", "pt": "man/pt_BR"}  # where a language's pages lie under /usr/share
NOT_CODE = ("test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo", "encodings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to build and where."""

    out: Path = Path("corpus")
    """Folder for the text."""
    packages: Path | None = None
    """Folder with the .deb files; downloaded into a temporary one when not given."""
    heldout: float = 0.08
    """Share of pages kept from training, chosen by a hash of the page's name."""
    min_characters: int = 400
    """Shorter pages (mostly links to other pages) are dropped."""


def is_heldout(page: str, share: float) -> bool:
    """Whether a page is held out: the same answer on every machine and in every language."""
    return int(hashlib.sha256(page.encode()).hexdigest()[:8], 16) < share * 16**8


def render(path: Path) -> str:
    """A manual page as plain text, one paragraph per line, without the running header and footer."""
    raw = gzip.decompress(path.read_bytes())
    command = ["mandoc", "-K", "utf-8", "-T", "utf8", "-O", "width=580,indent=0"]
    text = subprocess.run(command, input=raw, capture_output=True, check=False).stdout.decode("utf-8", "replace")
    text = re.sub(r".\x08", "", text)  # bold and underlined are overstrikes
    lines = [re.sub(r"[ \t\xa0]+", " ", line).strip() for line in text.split("\n")]
    body = lines[1:]
    while body and (not body[-1] or re.search(r"\(\d\w*\)$", body[-1])):
        body.pop()  # the footer repeats the title, date and section
    return re.sub(r"\n{3,}", "\n\n", "\n".join(body)).strip()


def manual_pages(language: str, root: Path) -> list[Path]:
    """Every distinct page of a language below an unpacked package tree, by name."""
    base = root / "usr/share" / FOLDER.get(language, f"man/{language}")
    files = [p for p in base.glob("man*/*.gz") if not p.is_symlink()]
    return sorted(files, key=lambda p: p.name)


def code_files() -> list[Path]:
    """The standard library's own modules, without tests and generated tables."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [p for p in library.rglob("*.py") if not set(p.relative_to(library).parts) & set(NOT_CODE)]
    return sorted(p for p in files if "pydoc_data" not in p.parts)


def unpack(package: str, packages: Path, root: Path) -> str:
    """Download (if need be) and unpack one package; its version."""
    if not list(packages.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", package], cwd=packages, check=True, capture_output=True)
    deb = sorted(packages.glob(f"{package}_*.deb"))[-1]
    subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
    return deb.name.removesuffix(".deb").split("_")[1].replace("%3a", ":")


def documents(group: str, root: Path) -> Iterator[tuple[str, str, str]]:
    """(page, source, text) of one group."""
    if group == "code":
        library = Path(sysconfig.get_paths()["stdlib"])
        for p in code_files():
            yield (
                str(p.relative_to(library)),
                "python",
                p.read_text(encoding="utf-8", errors="replace").strip(),
            )
        return
    pages = manual_pages(group, root)
    with ThreadPoolExecutor(4) as pool:
        for p, text in zip(pages, pool.map(render, pages), strict=True):
            yield f"{p.parent.name}/{p.name.removesuffix('.gz')}", "manual", text


def deduplicated(docs: list[dict], seen: set[str]) -> Iterator[dict]:
    """The documents without the long lines that stood in an earlier one."""
    for doc in docs:
        kept = []
        for line in doc["text"].split("\n"):
            if len(line) > 60 and line in seen:
                continue
            seen.add(line)
            kept.append(line)
        yield doc | {"text": re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()}


def main(config: Config) -> None:
    """Build every group and print its size."""
    with tempfile.TemporaryDirectory() as scratch:
        packages = (config.packages or Path(scratch) / "deb").resolve()
        packages.mkdir(parents=True, exist_ok=True)
        sources = {}
        for group in (*LANGUAGES, "code"):
            root = Path(scratch) / group
            root.mkdir()
            for package in LANGUAGES.get(group, ()):
                sources[package] = unpack(package, packages, root)
            docs = [{"page": p, "source": s, "text": t} for p, s, t in documents(group, root)]
            docs = [d for d in docs if len(d["text"]) >= config.min_characters]
            parts = {
                "heldout": [d for d in docs if is_heldout(d["page"], config.heldout)],
                "train": [d for d in docs if not is_heldout(d["page"], config.heldout)],
            }
            seen: set[str] = set()
            for part, members in parts.items():
                kept = [d for d in deduplicated(members, seen) if len(d["text"]) >= config.min_characters]
                lines = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in kept)
                write_text(config.out / part / f"{group}.jsonl", lines)
                size = sum(len(d["text"].encode()) for d in kept)
                print(f"{group:5s} {part:8s} {len(kept):6d} documents {size / 1e6:8.2f} MB")
        sources["python"] = sysconfig.get_python_version()
        write_json(config.out / "sources.json", sources)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
