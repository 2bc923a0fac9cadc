# SPDX-License-Identifier: Apache-2.0
"""One complete pass: load, read, select, prove, name, learn a dictionary, report.

    jaxneuro study --model PATH_OR_HUB_NAME --groups FOLDER_OR_JSONL --out DIR

    from jaxneuro import StudyConfig, run_study
    folder = run_study(StudyConfig(model="bundled", out=Path("study")))          # report.html, results.json ...

| step | files it leaves |
|---|---|
| statistics | `statistics.npz`: counts, moments, histograms, top examples, pooled responses per neuron and group |
| select | `neurons.npz`, `neurons.json`: LAPE, classes, average precision; the same with permuted labels |
| effect | `effect.npz`, `effect.json`: the effect matrix beside layer-matched random sets |
| cards | `cards.json`: examples, promoted tokens, dose-response of the chosen neurons |
| dictionary | `dictionary/` (SAELens layout), `dictionary.json`, `dictionary-metrics.jsonl` |
| report | `results.json`, `report.html` |

A dictionary that was trained elsewhere takes the place of the trained one with `dictionary.path`; on its own page:

    jaxneuro show-dictionary FOLDER --model PATH_OR_HUB_NAME --groups FOLDER_OR_JSONL --latents 0,7,12 --out DIR

Of pictures (`--pictures FOLDER`) the steps are the same; `sources.py` says what differs, row by row of `SOURCES`. A
convolutional network gets no dictionary.

Every step is a function `(Inputs, RunFolder) -> None` in `steps.py`, and does nothing but call the rooms; an
interrupted study goes on at the step, and inside a long step at the batch, where it stopped.
"""

from ..docs import list_names as _list_names
from .config import StudyConfig as StudyConfig
from .folder import RunFolder as RunFolder
from .run import run_study as run_study
from .show import ShowDictionary as ShowDictionary
from .show import show_dictionary as show_dictionary

_list_names(__name__)
