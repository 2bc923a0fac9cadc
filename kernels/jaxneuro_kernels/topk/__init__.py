# SPDX-License-Identifier: Apache-2.0
"""The k largest of the last axis."""

from .api import topk as topk
