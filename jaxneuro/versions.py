# SPDX-License-Identifier: Apache-2.0
"""What made a result: the versions that decide numbers."""

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Final

from . import __version__

PACKAGES: Final = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "orbax-checkpoint", "grain")


def versions() -> dict[str, str]:
    """jaxneuro, its commit where it is a checkout, Python and the packages that decide numbers."""
    found = {"jaxneuro": __version__, "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    here = Path(__file__).parents[1]
    if (here / ".git").exists():
        with contextlib.suppress(OSError):  # no git here
            out = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
            found |= {"commit": out.stdout.strip()} if out.stdout.strip() else {}
    return found
