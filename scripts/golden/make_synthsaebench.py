# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/synthsaebench.json: what SAELens' synthetic module gives on small fixed cases.

Needs Python 3.11, torch and sae-lens 6.54.12, none of which jaxneuro depends on:
`pip install sae-lens==6.54.12 && python scripts/golden/make_synthsaebench.py`. Takes about a minute.
"""

import itertools
import json
import pathlib

import numpy as np
import sae_lens
import torch
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from sae_lens.synthetic.correlation import generate_random_low_rank_correlation_matrix
from sae_lens.synthetic.evals import (
    ClassificationMetricsCalculator,
    DeadLatentsCalculator,
    L0Calculator,
    feature_uniqueness,
    mean_correlation_coefficient,
)
from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings

TO = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "synthsaebench.json"


def model(n_features: int, d: int, roots: int, branching: int, depth: int) -> SyntheticModel:
    """SynthSAEBench's model at some size, its directions not orthogonalised."""
    trees = HierarchyConfig(
        total_root_nodes=roots,
        branching_factor=branching,
        max_depth=depth,
        mutually_exclusive_portion=1.0,
        compensate_probabilities=True,
        scale_children_by_parent=True,
    )
    config = SyntheticModelConfig(
        num_features=n_features,
        hidden_dim=d,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
        hierarchy=trees,
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=42,
    )
    return SyntheticModel(config)


def generator() -> dict:
    """Everything about a small model that is not random, and its trees applied to given activations."""
    n, roots, branching, depth = 40, 2, 3, 2
    small = model(n, 6, roots, branching, depth)
    drawn = small.activation_generator
    parent = np.full(n, -1)

    def walk(node) -> None:
        for child in node.children:
            parent[child.feature_index] = node.feature_index
            walk(child)

    for root in small.hierarchy.roots:
        walk(root)
    rng = np.random.default_rng(0)
    before = np.zeros((64, n), np.float32)  # at most one active child per family, so that nothing is drawn
    for row in before:
        row[:roots] = rng.uniform(1, 9, roots) * (rng.random(roots) < 0.7)
        for p in range(roots + roots * branching):
            row[rng.choice(np.flatnonzero(parent == p))] = rng.uniform(1, 9) * (rng.random() < 0.8)
        row[26:] = rng.uniform(1, 9, n - 26) * (rng.random(n - 26) < 0.3)
    after = small.hierarchy.modifier(torch.tensor(before), drawn)
    return {
        "config": {"n_features": n, "d": 6, "n_roots": roots, "branching": branching, "depth": depth},
        "parent": parent.tolist(),
        "probabilities": small.cfg.firing_probability.generate(n).tolist(),
        "drawn_probabilities": drawn.firing_probabilities.tolist(),
        "thresholds": drawn.correlation_thresholds.tolist(),
        "size": drawn.mean_firing_magnitudes.tolist(),
        "before_trees": before.tolist(),
        "after_trees": after.tolist(),
    }


def directions() -> dict:
    """Orthogonalisation of given vectors; a correlation factor with rows that are too long."""
    torch.manual_seed(1)
    vectors = torch.randn(20, 6)
    apart = orthogonalize_embeddings(vectors, num_steps=50, lr=3e-3)
    raw = torch.randn(20, 30, generator=torch.Generator().manual_seed(2)) * 0.19
    found = generate_random_low_rank_correlation_matrix(20, 30, correlation_scale=0.19, seed=2)
    return {
        "vectors": vectors.tolist(),
        "orthogonalised": apart.tolist(),
        "steps": 50,
        "rate": 3e-3,
        "factor": raw.tolist(),
        "shortened": found.correlation_factor.tolist(),
        "diagonal": found.correlation_diag.tolist(),
    }


def scores() -> dict:
    """Every metric on a small set of latents and features."""
    torch.manual_seed(3)
    latents, features, d, samples = 12, 20, 6, 80
    vectors, w_dec = torch.randn(features, d), torch.randn(latents, d)
    w_dec[:8] = vectors[:8] + 0.3 * torch.randn(8, d)
    z = torch.relu(torch.randn(samples, features) - 0.5)
    found = torch.relu(z[:, :latents] + 0.5 * torch.randn(samples, latents) - 0.3)
    found[:, 5] = 0
    x, x_hat = z @ vectors + 0.7, found @ w_dec + 0.5
    detectors, l0, dead = (
        ClassificationMetricsCalculator(w_dec, vectors),
        L0Calculator(),
        DeadLatentsCalculator(latents),
    )
    explained = ExplainedVarianceCalculator()
    detectors.add_batch(found, z)
    l0.add_batch(found)
    dead.add_batch(found)
    explained.add_batch(x_hat, x)
    result = detectors.compute()
    return {
        "vectors": vectors.tolist(),
        "W_dec": w_dec.tolist(),
        "z": z.tolist(),
        "latents": found.tolist(),
        "x": x.tolist(),
        "x_hat": x_hat.tolist(),
        "mcc": mean_correlation_coefficient(w_dec, vectors),
        "uniqueness": feature_uniqueness(w_dec, vectors),
        "precision": result.precision,
        "recall": result.recall,
        "f1": result.f1_score,
        "l0": l0.compute(),
        "dead": dead.compute(),
        "explained_variance": explained.compute(),
    }


def benchmark() -> dict:
    """Mean active features of the 16k model, level by level (roots, children ..., free), over 32,768 samples."""
    big = model(16_384, 8, 128, 4, 3)
    torch.manual_seed(4)
    bounds = [0, 128, 640, 2688, 10_880, 16_384]
    active = torch.zeros(16_384)
    for _ in range(32):
        active += (big.activation_generator.sample(1024) > 0).sum(0)
    by_level = [float(active[a:b].sum()) / 32_768 for a, b in itertools.pairwise(bounds)]
    return {"samples": 32_768, "bounds": bounds, "l0": sum(by_level), "l0_by_level": by_level}


if __name__ == "__main__":
    golden = {
        "source": f"sae-lens {sae_lens.__version__}, torch {torch.__version__}, arXiv:2602.14687",
        "generator": generator(),
        "directions": directions(),
        "scores": scores(),
        "benchmark": benchmark(),
    }
    rounded = json.loads(json.dumps(golden), parse_float=lambda text: float(f"{float(text):.7g}"))
    TO.write_text(json.dumps(rounded) + "\n")
    print(f"wrote {TO} ({TO.stat().st_size} bytes)")
