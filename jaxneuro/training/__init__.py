# SPDX-License-Identifier: Apache-2.0
"""How is a dictionary trained with one command, and every choice of it recorded?

    jaxneuro train-dictionary --out DIR live --site blocks.3.resid_post topk --n-latents 4096 --k 32
    jaxneuro train-dictionary --out DIR --sweep k=16,32 seed=0,1 store --path ACTS batch-topk --n-latents 4096 --k 32

    >>> from jaxneuro.training import OPTIONS, Array, TrainConfig
    >>> from pathlib import Path
    >>> config = TrainConfig(
    ...     source=Array(path=Path("x.npy")), method=OPTIONS["topk"](n_latents=64, k=4), sweep={"k": (4, 8)}
    ... )
    >>> config.updates, config.identity()["method"]["kind"]
    (10000, 'topk')

`train_dictionary(config)` does it; what is left in the folder:

| file | what |
|---|---|
| `config.json` | the resolved configuration, seed, versions, commit, device; `--config` takes it back |
| `metrics.jsonl` | every log point; names lead with the member of the sweep, "k=16,seed=0/loss" |
| `dictionary/[MEMBER/]` | `dictionaries.native`, and `saelens/` where `export` asks for it |
| `dictionary/sparsify/[OPTIONS/]MODULE/` | for each site, named as sparsify names it: `layers.3.mlp` |
| `dictionary/circuit-tracer/` | the transcoders of all layers, where it does |
| `results.json` | FVU, L0, dead, CE and KL recovered on held-out tokens; the folder is complete with it |
| `checkpoints/` | while it runs; the same command goes on, bitwise |

**Protocol.** A method is whatever function of `jaxneuro.dictionaries` is named in METHODS: its options are made from
its signature and docstring, so the command line knows what it can be told, and nothing else. A source is a dataclass in
`config.py` and a function `(source, config) -> Data` in `sources.py`. A new method: its name in METHODS; its class in
`dictionaries.native.CLASSES`.

| file | what |
|---|---|
| `config.py` | `TrainConfig`, `Live`, `Store`, `Array`; ranges |
| `options.py` | a function's signature as a dataclass |
| `strict.py` | dataclasses to JSON and back, unknown keys refused |
| `sweep.py` | members of a sweep, all of them as one method |
| `sources.py` | live model, store, array: streams to train on, tokens to judge on |
| `watch.py` | metrics looked at: not finite, all latents dead |
| `folder.py`, `results.py`, `run.py` | whose folder; what came out; the run |

Each member of a sweep is what it would be alone with the same seed; one pass of the model, up to its highest site,
serves all. The step is compiled before anything is allocated, and refused with numbers where it does not fit.

It runs in one process: several hosts are for `jaxneuro.activations.run` in a script. Callable schedules and optimisers
of one's own are for Python, not for a command line.
"""

from ..docs import list_names as _list_names
from .config import Array as Array
from .config import Devices as Devices
from .config import Live as Live
from .config import Store as Store
from .config import TrainConfig as TrainConfig
from .options import METHODS as METHODS
from .options import OPTIONS as OPTIONS
from .run import train_dictionary as train_dictionary

_list_names(__name__)
