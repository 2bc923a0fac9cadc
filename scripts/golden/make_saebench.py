# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/saebench.json: what SAEBench's own functions give on small fixed cases.

Needs Python 3.11, torch, sae-lens 6.54.12 and sae-bench 0.6.0, none of which jaxneuro depends on:
`pip install sae-lens==6.54.12 tabulate scikit-learn einops beartype && pip install --no-deps sae-bench==0.6.0`, then
`python scripts/golden/make_saebench.py`. Takes about a minute.
"""

import json
import pathlib
import types

import numpy as np
import sae_bench.evals.scr_and_tpp.main as removal
import sae_bench.sae_bench_utils.activation_collection as collection
import torch
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from sae_bench.evals.absorption.k_sparse_probing import train_sparse_multi_probe
from sae_bench.evals.sparse_probing.probe_training import Probe, get_top_k_mean_diff_mask, train_sklearn_probe
from sae_bench.sae_bench_utils.dataset_info import PAIRED_CLASS_KEYS
from sklearn.linear_model import LogisticRegression

TO = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "saebench.json"
D, LATENTS = 8, 24


class Sae:
    """relu((x - b) W_enc + b_enc) and a linear decoder with unit rows."""

    device, dtype = torch.device("cpu"), torch.float32
    cfg = types.SimpleNamespace(d_sae=LATENTS)

    def __init__(self):
        torch.manual_seed(0)
        w = torch.randn(LATENTS, D)
        self.W_dec = w / w.norm(dim=1, keepdim=True)
        self.W_enc = self.W_dec.T + 0.1 * torch.randn(D, LATENTS)
        self.b_enc, self.b_dec = 0.1 * torch.randn(LATENTS) - 0.2, 0.2 * torch.randn(D)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.W_dec + self.b_dec


def linear(w: torch.Tensor, b: float) -> Probe:
    """One of SAEBench's probes with these weights."""
    probe = Probe(D, torch.float32)
    with torch.no_grad():
        probe.net.weight.copy_(w[None])
        probe.net.bias.fill_(b)
    return probe


def tokens(n: int, centre: torch.Tensor) -> torch.Tensor:
    """[n, 5, D]. None is masked: SAEBench also takes the zeroed latents of masked tokens (encode(0)) from the mean."""
    return centre + torch.randn(n, 5, D)


def spurious(sae: Sae) -> dict:
    """SCR from given probes: effects, ablated accuracies, scores."""
    torch.manual_seed(1)
    ns = [2, 5, 10]
    target, gender = torch.randn(D), torch.randn(D)
    cells = {(t, s): tokens(12, (2 * t - 1) * target + (2 * s - 1) * gender) for t in (0, 1) for s in (0, 1)}
    both = {  # class: positives, negatives, in SAEBench's names
        "male / female": (torch.cat([cells[0, 1], cells[1, 1]]), torch.cat([cells[0, 0], cells[1, 0]])),
        "professor / nurse": (torch.cat([cells[1, 0], cells[1, 1]]), torch.cat([cells[0, 0], cells[0, 1]])),
        "male_professor / female_nurse": (cells[1, 1].repeat(2, 1, 1), cells[0, 0].repeat(2, 1, 1)),
    }
    acts = {}
    for name, (yes, no) in both.items():
        acts[name], acts[PAIRED_CLASS_KEYS[name]] = yes, no
    probes = {
        "male / female": linear(gender, 0.1),
        "professor / nurse": linear(target, -0.1),
        "male_professor / female_nurse": linear(target + 1.5 * gender, 0.3),
    }
    chosen = list(PAIRED_CLASS_KEYS)
    means = collection.create_meaned_model_activations(acts)
    clean = removal.get_probe_test_accuracy(probes, chosen, means, 100, True)
    effects = removal.get_all_node_effects_for_one_sae(sae, probes, chosen, True, acts, 7)
    after = removal.perform_feature_ablations(probes, sae, 7, acts, effects, ns, chosen, 100, True)
    scores = removal.get_scr_plotting_dict(after, clean)
    x = torch.cat([cells[k] for k in sorted(cells)])
    return {
        "x": x.tolist(),
        "target": [bool(t) for t, _ in sorted(cells) for _ in range(12)],
        "spurious": [bool(s) for _, s in sorted(cells) for _ in range(12)],
        "ns": ns,
        "probes": {"target": target.tolist(), "spurious": gender.tolist(), "biased": (target + 1.5 * gender).tolist()},
        "biases": {"target": -0.1, "spurious": 0.1, "biased": 0.3},
        "effects": {"spurious": effects["male / female"].tolist(), "target": effects["professor / nurse"].tolist()},
        "score": [scores[f"scr_metric_threshold_{n}"] for n in ns],
        "score_target": [scores[f"scr_dir1_threshold_{n}"] for n in ns],
        "score_spurious": [scores[f"scr_dir2_threshold_{n}"] for n in ns],
    }


def perturbation() -> dict:
    """TPP's score from accuracies."""
    rng = np.random.default_rng(2)
    classes, ns = ["a", "b", "c"], [2, 5]
    clean = rng.uniform(0.8, 1, 3)
    after = rng.uniform(0.4, 0.9, (3, 2, 3))
    nested = {
        a: {n: dict(zip(classes, after[i, j].tolist(), strict=True)) for j, n in enumerate(ns)}
        for i, a in enumerate(classes)
    }
    overall, _ = removal.create_tpp_plotting_dict(nested, dict(zip(classes, clean.tolist(), strict=True)))
    names = {"score": "total_metric", "intended": "intended_diff_only", "unintended": "unintended_diff_only"}
    scores = {ours: [overall[f"tpp_threshold_{n}_{theirs}"] for n in ns] for ours, theirs in names.items()}
    return {"clean": clean.tolist(), "after": after.tolist(), **scores}


def probing() -> dict:
    """The choice of latents, and scikit-learn's probe on them."""
    torch.manual_seed(3)
    z, y = torch.relu(torch.randn(60, 12)), (torch.arange(60) % 2).int()
    z[y == 1, :3] += torch.tensor([0.9, 0.6, 0.3])
    left_out = get_top_k_mean_diff_mask(z[:40], y[:40], 3)
    kept = torch.nonzero(~left_out).flatten()
    probe, accuracy = train_sklearn_probe(z[:40][:, kept], y[:40], z[40:][:, kept], y[40:])
    return {
        "z": z.tolist(),
        "y": y.bool().tolist(),
        "train": 40,
        "latents": kept.tolist(),
        "w": probe.coef_[0].tolist(),
        "b": float(probe.intercept_[0]),
        "accuracy": accuracy,
    }


class Words(FeatureAbsorptionCalculator):
    """The calculator on given activations instead of a language model's."""

    def _build_prompts(self, words: list) -> list:
        return [types.SimpleNamespace(word=i, base=i) for i in range(len(words))]

    def _validate_prompts_are_same_length(self, prompts: list) -> None:
        del prompts


def absorption(sae: Sae) -> dict:
    """Full absorption and absorbed fraction, example by example; the order of latents from sparse probes."""
    torch.manual_seed(4)
    probe = torch.randn(D)
    x = torch.randn(150, D) + 0.8 * probe

    class Model:
        def run_with_cache(self, prompts: list, names_filter: list) -> tuple:
            return None, {names_filter[0]: torch.stack([torch.stack([x[i], x[i]]) for i in prompts])}

    cosine = torch.cosine_similarity(probe, sae.W_dec, dim=-1)
    main = [int(cosine.argsort(descending=True)[3]), int(cosine.argsort(descending=True)[6])]
    found = Words(model=Model(), icl_word_list=[]).calculate_absorption(sae, list(range(150)), probe, main, 0, False)
    labels = torch.arange(150) % 3
    centres = 1.2 * torch.randn(3, D)
    words = x + centres[labels]
    z, wanted = sae.encode(words), torch.nn.functional.one_hot(labels)
    sparse = train_sparse_multi_probe(
        z, wanted, z.device, num_epochs=1000, lr=0.05, batch_size=150, show_progress=False
    )
    latents = sparse.weights.detach().topk(3).indices
    dense = [
        LogisticRegression(max_iter=500, class_weight="balanced").fit(z[:, i].numpy(), (labels == c).numpy())
        for c, i in enumerate(latents)
    ]
    return {
        "x": x.tolist(),
        "probe": probe.tolist(),
        "main": main,
        "full": [bool(word.is_full_absorption) for word in found.word_results],
        "fraction": [float(word.absorption_fraction) for word in found.word_results],
        "words": words.tolist(),
        "labels": labels.tolist(),
        "sparse_w": sparse.weights.tolist(),
        "sparse_b": sparse.biases.tolist(),
        "latents": latents.tolist(),
        "probes_on_them": [[*probe.coef_[0].tolist(), float(probe.intercept_[0])] for probe in dense],
    }


if __name__ == "__main__":
    sae = Sae()
    golden = {
        "source": f"sae-bench 0.6.0, torch {torch.__version__}, arXiv:2503.09532",
        "dictionary": {name: getattr(sae, name).tolist() for name in ("W_enc", "W_dec", "b_enc", "b_dec")},
        "scr": spurious(sae),
        "tpp": perturbation(),
        "probing": probing(),
        "absorption": absorption(sae),
    }
    rounded = json.loads(json.dumps(golden), parse_float=lambda text: float(f"{float(text):.7g}"))
    TO.write_text(json.dumps(rounded) + "\n")
    print(f"wrote {TO} ({TO.stat().st_size} bytes)")
