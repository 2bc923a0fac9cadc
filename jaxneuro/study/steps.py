# SPDX-License-Identifier: Apache-2.0
"""The steps of a study: each reads what the ones before left in the folder and writes its own files."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..activations import ActivationArray, JsonLines, rich_progress, run
from ..activations.metrics import Counted
from ..axes import by_position
from ..console import say
from ..data import batches, in_turns
from ..dictionaries import Placement, SparseCoder, Training, save_saelens, topk
from ..errors import shown
from ..io import write_json
from ..neurons import (
    MEASURES,
    Experts,
    GroupStatistics,
    LabelledStream,
    decode_coordinates,
    dose_response,
    effect_matrix,
    expert_neurons,
    four_stages,
    group_statistics,
    neuron_examples,
    permuted_rates,
)
from ..neurons.null import selectivity
from ..reports.findings import FEWEST_WINDOWS
from ..stats import merged_blocks
from ..taps import capture
from .explain import save_explained
from .folder import RunFolder
from .inputs import Inputs
from .judging import METRICS, activations, judged_dictionary
from .results import write_results


class Step(NamedTuple):
    """One row of the table below."""

    name: str
    title: str
    files: tuple[str, ...]
    function: Callable[[Inputs, RunFolder], None]

    def leaves(self, inputs: Inputs) -> tuple[str, ...]:
        """Its files in this study: a given dictionary stays where it is."""
        untrained = inputs.given is not None or inputs.dictionary_site is None
        return self.files[:1] if self.name == "dictionary" and untrained else self.files


def statistics(inputs: Inputs, folder: RunFolder) -> None:
    """Stream every group's text through the model; per neuron and group: counts, moments, histogram, examples."""
    config, rows = inputs.config, inputs.studied
    label, block = np.full((len(inputs.windows), 1), -1, np.int32), np.full(len(inputs.windows), -1, np.int32)
    block[rows.indices], of_block = merged_blocks(rows.group, rows.block, config.select.blocks_per_group)
    label[rows.indices, 0] = rows.group
    method = group_statistics(
        inputs.model.apply,
        inputs.site,
        len(inputs.groups),
        bins=48,
        n_examples=config.cards.examples,
        responses_per_group=config.select.responses_per_group,
        n_blocks=len(of_block),
    )
    with rich_progress("1/6 statistics") as progress:
        result = run(
            method,
            LabelledStream(batches(in_turns(rows, config.seed), batch_size=config.batch), label, block),
            key=jax.random.key(config.seed),
            constants={"weights": inputs.model.weights},
            steps=-(-len(rows) // config.batch),
            checkpoint_dir=folder.unfinished / "statistics",
            progress=progress,
        )
    save_explained(folder / "statistics.npz", inputs.groups, **vars(result))


def select(inputs: Inputs, folder: RunFolder) -> None:
    """LAPE, the finer classes and expert neurons, beside the same with labels permuted between documents."""
    stats, s, seed = GroupStatistics.load(folder / "statistics.npz"), inputs.config.select, inputs.config.seed
    n_groups = len(inputs.groups)
    top_rate = s.top_rate or min(1.0, max(0.01, 20 * n_groups / stats.rate[..., 0].size))
    rates = permuted_rates(stats, s.shuffles, seed)
    found = selectivity(rates, top_rate=top_rate, filter_rate=s.filter_rate, bar=s.bar_ratio)
    expert, claim = experts(inputs, stats)
    chosen, rank = {
        "expertise": (expert.member, -expert.found.ap),
        "lape": (found.lape_member, np.repeat(found.entropy[..., None], n_groups, -1)),
    }[s.by]
    names = ("entropy", "lape_member", "score", "label", "member", "n_active", "significant")
    arrays = {name: getattr(found, name) for name in names} | expert.found._asdict()
    save_explained(
        folder / "neurons.npz", inputs.groups, **arrays, rate=stats.rate, expert=expert.passed, chosen=chosen, rank=rank
    )
    counts = {k: v.tolist() for k, v in vars(found.counts).items()} | {"expert": expert.significant.tolist()}
    null = {k: v.mean(0).tolist() for k, v in vars(found.null).items()}
    grouped = found.counts.specific.sum(0) + found.counts.related.sum(0)
    stages = four_stages(grouped, found.counts.agnostic)._asdict() if len(grouped) >= 4 else None
    write_json(
        folder / "neurons.json",
        {
            "counts": counts,
            "null": null | {"expert": expert.null_significant.mean(0).tolist()},
            "null_high": null_high(specific=found.null.specific, expert=expert.null_significant),
            "null_any": {
                "expert": float(expert.null_significant.any((1, 2)).mean()),
                "significant": float(found.null.significant.any((1, 2)).mean()),
            },
            "n_shuffles": s.shuffles,
            "claim": claim,
            "documents": expert.blocks.tolist(),
            "smallest_p": expert.smallest_p.tolist(),
            "entropy": selective(found.entropy, stats.rate, n_groups),
            "stages": stages,
            "top_rate": top_rate,
            "weight": found.weight,
            "tau": found.tau,
        },
    )


def null_high(**counts: np.ndarray) -> dict[str, Any]:
    """The 95 % points over permuted labellings: of each group's number, and of all groups together ("..._in_all").

    Args:
      counts: [S, K, L] of each class.
    Example:
      >>> null_high(a=np.arange(21).reshape(21, 1, 1))
      {'a': [19], 'a_in_all': 19}
    """
    sums = {k: v.sum(-1) for k, v in counts.items() if len(v)}

    def point(a: np.ndarray) -> Any:
        return np.quantile(a, 1 - LEVEL, axis=0, method="higher").tolist()

    return {k: point(a) for k, a in sums.items()} | {f"{k}_in_all": point(a.sum(-1)) for k, a in sums.items()}


LEVEL: Final = 0.05
"""How often a study of meaningless groups may report expert or significant neurons."""
LEAST_BLOCKS: Final = 3
"""Documents of a group below which its neurons are claimed for windows of these documents only."""


def experts(inputs: Inputs, stats: GroupStatistics) -> tuple[Experts, list[str]]:
    """Each group's experts, and of what they are: "documents" of the group, or only "windows" of these few documents.

    Groups with too few documents for the level are judged again with windows permuted one by one.
    """
    s, n_groups = inputs.config.select, len(inputs.groups)
    block = inputs.windows.block[stats.response_window]

    def judged(block: np.ndarray | None) -> Experts:
        return expert_neurons(
            stats.responses, stats.response_group, n_groups, block=block, share=s.share, n_shuffles=s.shuffles,
            seed=inputs.config.seed, level=LEVEL,
        )  # fmt: skip

    found = judged(block)
    few = (found.blocks < LEAST_BLOCKS) | (found.smallest_p > LEVEL / 2)
    if few.any():
        alone = judged(None)
        member, passed = (np.where(few, getattr(alone, n), getattr(found, n)) for n in ("member", "passed"))
        significant = np.where(few[:, None], alone.significant, found.significant)
        null = np.where(few[:, None], alone.null_significant, found.null_significant)
        found = found._replace(member=member, passed=passed, significant=significant, null_significant=null)
    return found, ["windows" if f else "documents" for f in few]


def selective(entropy: np.ndarray, rate: np.ndarray, n_groups: int) -> dict[str, Any]:
    """How selective firing is, as a size: entropies beside their largest value, and exp(H), the groups that is like."""
    h = entropy[np.isfinite(entropy)]
    size: dict[str, Any] = {"unit": "nats", "largest_possible": math.log(n_groups), "n_groups": n_groups}
    if not h.size:
        return size
    lowest, median = float(h.min()), float(np.median(h))
    layer, neuron = map(int, np.argwhere(entropy == h.min())[0])
    return size | {
        "lowest": lowest,
        "median": median,
        "groups_lowest": math.exp(lowest),
        "groups_median": math.exp(median),
        "most_selective": {"layer": layer, "neuron": neuron, "rate": rate[layer, neuron].tolist()},
    }


def effect(inputs: Inputs, folder: RunFolder) -> None:
    """Silence every group's chosen neurons, measure every group, beside layer-matched random sets."""
    config = inputs.config
    chosen = np.moveaxis(folder.arrays("neurons.npz")["chosen"], -1, 0)
    n_random = config.effect.random_sets
    if empty := [shown(g) for g, mine in zip(inputs.groups, chosen, strict=True) if not mine.any()]:
        say(f"no neurons of {', '.join(empty)}: nothing is silenced for {'it' if len(empty) == 1 else 'them'}")
    with rich_progress("3/6 silencing") as progress:
        result = effect_matrix(
            inputs.output,
            inputs.model.weights,
            inputs.site,
            chosen,
            inputs.measured_batches(),
            n_random=n_random,
            seed=config.seed,
            measure=inputs.measure,
            chunk=config.effect.chunk,
            progress=progress,
        )
    save_explained(
        folder / "effect.npz",
        inputs.groups,
        matrix=result.matrix,
        random=result.random,
        base=result.base,
        weight=result.weight,
        set_size=result.set_size,
    )
    write_json(
        folder / "effect.json",
        {
            "measure": result.measure,
            "unit": result.unit,
            "matrix": _known(result.matrix),
            "random_mean": _known(result.random_mean),
            "random_std": _known(result.random_std),
            "n_random": n_random,
            "axes": {
                "matrix": ["silenced group", "measured group"],
                "random_mean": ["silenced group", "measured group"],
            },
            "set_size": result.set_size.sum(1).tolist(),
            "windows": [t["windows_measured"] for t in inputs.texts.values()],
            "documents": [t["documents_measured"] for t in inputs.texts.values()],
            "least_windows": FEWEST_WINDOWS,
            "enough": [t["windows_measured"] >= FEWEST_WINDOWS for t in inputs.texts.values()],
            "base": result.base.tolist(),
        },
    )


def _known(rows: np.ndarray) -> list[list[float | None]]:
    """Rows of numbers, null where nothing was run: a group without neurons."""
    return [[None if math.isnan(v) else v for v in row] for row in rows.tolist()]


def cards(inputs: Inputs, folder: RunFolder) -> None:
    """Examples, tokens and dose-response of the chosen neurons, each of the site that was studied or not at all."""
    stats, table = GroupStatistics.load(folder / "statistics.npz"), folder.arrays("neurons.npz")
    layers, neurons, owner = _chosen_neurons(table, inputs)
    shown: dict[str, Any] = {"layer": layers.tolist(), "neuron": neurons.tolist()}
    shown["examples"] = neuron_examples(
        inputs.model.apply,
        inputs.model.weights,
        stats,
        inputs.windows,
        inputs.tokenizer,
        layers.tolist(),
        neurons.tolist(),
        n=inputs.config.cards.examples,
        context=inputs.config.cards.context,
        show=inputs.patches(),
    )
    promoted, model, k, decoded = None, inputs.model, inputs.config.cards.tokens, None
    if inputs.tokenizer is not None:
        decoded = decode_coordinates(model.weights, model.cfg, inputs.site, layers, neurons, k)
    if decoded is not None:
        promoted = np.asarray(decoded.promoted) if inputs.measure == "loss" else None
        for side in ("promoted", "suppressed"):
            pairs = zip(np.asarray(getattr(decoded, side)), np.asarray(getattr(decoded, f"{side}_score")), strict=True)
            shown[side] = [inputs.named(*pair) for pair in pairs]
    shown["dose"] = _doses(inputs, layers, neurons, owner, promoted)
    write_json(folder / "cards.json", shown)


def _chosen_neurons(table: dict[str, np.ndarray], inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each group's first neurons (lowest rank), once each; and the group that asked for each first."""
    found = {}
    for k in range(len(inputs.groups)):
        mine = np.argwhere(table["chosen"][:, :, k])
        order = np.argsort(table["rank"][mine[:, 0], mine[:, 1], k], kind="stable")
        for layer, neuron in mine[order[: inputs.config.cards.per_group]]:
            found.setdefault((int(layer), int(neuron)), k)
    pairs = np.array(list(found), np.int32).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1], np.array(list(found.values()), np.int32)


def largest_values(inputs: Inputs, site: str) -> np.ndarray:
    """float32 [L, F]: the largest absolute value of every neuron over the measured windows."""

    def largest(counted, x):
        return jnp.max(
            jnp.where(counted[..., None], jnp.abs(by_position(x, counted.shape).astype(jnp.float32)), 0), (0, 1)
        )

    @jax.jit
    def one(weights, batch):
        reducer = Partial(largest, batch["counted"])
        return capture(inputs.model.apply, {site: reducer})(weights, batch["tokens"], batch["mask"])[1][site]

    return np.max([np.asarray(one(inputs.model.weights, b)) for b in inputs.measured_batches()], axis=0)


def _doses(
    inputs: Inputs, layers: np.ndarray, neurons: np.ndarray, owner: np.ndarray, promoted: np.ndarray | None
) -> list[dict[str, Any] | None]:
    """Dose-response of each group's first neurons, held at `dosed_site`; None for the others."""
    c, site = inputs.config.cards, inputs.dosed_site
    rank = np.array([np.sum(owner[:i] == k) for i, k in enumerate(owner)])
    which = np.flatnonzero(rank < c.dosed)
    if not which.size:
        return [None] * len(layers)
    multiples = np.asarray(c.doses, np.float32)
    values = largest_values(inputs, site)[layers[which], neurons[which], None] * multiples
    with rich_progress("4/6 clamping") as progress:
        curves = dose_response(
            inputs.output,
            inputs.model.weights,
            site,
            layers[which],
            neurons[which],
            values,
            inputs.measured_batches(c.dose_windows),
            len(inputs.groups),
            promoted=None if promoted is None else promoted[which, :3],
            measure=inputs.measure,
            chunk=inputs.config.effect.chunk,
            progress=progress,
        )
    found: list[dict[str, Any] | None] = [None] * len(layers)
    for i, n in enumerate(which):
        increase = curves.measured[i] - curves.measured_base
        found[n] = {
            "values": curves.values[i].tolist(),
            "unit": f"activation at {site}; the largest seen is {float(values[i].max() / multiples.max()):.3g}",
            "y": MEASURES[inputs.measure].change + (f" ({curves.unit})" if "loss" in inputs.measure else ""),
            "curves": {g: increase[:, k].tolist() for k, g in enumerate(inputs.groups)},
            "probability": None if curves.probability is None else curves.probability[i].mean(-1).tolist(),
        }
    return found


def dictionary(inputs: Inputs, folder: RunFolder) -> None:
    """Train a TopK dictionary on one site of the studied windows, or take the given one; judge it on the measured."""
    if inputs.dictionary_site is None:
        write_json(folder / "dictionary.json", {})
        return
    studied, measured = activations(inputs, folder)
    learned = _trained(inputs, folder, studied) if inputs.given is None else inputs.given
    write_json(folder / "dictionary.json", judged_dictionary(inputs, folder, learned, studied, measured))


def _trained(inputs: Inputs, folder: RunFolder, acts: ActivationArray) -> SparseCoder:
    c, model = inputs.config.dictionary, inputs.model
    method = topk(
        c.expansion * acts.x.shape[1],
        c.k,
        training=Training(learning_rate=c.learning_rate, steps=c.steps, dead_after_tokens=c.dead_after_tokens),
    )
    with contextlib.closing(JsonLines(folder / METRICS)) as lines, rich_progress("5/6 dictionary") as progress:
        sink = Counted(lines, dead_after=c.dead_after_tokens)
        learned = run(
            method,
            acts.batches(batch_size=min(c.batch, len(acts)), seed=inputs.config.seed),
            key=jax.random.key(inputs.config.seed),
            steps=c.steps,
            checkpoint_dir=folder.unfinished / "training",
            metrics=sink,
            progress=lambda done, total, text: progress(done, total, sink.line(text)),
            log_every=max(1, c.steps // 200),
        )
    place = Placement(
        site=(str(inputs.dictionary_site),),
        model=inputs.config.model,
        family=model.cfg.family,
        context=inputs.windows.length if inputs.tokenizer else None,
        prepend_bos=bool(inputs.tokenizer.prefix) if inputs.tokenizer else None,
    )
    save_saelens(learned, folder / "dictionary", place=place)
    return learned


DICTIONARY_FILES: Final = (
    *("dictionary.json", METRICS, "dictionary/cfg.json"),
    "dictionary/sae_weights.safetensors",
)
STEPS: Final = (
    Step("statistics", "statistics of every neuron and group", ("statistics.npz",), statistics),
    Step("select", "group-specific neurons, beside permuted labels", ("neurons.npz", "neurons.json"), select),
    Step("effect", "silencing, beside random sets", ("effect.npz", "effect.json"), effect),
    Step("cards", "examples, tokens and dose-response", ("cards.json",), cards),
    Step("dictionary", "a dictionary", DICTIONARY_FILES, dictionary),
    Step("report", "results and report", ("results.json", "report.html"), write_results),
)
