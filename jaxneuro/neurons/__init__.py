# SPDX-License-Identifier: Apache-2.0
"""Which neurons carry a group (a language, a domain, a relation), and is it true?

A neuron is one coordinate of a site (`blocks.mlp.gate`, `blocks.mlp.post` ...). One pass over labelled text counts and
ranks every neuron per group; scores and classes are functions of those counts; silencing and clamping are the proof.

    >>> rate = jnp.full((2, 200, 3), 0.1).at[1, 7].set(jnp.array([0.9, 0.0, 0.0]))
    >>> jnp.argwhere(lape(rate).member).tolist()                 # layer, neuron, group
    [[1, 7, 0]]

    method = group_statistics(model.apply, "blocks.mlp.gate", K, n_blocks=D)           # D: documents
    table = run(method, LabelledStream(stream, labels, documents), ...)
    found = selectivity(permuted_rates(table, 500, seed=0))      # beside labels permuted between whole documents
    effect = effect_matrix(model.apply, model.weights, "blocks.mlp.gate", found.lape_member.transpose(2, 0, 1), batches)

Protocol: statistics are a `Method` (init, step, finish) run by `jaxneuro.activations.run`. A score is a pure function
of rates `[layer, neuron, group]`. A measure is `(output, output without intervention, batch) -> (value, weight)` per
window.

| file | what | source |
|---|---|---|
| `statistics.py` | firing counts, moments, histograms, top examples, pooled responses per group | LAPE's code |
| `selectivity.py` | LAPE; specific / related / agnostic neurons | arXiv 2402.16438; 2505.21505 |
| `null.py` | the same with labels permuted between documents; what passes a false discovery rate | `jaxneuro.stats` |
| `stages.py` | borders of the four stages in the layer profile | 2505.21505 (plot), rule ours |
| `expertise.py` | average precision per neuron and group, exact and from histograms | 2502.17355, self-conditioning |
| `experts.py` | each group's best detectors that permuted labels do not explain | 2502.17355, null ours |
| `effect.py`, `sets.py`, `measures.py` | effect matrix beside random sets matched per layer | 2402.16438, 2502.17355 |
| `decoding.py` | promoted and suppressed tokens of a neuron's direction | 2501.02688 |
| `written.py` | the same of values at other sites: heads, the residual stream | ours |
| `dose.py` | clamp dose-response | 2501.02688 |
| `examples.py`, `describe.py` | top examples as text; a description from counts | MILAN's objective, no captioner |

To add a score: (1) a file with one jitted function of rates or responses and a NamedTuple for what it returns;
(2) formula, filter order and tie rule in the docstring; (3) tests: a planted neuron is found, shuffled labels find
nothing, dead neurons are never chosen; (4) a row here.

What it does not do: it never loads models or text (functions take a pure function and streams), and it does not call a
neuron important because it is selective: that is what the effect matrix is for.
"""

from ..docs import list_names as _list_names
from .decoding import Decoded as Decoded
from .decoding import decode_directions as decode_directions
from .decoding import decode_neurons as decode_neurons
from .decoding import neuron_directions as neuron_directions
from .decoding import stability as stability
from .describe import describe as describe
from .describe import pmi as pmi
from .describe import token_counts as token_counts
from .dose import DoseResponse as DoseResponse
from .dose import dose_response as dose_response
from .dose import observed_doses as observed_doses
from .effect import EffectMatrix as EffectMatrix
from .effect import effect_matrix as effect_matrix
from .effect import silence as silence
from .examples import neuron_examples as neuron_examples
from .expertise import Expertise as Expertise
from .expertise import average_precision as average_precision
from .expertise import chance_precision as chance_precision
from .expertise import expertise as expertise
from .expertise import histogram_average_precision as histogram_average_precision
from .expertise import response_histogram as response_histogram
from .experts import Experts as Experts
from .experts import expert_neurons as expert_neurons
from .labels import LabelledStream as LabelledStream
from .measures import MEASURES as MEASURES
from .measures import Measure as Measure
from .null import ClassCounts as ClassCounts
from .null import Selectivity as Selectivity
from .null import discoveries as discoveries
from .null import permuted_rates as permuted_rates
from .null import selectivity as selectivity
from .selectivity import AGNOSTIC as AGNOSTIC
from .selectivity import CLASSES as CLASSES
from .selectivity import RELATED as RELATED
from .selectivity import SPECIFIC as SPECIFIC
from .selectivity import Finer as Finer
from .selectivity import Lape as Lape
from .selectivity import finer as finer
from .selectivity import group_entropy as group_entropy
from .selectivity import kth_smallest as kth_smallest
from .selectivity import lape as lape
from .sets import matched_random_sets as matched_random_sets
from .stages import Stages as Stages
from .stages import four_stages as four_stages
from .statistics import group_statistics as group_statistics
from .statistics import statistics_bytes as statistics_bytes
from .table import GroupStatistics as GroupStatistics
from .written import decode_coordinates as decode_coordinates
from .written import decode_written as decode_written
from .written import has_tokens as has_tokens
from .written import written as written

_list_names(__name__)
