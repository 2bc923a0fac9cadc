# SPDX-License-Identifier: Apache-2.0
"""Dictionaries."""

from .dictionary import TopKDictionary as TopKDictionary
from .topk import topk as topk
