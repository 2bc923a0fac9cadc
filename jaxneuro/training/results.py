# SPDX-License-Identifier: Apache-2.0
"""What came out of a run: dictionaries in their folders, judged on held-out tokens, and one table for a person."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import jax
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from ..dictionaries import CrossLayerTranscoder, reconstruction, save_saelens, save_sparsify
from ..dictionaries.native import save_native
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
    "dead_fraction": "dead",
    "ce_recovered_mean": "CE recovered",
    "kl_recovered_mean": "KL recovered",
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
        rows[member.name or DICTIONARY] = judged(data, member.place, dictionary)
    results = {
        "dictionaries": rows,
        "steps": config.updates,
        "tokens": config.updates * config.batch,
        "epochs": config.updates * config.batch / data.epoch_tokens,
        "held_out": data.held_out and data.judged is not None,
    }
    write_json(out / RESULTS, results)
    return results


def judged(data: Data, place: str, dictionary: Any) -> dict[str, Any]:
    """Reconstruction, and what the model loses, as JSON; empty where nothing is held out."""
    if data.judged is None:
        return {}
    found = reconstruction(_flat(dictionary), data.judged(place))
    numbers = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name not in ("density", "mean")}
    kept = data.recover(place, dictionary, found.mean)
    for name, damage in kept.items():
        shares = {"zero": damage.recovered_zero, "mean": damage.recovered_mean}
        numbers |= {f"{name}_recovered_{base}": None if math.isnan(v) else v for base, v in shares.items()}
        numbers[f"{name}_nats"] = {end: getattr(damage, end) for end in ("original", "reconstructed", "zero", "mean")}
    return numbers


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
    console.print(f"{out / DICTIONARY}\n{out / RESULTS}", markup=False, highlight=False, soft_wrap=True)
