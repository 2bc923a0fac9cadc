# SPDX-License-Identifier: Apache-2.0
"""Which dictionaries of other libraries are read and written? Strict both ways; nothing is filled in or unpickled.

| file | format | read | written |
|---|---|---|---|
| `saelens.py`, `architectures.py`, `flat.py`, `to_saelens.py` | SAELens v6, v5 | all but `temporal` | v6 |
| `sparsify.py` | sparsify: SAE, transcoder, skip | yes | yes |
| `dictionary_learning.py` | dictionary_learning's seven classes | yes | |
| `openai.py` | openai/sparse_autoencoder | yes | |
| `gemma_scope.py` | Gemma Scope 1 (.npz) and 2 | yes | |
| `llama_scope.py` | Llama Scope, R1-distill | yes | |
| `circuit_tracer.py`, `to_circuit_tracer.py` | transcoder sets, cross-layer transcoders | yes | yes |
| `others.py` | transcoder_circuits, saex | yes | |
| `recognise.py` | `load_dictionary`: whichever the files show | | |
| `strict.py` | what all share: tables of tensors with axes, one error for all that is wrong | | |

Every reader asks its questions of a table {tensor: axes}: what is missing, unknown, of another shape or type, NaN or
infinite is collected and raised once. Arrays keep the dtype they are stored in (float64 becomes float32 where JAX runs
without 64 bits). Agreement with the libraries: tests/dictionaries/test_formats_golden.py.
"""

from ...docs import list_names as _list_names
from ..cross_layer import CrossLayerTranscoder as CrossLayerTranscoder
from .circuit_tracer import load_circuit_tracer as load_circuit_tracer
from .dictionary_learning import load_dictionary_learning as load_dictionary_learning
from .gemma_scope import load_gemma_scope as load_gemma_scope
from .llama_scope import load_llama_scope as load_llama_scope
from .openai import load_openai as load_openai
from .others import load_saex as load_saex
from .others import load_transcoder_circuits as load_transcoder_circuits
from .recognise import load_dictionary as load_dictionary
from .recognise import load_metadata as load_metadata
from .recognise import load_placement as load_placement
from .saelens import load_saelens as load_saelens
from .sparsify import load_sparsify as load_sparsify
from .sparsify import save_sparsify as save_sparsify
from .to_circuit_tracer import save_circuit_tracer as save_circuit_tracer
from .to_saelens import save_saelens as save_saelens

_list_names(__name__)
