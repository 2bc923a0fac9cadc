# SPDX-License-Identifier: Apache-2.0
"""Products with a sparse code: decode from it, and the two products that are its derivatives."""

from .api import gather_dot as gather_dot
from .api import row_sum as row_sum
from .api import sparse_decode as sparse_decode
