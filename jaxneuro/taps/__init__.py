# SPDX-License-Identifier: Apache-2.0
"""Name a value inside a pure function, read it, replace it."""

from .primitive import tap as tap
from .primitive import wants as wants
