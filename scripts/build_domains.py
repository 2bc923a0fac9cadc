# SPDX-License-Identifier: Apache-2.0
"""Three English domains as groups for a study: the poems, politics and science of Debian's package `fortunes`.

    python scripts/build_domains.py --out domains
    jaxneuro study --model all-MiniLM-L6-v2 --groups domains --out minilm-study

Needs a Debian system (apt-get, dpkg-deb). Writes OUT/GROUP.jsonl with the field text, one saying each. A saying that is
in two of the files is left out of both.
"""

import dataclasses
import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import tyro

from jaxneuro.io import write_text

PACKAGE = "fortunes"
FILES = {"poems": "songs-poems", "politics": "politics", "science": "science"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to build and where."""

    out: Path = Path("domains")
    """Folder for the text."""
    package: Path | None = None
    """The .deb file; downloaded when not given."""
    min_characters: int = 80
    """Shorter sayings are dropped."""


def sayings(path: Path, min_characters: int) -> list[str]:
    """The entries of one file, which are divided by lines of `%`."""
    parts = (p.strip() for p in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"))
    return [" ".join(p.split()) for p in parts if len(p) >= min_characters]


def main(config: Config) -> None:
    """Unpack the package and write one file per domain."""
    with tempfile.TemporaryDirectory() as work:
        package = config.package
        if package is None:
            subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=work, check=True)
            package = next(Path(work).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), work], check=True)
        games = Path(work) / "usr/share/games/fortunes"
        found = {g: sayings(games / name, config.min_characters) for g, name in FILES.items()}
    seen = Counter(text for texts in found.values() for text in set(texts))
    for group, texts in found.items():
        kept = [t for t in dict.fromkeys(texts) if seen[t] == 1]
        write_text(config.out / f"{group}.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in kept))
        print(f"{group}: {len(kept)} sayings, {sum(map(len, kept)) / 1e3:.0f} thousand characters")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
