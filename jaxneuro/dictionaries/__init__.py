# SPDX-License-Identifier: Apache-2.0
"""Which features explain the activations of one site?

    >>> import jax
    >>> from jaxneuro.dictionaries import Training, reconstruction, topk
    >>> method = topk(n_latents=32, k=2, training=Training(learning_rate=1e-2))
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> state = method.init(jax.random.key(1), {"x": x})
    >>> step = jax.jit(method.step)
    >>> for _ in range(20): state, info = step(state, {"x": x})
    >>> dictionary = method.finish(state)
    >>> dictionary.encode(x).shape, reconstruction(dictionary, [{"x": x}]).l0 <= 2
    ((64, 32), True)

In earnest the loop is `jaxneuro.activations.run(method, stream, key=...)`: progress, checkpoints, exact resume.

**Protocol.** A learner is a `jaxneuro.protocols.Method` over batches {"x": [n, d_in]} with, if need be, "mask" (bool
[n]: which tokens count) and "y" ([n, d_out]: a transcoder). Its info stays on the device. `finish` returns a
`jaxneuro.protocols.Dictionary`: `encode(x) -> z [..., n_latents]`, `decode(z) -> x_hat`, raw activations in and out.

| file | what | source |
|---|---|---|
| `topk.py` | TopK autoencoder and transcoder, with AuxK | arXiv:2406.04093 |
| `dictionary.py` | `SparseCoder`: four arrays, k, and how to use them | |
| `evaluate.py` | FVU, explained variances, L0, dead, density; loss recovered (zero, mean ablation) | its docstrings |
| `cross_layer.py` | `CrossLayerTranscoder`: latents that write to every layer above | Circuit Tracing, 2025 |
| `formats/` | other libraries' files, strict both ways: `load_dictionary`, `save_saelens`, ... | its page |
| `parts/` | what methods are products of: inputs, start, autoencode, decoder, silence, optimise | |

**A new method.** (1) One file with a function that returns a `Method`, its formula and source in the docstring, made
of `parts/`. (2) What it learns: `SparseCoder`, or a frozen pytree dataclass with the protocol's two functions. (3) A
row in METHODS of tests/dictionaries/test_conformance.py: jit, resume, dtypes, a planted dictionary, noise,
permutations. (4) Its line in this table.

**Conventions.** `W_enc [d_in, n_latents]`, `W_dec [n_latents, d_out]`. A latent is active if its value is above 0, dead
if it was not active for a stated number of *tokens*. Input scales are folded into what `finish` returns. The sparse
products are `jaxneuro_kernels`': no [tokens, n_latents] array exists in training. It does not capture activations
(`jaxneuro.activations`) and knows no model class: `recovered` takes the pure function.
"""

from .activations import Gated as Gated
from .activations import GroupMax as GroupMax
from .activations import JumpReLU as JumpReLU
from .activations import Relu as Relu
from .activations import TopK as TopK
from .cross_layer import CrossLayerTranscoder as CrossLayerTranscoder
from .dictionary import SparseCoder as SparseCoder
from .evaluate import Reconstruction as Reconstruction
from .evaluate import Recovered as Recovered
from .evaluate import decoder_cosine as decoder_cosine
from .evaluate import reconstruction as reconstruction
from .evaluate import recovered as recovered
from .formats import load_circuit_tracer as load_circuit_tracer
from .formats import load_dictionary as load_dictionary
from .formats import load_dictionary_learning as load_dictionary_learning
from .formats import load_gemma_scope as load_gemma_scope
from .formats import load_llama_scope as load_llama_scope
from .formats import load_metadata as load_metadata
from .formats import load_openai as load_openai
from .formats import load_saelens as load_saelens
from .formats import load_saex as load_saex
from .formats import load_sparsify as load_sparsify
from .formats import load_transcoder_circuits as load_transcoder_circuits
from .formats import save_circuit_tracer as save_circuit_tracer
from .formats import save_saelens as save_saelens
from .formats import save_sparsify as save_sparsify
from .parts.learner import TrainingState as TrainingState
from .parts.selected import AuxK as AuxK
from .parts.training import Training as Training
from .topk import topk as topk
from .atoms import atoms as atoms
from .batch_topk import batch_topk as batch_topk
from .gated import gated as gated
from .group_max import group_max as group_max
from .jumprelu import jumprelu as jumprelu
from .matryoshka import matryoshka as matryoshka
from .multi_topk import multi_topk as multi_topk
from .relu import relu as relu
from .transcoder import transcoder as transcoder
