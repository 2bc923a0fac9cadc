# SPDX-License-Identifier: Apache-2.0
"""A stack whose layers have different leaves (some one MLP, some experts) is a scan per run of equal layers.

Every site then has exactly the layers that reach it. Where kinds alternate a run is one layer, and compiling takes as
long as for a stack that is written out.
"""

import itertools
from typing import NamedTuple

from jaxtyping import Array

from .config import Config
from .layout import PARTS, Weights, rows_of
from .scan import layer_of


class Run(NamedTuple):
    """Equal layers one after the other."""

    start: int
    stop: int
    part: str | None = None
    """The leaves that only layers of this kind have; None: all layers are alike."""
    shift: int = 0
    """Layer + shift is the row of those leaves."""


def runs(cfg: Config, start: int, stop: int) -> list[Run]:
    """The layers from start to stop - 1; more than one run only where some of a mixture's layers have no experts.

    Example:
      >>> from jaxneuro.models import Experts
      >>> sizes = dict(d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> mixed = Config(n_layers=4, **sizes, experts=Experts(n=4, per_token=2, dense=(0, 3), d_dense=24))
      >>> [tuple(run) for run in runs(mixed, 0, 4)]
      [(0, 1, 'dense', 0), (1, 3, 'moe', -1), (3, 4, 'dense', -2)]
    """
    dense = () if cfg.experts is None else cfg.experts.dense
    if not dense:
        return [Run(start, stop)]
    out = []
    for part, equal in itertools.groupby(range(start, stop), lambda i: "dense" if i in dense else "moe"):
        layers = list(equal)
        out.append(Run(layers[0], layers[-1] + 1, part, rows_of(cfg, part).index(layers[0]) - layers[0]))
    return out


def layer_in_run(blocks: Weights, layer: Array, run: Run) -> Weights:
    """The leaves of one layer, those of an MLP under "mlp"."""
    if run.part is None:
        return layer_of(blocks, layer)
    every = {name: leaves for name, leaves in blocks.items() if name not in PARTS}
    name = "mlp" if run.part == "dense" else run.part
    return {**layer_of(every, layer), name: layer_of(blocks[run.part], layer + run.shift)}
