# SPDX-License-Identifier: Apache-2.0
"""jaxneuro opens up pretrained networks: it names every internal value, reads it and rewrites it inside one compiled
JAX program, finds the neurons and features that carry a language, a relation or a task, and proves it by intervening.

    model = jaxneuro.load("bundled")
    logits, acts = jaxneuro.capture(model.apply, ["blocks.*.mlp.post"])(model.weights, tokens)
    logits = jaxneuro.intervene(model.apply, [jaxneuro.zero("blocks.3.mlp.post", neuron=123)])(model.weights, tokens)

Names load on first use, so `import jaxneuro` is light.

| room | question |
|---|---|
| `taps` | how is a value named, read, replaced? |
| `models` | which checkpoints, and how do they run? |
| `data` | how does text become batches? |
| `activations` | how does a stream feed a learner? |
| `neurons` | which neurons belong to a group, and is it true? |
| `stats` | what would be found if the labels meant nothing? |
| `dictionaries` | which features explain the activations? |
| `training` | how is a dictionary trained in one command? |
| `inference` | what does a model write while it is edited? |
| `parallel` | a step by `pmap` |
| `reports`, `study` | what came out? |
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import activations as activations
    from . import data as data
    from . import dictionaries as dictionaries
    from . import errors as errors
    from . import inference as inference
    from . import io as io
    from . import models as models
    from . import neurons as neurons
    from . import parallel as parallel
    from . import protocols as protocols
    from . import reports as reports
    from . import stats as stats
    from . import study as study
    from . import taps as taps
    from . import training as training
    from .activations import harvest as harvest
    from .activations import harvest_sites as harvest_sites
    from .activations import run as run
    from .data import batches as batches
    from .data import load_tokenizer as load_tokenizer
    from .data import read_groups as read_groups
    from .data import windows as windows
    from .errors import UserError as UserError
    from .inference import Completion as Completion
    from .inference import Generated as Generated
    from .inference import Sampler as Sampler
    from .inference import complete as complete
    from .inference import generate as generate
    from .inference import greedy as greedy
    from .inference import steer_sweep as steer_sweep
    from .models import Config as Config
    from .models import Transformer as Transformer
    from .models import load as load
    from .models import save_pretrained as save_pretrained
    from .models import token_loss as token_loss
    from .protocols import Dictionary as Dictionary
    from .protocols import Method as Method
    from .reports import write_report as write_report
    from .study import StudyConfig as StudyConfig
    from .study import run_study as run_study
    from .taps import add as add
    from .taps import apply_fn as apply_fn
    from .taps import capture as capture
    from .taps import clamp as clamp
    from .taps import intervene as intervene
    from .taps import patch as patch
    from .taps import scale as scale
    from .taps import set_to as set_to
    from .taps import sites as sites
    from .taps import sweep as sweep
    from .taps import tap as tap
    from .taps import wants as wants
    from .taps import zero as zero

_ROOMS: dict[str, tuple[str, ...]] = {
    "activations": ("harvest", "harvest_sites", "run"),
    "data": ("batches", "load_tokenizer", "read_groups", "windows"),
    "errors": ("UserError",),
    "inference": ("Completion", "Generated", "Sampler", "complete", "generate", "greedy", "steer_sweep"),
    "models": ("Config", "Transformer", "load", "save_pretrained", "token_loss"),
    "protocols": ("Dictionary", "Method"),
    "reports": ("write_report",),
    "study": ("StudyConfig", "run_study"),
    "taps": (
        *("add", "apply_fn", "capture", "clamp", "intervene", "patch", "scale", "set_to", "sites", "sweep", "tap"),
        *("wants", "zero"),
    ),
}
"""Names of the package itself, by the room that they come from."""
_MORE = ("dictionaries", "io", "neurons", "parallel", "stats", "training")
"""Rooms that bring no name of theirs along."""
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in (*_ROOMS, *_MORE):
        return importlib.import_module(f".{name}", __name__)
    from .errors import unknown

    rooms = ", ".join(sorted((*_ROOMS, *_MORE)))
    raise AttributeError(
        str(unknown("public name", name, sorted(_HOME), where="jaxneuro", hint=f"More is in the rooms: {rooms}."))
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS, *_MORE})
