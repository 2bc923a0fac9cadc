# SPDX-License-Identifier: Apache-2.0
"""How many neurons does a study find for groups that mean nothing? Documents of one group, dealt out at random.

    python scripts/meaningless_groups.py --model bundled --groups bundled --deals 20

Prints one line per group of text: its documents, the share of deals in which any expert neuron was found and in which
any neuron's entropy was significant (both should be near 5 %), and the same with windows permuted one by one, as if
windows of one document were independent.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import tyro

from jaxneuro.activations import run
from jaxneuro.activations.text import model_and_tokenizer
from jaxneuro.data import Subset, batches, draw_windows, read_groups, windows
from jaxneuro.neurons import (
    GroupStatistics,
    LabelledStream,
    expert_neurons,
    group_statistics,
    permuted_rates,
)
from jaxneuro.neurons.null import selectivity
from jaxneuro.stats import merged_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to deal out."""

    model: str = "bundled"
    groups: str = "bundled"
    only: tuple[str, ...] = ()
    """Names of groups; empty: all."""
    site: str = "blocks.mlp.gate"
    window: int = 128
    deals: int = 20
    parts: int = 3
    """Groups that the documents of one are dealt into."""
    per_part: int = 40
    """Windows kept per part."""
    shuffles: int = 500
    max_tokens: int | None = None
    seed: int = 0


class Found(NamedTuple):
    """Of one group of text, over the deals."""

    documents: int
    experts: list[int]
    """Expert neurons of all parts, per deal."""
    significant: list[int]
    """Neurons of significant entropy, per deal."""
    alone: list[int]
    """Expert neurons with windows permuted one by one, per deal."""


def statistics(config: Config, name: str, documents: Sequence[str], model, tokenizer) -> GroupStatistics:
    """Every window's mean responses and every document's firing counts, of one group."""
    rows = windows({name: documents}, tokenizer, length=config.window, packing="apart")
    rows = draw_windows(rows, config.max_tokens, config.seed) if config.max_tokens else Subset(rows, range(len(rows)))
    number, of_block = merged_blocks(rows.group, rows.block, len(rows))
    block = np.full(len(rows.base), -1, np.int32)
    block[rows.indices] = number
    method = group_statistics(
        model.apply, config.site, 1, bins=0, n_examples=0, responses_per_group=len(rows), n_blocks=len(of_block)
    )
    stream = LabelledStream(batches(rows, batch_size=32), np.zeros((len(block), 1), np.int32), block)
    table = run(method, stream, key=jax.random.key(0), constants={"weights": model.weights})
    return dataclasses.replace(table, response_group=block[table.response_window])  # the document of every response


def dealt(config: Config, table: GroupStatistics) -> Found:
    """The documents of `statistics` dealt into parts, again and again."""
    found = Found(len(table.block_tokens), [], [], [])
    for deal in range(config.deals):
        rng = np.random.default_rng([config.seed, deal])
        part = rng.permutation(np.arange(found.documents) % config.parts).astype(np.int32)
        document = table.response_group
        order = rng.permutation(len(document))
        kept = np.concatenate([order[part[document[order]] == k][: config.per_part] for k in range(config.parts)])
        given = (table.responses[kept], part[document[kept]], config.parts)
        options = {"share": 1.0, "n_shuffles": config.shuffles, "seed": deal}
        found.experts.append(int(expert_neurons(*given, block=document[kept], **options).significant.sum()))
        found.alone.append(int(expert_neurons(*given, **options).significant.sum()))
        shape = dataclasses.replace(table, block_group=part, tokens=np.ones((1, config.parts), np.int64))
        rates = permuted_rates(shape, config.shuffles, deal)
        found.significant.append(int(selectivity(rates, top_rate=0.06).significant.sum()))
    return found


def main(config: Config) -> dict[str, Found]:
    """Deal out every group; print and return what was found."""
    model, tokenizer = model_and_tokenizer(config.model, dtype="float32")
    results = {}
    print(f"{'text':8} documents   any expert   any significant   windows alone: any expert, experts per part")
    for name, documents in read_groups(config.groups).items():
        if config.only and name not in config.only:
            continue
        found = results[name] = dealt(config, statistics(config, name, documents, model, tokenizer))
        shares = [np.mean(np.array(x) > 0) for x in (found.experts, found.significant, found.alone)]
        print(
            f"{name:8} {found.documents:9}   {shares[0]:10.0%}   {shares[1]:15.0%}   {shares[2]:14.0%}, "
            f"{np.mean(found.alone) / config.parts:.0f}",
            flush=True,
        )
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
