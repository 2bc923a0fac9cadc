# SPDX-License-Identifier: Apache-2.0
"""What did the study find, and can a reader check it? One HTML file that opens offline, and the figures it is made of.

    >>> import tempfile
    >>> from jaxneuro.reports import heat_map, write_report
    >>> study = {"title": "A study", "run": {"seed": 0}, "groups": ["de", "en"]}
    >>> page = write_report(study, tempfile.mkdtemp() + "/report.html")
    >>> heat_map([[0.2, 0.0], [0.0, 0.3]], ["de", "en"], ["de", "en"], title="effect").count("<rect")
    4

The protocol: a study is plain data (dicts, lists, numbers, arrays), and `write_report(data, path)` shows it.
Only `title`, `run` and `groups` must be there; the page says what is absent. K groups, L layers, B bins:

* title: text. groups: K names; every [K] below is in this order.
* run: model {name, family, n_layers, d_model, d_mlp, n_parameters, site}, config {}, versions {}, seed,
  device, started, seconds, tokens {group: int}, text and folder (where it came from, where it lies), notes [text]
* counts: specific {group: int}, related {group: int}, agnostic, expert {group: int} (neurons that detect the group
  better than shuffled labels explain); shuffled {the same as means, n_shuffles,
  point_95 {specific, expert: by group; specific_in_all}}
* selectivity: share (of all neurons, that are ranked), lowest (entropy of any neuron, nats), specific [2], related [2]
  (lowest and highest entropy of the class)
* profile: specific [K][L], related [K][L], agnostic [L], expert [K][L]; shuffled_specific [L], shuffled_expert [L]
  (all groups together, mean over shuffles)
* effect: measure, unit, matrix [K][K] (row: silenced, column: measured), random_mean [K][K], random_std
  [K][K], n_random, set_size [K], base [K], windows [K] (measured ones; below 5 of a group no verdict is given)
* neurons [{layer, neuron, class, groups, lape, ap, ap_group, rate [K], histogram {edges [B+1], counts
  [K][B]}, examples [{group, tokens, values, peak}], promoted [[token, score]], suppressed [[token, score]],
  dose {values, unit, curves {name: []}, y}}]: every key but layer and neuron may be absent. Tokens as they
  should be read, with their spaces.
* matter: "text" (where it is absent) or "pictures". Of pictures an example has grid [rows, columns], values of the
  patches in reading order, peak (an index into them or null), peak_value and window instead of tokens, and pictures
  is {window: {name, src (a data URI), few (whether its pixels are)}}
* dictionary: site, path (if it was not trained here), n_latents, k, tokens (it was judged on), metrics {fvu,
  explained_variance, l0, dead_fraction, ce_recovered_zero, ce_recovered_mean}, recovered {measure, short, unit,
  original, reconstructed, mean, zero}, curves {tokens, fvu, ...} (null: not known yet), latents [{latent, density,
  rate [K], group, selectivity, examples, promoted, suppressed}]. Numbers that words.py does not know are not shown.

| file        | what it does |
|-------------|--------------|
| report.py   | `write_report`: check, clean, render, write |
| findings.py | the summary sentences, computed from the numbers, for and against |
| sections.py | figures, tables and facts of each section |
| coder.py    | those of the dictionary |
| spread.py   | how evenly a neuron fires over groups: entropy beside its maximum, exp of it in groups |
| words.py    | words that stay the same: metrics, classes, glossary |
| cards.py    | neuron and latent cards, drawn here, put on the page by templates/report.js when they are shown |
| figures.py  | `bars`, `levels`, `histogram`, `lines` as SVG strings |
| matrices.py | `heat_map`, `colour_bar`, `comparison` as SVG strings |
| palette.py  | the diverging colour scale, light and dark (OKLab; Ottosson 2020) |
| svg.py      | escaped elements, printed numbers, ticks, scales |

To add a figure: (1) write a pure function of plain numbers in figures.py that returns `svg.figure(...)`; (2)
give it a title, a description in words, printed values, and a difference other than hue; (3) make a `Panel`
with the same numbers as a table in sections.py; (4) place it in templates/report.html under a caption that
defines what is shown.

What it does not do: compute statistics of a model, load anything from a network, run without a browser
younger than 2024 (`light-dark()`, `color-mix()`; older ones show the page without its colours).
"""

from ..docs import list_names as _list_names
from .figures import bars as bars
from .figures import histogram as histogram
from .figures import levels as levels
from .figures import lines as lines
from .matrices import colour_bar as colour_bar
from .matrices import comparison as comparison
from .matrices import heat_map as heat_map
from .report import write_report as write_report

_list_names(__name__)
