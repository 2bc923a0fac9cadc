# SPDX-License-Identifier: Apache-2.0
"""Dictionaries."""

from .dictionary import TopKDictionary as TopKDictionary
from .evaluate import Reconstruction as Reconstruction
from .evaluate import Recovered as Recovered
from .evaluate import reconstruction as reconstruction
from .evaluate import recovered as recovered
from .formats import load_saelens as load_saelens
from .formats import save_saelens as save_saelens
from .topk import topk as topk
