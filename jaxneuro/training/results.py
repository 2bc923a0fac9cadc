# SPDX-License-Identifier: Apache-2.0
"""What came out of a run: dictionaries in their folders, judged on held-out tokens, and one table for a person."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from ..dictionaries import (
    CrossLayerTranscoder,
    Placement,
    reconstruction,
    save_circuit_tracer,
    save_saelens,
    save_sparsify,
)
from ..dictionaries.formats.to_circuit_tracer import unplaced
from ..dictionaries.native import save_native
from ..dictionaries.places import sparsify_hookpoint
from ..errors import UserError
from ..io import or_null, write_json
from ..left_out import norm_limit, norms
from ..taps.names import parse
from .config import TrainConfig
from .folder import DICTIONARY, RESULTS
from .sources import Data
from .sweep import Member, members, places

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
    "circuit-tracer": (
        save_circuit_tracer,
        frozenset({"relu", "jumprelu", "batch_topk", "matryoshka", "cross_layer_transcoder"}),
    ),
}
"""Format -> its writer, and the methods whose dictionaries it can hold (BatchTopK and Matryoshka as JumpReLU)."""
TRACER: Final = "circuit-tracer"
"""Written once for all layers, not once for each dictionary."""
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
    if TRACER in config.export:
        _check_tracer(config)


def _check_tracer(config: TrainConfig) -> None:
    clt = config.method.kind == "cross_layer_transcoder"
    if clt and getattr(config.method, "k", None) is not None:
        raise UserError("export: circuit-tracer has no top-k transcoders: give sparsity instead of k.")
    found = [Placement(site=p.site, target=p.target) for p in places(config).values()]
    if problems := unplaced(found[0] if clt and len(found) == 1 else _all_layers(found)):
        raise UserError(
            f"export: circuit-tracer reads a transcoder of every layer: {'; '.join(problems)}. Such as --sweep "
            "site=blocks.0.mlp.in,blocks.1.mlp.in target=blocks.0.mlp_out,blocks.1.mlp_out live ... jumprelu, or a "
            "cross-layer-transcoder with all sites and targets in its source."
        )


def _all_layers(found: Sequence[Placement]) -> Placement:
    """The places of one transcoder per layer, as one."""
    ordered = sorted(found, key=_layer)
    site, target = (tuple(s for place in ordered for s in getattr(place, field)) for field in ("site", "target"))
    return dataclasses.replace(ordered[0], site=site, target=target)


def _layer(place: Placement) -> int:
    layers = parse(place.site[0]).layers if place.site else None
    return layers[0] if layers else -1


def _trace(config: TrainConfig, data: Data, found: Mapping[str, Any], out: Path) -> None:
    """circuit-tracer's folders: one for each cross-layer transcoder, or for each set with the same other options."""
    placed = [(member, data.belongs(member.place)) for member in members(config)]
    for rest in dict.fromkeys(member.rest for member, _ in placed):
        folder = out / DICTIONARY / TRACER / rest
        here = [(found[m.name], place) for m, place in placed if m.rest == rest and place is not None]
        if isinstance(here[0][0], CrossLayerTranscoder):
            save_circuit_tracer(here[0][0], folder, place=here[0][1])
        else:
            layers = {_layer(place): dictionary for dictionary, place in here}
            save_circuit_tracer(layers, folder, place=_all_layers([place for _, place in here]))


def write(
    config: TrainConfig, data: Data, found: Mapping[str, Any], out: Path, seen: int | None = None
) -> dict[str, Any]:
    """Save every dictionary, judge it, write results.json last: a folder with it is complete.

    Args:
      seen: tokens that were learned from; None: not known, at most those of all batches.
    """
    rows = {}
    for member in members(config):
        dictionary, folder = found[member.name], out / DICTIONARY / member.name
        place = data.belongs(member.place)
        save_native(dictionary, folder, place=place)
        for name in [name for name in config.export if name != TRACER]:
            WRITERS[name][0](dictionary, out / DICTIONARY / _below(name, member, place), place=place)
        row = judged(data, member.place, dictionary, _max_norm(member.options))
        rows[member.name or DICTIONARY] = row | _target(member.options, row)
    if TRACER in config.export:
        _trace(config, data, found, out)
    results = {
        "dictionaries": rows,
        "steps": config.updates,
        "tokens": config.updates * config.batch,
        "epochs": config.updates * config.batch / data.epoch_tokens,
        "held_out": data.held_out and data.judged is not None,
        "notes": _notes(config, rows, seen),
    }
    write_json(out / RESULTS, results)
    return results


def _below(name: str, member: Member, place: Placement | None) -> Path:
    """Where one dictionary is exported to: sparsify opens all modules below one folder, by their names."""
    if name != "sparsify" or place is None:
        return Path(member.name, name)
    return Path(name, member.rest, sparsify_hookpoint(place) or place.site[0])


def _max_norm(options: Any) -> float | None:
    return getattr(getattr(options, "training", None), "max_norm", None)


def _target(options: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """What L0 was to be, and whether it is."""
    target = getattr(options, TARGETS.get(options.kind, ""), None)
    if target is None or row.get("l0") is None:
        return {}
    return {"l0_target": target, "l0_reached": abs(row["l0"] / target - 1) <= MISSED}


def _notes(config: TrainConfig, rows: Mapping[str, Mapping[str, Any]], seen: int | None) -> list[str]:
    """What a person must know beside the numbers."""
    notes = []
    for name, row in rows.items():
        if row.get("l0_reached") is False:
            advice = _ADVICE[TARGETS[config.method.kind]]
            notes.append(f"{name}: L0 {row['l0']:.3g}, target {row['l0_target']:g} not reached: {advice}")
    after, tokens = dead_after(config), config.updates * config.batch if seen is None else seen
    if after > tokens:
        most = f"{'at most ' if seen is None else ''}{tokens}"
        notes.append(
            f"dead latents: not yet countable: {most} tokens were seen, and a latent is dead after {after} without "
            "being on (dead_after_tokens)"
        )
    return notes


def dead_after(config: TrainConfig) -> int:
    """Tokens without being on after which a latent is dead; 0: the method knows no dead ones."""
    return getattr(getattr(config.method, "training", config.method), "dead_after_tokens", 0) or 0


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
        numbers |= {f"{name}_recovered_{base}": or_null(v) for base, v in shares.items()}
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
