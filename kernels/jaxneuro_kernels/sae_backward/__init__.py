# SPDX-License-Identifier: Apache-2.0
"""All gradients of a sparse autoencoder in one pass."""

from .adam import Rows as Rows
from .api import SaeGradients as SaeGradients
from .api import SaeStep as SaeStep
from .api import sae_adam as sae_adam
from .api import sae_backward as sae_backward
