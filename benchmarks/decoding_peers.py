# SPDX-License-Identifier: Apache-2.0
"""Tokens of every neuron in plain PyTorch, timed on request. Runs under a Python that has it.

    python benchmarks/decoding_peers.py PROGRAM LAYERS NEURONS D_MODEL D_VOCAB K THREADS DEVICE

Prints the library and its version, then for every line "STEPS" on standard input the milliseconds of one pass over all
neurons (mean of so many): scores of a chunk, its k largest and k smallest, its log-sum-exp. float32 is multiplied as
float32.
"""

import sys
import time

import torch

CHUNK = 2048
"""Neurons whose scores exist together: 1 GB of them at 128,256 tokens."""


def decode(down: torch.Tensor, head: torch.Tensor, k: int) -> list:
    """(promoted, suppressed, log-sum-exp) of each chunk of each layer."""
    kept = []
    for layer in down:
        for rows in layer.split(CHUNK):
            s = rows @ head
            kept.append((s.topk(k), s.topk(k, largest=False), s.logsumexp(1)))
    return kept


PROGRAMS = {"PyTorch, float32 scores": torch.float32, "PyTorch, bfloat16 scores": torch.bfloat16}


def main() -> None:
    """See the module."""
    n_layers, neurons, d_model, d_vocab, k, threads = map(int, sys.argv[2:8])
    device = sys.argv[8]
    torch.set_num_threads(threads)
    torch.set_default_device(device)
    dtype = PROGRAMS[sys.argv[1]]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.no_grad():
        down = torch.randn(n_layers, neurons, d_model, dtype=dtype) * 0.02
        head = torch.randn(d_model, d_vocab, dtype=dtype) * 0.02
        decode(down[:1], head, k)
        wait()
        print(f"torch {torch.__version__}", flush=True)
        for line in sys.stdin:
            started = time.perf_counter()
            for _ in range(int(line)):
                decode(down, head, k)
            wait()
            print((time.perf_counter() - started) * 1e3 / int(line), flush=True)


if __name__ == "__main__":
    main()
