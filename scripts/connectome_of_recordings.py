# SPDX-License-Identifier: Apache-2.0
"""Components of a real recording beside rolled copies, and communities of LFR graphs beside other programs.

    pip install --no-deps nitime==0.12.1     # its fMRI example: 250 frames of 28 named regions, one subject, BSD
    pip install networkx scikit-learn
    python scripts/connectome_of_recordings.py --out benchmarks/results/connectome.json

Recording: `rank_evidence` of the 28 regions (without white matter, ventricles and whole brain), ranks 1 to 4, in one
tensor; then the communities of each supported component. Is there synchrony that rolled traces lack, and does the block
model find left and right of a region together more often than chance?

Graphs: networkx's LFR graphs (unweighted) of 125 nodes. Not the weighted ones of arXiv:2402.14102, whose degrees and
sizes (tau1 = 2, tau2 = 1, degrees near 25 and up to 100) networkx does not draw. The number of communities is chosen by
description length; agreement is adjusted mutual information, checked against scikit-learn's, with networkx's Louvain
beside. Graphs that networkx fails to draw are counted; none is left out after it was drawn.

Found (benchmarks/results/connectome.json): components beyond rolled copies at every window, three or four; at windows
of 2 and 4 frames that is the highest rank that was tried, so how many there are is open. The two sides of a region
share a community more often than by chance in one component of eleven (p = .005, not corrected). On LFR graphs the
block model equals Louvain in one of two at mu = .1, is behind it in four of five at .3, finds next to nothing at .5.
"""

import argparse
import csv
import importlib.util
import json
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxneuro.dictionaries.block_model import block_model
from jaxneuro.dictionaries.connectome import affinity, component_communities
from jaxneuro.dictionaries.cp import nonnegative_cp
from jaxneuro.dictionaries.cp_null import rank_evidence, supported_rank
from jaxneuro.stats.agreement import adjusted_mutual_information
from jaxneuro.versions import versions

NO_REGION: Final = ("WM", "Vent", "Brain")
WINDOWS: Final = (2.0, 4.0, 8.0)
"""Standard deviations, in frames of two seconds, over which changes count as together."""
GRAPH: Final[dict[str, Any]] = {
    "n": 125, "tau1": 2.5, "tau2": 1.5, "min_degree": 8, "max_degree": 40, "min_community": 15, "max_community": 60,
}  # fmt: skip
MIXING: Final = (0.1, 0.3, 0.5)
SEEDS: Final = range(13, 18)


def recording() -> tuple[tuple[str, ...], np.ndarray]:
    """(regions, float32 [time, region]) of nitime's example, each region less its mean."""
    found = importlib.util.find_spec("nitime")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps nitime==0.12.1")
    with (Path(found.origin).parent / "data" / "fmri_timeseries.csv").open() as f:
        names, *rows = csv.reader(f)
    x = np.array(rows, np.float32)
    keep = [i for i, name in enumerate(names) if name not in NO_REGION]
    return tuple(names[i] for i in keep), x[:, keep] - x[:, keep].mean(0)


def components(regions: tuple[str, ...], x: np.ndarray, window: float, copies: int) -> dict[str, Any]:
    """What is there beside rolled copies, and in which communities."""
    traces, how = jnp.asarray(x)[None], {"smooth": 1.0, "window": window}
    found = rank_evidence(traces, 4, key=jax.random.key(0), copies=copies, starts=3, sweeps=80, **how)  # type: ignore[arg-type]
    rank = supported_rank(found)
    row: dict[str, Any] = {
        "window": window,
        "supported_rank": rank,
        "ranks": [
            {"rank": e.rank, "loss": e.loss, "drop": e.drop, "null_median": float(np.median(e.null)),
             "null_max": float(e.null.max()), "p": e.p_value}
            for e in found
        ],
    }  # fmt: skip
    if rank:
        cp = nonnegative_cp(affinity(traces, **how), rank, key=jax.random.key(1), starts=3, sweeps=100)
        label = component_communities(cp, len(regions))
        row["communities"] = [named(regions, one) for one in label]
        row["pairs_of_sides"] = [sides(regions, one) for one in label]
    return row


def named(regions: tuple[str, ...], label: np.ndarray) -> list[list[str]]:
    """The regions of every community."""
    return [[r for r, c in zip(regions, label, strict=True) if c == k] for k in range(1, int(label.max()) + 1)]


def sides(regions: tuple[str, ...], label: np.ndarray, n: int = 10_000) -> dict[str, Any]:
    """How many regions share the community of their other side, beside permuted labels."""
    at = {name: i for i, name in enumerate(regions)}
    left, right = np.array([(at[r], at["R" + r[1:]]) for r in regions if r[0] == "L" and "R" + r[1:] in at]).T
    rng = np.random.default_rng(0)

    def together(label: np.ndarray) -> int:
        return int(((label[left] == label[right]) & (label[left] > 0)).sum())

    null = np.array([together(rng.permutation(label)) for _ in range(n)])
    p = (1 + (null >= together(label)).sum()) / (1 + n)
    return {"together": together(label), "pairs": len(left), "by_chance": float(null.mean()), "p": float(p)}


def graphs() -> list[dict[str, Any]]:
    """Number of communities and agreement with the planted ones, per mixing."""
    import networkx as nx  # pyright: ignore[reportMissingModuleSource]
    from sklearn.metrics import adjusted_mutual_info_score

    rows = []
    for mu in MIXING:
        kept, failed = [], 0
        for seed in SEEDS:
            try:
                g = nx.LFR_benchmark_graph(**GRAPH, mu=mu, seed=seed, max_iters=500)
            except nx.ExceededMaxIterations:
                failed += 1
                continue
            g.remove_edges_from(nx.selfloop_edges(g))
            parts = list({frozenset(g.nodes[v]["community"]) for v in g})
            truth = np.array([next(i for i, part in enumerate(parts) if v in part) for v in range(len(g))])
            found = block_model(nx.to_numpy_array(g)).label
            other = np.zeros(len(g), np.int32)
            for i, part in enumerate(nx.community.louvain_communities(g, seed=0)):
                other[list(part)] = i
            ours = adjusted_mutual_information(truth, found)
            assert abs(ours - adjusted_mutual_info_score(truth, found)) < 1e-9
            kept.append((len(parts), int(found.max()) + 1, ours, adjusted_mutual_information(truth, other)))
        columns = ("planted", "found", "ami", "ami_louvain")
        each = {name: [row[i] for row in kept] for i, name in enumerate(columns)}
        rows.append({**GRAPH, "mu": mu, "graphs": len(kept), "not_drawn": failed, **each})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=39)
    args = parser.parse_args()
    regions, x = recording()
    found = []
    for window in WINDOWS:
        found.append(components(regions, x, window, args.copies))
        print(json.dumps(found[-1]), flush=True)
    about = {"data": "nitime 0.12.1, fmri_timeseries.csv", "frames": len(x), "regions": list(regions)}
    results = {"recording": about | {"copies": args.copies, "windows": found}, "lfr": graphs(), "versions": versions()}
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
