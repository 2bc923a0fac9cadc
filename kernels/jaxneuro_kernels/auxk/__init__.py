# SPDX-License-Identifier: Apache-2.0
"""AuxK: dead latents learn to explain what the living ones leave over."""

from .api import add_auxk as add_auxk
