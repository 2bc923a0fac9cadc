# SPDX-License-Identifier: Apache-2.0
"""Which dictionaries of other libraries are read and written? Strict both ways; nothing is filled in or unpickled."""

from .saelens import load_saelens as load_saelens
from .to_saelens import save_saelens as save_saelens
