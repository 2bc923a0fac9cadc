# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks NAME [NAME ...] [--repeats N]"""

import argparse
import importlib

from . import harness

LARGE = ("large:pythia-1.4b", "large:gemma-2-2b", "large:llama-3.1-8b")
"""For an accelerator; not among all."""
PARTS = ("dictionaries:peers", "dictionary_quality:400k", "dictionary_quality:4m")
"""A part of `dictionaries`; how well dictionaries reconstruct, which takes hours. Not among all."""
_MODELS = ("capture", "hooks", "sweep", "ablations", "decoding", "attention")
NAMES = (*_MODELS, "eager", "topk_step", "kernels", "store", "dictionaries", "synthsae")


def main() -> None:
    """Run the named benchmarks, print their tables, keep the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure, print tables, keep the results."
    )
    names = (*NAMES, *LARGE, *PARTS, "all")
    parser.add_argument("names", nargs="*", choices=names, default="all", help="which; all by default")
    parser.add_argument("--repeats", type=int, default=15, help="timed samples per program")
    asked = parser.parse_args()
    for name in NAMES if "all" in asked.names else asked.names:
        module, *part = name.split(":")
        rows = importlib.import_module(f"benchmarks.{module}").rows(asked.repeats, *part)
        harness.show(name, rows)
        print(f"written: {harness.save(name.replace(':', '-'), rows)}")


if __name__ == "__main__":
    main()
