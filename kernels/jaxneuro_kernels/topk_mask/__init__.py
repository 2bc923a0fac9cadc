# SPDX-License-Identifier: Apache-2.0
"""The k largest in their places."""

from .api import topk_mask as topk_mask
