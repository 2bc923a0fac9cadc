# SPDX-License-Identifier: Apache-2.0
"""What a study works on: the model, its tokenizer, the windows of every group, and how damage is measured."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..activations import fingerprint
from ..activations.text import model_and_tokenizer
from ..data import Subset, Tokenizer, Windows, batches, read_groups, require_groups, windows
from ..errors import UserError
from ..models import Transformer
from ..taps import capture
from .config import StudyConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything the steps share; none of it changes during a run."""

    config: StudyConfig
    model: Transformer
    tokenizer: Tokenizer
    windows: Windows
    studied: Subset
    """Windows for statistics, examples and training."""
    measured: Subset
    """Windows kept from them, on which effects and reconstructions are measured."""
    site: str
    """Where a neuron is read, all layers: blocks.mlp.gate, say."""
    dictionary_site: str
    """Where the dictionary is trained, one layer."""
    output: Callable[..., Any]
    """Pure function (weights, tokens, mask) whose result damage is measured on."""
    measure: str
    """Row of neurons.MEASURES."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order of every axis K."""
        return self.windows.group_names

    def measured_batches(self, per_group: int | None = None) -> list[dict[str, np.ndarray]]:
        """The measured windows, or the first `per_group` of each group, in batches of one shape."""
        rows, group = self.measured, self.measured.group
        if per_group is not None:
            first = [np.flatnonzero(group == k)[:per_group] for k in range(len(self.groups))]
            rows = Subset(self.windows, rows.indices[np.concatenate(first)])
        return list(batches(rows, batch_size=min(self.config.effect.batch, len(rows))))

    def named(self, tokens: np.ndarray, scores: np.ndarray) -> list[list[Any]]:
        """[[token string, score], ...] of one row of token ids."""
        strings = self.tokenizer.token_strings(np.asarray(tokens).tolist())
        return [[t, float(s)] for t, s in zip(strings, scores, strict=True)]

    def fingerprint(self) -> dict[str, str]:
        """What text and which model this is, by content."""
        return {"text": self.windows.fingerprint, "model": fingerprint(self.model.weights)}


def load_inputs(config: StudyConfig) -> Inputs:
    """Load the model and the text, and refuse what cannot be studied.

    Raises:
      UserError: what is wrong with the model, the tokenizer, the text or the site, and what to do.
    """
    model, tokenizer = model_and_tokenizer(config.model, dtype=jnp.dtype(config.dtype), bos=config.text.bos)
    site = neuron_site(config.select.site, model.cfg)
    dictionary_site = config.dictionary.site or f"blocks.{model.cfg.n_layers // 2}.resid_post"
    _check_sites(model, site, dictionary_site, config)
    groups = read_groups(config.groups, **config.text.arguments())
    if note := groups.skipped_note():
        print(note, file=sys.stderr)
    require_groups(groups, 2)
    packing = config.text.packing
    if packing == "auto":
        packing = "windows" if model.cfg.causal else "documents"
    rows = windows(
        groups,
        tokenizer,
        length=_length(config, model.cfg),
        packing=packing,
        max_tokens_per_group=config.text.max_tokens_per_group,
    )
    rows.check_vocabulary(model.cfg.d_vocab)
    studied, measured = _split(rows, config)
    causal = model.cfg.causal and model.cfg.has_head
    return Inputs(
        config=config,
        model=model,
        tokenizer=tokenizer,
        windows=rows,
        studied=studied,
        measured=measured,
        site=site,
        dictionary_site=dictionary_site,
        output=model.apply if causal else functools.partial(model.apply, stop_at=model.cfg.n_layers),
        measure="loss" if causal else "embedding_shift",
    )


def _length(config: StudyConfig, cfg: Any) -> int:
    if cfg.learned_positions and config.text.window > cfg.n_ctx:
        raise UserError(f"text.window is {config.text.window}, but {config.model} has only {cfg.n_ctx} positions.")
    return config.text.window


def neuron_site(asked: str | None, cfg: Any) -> str:
    """Where a study of this model reads neurons: what was asked for, else the gate of a gated MLP."""
    site = asked or ("mlp.gate" if cfg.gated else "mlp.post")
    return site if site.startswith("blocks.") else f"blocks.{site}"


def _split(rows: Windows, config: StudyConfig) -> tuple[Subset, Subset]:
    """Every group's windows into studied and measured ones, the measured spread evenly over the group.

    As many are measured as hold about `effect.tokens_per_group` tokens, at most the share `text.measured`.
    """
    studied, measured = [], []
    for k, name in enumerate(rows.group_names):
        mine = np.flatnonzero(rows.group == k)
        if len(mine) < 2:
            raise UserError(
                f"group {name!r} has one window of {rows.length} tokens; at least 2 are needed, one to study and one "
                "to measure on. Add text to it or choose a smaller text.window."
            )
        tokens = sum(len(rows.tokens(int(i))) for i in mine)
        enough = math.ceil(config.effect.tokens_per_group * len(mine) / tokens)
        keep = min(enough, max(1, round(len(mine) * config.text.measured)), len(mine) - 1)
        chosen = mine[np.linspace(0, len(mine) - 1, keep).round().astype(int)]
        studied.append(np.setdiff1d(mine, chosen))
        measured.append(chosen)
    return Subset(rows, np.concatenate(studied)), Subset(rows, np.concatenate(measured))


def _check_sites(model: Transformer, site: str, dictionary_site: str, config: StudyConfig) -> None:
    """Both sites exist and fit what is done there: found out now, not after minutes."""
    tokens, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
    wanted = list(dict.fromkeys((site, dictionary_site)))
    shapes = {
        k: v.shape for k, v in jax.eval_shape(capture(model.apply, wanted), model.weights, tokens, mask)[1].items()
    }
    if len(shapes[site]) < 4:
        raise UserError(f"select.site = {site!r} is one layer or has no neurons; a study reads all layers of a site.")
    if len(shapes[dictionary_site]) != 3:
        raise UserError(
            f"dictionary.site = {dictionary_site!r} has the shape {shapes[dictionary_site]}; a dictionary needs one "
            "layer's [batch, pos, width], such as blocks.3.resid_post."
        )
    n_latents = config.dictionary.expansion * shapes[dictionary_site][-1]
    if config.dictionary.k > n_latents:
        raise UserError(
            f"dictionary.k = {config.dictionary.k} is more than the {n_latents} latents (dictionary.expansion = "
            f"{config.dictionary.expansion} times the width {shapes[dictionary_site][-1]}). Choose a smaller k."
        )
