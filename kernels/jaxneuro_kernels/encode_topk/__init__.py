# SPDX-License-Identifier: Apache-2.0
"""Encoder matmul and top-k selection in one op."""

from .api import encode_topk as encode_topk
