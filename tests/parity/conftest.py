# SPDX-License-Identifier: Apache-2.0
"""The golden cases: tiny transformers checkpoints and what they compute (scripts/make_parity_fixtures.py)."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxneuro.models import Transformer, load

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(p.parent.name for p in FIXTURES.glob("*/expected.npz"))


class Case:
    """One checkpoint, its input and its golden output."""

    def __init__(self, name: str):
        self.folder = FIXTURES / name
        self.model: Transformer = load(self.folder)
        self.golden = dict(np.load(self.folder / "expected.npz"))
        self.mask = self.golden["mask"]
        # transformers' bare forward reads positions, and biases of a projection, from the padding on the left; here a
        # row is what it is alone (tests/inference/test_ragged.py). Other rows are compared.
        cfg = self.model.cfg
        learned = cfg.learned_positions and not cfg.masked_positions and cfg.image is None
        from_left = learned or name in ("mamba-biases", "mamba2-biases")
        self.compared = self.mask & self.mask[:, :1] if from_left else self.mask
        types = self.golden.get("token_types")
        self.inputs = (jax.device_put(self.golden["tokens"]), jax.device_put(self.mask))
        self.types: dict[str, Any] = {} if types is None else {"token_types": jax.device_put(types)}
        self.types |= {name: jax.device_put(self.golden[name]) for name in {"context", "context_mask"} & {*self.golden}}

    def run(self, weights, cfg=None):
        """Logits (or last hidden) under highest matmul precision."""
        from jaxneuro.models import forward

        tokens, mask = self.inputs
        with jax.default_matmul_precision("highest"):
            return forward(weights, tokens, cfg=cfg or self.model.cfg, mask=mask, **self.types)

    def error(self, out) -> float:
        """Largest difference from the golden output at real tokens; inf if anything there is not finite."""
        difference = np.abs(np.asarray(out) - self.golden["out"])
        difference = difference[self.compared] if difference.ndim == 3 else difference  # a classifier has no positions
        return float(difference.max()) if np.isfinite(difference).all() else float("inf")


open_case = functools.cache(Case)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return open_case(request.param)
