# SPDX-License-Identifier: Apache-2.0
"""The k largest per token on average: selection over a whole batch."""

from .api import BatchTopK as BatchTopK
from .api import batch_topk as batch_topk
from .api import encode_batch_topk as encode_batch_topk
