# SPDX-License-Identifier: Apache-2.0
"""A made-up study in nine groups and six layers that looks like a real one, and a browser to open its report in."""

import os
from pathlib import Path

import numpy as np
import pytest

from .browser import Browser, browser, missing

TEXTS = {
    "code": "def| read|(|path|):|\n|    |with| open|(|path|)| as| file|:|\n|        |return| json|.|load|(|file|)",
    "de": "Die| Option| legt| fest|,| wie| viele| Zeilen| aus|gegeben| werden|,| bevor| es| be|endet| wird|.",
    "en": "The| option| sets| how| many| lines| are| printed| before| the| program| ex|its|,| unless| -|q| is| given|.",
    "es": "La| opción| establece| cu|ántas| líneas| se| muestran| antes| de| que| el| programa| termine|.",
    "fr": "L|’|option| dé|finit| le| nombre| de| lignes| aff|ich|ées| avant| la| fin| du| programme|.",
    "it": "L|'|opzione| stabil|isce| quante| righe| vengono| mostr|ate| prima| che| il| programma| termini|.",
    "pl": "Opcja| określ|a|,| ile| wiersz|y| jest| wypis|ywanych|,| zanim| program| się| za|kończy|.",
    "pt": "A| opção| define| quant|as| linhas| são| exib|idas| antes| de| o| programa| termin|ar|.",
    "ru": "Параметр| задаёт|,| сколько| строк| вывод|ится| до| завершения| программ|ы|.",
}  # fmt: skip
GROUPS = sorted(TEXTS)


def tokens(group: str) -> list[str]:
    return TEXTS[group].split("|")


def make_study(n_neurons: int = 40, n_latents: int = 20, n_layers: int = 6, seed: int = 0) -> dict:
    """Data as the study command makes it (numpy arrays left in on purpose)."""
    rng, k = np.random.default_rng(seed), len(GROUPS)
    shape = np.array([5, 2, 1, 2, 4, 8]) if n_layers == 6 else np.ones(n_layers)
    specific = rng.poisson(shape * rng.uniform(0.5, 2.0, (k, 1)))
    related, agnostic = rng.poisson(shape * 0.8, (k, n_layers)), rng.poisson(shape * 30)
    matrix = rng.gamma(1.0, 0.012, (k, k)) - 0.004 + np.diag(rng.uniform(0.12, 0.55, k))
    counts = {g: int(n) for g, n in zip(GROUPS, specific.sum(1), strict=True)}
    return {
        "title": "jaxneuro study: multilingual-manpages-4m",
        "run": {
            "model": {"name": "multilingual-manpages-4m", "family": "llama", "n_layers": n_layers, "d_model": 192,
                      "d_mlp": 512, "n_parameters": 4_318_464, "site": "blocks.*.mlp.post"},
            "config": {"batch_size": 32, "length": 128, "max_tokens_per_group": 100_000, "n_random": 10, "groups": None,
                       "out": "runs/2026-01-12-a"},
            "versions": {"jaxneuro": "0.1.0", "jax": "0.11.2", "flax": "0.12.8", "numpy": "2.4.1", "python": "3.12.12"},
            "seed": 0, "device": "cpu (2 cores)", "started": "2026-01-12T09:30:00+00:00", "seconds": 247.3,
            "tokens": {g: int(n) for g, n in zip(GROUPS, rng.integers(40_000, 100_000, k), strict=True)},
            "notes": ["Special tokens are left out of all statistics.", "Text: translated manual pages of Debian."],
        },
        "groups": GROUPS,
        "counts": {
            "specific": counts,
            "related": dict(zip(GROUPS, related.sum(1).tolist(), strict=True)),
            "agnostic": int(agnostic.sum()),
            "expert": {g: int(n) for g, n in zip(GROUPS, rng.integers(500, 900, k), strict=True)},
            "shuffled": {"specific": {g: float(rng.uniform(0, 1.5)) for g in GROUPS},
                         "related": {g: float(rng.uniform(0, 2.5)) for g in GROUPS},
                         "agnostic": 1200.0, "expert": {g: float(rng.uniform(0, 4)) for g in GROUPS},
                         "n_shuffles": 10},
        },
        "profile": {"specific": specific, "related": related, "agnostic": agnostic,
                    "shuffled_specific": rng.uniform(0.5, 2.0, n_layers),
                    "expert": rng.integers(60, 160, (k, n_layers)), "shuffled_expert": rng.uniform(0, 3, n_layers)},
        "effect": {
            "measure": "increase of loss", "unit": "nats per token", "matrix": matrix,
            "random_mean": rng.gamma(2.0, 0.01, (k, k)), "random_std": rng.uniform(0.003, 0.015, (k, k)),
            "n_random": 10, "set_size": specific.sum(1), "base": rng.uniform(2.1, 2.9, k),
        },
        "neurons": [make_neuron(rng, i, n_layers) for i in range(n_neurons)],
        "dictionary": make_dictionary(rng, n_latents),
    }  # fmt: skip


def make_example(rng: np.random.Generator, group: str, strength: float) -> dict:
    words = tokens(group)
    values = np.round(rng.gamma(0.35, strength, len(words)) - 0.1, 4)
    return {"group": group, "tokens": words, "values": values, "peak": int(values.argmax())}


def make_words(rng: np.random.Generator, group: str) -> list[list]:
    words = sorted({t for t in tokens(group) if t.strip()})
    chosen = rng.permutation(len(words))[:10]
    scores = np.sort(rng.gamma(2, 0.3, len(chosen)))[::-1]
    return [[words[i], float(s)] for i, s in zip(chosen, scores, strict=True)]


def make_neuron(rng: np.random.Generator, i: int, n_layers: int) -> dict:
    kind = ("specific", "specific", "related", "agnostic")[i % 4]
    own = {"specific": [GROUPS[i % 9]], "related": sorted({GROUPS[i % 9], GROUPS[(i + 4) % 9]}), "agnostic": []}[kind]
    rate = np.array(
        [rng.uniform(0.15, 0.6) if g in own or kind == "agnostic" else rng.uniform(0, 0.02) for g in GROUPS]
    )
    edges = np.linspace(-0.5, 6.0, 33)
    middle = (edges[1:] + edges[:-1]) / 2
    shape = np.where(middle < 0, 1.0 - rate[:, None], rate[:, None] * np.exp(-middle / (0.2 + 2 * rate[:, None])))
    dose = np.linspace(0, 8, 7)
    curves = {g: 0.02 * rng.normal(size=7) + (0.4 if g in own else 0.03) * np.tanh(dose / 4) for g in GROUPS}
    return {
        "layer": i % n_layers, "neuron": int(rng.integers(0, 512)) * 40 + i, "class": kind, "groups": own,
        "lape": float(rng.uniform(0.1, 2.1)), "ap": float(rng.uniform(0.4, 0.98)) if own else None,
        "ap_group": own[0] if own else "", "rate": rate,
        "histogram": {"edges": edges, "counts": np.floor(shape * 3000).astype(int)},
        "examples": [make_example(rng, g, 1.5) for g in (own or GROUPS[:3]) for _ in range(5 // max(len(own), 1))],
        "promoted": make_words(rng, (own or ["en"])[0]), "suppressed": make_words(rng, GROUPS[(i + 3) % 9]),
        "dose": {"values": dose, "unit": "activation", "curves": curves, "y": "log-probability of the group's tokens"}
        if i % 3 == 0 else None,
    }  # fmt: skip


def make_dictionary(rng: np.random.Generator, n_latents: int) -> dict:
    steps = np.linspace(0, 2_000_000, 300)
    latents = []
    for i in range(n_latents):
        group = GROUPS[i % 9] if i % 4 else None
        rate = rng.uniform(0, 0.004, len(GROUPS)) + np.array([0.05 * (g == group) for g in GROUPS])
        latents.append({
            "latent": int(rng.integers(0, 4)) * 1000 + i, "density": float(rate.mean()), "rate": rate, "group": group,
            "selectivity": float(rng.uniform(0.2, 1)),
            "examples": [make_example(rng, group or "en", 2.0) for _ in range(3)],
            "promoted": make_words(rng, group or "en"), "suppressed": [],
        })  # fmt: skip
    return {
        "site": "blocks.3.resid_post", "n_latents": 4096, "k": 32,
        "metrics": {"fvu": 0.131, "explained_variance": 0.869, "l0": 32.0, "dead_fraction": 0.0213,
                    "ce_recovered_zero": 0.961, "ce_recovered_mean": 0.924},
        "curves": {"tokens": steps, "fvu": 0.13 + 0.87 * np.exp(-steps / 3e5), "l0": np.full(300, 32.0),
                   "dead_fraction": 0.3 * np.exp(-steps / 8e5)},
        "latents": latents,
    }  # fmt: skip


@pytest.fixture(scope="session")
def study() -> dict:
    """One made-up study for everybody: read it, do not change it."""
    return make_study()


@pytest.fixture(scope="session")
def chromium() -> Browser:
    """A headless Chromium, started once. Without one the tests are skipped, except where CI says it must be there."""
    if reason := missing():
        if os.environ.get("JAXNEURO_REQUIRE_BROWSER") == "1":
            pytest.fail(f"JAXNEURO_REQUIRE_BROWSER=1, but {reason}")
        pytest.skip(reason)
    with browser() as session:
        yield session


@pytest.fixture(scope="session")
def page(study: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the made-up study."""
    from jaxneuro.reports import write_report

    return write_report(study, tmp_path_factory.mktemp("report") / "report.html")
