# SPDX-License-Identifier: Apache-2.0
"""Every family and switch against transformers: output and each layer's residual stream, at real tokens, at 1e-5."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxneuro.models import FAMILIES, forward, load, pool, project, resized
from jaxneuro.models.layout import flatten, nest
from jaxneuro.taps import capture

from ..by_numpy import by_numpy
from .conftest import CASES, FIXTURES, open_case

TOLERANCE = 1e-5  # float32 rounding of these models is 1e-6 to 3e-6; the smallest known real mistake is 9e-5
# Compiled: one of each kind of program. The others are evaluated by numpy: what is said here is the program's.
COMPILED = {
    "gpt2",
    "qwen3-alternating",
    "bert-mlm",
    "mixtral",
    "mamba",
    "mamba2",
    "bdh",
    "umt5",
    "dinov2_with_registers",
}


def test_there_are_cases_for_every_family():
    assert {open_case(c).model.cfg.family for c in CASES} == set(FAMILIES)


def test_output_and_every_residual(case):
    sites = ["blocks.*.resid_pre", "blocks.*.resid_post"]
    both = [*sites, *(f"encoder.{site}" for site in sites if "encoder_resid" in case.golden)]

    def run(weights, tokens, mask):
        return case.model.apply(weights, tokens, mask, **case.types)

    with jax.default_matmul_precision("highest"):
        run = (jax.jit if case.folder.name in COMPILED else by_numpy)(capture(run, both))
        out, acts = run(case.model.weights, *case.inputs)
    assert case.error(out) < TOLERANCE
    ours = np.concatenate([acts[sites[0]][:1], acts[sites[1]]])
    difference = np.abs(ours - case.golden["resid"])[:, case.compared].max((1, 2))
    np.testing.assert_array_less(difference, TOLERANCE)
    np.testing.assert_array_equal(acts[sites[0]][1:], acts[sites[1]][:-1])
    if "encoder_resid" in case.golden:
        ours = np.concatenate([acts[f"encoder.{sites[0]}"][:1], acts[f"encoder.{sites[1]}"]])
        difference = np.abs(ours - case.golden["encoder_resid"])[:, case.golden["context_mask"]].max((1, 2))
        np.testing.assert_array_less(difference, TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "bert", "opt", "roberta"])
def test_masked_tokens_between_real_ones(name):
    """OPT and RoBERTa do not count them among the positions, GPT-2 and BERT do; which shows nowhere else."""
    case = open_case(name)
    with np.load(FIXTURES / "gaps.npz") as file:
        golden = {part.removeprefix(f"{name}-"): file[part] for part in file if part.startswith(f"{name}-")}
    mask = golden["mask"]
    gap = mask[:, 6] & ~mask[:, 7] & mask[:, 10]
    assert gap.all()

    def error(cfg):
        types = {"token_types": golden["token_types"]} if "token_types" in golden else {}
        run = by_numpy(functools.partial(forward, cfg=cfg, **types))
        rows = case.compared.any(1)  # not those that begin with padding, where columns are counted
        return np.abs(run(case.model.weights, golden["tokens"], mask=mask) - golden["out"])[rows][mask[rows]].max()

    cfg = case.model.cfg
    assert error(cfg) < TOLERANCE
    assert error(dataclasses.replace(cfg, masked_positions=not cfg.masked_positions)) > 1e-2


POOLED = [c for c in CASES if {"pooled", "embeds"} & set(open_case(c).golden)]


def pooled(case, cfg=None, weights=None):
    """The pooled output of the golden last hidden state, projected where the golden one is."""

    @by_numpy
    def run(weights, last, tokens):
        out = pool(weights, last, cfg or case.model.cfg, tokens)
        return project(weights, out) if "projection" in weights else out

    return run(weights or case.model.weights, case.golden["out"], case.inputs[0])


def golden_pooled(case) -> np.ndarray:
    return case.golden["embeds" if "embeds" in case.golden else "pooled"]


@pytest.mark.parametrize("name", POOLED)
def test_pooled_output(name):
    case = open_case(name)
    np.testing.assert_allclose(pooled(case), golden_pooled(case), atol=TOLERANCE)


WRONG_POOLING = {
    "bert": {"pool_from": "last"},
    "vit": {"pool_from": "last"},
    "dinov2": {"pool_from": "last"},
    "clip_vision_model": {"norm_pooled": False},
    "clip_text_model": {"eos": 5},
    "clip_text_model-projected": {"eos": 2},
    "siglip_text_model": {"pool_from": "first"},
    "siglip_vision_model": {"act": "gelu"},
}


@pytest.mark.parametrize("name", WRONG_POOLING)
def test_wrong_pooling_changes_the_pooled_output(name):
    case = open_case(name)
    wrong = pooled(case, dataclasses.replace(case.model.cfg, **WRONG_POOLING[name]))
    assert np.abs(wrong - golden_pooled(case)).max() > 2 * TOLERANCE


@pytest.mark.parametrize("name", ["siglip_vision_model", "siglip_text_model", "clip_text_model-projected"])
def test_every_leaf_above_the_stack_is_read(name):
    case = open_case(name)
    leaves = flatten(case.model.weights)
    above = [leaf for leaf in leaves if leaf.split(".")[0] in ("pooler", "projection")]
    moved = {
        leaf: pooled(case, None, nest({**leaves, leaf: np.float32(1.1) * np.asarray(leaves[leaf])})) for leaf in above
    }
    unread = {leaf for leaf, out in moved.items() if np.abs(out - golden_pooled(case)).max() < 2 * TOLERANCE}
    assert unread == {leaf for leaf in above if leaf == "pooler.attn.bk"}  # softmax does not see it
    assert above


@pytest.mark.parametrize("name", ["dinov2", "dinov2_with_registers"])
def test_pictures_with_hidden_patches(name):
    """Behind the mask token, which others attend to; and left out of attention, where only the others are compared."""
    golden, model = dict(np.load(FIXTURES / "hidden.npz")), open_case(name).model
    hidden, first = golden["hidden"], golden[f"{name}-hidden"].shape[1] - golden["hidden"].shape[1]
    seen = np.concatenate([np.ones((len(hidden), first), bool), ~hidden], axis=1)

    @by_numpy
    def run(weights, pixels, hidden, mask):
        return model.apply(weights, pixels, mask, hidden_patches=hidden)

    behind = run(model.weights, golden["pixels"], hidden, np.ones_like(seen))
    without = run(model.weights, golden["pixels"], np.zeros_like(hidden), seen)
    np.testing.assert_allclose(behind, golden[f"{name}-hidden"], atol=TOLERANCE)
    np.testing.assert_allclose(without[seen], golden[f"{name}-unattended"][seen], atol=TOLERANCE)
    # They are two things, and neither is the whole picture.
    whole = open_case(name).golden["out"]
    for a, b in ((behind, without), (behind, whole), (without, whole)):
        assert np.abs(a - b)[seen].max() > 1e-2


@pytest.fixture(scope="module")
def golden_sizes():
    return dict(np.load(FIXTURES / "resized.npz"))


@pytest.mark.parametrize("size", [18, 9])
@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model"])
def test_pictures_of_another_size(name, size, golden_sizes):
    model = resized(load(FIXTURES / name), size)
    out = by_numpy(model.apply)(model.weights, golden_sizes[f"pixels-{size}"])
    np.testing.assert_allclose(out, golden_sizes[f"{name}-{size}"], atol=TOLERANCE)
