# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: `python -m benchmarks NAME` prints a table and writes benchmarks/results/NAME-DEVICE.json.

A row is one program at one shape. Peers are measured in the same run, interleaved call by call in changing order, and
checked against the same reference; a ratio is of medians. Times are of finished work on the device
(`block_until_ready`), after warm-up. What fails is a row with its error.

| name | what | against |
|---|---|---|
| `capture` | `firing_moments`, a study's statistics, one layer with `stop_at` | the plain forward |
| `sweep` | 1,024 single-neuron ablations of one prompt in chunks, prefix computed once | a loop of jitted calls |
| `ablations` | 4,096 single-neuron ablations of one prompt | a loop over TransformerLens' hooks |
| `large:MODEL` | a model in bfloat16: forward, statistics, one layer, a store | a bare matmul; PyTorch libraries |
| `decoding` | the tokens of every neuron through the LM head | PyTorch, a matmul and two topk per chunk |
| `attention` | every form of attention that runs here, forward and gradient | the explicit one's numbers |
| `dictionary_quality:400k`, `:4m` | held-out FVU at equal L0 and equal steps | SAELens, dictionary_learning |
| `topk_step` | a TopK dictionary's training step | dense JAX: `lax.top_k`, autodiff, Adam |
| `kernels` | every op's implementations, whole training steps | the device's limits; `lax.top_k`, dense JAX, PyTorch |

`python -m benchmarks.correctness` checks the kernels on this device first; `gpu.sh` does everything on an accelerator.
"""
