# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks NAME [NAME ...] [--repeats N]"""

import importlib
import pathlib
import sys

import tyro

from . import harness

NAMES = ("capture", "sweep", "topk_step")


def main(names: tyro.conf.Positional[tuple[str, ...]], repeats: int = 15) -> None:
    """Run the named benchmarks (all: every one), print their tables, keep the results.

    Args:
        names: which to run.
        repeats: timed calls per program.
    """
    chosen = NAMES if names in ((), ("all",)) else names
    if bad := [n for n in chosen if n not in NAMES]:
        sys.exit(f"no benchmark {bad[0]!r}. Known: {', '.join(NAMES)}.")
    for name in chosen:
        rows = importlib.import_module(f"benchmarks.{name}").rows(repeats)
        harness.show(name, rows)
        print(f"written: {harness.save(name, rows)}")


if __name__ == "__main__":
    root = pathlib.Path(__file__).parents[1]
    sys.path.insert(0, str(root))
    tyro.cli(main)
