# SPDX-License-Identifier: Apache-2.0
"""How does a model go on with a text, and how does it under an intervention? One pass over the prompts, one loop.

    >>> import jax, jax.numpy as jnp
    >>> from jaxneuro.models import Config, Transformer, init
    >>> from jaxneuro.taps import add, clamp
    >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
    >>> model, prompts = Transformer(cfg, init(cfg, jax.random.key(0))), jnp.array([[1, 2, 3], [4, 5, 6]])
    >>> steered = add("blocks.1.resid_post", jnp.ones((2, 1, 8)))           # a vector for each row
    >>> held = clamp("blocks.0.mlp.post", 0.5, neuron=3, pos=range(3, 7))  # while the new tokens are run
    >>> sampler = Sampler(temperature=0.8, top_p=0.9)
    >>> generate(model, prompts, max_new=5, sampler=sampler, edits=[steered, held]).lengths.tolist()
    [5, 5]

An edit acts wherever its position is run, in the prompt or later: positions are absolute (`jaxneuro.taps`), -1 is the
newest one of every pass. A value with a batch axis edits each row in its own way. `complete` is the same with texts:
stop strings, streaming, and every prompt as if it were alone. `steer_sweep` runs many points of a dose-response as one
program in which the layers and the positions before the first edit run once. All three run models with an
encoder (T5) too: `context=` is what it reads, `complete` answers texts, sites "encoder.*" are edited like others.

| file | what | source |
|---|---|---|
| `generate.py` | `generate`: token prompts, any edits, stop tokens, a callback | |
| `text.py` | `complete`: texts, stop strings across tokens | |
| `sweeps.py` | `steer_sweep`: many interventions, one prefix | |
| `sampling.py` | `greedy`, `Sampler`, `temperature`, `top_k`, `top_p` | arXiv 1805.04833, 1904.09751 |
| `decode.py` | the two programs, pure: compose them in loops of your own | |
| `checks.py` | what is refused before any compute | |

**To add a sampler**: a pure function (logits [batch, vocab], keys [batch]) -> tokens [batch], given as `sampler=`;
numbers that change between calls go into the arguments of a `jax.tree_util.Partial`.

**Exact**: with a cache, or a state (Mamba, Mamba-2, BDH), every causal family gives the logits of the whole text within
float32 rounding, with padding on either side (tests/parity/test_cache.py, tests/inference/test_states.py); an encoder
runs once, in a sweep its layers below the first edited one (tests/inference/test_seq2seq.py). Refused:
rope whose angles change with the length of the text (dynamic, longrope) across the length at which they do; encoders
alone.

**Not here**: beam search, speculative decoding, caches of windowed layers that forget, reading sites during generation
(compose `decode.next_token` with `jaxneuro.taps.capture`).
"""

from ..docs import list_names as _list_names
from .generate import Generated as Generated
from .generate import generate as generate
from .sampling import Sampler as Sampler
from .sampling import greedy as greedy
from .sampling import temperature as temperature
from .sampling import top_k as top_k
from .sampling import top_p as top_p
from .sweeps import Swept as Swept
from .sweeps import steer_sweep as steer_sweep
from .text import Completion as Completion
from .text import complete as complete

_list_names(__name__)
