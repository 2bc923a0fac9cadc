# SPDX-License-Identifier: Apache-2.0
"""What is done to one file of a folder, told from a random generator alone."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from .tensors import npz_file, safetensors_file, torch_file
from .values import LEGAL, NONSENSE, json_file, json_lines, yaml_file

DAMAGE: Final = "damage"
"""Changed bytes: noticed where there is a checksum."""
CUT: Final = "cut"
"""Another length: noticed where a format states its own."""

_STRUCTURED: Final[dict[str, Callable[[random.Random, bytes], tuple[bytes, str, str]]]] = {
    ".json": json_file,
    ".jsonl": json_lines,
    ".yaml": yaml_file,
    ".safetensors": safetensors_file,
    ".npz": npz_file,
    ".pt": torch_file,
}
_LARGE: Final = 1_000_000
"""Bytes above which JSON is not taken apart."""


class Mutation(NamedTuple):
    """What was done."""

    file: str
    what: str
    means: str


def _flip(rng: random.Random, content: bytearray) -> tuple[bytes, str, str]:
    where = [rng.randrange(len(content)) for _ in range(rng.choice((1, 1, 2, 8)))]
    for at in where:
        content[at] ^= 1 << rng.randrange(8)
    return bytes(content), f"bits flipped at {where}", DAMAGE


def _block(rng: random.Random, content: bytearray) -> tuple[bytes, str, str]:
    at, size = rng.randrange(len(content)), rng.choice((4, 16, 64))
    with_ = rng.choice((b"\0", b"\xff", rng.randbytes(1)))
    content[at : at + size] = with_ * len(content[at : at + size])
    return bytes(content), f"{size} bytes at {at} are {with_!r}", DAMAGE


def _truncate(rng: random.Random, content: bytearray) -> tuple[bytes, str, str]:
    keep = rng.choice((rng.randrange(len(content)), len(content) - 1, len(content) // 2, 8, 0))
    return bytes(content[:keep]), f"cut to {keep} of {len(content)} bytes", CUT


def _extend(rng: random.Random, content: bytearray) -> tuple[bytes, str, str]:
    more = rng.choice((b"\0", b"}", b"\n", rng.randbytes(7), b"\0" * 4096))
    return bytes(content) + more, f"{len(more)} bytes more", CUT


def _double(rng: random.Random, content: bytearray) -> tuple[bytes, str, str]:
    return bytes(content) * 2, "twice", CUT


_BYTES: Final = (_flip, _flip, _flip, _block, _truncate, _truncate, _extend, _double)


def _no_file(path: Path) -> None:
    path.unlink()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


_PLACES: Final[tuple[Callable[[Path], None], ...]] = (_no_file, _fifo, _folder, _loop, _device)


def mutate(rng: random.Random, path: Path) -> Mutation:
    """Change one file: the path itself, or one in the folder. Files are replaced, never written through a link."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    file = rng.choices(files, [3 if p.suffix in (".json", ".yaml") else 1 for p in files])[0]
    name = os.path.relpath(file, path.parent)
    if rng.random() < 0.05:
        change = rng.choice(_PLACES)
        change(file)
        return Mutation(name, change.__name__.strip("_"), NONSENSE if change is not _no_file else LEGAL)
    content = file.read_bytes()
    structured = _STRUCTURED.get(file.suffix)
    if structured and content and rng.random() < 0.7 and (len(content) < _LARGE or file.suffix != ".json"):
        new, what, means = structured(rng, content)
    else:
        new, what, means = rng.choice(_BYTES)(rng, bytearray(content or b"\0"))
    file.unlink()
    file.write_bytes(new)
    return Mutation(name, what, means)


def linked(source: Path, target: Path) -> Path:
    """A copy of a file or folder that shares its files with it until they are replaced."""
    if source.is_dir():
        return Path(shutil.copytree(source, target / source.name, copy_function=os.link))
    target.mkdir(parents=True, exist_ok=True)
    os.link(source, target / source.name)
    return target / source.name
