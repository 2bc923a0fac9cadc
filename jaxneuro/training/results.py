# SPDX-License-Identifier: Apache-2.0
"""What came out of a run: dictionaries in their folders, judged on held-out tokens, and one table for a person."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from ..dictionaries import CrossLayerTranscoder, reconstruction, save_saelens, save_sparsify
from ..dictionaries.native import save_native
from ..dictionaries.parts.start import norm_limit, norms
from ..errors import UserError
from ..io import write_json
from .config import TrainConfig
from .folder import DICTIONARY, RESULTS
from .sources import Data
from .sweep import members

WRITERS: Final[dict[str, tuple[Callable[..., Any], frozenset[str]]]] = {
    "saelens": (
        save_saelens,
        frozenset(
            (
                *("topk", "batch_topk", "matryoshka", "multi_topk", "relu", "jumprelu", "gated", "atoms"),
                *("matching_pursuit", "crosscoder"),
            )
        ),
    ),
    "sparsify": (save_sparsify, frozenset({"topk", "multi_topk", "group_max", "transcoder"})),
}
"""Format -> its writer, and the methods whose dictionaries it can hold (BatchTopK and Matryoshka as JumpReLU)."""
_SHOWN: Final = {
    "fvu": "FVU",
    "l0": "L0",
    "dead_fraction": "never on",
    "ce_recovered_mean": "CE recovered (mean)",
    "kl_recovered_mean": "KL recovered (mean)",
}
"""Number -> its column; recovered: of the damage that the site's mean in its place does (results.json has zero too)."""
TARGETS: Final = {"jumprelu": "target_l0", "atoms": "target_l0", "batch_topk": "k", "matryoshka": "k"}
"""Method -> its option that says what L0 shall be, where L0 may be another."""
MISSED: Final = 0.1
"""Share by which L0 may differ from its target before it is said."""
_ADVICE: Final = {
    "target_l0": "more steps, a larger learning_rate, or a threshold_start nearer to where it must end",
    "k": "more steps, or a larger batch",
}


def check_exports(config: TrainConfig) -> None:
    """Raises: UserError: a format that cannot hold what the method learns."""
    for name in config.export:
        _, holds = WRITERS[name]
        if config.method.kind not in holds:
            raise UserError(
                f"export: {name} has no layout for {config.method.kind}; it holds {', '.join(sorted(holds))}. Leave it "
                "out: our own format is always written."
            )


def write(config: TrainConfig, data: Data, found: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Save every dictionary, judge it, write results.json last: a folder with it is complete."""
    rows = {}
    for member in members(config):
        dictionary, folder = found[member.name], out / DICTIONARY / member.name
        place = data.belongs(member.place)
        save_native(dictionary, folder, place=place)
        for name in config.export:
            WRITERS[name][0](dictionary, folder / name, place=place)
        row = judged(data, member.place, dictionary, _max_norm(member.options))
        rows[member.name or DICTIONARY] = row | _target(member.options, row)
    results = {
        "dictionaries": rows,
        "steps": config.updates,
        "tokens": config.updates * config.batch,
        "epochs": config.updates * config.batch / data.epoch_tokens,
        "held_out": data.held_out and data.judged is not None,
        "notes": _notes(config, rows),
    }
    write_json(out / RESULTS, results)
    return results


def _max_norm(options: Any) -> float | None:
    return getattr(getattr(options, "training", None), "max_norm", None)


def _target(options: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """What L0 was to be, and whether it is."""
    target = getattr(options, TARGETS.get(options.kind, ""), None)
    if target is None or row.get("l0") is None:
        return {}
    return {"l0_target": target, "l0_reached": abs(row["l0"] / target - 1) <= MISSED}


def _notes(config: TrainConfig, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a person must know beside the numbers."""
    notes = []
    for name, row in rows.items():
        if row.get("l0_reached") is False:
            advice = _ADVICE[TARGETS[config.method.kind]]
            notes.append(f"{name}: L0 {row['l0']:.3g}, target {row['l0_target']:g} not reached: {advice}")
    training = getattr(config.method, "training", config.method)
    after, tokens = getattr(training, "dead_after_tokens", 0), config.updates * config.batch
    if after > tokens:
        notes.append(
            f"dead latents: not yet countable: {tokens} tokens were seen, and a latent is dead after {after} without "
            "being on (dead_after_tokens)"
        )
    return notes


def judged(data: Data, place: str, dictionary: Any, max_norm: float | None = None) -> dict[str, Any]:
    """Reconstruction, and what the model loses, as JSON; empty where nothing is held out.

    Tokens that training left out by their norm are left out here, and keep their activation in the model.
    """
    if data.judged is None:
        return {}
    batches, inside = data.judged(place), dictionary
    if max_norm is not None:
        limit = _limit(data.first(place), max_norm)
        batches = ({**b, "mask": _mask(b) & (norms(jnp.asarray(b["x"])) <= limit)} for b in batches)
        inside = _Within(dictionary, limit)
    found = reconstruction(_flat(dictionary), batches)
    numbers = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name not in ("density", "mean")}
    kept = data.recover(place, inside, found.mean)
    for name, damage in kept.items():
        shares = {"zero": damage.recovered_zero, "mean": damage.recovered_mean}
        numbers |= {f"{name}_recovered_{base}": None if math.isnan(v) else v for base, v in shares.items()}
        numbers[f"{name}_nats"] = {end: getattr(damage, end) for end in ("original", "reconstructed", "zero", "mean")}
    return numbers


def _limit(batch: Mapping[str, Any], max_norm: float) -> Array:
    """The norm up to which training counted tokens, from the batch that it took it from."""
    x = jnp.asarray(batch["x"])
    return norm_limit(x, _mask(batch) & jnp.isfinite(x).all(-1), max_norm)


def _mask(batch: Mapping[str, Any]) -> Array:
    return jnp.asarray(batch["mask"]) if "mask" in batch else jnp.ones(len(batch["x"]), bool)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Within:
    """A dictionary of tokens up to a norm; longer ones stay as they are."""

    inner: Any
    limit: Array

    def __call__(self, x: Array) -> Array:
        return jnp.where((norms(x) <= self.limit)[..., None], self.inner(x), x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Joined:
    """A cross-layer transcoder over rows in which its layers are joined, as they are in its training."""

    inner: CrossLayerTranscoder

    def _layers(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.inner.n_layers, -1)

    def encode(self, x: Array) -> Array:
        z = self.inner.encode(self._layers(x))
        return z.reshape(*x.shape[:-1], -1)

    def decode(self, z: Array) -> Array:
        return self.inner.decode(self._layers(z)).reshape(*z.shape[:-1], -1)

    def __call__(self, x: Array) -> Array:
        return self.decode(self.encode(x))


def _flat(dictionary: Any) -> Any:
    return _Joined(dictionary) if isinstance(dictionary, CrossLayerTranscoder) else dictionary


def show(results: Mapping[str, Any], out: Path) -> None:
    """The table, and where everything is."""
    rows = results["dictionaries"]
    names = [name for name in _SHOWN if any(row.get(name) is not None for row in rows.values())]
    table = Table("dictionary", *(_SHOWN[name] for name in names))
    for name, row in rows.items():
        table.add_row(name, *("" if row.get(n) is None else f"{row[n]:.4g}" for n in names))
    console = Console()
    if names:
        console.print(table)
        if not results["held_out"]:
            console.print("judged on tokens that were trained on: give a held-out store for others", markup=False)
    for note in results.get("notes", ()):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out / DICTIONARY}\n{out / RESULTS}", markup=False, highlight=False, soft_wrap=True)
