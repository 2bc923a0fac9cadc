# SPDX-License-Identifier: Apache-2.0
"""Benchmarks are no part of the package: they are imported from the repository."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
