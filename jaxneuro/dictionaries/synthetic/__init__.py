# SPDX-License-Identifier: Apache-2.0
"""Does a method find features that are known? SynthSAEBench, without PyTorch, text or a language model.

    >>> import jax
    >>> from jaxneuro.dictionaries import topk
    >>> from jaxneuro.dictionaries.synthetic import REDUCED, on_synthetic, synthetic
    >>> from jaxneuro.dictionaries.synthetic import recovery, synthetic_batches, synthetic_steps
    >>> features = synthetic(REDUCED, key=jax.random.key(42))
    >>> method = on_synthetic(topk(n_latents=128, k=6), batch_size=32)
    >>> batch = next(synthetic_steps()) | {"features": features}
    >>> state = method.init(jax.random.key(0), batch)
    >>> state, info = jax.jit(method.step)(state, batch)
    >>> truth = synthetic_batches(features, batch_size=32, seed=1, steps=2, truth=True)
    >>> 0 < recovery(method.finish(state), features.vectors, truth).mcc < 1
    True

| file | what |
|---|---|
| `config.py` | `SyntheticConfig` (the defaults are SynthSAEBench-16k), `REDUCED`; trees and probabilities |
| `features.py` | `synthetic`: draw the features; `sample`: activations and the features in them |
| `stream.py` | `synthetic_batches`, a stream that resumes; `on_synthetic`, samples drawn inside the compiled step |
| `recovery.py` | `recovery`: MCC, F1, uniqueness, explained variance, L0, dead |

The published setting (arXiv:2602.14687): 4,096 latents, 200 million samples in batches of 1,024, learning rate 3e-4,
scores on 500,000 further samples:
`run(on_synthetic(method, batch_size=1024), synthetic_steps(steps=195_312), constants={"features": features}, key=key)`.
`python -m benchmarks synthsae` trains the five published architectures beside the published table.

What it does not do: say anything about a language model. It has linear features of one kind of hierarchy, no position
and no text; use it to find out whether a method is right, and `jaxneuro.dictionaries.saebench` for what it is good for.
"""

from ...docs import list_names as _list_names
from .config import REDUCED as REDUCED
from .config import SyntheticConfig as SyntheticConfig
from .config import drawn_probabilities as drawn_probabilities
from .config import firing_probabilities as firing_probabilities
from .config import parents as parents
from .features import SyntheticFeatures as SyntheticFeatures
from .features import sample as sample
from .features import synthetic as synthetic
from .recovery import Recovery as Recovery
from .recovery import mean_cosine as mean_cosine
from .recovery import recovery as recovery
from .stream import on_synthetic as on_synthetic
from .stream import synthetic_batches as synthetic_batches
from .stream import synthetic_steps as synthetic_steps

_list_names(__name__)
