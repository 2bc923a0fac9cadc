# SPDX-License-Identifier: Apache-2.0
"""How does a stream of batches, or of a model's activations, go through a method, and come out the same every time?

    >>> import jax, numpy as np
    >>> from jaxneuro.activations import array_batches, moments, run
    >>> stream = array_batches(np.eye(4, dtype=np.float32), batch_size=2, epochs=1)
    >>> run(moments(), stream, key=jax.random.key(0)).mean.tolist()
    [0.25, 0.25, 0.25, 0.25]

Protocol: a `Method` (jaxneuro.protocols) is three pure functions, init, step and finish; `run` is the one loop around
them: one compiled step with a donated state, batches two ahead on the device, numbers copied while later steps run,
checkpoints, and a resume that is bitwise the uninterrupted run.

| file | what | source |
|---|---|---|
| driver.py | `run` | |
| site.py | `at_site`, `at_sites`: methods at sites of a model, fused into one forward pass; `reader`, `reached` | |
| text.py, pictures.py | a model opened together with the text or the pictures it reads | |
| together.py | `together`, `replicas`: many methods on one stream, in one program | |
| buffer.py | `shuffled`: a shuffle buffer in a method's state; `buffer_bytes` | |
| mixing.py | `mixing`: how well batches are mixed, measured live | |
| moments.py | `moments`: mean, variance, range | Chan, Golub, LeVeque 1983 |
| reducers.py | `firing_moments`: what `capture` reduces a site to, where it is | |
| harvest.py, writer.py | `harvest`, `harvest_sites`, `harvest_part`: values of sites to disk, by one host or many | |
| store.py, blocks.py | `open_activations`, `verify`: what is there, checksummed, in shuffled blocks | zarr3 |
| source.py | `array_batches`: exact shuffles of an array, as a Grain iterator | Black, Rogaway 2002 |
| metrics.py | `MetricSink`, `JsonLines`, `TensorBoard`, `WandB` | |
| plan.py | `planned`: the memory of a run, before anything is allocated | XLA |
| progress.py | `Progress`, `rich_progress` | |
| checkpoint.py, identity.py, plain.py | a folder of checkpoints that knows its run | Orbax |
| lock.py, interrupts.py | one run per folder; Ctrl-C at a step boundary | |
| feed.py, placement.py, log.py | the driver's hands: batches in, arrays where they belong, numbers out | |

Add a method: (1) write `init(key, batch) -> state`, a pytree of arrays; (2) `step(state, batch) -> (state, info)` with
state of unchanged shapes and info of scalars, masks respected; (3) `finish(state) -> result`; (4) return them as
`Method(init, step, finish)` from a function of your settings, in the room whose question it answers.

A model with an encoder is two streams: sites "encoder.*" have a row per token of the text, the decoder's per token of
its answer (`jaxneuro.data.Paired`). "pooled" and "projected" have a row per text or picture.

A run on other devices, or with other batch sizes, agrees to rounding and not bitwise. Several hosts: each feeds its
shard (`shard=`, `sharding=`); the position of the stream is saved once, so all hosts' streams must be in step, and
signals act at once there: what was saved last counts.
"""

from ..docs import list_names as _list_names
from .buffer import buffer_bytes as buffer_bytes
from .buffer import shuffled as shuffled
from .driver import run as run
from .harvest import fair_shares as fair_shares
from .harvest import harvest as harvest
from .harvest import harvest_part as harvest_part
from .harvest import harvest_sites as harvest_sites
from .identity import fingerprint as fingerprint
from .metrics import JsonLines as JsonLines
from .metrics import MetricSink as MetricSink
from .metrics import TensorBoard as TensorBoard
from .metrics import WandB as WandB
from .mixing import mixing as mixing
from .moments import Moments as Moments
from .moments import moments as moments
from .plan import Plan as Plan
from .plan import planned as planned
from .progress import Progress as Progress
from .progress import rich_progress as rich_progress
from .reducers import FiringMoments as FiringMoments
from .reducers import firing_moments as firing_moments
from .site import at_site as at_site
from .site import at_sites as at_sites
from .site import reached as reached
from .site import reader as reader
from .source import Shuffle as Shuffle
from .source import array_batches as array_batches
from .store import ActivationArray as ActivationArray
from .store import open_activations as open_activations
from .store import verify as verify
from .together import replicas as replicas
from .together import together as together

_list_names(__name__)
