# SPDX-License-Identifier: Apache-2.0
"""Exact top-k sparse activation: select k of many latents per token, decode from them, and send back sparse gradients.

    >>> import jax.numpy as jnp
    >>> x, w = jnp.array([[1.0, -2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> vals, idx = encode_topk(x, w, jnp.zeros(3), 2)
    >>> vals.tolist(), idx.tolist()
    ([[1.0, 1.0]], [[0, 2]])
    >>> sparse_decode(vals, idx, w).tolist()
    [[0.0, -1.0]]

| op | what | derivative |
|---|---|---|
| `topk` | the k largest of the last axis, ties by lowest index | k numbers per row |
| `topk_mask` | the k largest in their places, zero elsewhere; for k of 5-50 % | straight through where kept |
| `batch_topk` | the tokens * k largest of a whole batch or mesh axis | k numbers per row on average |
| `group_max` | the largest of each of k slices of the last axis | k numbers per row |
| `encode_topk` | `relu(topk(x w^T + b, k))`, one block of tokens at a time | `gather_dot`, `row_sum` |
| `encode_batch_topk` | `batch_topk` of `x w^T + b`, one block of tokens at a time | `gather_dot`, `row_sum` |
| `encode_group_max` | `group_max` of `x w^T + b`, one block of tokens at a time | `gather_dot`, `row_sum` |
| `sparse_decode` | `sum_j vals_j w[idx_j]` | `gather_dot`, `row_sum` |
| `gather_dot` | `<x, w[idx_j]>` | `sparse_decode`, `row_sum` |
| `row_sum` | per latent, `sum vals x` over the tokens where it is active | `sparse_decode`, `gather_dot` |
| `sae_backward` | the four gradients of a sparse autoencoder in one pass over the active entries | none: it is one |
| `sae_adam` | the same and Adam, with unit decoder rows: gradients need not reach memory | none |
| `jumprelu`, `step` | `z [z > theta]`, `[z > theta]` | pseudo-derivatives that train theta |
| `add_auxk` | gradients with those of AuxK added at dead latents, dense on these alone | none: it is one |
| `gather_mlp` | an MLP of a chosen few neurons: `compact_mlp` once per subset, `apply_mlp` per token | autodiff |
| `sharded_*` | `topk`, `encode_topk`, `sparse_decode`, `sae_backward` of latents split over a mesh axis | as theirs |

Weights are stored `[n_latents, d]`, one latent per contiguous row. Products are accumulated in float32 and returned as
float32, indices are int32, leading axes are of any rank. jit, vmap, grad, jvp, remat and shard_map work on every op but
`sae_backward` (no derivative). Nothing of size `[tokens, n_latents]` beyond one block of tokens exists, forward or
backward. Two runs of one program are bitwise equal.

Every op that computes takes `implementation=`: None, a name, or a sequence of names in order of preference.

| name | for | ops |
|---|---|---|
| `xla` | everything | all |
| `mosaic_gpu` | Hopper GPUs | `topk`, `topk_mask`, `encode_topk`, the products, `sae_backward`, `sae_adam` |
| `mosaic_tpu` | TPUs | `topk`, `topk_mask`, `encode_topk` |
| `triton` | NVIDIA GPUs before Hopper, while JAX keeps its Triton lowering | the products, `sae_backward` |

None runs a kernel only where it was measured to be the fastest on this kind of device (`tuned`, written by `python -m
jaxneuro_kernels.tune`), else `xla`. A name runs that kernel or raises an ExceptionGroup with every reason against it.
Kernels work on one device's part of an array. Where several devices are visible, plain jit therefore gets `xla` unless
a kernel is named, since the compiler may split an operand: call the ops inside `jax.shard_map`, or show the process
one device. With the latents split over devices, use `sharded`.

A new implementation: (1) write `<op>/<name>.py`, same arguments as `<op>/xla.py`, with `refuses`; (2) add a row to the
table of backends in `<op>/api.py`; (3) test it against `<op>/reference.py`, and lower it at `shapes.SHAPES`; (4) give
`tune.SPACE` what may be configured, tune and measure.
"""

from .auxk import add_auxk as add_auxk
from .batch_topk import BatchTopK as BatchTopK
from .batch_topk import batch_topk as batch_topk
from .batch_topk import encode_batch_topk as encode_batch_topk
from .encode_topk import encode_topk as encode_topk
from .gather_mlp import Mlp as Mlp
from .gather_mlp import apply_mlp as apply_mlp
from .gather_mlp import compact_mlp as compact_mlp
from .gather_mlp import gather_mlp as gather_mlp
from .group_max import encode_group_max as encode_group_max
from .group_max import group_max as group_max
from .jumprelu import jumprelu as jumprelu
from .jumprelu import step as step
from .sae_backward import Rows as Rows
from .sae_backward import SaeGradients as SaeGradients
from .sae_backward import SaeStep as SaeStep
from .sae_backward import sae_adam as sae_adam
from .sae_backward import sae_backward as sae_backward
from .sharded import sharded_encode_topk as sharded_encode_topk
from .sharded import sharded_sae_backward as sharded_sae_backward
from .sharded import sharded_sparse_decode as sharded_sparse_decode
from .sharded import sharded_topk as sharded_topk
from .sparse_decode import gather_dot as gather_dot
from .sparse_decode import row_sum as row_sum
from .sparse_decode import sparse_decode as sparse_decode
from .topk import topk as topk
from .topk_mask import topk_mask as topk_mask

__all__ = [
    "BatchTopK",
    "Mlp",
    "Rows",
    "SaeGradients",
    "SaeStep",
    "add_auxk",
    "apply_mlp",
    "batch_topk",
    "compact_mlp",
    "encode_batch_topk",
    "encode_group_max",
    "encode_topk",
    "gather_dot",
    "gather_mlp",
    "group_max",
    "jumprelu",
    "row_sum",
    "sae_adam",
    "sae_backward",
    "sharded_encode_topk",
    "sharded_sae_backward",
    "sharded_sparse_decode",
    "sharded_topk",
    "sparse_decode",
    "step",
    "topk",
    "topk_mask",
]
