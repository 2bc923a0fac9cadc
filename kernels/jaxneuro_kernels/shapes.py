# SPDX-License-Identifier: Apache-2.0
"""Real shapes, by name: (tokens, d, n_latents, k), shared by tests, tuning and benchmarks. Tests run the small ones."""

from typing import Final

SHAPES: Final[dict[str, tuple[int, int, int, int]]] = {
    "study": (1024, 192, 3072, 16),
    "cpu-128": (2048, 128, 4096, 32),
    "cpu-256": (2048, 256, 8192, 32),
    "gpt2-32k": (8192, 768, 32768, 32),
    "sparsify-131k": (8192, 1024, 131072, 32),
    "gemma2-131k": (8192, 2304, 131072, 32),
    "gemma2-131k-128": (8192, 2304, 131072, 128),
    "llama3-131k": (8192, 4096, 131072, 64),
}
