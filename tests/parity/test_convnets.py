# SPDX-License-Identifier: Apache-2.0
"""ResNets and DenseNets against transformers and timm (whose names and results are torchvision's): output, and what
every block gives, at 1e-5; and every switch set wrong shows (scripts/make_convnet_fixtures.py)."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxneuro.models import load
from jaxneuro.models.convnet import ConvNet, Dense, Residual, fold_batch_norm
from jaxneuro.models.convnet.module import apply_fn
from jaxneuro.models.layout import flatten, nest
from jaxneuro.taps import capture

FIXTURES = Path(__file__).parent / "convnets"
CASES = sorted(p.parent.name for p in FIXTURES.glob("*/expected.npz"))
TOLERANCE = 1e-5  # of the largest number in a map; float32 rounding of these models is at most 1e-6 of it
CAUGHT = 10 * TOLERANCE


@functools.cache
def opened(case) -> tuple[Any, dict[str, np.ndarray]]:
    """The model and its golden numbers."""
    return load(FIXTURES / case), dict(np.load(FIXTURES / case / "expected.npz"))


def error(ours, golden) -> float:
    """Largest difference, relative to the largest number; inf for another shape or anything that is not finite."""
    ours = np.asarray(ours)
    if ours.shape != golden.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - golden).max() / np.abs(golden).max())


def site_of(key, cfg):
    """The site of an array in expected.npz: "1.0" is block 0 of stage 1, for a DenseNet what it adds."""
    stage, _, block = key.partition(".")
    if not block or block == "transition":
        return {"stem": "stem", "pooled": "pooled"}.get(key, f"stage{stage}.transition")
    return f"stage{stage}.blocks.{block}.{'conv2' if isinstance(cfg.blocks, Dense) else 'post'}"


@pytest.mark.parametrize("case", CASES)
def test_output_and_every_block(case):
    model, golden = opened(case)
    sites = {key: site_of(key, model.cfg) for key in golden if key not in ("pixels", "out")}
    assert sum("blocks" in site for site in sites.values()) == sum(model.cfg.depths)
    out, acts = jax.jit(capture(model.apply, list(sites.values())))(model.weights, golden["pixels"])
    errors = {"out": error(out, golden["out"])} | {k: error(acts[site], golden[k]) for k, site in sites.items()}
    assert max(errors.values()) < TOLERANCE, errors


MUTATED = ("resnet-first-paper", "timm-resnext", "timm-densenet")  # together they have every switch
OTHER_ACT = {"relu": "gelu", "gelu": "relu", "silu": "relu"}
# Their values are in the shapes of the tensors, so `load` refuses a wrong one; family: names only.
NOT_SWITCHES = {"family", "channels", "stem", "depths", "n_classes", "bottleneck", "widths", "mids", "growth", "mid"}


def mutants(cfg):
    """{name: a configuration with one switch wrong}; those that need other tensors get them from `refit`."""
    out = {"act": {"act": OTHER_ACT[cfg.act]}, "inner_act": {"inner_act": "gelu"}, "norm_eps": {"norm_eps": 1e-3}}
    if isinstance(cfg.blocks, Residual):
        r = cfg.blocks
        wrong = {"first_stride": 3 - r.first_stride}
        if r.bottleneck:
            wrong |= {"stride_in_conv1": not r.stride_in_conv1}
        if r.groups > 1:
            wrong |= {"groups": r.groups // 2}
        out |= {name: {"blocks": dataclasses.replace(r, **{name: value})} for name, value in wrong.items()}
    return {name: dataclasses.replace(cfg, **change) for name, change in out.items()}


def refit(weights, cfg):
    """Kernels cut or repeated to the groups of a configuration."""
    groups = getattr(cfg.blocks, "groups", 1)

    def kernel(leaf, a):
        if not (leaf.endswith("conv2") and isinstance(cfg.blocks, Residual) and cfg.blocks.bottleneck):
            return a
        want = a.shape[-1] // groups
        return np.tile(a, (*[1] * (a.ndim - 2), -(-want // a.shape[-2]), 1))[..., :want, :]

    return nest({leaf: kernel(leaf, np.asarray(a)) for leaf, a in flatten(weights).items()})


def test_every_switch_is_covered():
    fields = {f.name for cls in (ConvNet, Residual, Dense) for f in dataclasses.fields(cls)}
    assert {name for case in MUTATED for name in mutants(opened(case)[0].cfg)} | NOT_SWITCHES | {"blocks"} == fields


@pytest.mark.parametrize("case", MUTATED)
def test_wrong_switches_change_the_output(case):
    model, golden = opened(case)
    for name, cfg in mutants(model.cfg).items():
        out = jax.jit(apply_fn(cfg))(refit(model.weights, cfg), golden["pixels"])
        assert error(out, golden["out"]) > CAUGHT, name


@pytest.mark.parametrize("case", ["resnet-basic", "timm-resnext", "timm-densenet"])
def test_every_leaf_is_read(case):
    model, golden = opened(case)
    leaves, unread = flatten(model.weights), set()
    run = jax.jit(model.apply)
    for leaf, a in leaves.items():
        if error(run(nest({**leaves, leaf: 1.1 * a + 0.1}), golden["pixels"]), golden["out"]) < CAUGHT:
            unread.add(leaf)
    assert unread == set()


@pytest.mark.parametrize("case", ["resnet-bottleneck", "timm-densenet"])
def test_folded_norms_compute_the_same(case):
    model, golden = opened(case)
    folded = fold_batch_norm(model.weights, model.cfg)
    left = {leaf.rpartition(".")[0] for leaf in flatten(folded) if leaf.endswith(".var")}
    if isinstance(model.cfg.blocks, Residual):
        assert left == set()
    else:  # norms that come before their activation and a convolution that others read too
        assert {name.rpartition(".")[-1] for name in left} == {"norm1", "norm", "final_norm"}
        assert not any("stem" in name for name in left)
    out = jax.jit(model.apply)(folded, golden["pixels"])
    assert error(out, golden["out"]) < TOLERANCE
    jax.tree.map(np.testing.assert_array_equal, fold_batch_norm(folded, model.cfg), folded)
