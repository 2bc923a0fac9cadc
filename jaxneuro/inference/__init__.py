# SPDX-License-Identifier: Apache-2.0
"""room"""

from .generate import Generated as Generated
from .generate import generate as generate
from .sampling import Sampler as Sampler
from .sampling import greedy as greedy
