# SPDX-License-Identifier: Apache-2.0
"""Activations with a trained threshold."""

from .api import jumprelu as jumprelu
from .api import step as step
