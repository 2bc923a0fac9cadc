# SPDX-License-Identifier: Apache-2.0
"""Statistics per neuron and group in one pass over the text: one forward per batch, reduced at the site."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int

from ..errors import UserError
from ..protocols import Method
from ..sums import Tally, tally, tally_add, tally_float, tally_total
from ..taps import capture
from ..taps.compiled import eagerly
from .accumulators import (
    Blocks,
    Examples,
    Moments,
    Responses,
    add_blocks,
    add_examples,
    add_moments,
    add_responses,
    add_saturating,
    add_up_fired,
    add_up_tokens,
    no_blocks,
    no_examples,
    no_responses,
)
from .rows import Rows, Scale, bin_edges, group_histogram, in_group, magnitude, row_statistics, scale_of
from .table import GroupStatistics


class StatisticsState(NamedTuple):
    """Everything `step` carries. Groups lead, so every update is a matmul or a slice of whole [L, F] planes."""

    tokens: Tally
    fired: Tally
    windows: Int[Array, " group"]
    moments: Moments
    scale: Scale
    histogram: Int[Array, "layer group neuron bin"] | None
    examples: Examples | None
    responses: Responses | None
    blocks: Blocks | None


def group_statistics(
    apply: Callable,
    site: str,
    n_groups: int,
    *,
    threshold: float = 0.0,
    bins: int = 64,
    histogram_every: int = 1,
    n_examples: int = 8,
    responses_per_group: int = 0,
    n_blocks: int = 0,
) -> Method:
    """Count, average, bin and rank every neuron's values per group.

    A step runs the model once. At the site, inside the scan over layers, a row's values become six numbers per neuron
    (`Rows`) and one histogram per group; nothing of size [L, B, T, F] exists, and the unembedding is dead code. For the
    true labels and for each shuffled set of labels the firing counts are `sum over rows of one_hot(label) * fired`.

    Batches: `weights`; `tokens` int [B, T]; `mask`, `counted` bool [B, T]; `labels` int [B, 1 + S] (column 0 the true
    group, -1 for rows to leave out); `window` int [B]; with `n_blocks` also `block` int [B], a row's document.

    Args:
      apply: pure function (weights, tokens, mask) with the site in it.
      site: for example "blocks.mlp.post" (all layers), "blocks.2,5.mlp.post", "blocks.3.mlp.post".
      n_groups: K; labels are 0 .. K - 1.
      threshold: a neuron fires where its value is larger.
      bins: bins of the histogram per neuron and group, 0 for none. The range is set from the first batch
        (`rows.scale_of`); the outer bins are open.
      histogram_every: bin only every n-th position of a window (the histogram costs more than all the rest).
      n_examples: largest windows kept per neuron and group (one value per window: its maximum), 0 for none. Equal
        values are ordered by window number and then by position, so the order of the stream does not matter. Values
        that differ only by rounding may change places on another machine, in other batches or over other devices.
      responses_per_group: keep the mean response of every neuron to the first windows of each group, for average
        precision; K * n * L * F floats on the device.
      n_blocks: D, count firing per block 0 .. D - 1 too, D * L * F integers on the device: permuted labellings of whole
        documents, as many as wanted, are sums of these (`permuted_rates`).
    Returns:
      Method whose `finish` gives `GroupStatistics`. Counts are exact on any machine and over any devices, as long as no
      value lies within rounding of the threshold or of a bin's edge.
    Raises:
      UserError: from `step` at tracing: a batch with 2^24 or more tokens. From `finish`: a group without counted
        tokens, or values that are not finite.
    Source: counters of LAPE (RUCAIBox/Language-Specific-Neurons, activation.py); moments: Chan et al. 1979.
    """

    def reduce(counted, label, scale, threshold, x):
        histogram = None
        if bins:
            histogram = group_histogram(counted, label, scale, x, n_groups=n_groups, bins=bins, every=histogram_every)
        return row_statistics(counted, threshold, x), histogram

    def captured(reducer: Partial, batch: Any) -> Any:
        _, values = capture(apply, {site: reducer})(batch["weights"], batch["tokens"], batch["mask"])
        return values[site]

    def rows_of(scale: Scale, batch: Any) -> tuple[Rows, Array]:
        counted, label = batch["counted"] & batch["mask"], batch["labels"][:, 0]
        rows, histogram = captured(Partial(reduce, counted, label, scale, jnp.float32(threshold)), batch)
        if rows.mean.ndim == 2:  # one layer was asked for by number
            rows, histogram = jax.tree.map(lambda a: a[None], (rows, histogram))
        return rows, histogram

    def init(key, sample):
        del key
        counted = sample["counted"] & sample["mask"]
        rms, high = jax.jit(captured)(Partial(magnitude, counted), sample) if bins else (jnp.ones(1), jnp.ones(1))
        scale = scale_of(jnp.atleast_1d(rms), jnp.atleast_1d(high))
        rows, histogram = jax.eval_shape(rows_of, scale, sample)
        layers, _, neurons = rows.mean.shape
        plane, n_labels = (layers, neurons), sample["labels"].shape[1]
        return StatisticsState(
            tokens=tally((n_labels, n_groups)),
            fired=tally((n_labels, n_groups, *plane)),
            windows=jnp.zeros(n_groups, jnp.int32),
            moments=Moments(
                mean=jnp.zeros((n_groups, *plane), jnp.float32),
                m2=jnp.zeros((n_groups, *plane), jnp.float32),
                high=jnp.full((n_groups, *plane), -jnp.inf, jnp.float32),
                low=jnp.full((n_groups, *plane), jnp.inf, jnp.float32),
            ),
            scale=scale,
            histogram=jnp.zeros(histogram.shape, jnp.int32) if bins else None,
            examples=no_examples((n_groups, n_examples, *plane)) if n_examples else None,
            responses=no_responses((n_groups * responses_per_group, *plane)) if responses_per_group else None,
            blocks=no_blocks((n_blocks, *plane)) if n_blocks else None,
        )

    def step(state, batch):
        if batch["counted"].size >= 2**24:
            raise UserError(
                f"group_statistics: a batch of {batch['counted'].size} tokens; fewer than 2^24 are needed to count "
                f"exactly in float32. Use a smaller batch_size."
            )
        rows, histogram = rows_of(state.scale, batch)
        label, n = batch["labels"], jnp.sum(batch["counted"] & batch["mask"], 1, dtype=jnp.int32)
        member = in_group(label, n_groups)
        true = jnp.where((label[:, 0] >= 0) & (label[:, 0] < n_groups) & (n > 0), label[:, 0], n_groups)
        new = StatisticsState(
            tokens=tally_add(state.tokens, add_up_tokens(n, member)),
            fired=tally_add(state.fired, add_up_fired(rows.fired, member)),
            windows=state.windows + jnp.sum(jax.nn.one_hot(true, n_groups, dtype=jnp.int32), 0, dtype=jnp.int32),
            moments=add_moments(state.moments, tally_float(state.tokens)[0], rows, n, member[:, 0], true),
            scale=state.scale,
            histogram=add_saturating(state.histogram, histogram) if bins else None,
            examples=add_examples(state.examples, rows, true, batch["window"]) if n_examples else None,
            responses=add_responses(state.responses, state.windows, rows.mean, true, batch["window"])
            if responses_per_group
            else None,
            blocks=add_blocks(state.blocks, rows.fired, n, batch["block"], true < n_groups, true) if n_blocks else None,
        )
        return new, {"tokens": jnp.sum(n, dtype=jnp.int32)}

    def finish(state):
        return _table(jax.device_get(state), site, threshold, bins, responses_per_group)

    return Method(init, functools.partial(eagerly, step), finish)


def _table(s: StatisticsState, site: str, threshold: float, bins: int, per_group: int) -> GroupStatistics:
    tokens = tally_total(s.tokens)
    if empty := [int(k) for k in np.flatnonzero(tokens[0] == 0)]:
        raise UserError(f"group_statistics: no counted token in group number {empty}. Add text or leave the group out.")
    finite = np.isfinite(s.moments.mean).all((0, 2)) & np.isfinite(s.moments.m2).all((0, 2))
    if not finite.all():
        raise UserError(
            f"group_statistics: values at {site!r} are not finite (NaN, infinite or too large to square) in layers "
            f"{np.flatnonzero(~finite).tolist()} of the {finite.size} captured. Check the weights, or run in float32 "
            "or bfloat16 (float16 ends at 65,504)."
        )
    n_groups, *plane = s.moments.mean.shape
    return GroupStatistics(
        site=site,
        threshold=threshold,
        tokens=tokens,
        fired=_last(tally_total(s.fired), 1),
        windows=np.asarray(s.windows, np.int64),
        **{k: _last(v, 0) for k, v in s.moments._asdict().items()},
        **_histogram(s, bins, (plane[0], n_groups, plane[1])),
        **_examples(s.examples, (n_groups, 0, *plane)),
        **_responses(s.responses, plane, per_group),
        **({f"block_{k}": np.asarray(v) for k, v in s.blocks._asdict().items()} if s.blocks else {}),
    )


def _last(a: Any, *axes: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(np.asarray(a), axes, range(-len(axes), 0)))


def _histogram(s: StatisticsState, bins: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    if s.histogram is None:
        return {"edges": np.zeros(0, np.float32), "histogram": _last(np.zeros((*shape, 0), np.int32), 1, 3)}
    return {"edges": bin_edges(s.scale, bins), "histogram": _last(s.histogram, 1, 3)}


def _examples(best: Examples | None, none: tuple[int, ...]) -> dict[str, np.ndarray]:
    empty = {"value": np.zeros(none, np.float32), "window": np.zeros(none, np.int32)}
    empty["position"] = empty["window"]
    return {f"example_{k}": _last(v, 0, 1) for k, v in (best._asdict() if best else empty).items()}


def _responses(kept: Responses | None, plane: list[int], per_group: int) -> dict[str, np.ndarray]:
    window = np.zeros(0, np.int32) if kept is None else np.asarray(kept.window)
    value = np.zeros((0, *plane), np.float32) if kept is None else np.asarray(kept.value)
    filled = window >= 0
    group = (np.arange(window.size) // max(per_group, 1)).astype(np.int32)
    return {"responses": value[filled], "response_group": group[filled], "response_window": window[filled]}


def statistics_bytes(n_layers: int, n_neurons: int, n_groups: int, n_shuffles: int, **options: int) -> int:
    """Bytes of the state for these sizes, to plan a run: see the arguments of `group_statistics` for `options`."""
    o = {"bins": 64, "n_examples": 8, "responses_per_group": 0, "n_blocks": 0, **options}
    per_plane = 2 * (1 + n_shuffles) + 4 + o["bins"] + 3 * o["n_examples"] + o["responses_per_group"]
    return 4 * n_layers * n_neurons * (n_groups * per_plane + o["n_blocks"])
