# SPDX-License-Identifier: Apache-2.0
"""Real shapes of top-k, by name: (tokens, n_latents, k). Tests take the small ones."""

from typing import Final

SHAPES: Final[dict[str, tuple[int, int, int]]] = {
    "study": (1024, 3072, 16),
    "cpu": (2048, 8192, 32),
    "gpt2-32k": (8192, 32768, 32),
    "gpt2-131k": (8192, 131072, 32),
    "wide-131k": (8192, 131072, 128),
}
