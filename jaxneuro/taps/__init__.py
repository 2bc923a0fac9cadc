# SPDX-License-Identifier: Apache-2.0
"""Name a value inside a pure function, read it, replace it."""

from .edits import Edit as Edit
from .edits import add as add
from .edits import apply_fn as apply_fn
from .edits import clamp as clamp
from .edits import patch as patch
from .edits import scale as scale
from .edits import set_to as set_to
from .edits import zero as zero
from .primitive import tap as tap
from .primitive import wants as wants
from .transforms import Site as Site
from .transforms import SiteTable as SiteTable
from .transforms import capture as capture
from .transforms import intervene as intervene
from .transforms import sites as sites
from .transforms import sweep as sweep
