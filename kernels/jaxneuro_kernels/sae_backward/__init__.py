# SPDX-License-Identifier: Apache-2.0
"""All gradients of a sparse autoencoder in one pass."""

from .api import SaeGradients as SaeGradients
from .api import sae_backward as sae_backward
