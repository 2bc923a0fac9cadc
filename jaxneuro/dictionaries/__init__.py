# SPDX-License-Identifier: Apache-2.0
"""Which features explain the activations of one site, of several, or of a whole layer's work?

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

In earnest the loop is `jaxneuro.activations.run(method, stream, key=...)` (progress, checkpoints, exact resume) or the
command `jaxneuro train-dictionary`.

**Protocol.** A learner is a `jaxneuro.protocols.Method` over batches {"x": [n, d_in]} with, if need be, "mask" (bool
[n]: which tokens count) and "y" ([n, d_out]: a transcoder). Its info stays on the device. `finish` returns a
`jaxneuro.protocols.Dictionary`: `encode(x) -> z [..., n_latents]`, `decode(z) -> x_hat`, raw activations in and out.

| method | latents | source |
|---|---|---|
| `topk`, `multi_topk` | k per token; trained at 4 k as well | arXiv:2406.04093 |
| `group_max` | the strongest of each of k runs of neighbours | sparsify |
| `batch_topk`, `matryoshka` | k per token on average; nested prefixes | arXiv:2412.06410, 2503.17547 |
| `relu`, `gated` | an L1 penalty; a gate that it does not shrink | Anthropic 2024, arXiv:2404.16014 |
| `jumprelu`, `atoms` | a threshold per latent; one for all | arXiv:2407.14435; abstract only |
| `matching_pursuit` | one after the other from what is left | arXiv:2506.03093 |
| `transcoder` | a layer's output from its input, with or without a skip | arXiv:2406.11944, 2501.18823 |
| `cross_layer_transcoder` | all layers' outputs from all earlier inputs | Ameisen et al. 2025 |
| `crosscoder` | of several sites or models, shared | Lindsey et al. 2024 |
| `semi_nmf`, `pca`, `kmeans` | sparse sets of co-active neurons; baselines | arXiv:2506.10920, Sculley 2010 |

| file | what |
|---|---|
| `dictionary.py`, `activations.py`, `cross_layer.py` | `SparseCoder`, its activations, `CrossLayerTranscoder` |
| `shapes.py` | what is read: width, heads, number of latents, indices |
| `evaluate.py`, `judges.py` | FVU, explained variances, L0, dead, density; loss and KL recovered |
| `formats/`, `native.py` | other libraries' files, strict both ways; our own |
| `places.py` | where a dictionary belongs: our sites and other libraries' hooks, model, text |
| `synthetic/`, `saebench/` | SynthSAEBench's generator and scores; probing, absorption, SCR, TPP |
| `incoherence.py` | the atomic inner product, coherence, RIP, uniqueness, Babel function |
| `factorise.py`, `hierarchy.py`, `concepts.py` | semi-NMF of a whole array, refined, and what its parts respond to |
| `cp.py`, `cp_rank.py`, `cp_null.py` | non-negative CP of tensors; its rank, beside rolled traces |
| `connectome.py`, `block_model.py` | affinities of traces (unverified); communities by description length |
| `parts/` | what methods are products of; `learner.py` makes a `Method` of a start, a loss and a finish |

**A new method.** (1) One file with a function that returns `learner(Recipe(...), n_latents, training)`, its formula and
source in the docstring. (2) What it learns: `SparseCoder`, or a frozen pytree dataclass with the protocol's functions.
(3) A row in METHODS of tests/dictionaries/test_conformance.py, and in test_scale.py. (4) Its line in this table.

**Conventions.** `W_enc [d_in, n_latents]`, `W_dec [n_latents, d_out]`. A latent is active if its value is not 0, dead
if it was not active for a stated number of *tokens*. Input scales are folded into what `finish` returns. The sparse
products are `jaxneuro_kernels`': of methods that select k latents, no [tokens, n_latents] array exists in training.
Meshes: `Training.mesh`. It does not capture activations (`jaxneuro.activations`) and knows no model class.
"""

from ..docs import list_names as _list_names
from .activations import AbsTopK as AbsTopK
from .activations import Gated as Gated
from .activations import GroupMax as GroupMax
from .activations import JumpReLU as JumpReLU
from .activations import Relu as Relu
from .activations import TopK as TopK
from .atoms import atoms as atoms
from .batch_topk import batch_topk as batch_topk
from .clt import cross_layer_transcoder as cross_layer_transcoder
from .cross_layer import CrossLayerTranscoder as CrossLayerTranscoder
from .crosscoder import crosscoder as crosscoder
from .crosscoder import relative_norms as relative_norms
from .crosscoder import site_norms as site_norms
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
from .formats import load_placement as load_placement
from .formats import load_saelens as load_saelens
from .formats import load_saex as load_saex
from .formats import load_sparsify as load_sparsify
from .formats import load_transcoder_circuits as load_transcoder_circuits
from .formats import save_circuit_tracer as save_circuit_tracer
from .formats import save_saelens as save_saelens
from .formats import save_sparsify as save_sparsify
from .gated import gated as gated
from .group_max import group_max as group_max
from .judges import given_loss as given_loss
from .judges import kl_divergence as kl_divergence
from .judges import next_token_loss as next_token_loss
from .jumprelu import jumprelu as jumprelu
from .kmeans import KMeansDictionary as KMeansDictionary
from .kmeans import kmeans as kmeans
from .matching_pursuit import MatchingPursuit as MatchingPursuit
from .matching_pursuit import matching_pursuit as matching_pursuit
from .matryoshka import matryoshka as matryoshka
from .multi_topk import multi_topk as multi_topk
from .native import load_native as load_native
from .native import save_native as save_native
from .parts.learner import TrainingState as TrainingState
from .parts.selected import AuxK as AuxK
from .parts.training import Training as Training
from .pca import PCADictionary as PCADictionary
from .pca import pca as pca
from .places import Placement as Placement
from .relu import relu as relu
from .semi_nmf import SemiNMFDictionary as SemiNMFDictionary
from .semi_nmf import semi_nmf as semi_nmf
from .topk import topk as topk
from .transcoder import transcoder as transcoder

_list_names(__name__)
