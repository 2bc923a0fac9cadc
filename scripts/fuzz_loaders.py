#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Load mutated files with every loader, and say what came out.

    python scripts/fuzz_loaders.py --seconds 600 --seed 0 --workers 2 --resume fuzz.jsonl

Every mutant is made from the seed and its number alone. Files come from the tests' fixtures and from our own writers;
one thing is changed in each: bits, length, a value, a name, a tensor, the file itself. What counts as what:
scripts/fuzz/judge.py. The exit code is 1 if anything is in the last six columns.
"""

import argparse
import collections
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fuzz.judge import BAD, GOOD, one
from fuzz.pool import Limits, environment, limit_memory, run
from fuzz.seeds import KINDS, Room

from jaxneuro.versions import versions


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--mutants", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--resume",
        type=Path,
        help="a .jsonl of records, appended to; mutants in it that did no harm are not made again",
    )
    parser.add_argument("--table", type=Path, help="a .json for the table, with seed, revisions, versions and seconds")
    parser.add_argument("--memory-mb", type=int, default=3000, help="of each worker, beyond what it starts with")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="of each mutant")
    parser.add_argument("--cases", type=int, help="examples of each kind of file, at most")
    parser.add_argument(
        "--replay", type=int, metavar="NUMBER", help="make one mutant of the seed, load it here, leave it"
    )
    return parser.parse_args()


def table(records: Iterable[dict[str, Any]]) -> str:
    """Rows by kind of file, columns by outcome, as Markdown."""
    counts = collections.Counter((r["kind"], r["outcome"]) for r in records)
    columns = (*GOOD, *BAD)
    lines = [f"| files | mutants | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for kind in (*KINDS, "all"):
        row = [sum(n for (k, o), n in counts.items() if kind in (k, "all") and o == column) for column in columns]
        lines.append(f"| {kind} | {sum(row)} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def replay(seed: int, i: int, limits: Limits) -> None:
    """One mutant in this process, with its traceback, if any; its files stay."""
    environment()
    folder = Path(tempfile.mkdtemp(prefix="jaxneuro-mutant-"))
    room = Room(folder / "whole")
    made: dict[str, Any] = {}

    def told(record: dict[str, Any]) -> None:
        made.update(record)
        print(json.dumps(record, indent=1))
        print(f"in {folder / 'mutant' / str(i)}")
        shutil.copytree(folder / "mutant" / str(i), folder / "kept", symlinks=True, ignore=_no_pipes)

    limit_memory(limits.memory_mb)
    record = one(room, seed, i, folder / "mutant", timeout=limits.timeout_s, most=limits.most, told=told)
    print(record["outcome"], record["detail"], f"(files: {folder / 'kept'})", sep="\n")


def _no_pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_fifo()]


def main() -> int:
    """The command."""
    args = options()
    limits = Limits(args.timeout_s, args.memory_mb, args.cases)
    if args.replay is not None:
        replay(args.seed, args.replay, limits)
        return 0
    records = []
    if args.resume and args.resume.exists():
        records = [json.loads(line) for line in args.resume.read_text().splitlines() if line.endswith("}")]
    done = {r["i"] for r in records if r["seed"] == args.seed and r["outcome"] in GOOD}
    commit = versions().get("commit", "")
    numbers = (i for i in (itertools.count() if args.mutants is None else range(args.mutants)) if i not in done)
    begun, before = time.monotonic(), len(records)
    with open(args.resume or "/dev/null", "a") as out:
        for record in run(
            args.seed, numbers, workers=args.workers, limits=limits, until=time.monotonic() + args.seconds
        ):
            records.append(record | {"commit": commit})
            out.write(json.dumps(records[-1]) + "\n")
            out.flush()
            if record["outcome"] in BAD:
                print(json.dumps(record)[:400], file=sys.stderr)
    seconds = time.monotonic() - begun
    last = list({(r["seed"], r["i"]): r for r in records}.values())  # a mutant that was made again counts once
    print(table(last))
    print(f"\n{len(records) - before} mutants in {seconds:.0f} s: {(len(records) - before) / seconds:.0f} a second")
    if args.table:
        write_table(args.table, last)
    return int(any(r["outcome"] in BAD for r in last))


def write_table(path: Path, records: list[dict[str, Any]]) -> None:
    """Counts by kind of file and outcome, and what the run was, as JSON."""
    counts = collections.Counter((r["kind"], r["outcome"]) for r in records)
    found = {
        "mutants": len(records),
        "seeds": sorted({r["seed"] for r in records}),
        "date": time.strftime("%F"),
        "mutants_by_commit": collections.Counter(r.get("commit", "") for r in records),
        "loading_seconds": round(sum(r["ms"] or 0 for r in records) / 1e3),
        "slowest_seconds": max(r["ms"] or 0 for r in records) / 1e3,
        "versions": {name: version for name, version in versions().items() if name != "commit"},
        "outcomes": {kind: {o: counts[kind, o] for o in (*GOOD, *BAD)} for kind in KINDS},
        "all": {o: sum(counts[kind, o] for kind in KINDS) for o in (*GOOD, *BAD)},
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
