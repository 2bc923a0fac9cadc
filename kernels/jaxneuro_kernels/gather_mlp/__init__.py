# SPDX-License-Identifier: Apache-2.0
"""An MLP of a chosen few of its neurons."""

from .api import Mlp as Mlp
from .api import apply_mlp as apply_mlp
from .api import compact_mlp as compact_mlp
from .api import gather_mlp as gather_mlp
