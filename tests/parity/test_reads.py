# SPDX-License-Identifier: Apache-2.0
"""What attention, MLP, mixer and unembedding read, `*.in`: the norm's output after gain and bias, in every family."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import unembedding
from jaxneuro.taps import capture, intervene, scale, sites

from ..by_numpy import by_numpy
from .conftest import CASES, open_case

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


def layers(leaf, like):
    """The rows of a stacked leaf for as many layers as were captured."""
    return np.asarray(leaf, np.float64)[: len(like)]


def affine(acts, weights, norm, kind):
    """A norm's output of what it is before gain and bias."""
    y, w = np.asarray(acts[f"blocks.*.{norm}.normalized"], np.float64), weights["blocks"].get(norm, {})
    if kind == "plain":
        return y
    gain = layers(w["scale"], y)[:, None, None] + (kind == "gemma_rms")
    return y * gain + (layers(w["bias"], y)[:, None, None] if "bias" in w else 0)


def captured(case, names):
    def run(weights, tokens, mask):
        return case.model.apply(weights, tokens, mask, **case.types)

    there = {s.name for s in sites(run, case.model.weights, *case.inputs)}
    wanted = [n for n in names if n.replace(".*", "") in there]
    with jax.default_matmul_precision("highest"):
        return by_numpy(capture(run, wanted))(case.model.weights, *case.inputs)[1]


INSIDE = ["attn.in", "attn.q", "mlp.in", "mlp.pre", "moe.router", "mixer.in", "mixer.x", "cross_attn.in"]
NORMS = ["ln1.normalized", "ln2.normalized", "resid_pre", "resid_mid", "cross_attn.q", "ln_cross.normalized"]


@pytest.mark.parametrize("name", [c for c in CASES if open_case(c).model.cfg.n_layers])
def test_what_a_block_reads_is_what_its_matrices_multiply(name):
    case = open_case(name)
    cfg, w = case.model.cfg, case.model.weights
    a = captured(case, [*(f"blocks.*.{n}" for n in INSIDE + NORMS), "unembed.in", "logits"])
    blocks = w.get("blocks", {})

    def multiplied(read, leaf, bias=None):
        x = np.asarray(a[f"blocks.*.{read}"], np.float64)
        matrix = layers(leaf, x)
        y = np.stack([np.tensordot(one, m, 1) for one, m in zip(x, matrix, strict=True)])
        return y if bias is None else y + layers(bias, y)[:, None, None]

    def agree(site, expected):
        real = case.mask if case.mask.shape == expected.shape[1:3] else ...
        np.testing.assert_allclose(np.asarray(a[site])[:, real], expected[:, real], **CLOSE)

    if cfg.mixer is None:
        attn = blocks["attn"]
        agree("blocks.*.attn.q", multiplied("attn.in", attn["wq"], attn.get("bq")))
        post = cfg.norm_placement == "post"
        agree("blocks.*.attn.in", a["blocks.*.resid_pre"] if post else affine(a, w, "ln1", cfg.norm))
        mlp_norm = "ln1" if cfg.parallel and cfg.one_norm else "ln2"
        agree("blocks.*.mlp.in", a["blocks.*.resid_mid"] if post else affine(a, w, mlp_norm, cfg.norm))
    elif cfg.norm_placement == "pre":
        agree("blocks.*.mixer.in", affine(a, w, "ln1", cfg.norm))
        agree("blocks.*.mixer.x", multiplied("mixer.in", blocks["mixer"]["wx"], blocks["mixer"].get("bx")))
    else:
        np.testing.assert_array_equal(a["blocks.*.mixer.in"], a["blocks.*.resid_pre"])
    mixed = "blocks.*.mlp.pre" in a and "blocks.*.moe.router" in a
    if "blocks.*.mlp.pre" in a and not mixed:
        leaf = "gate" if cfg.gated else "up"
        agree("blocks.*.mlp.pre", multiplied("mlp.in", blocks["mlp"][leaf], blocks["mlp"].get(f"b_{leaf}")))
    if "blocks.*.moe.router" in a and not mixed:
        agree("blocks.*.moe.router", multiplied("mlp.in", blocks["moe"]["router"]))
    if "cross_attn" in blocks:
        agree("blocks.*.cross_attn.in", affine(a, w, "ln_cross", cfg.norm))
        agree("blocks.*.cross_attn.q", multiplied("cross_attn.in", blocks["cross_attn"]["wq"]))
    assert ("unembed.in" in a) == cfg.has_head
    if cfg.has_head and cfg.classify is None:
        logits = np.asarray(a["unembed.in"], np.float64) @ np.asarray(unembedding(w, cfg), np.float64)
        logits = logits + np.asarray(w.get("head", {}).get("b", 0), np.float64)
        if cfg.logit_softcap is not None:
            logits = cfg.logit_softcap * np.tanh(logits / cfg.logit_softcap)
        np.testing.assert_allclose(np.asarray(a["logits"])[case.mask], logits[case.mask], **CLOSE)


@pytest.mark.parametrize(
    ("name", "edited", "untouched"),
    [
        ("gpt_neox", "mlp.in", "attn_out"),
        ("gptj", "mlp.in", "attn_out"),
        ("phi", "attn.in", "mlp_out"),
        ("llama-gqa", "mlp.in", "attn_out"),
    ],
)
def test_an_edit_of_what_one_reads_is_not_read_by_the_other(name, edited, untouched):
    """Also where both read the same norm, as in GPT-J's and Phi's blocks."""
    case = open_case(name)
    other = "mlp_out" if untouched == "attn_out" else "attn_out"
    run = lambda w, t: case.model.apply(w, t, case.inputs[1])  # noqa: E731
    fn = capture(intervene(run, scale(f"blocks.0.{edited}", 2.0)), [f"blocks.0.{n}" for n in (untouched, other)])
    _, acts = by_numpy(fn)(case.model.weights, case.inputs[0])
    plain = captured(case, [f"blocks.*.{n}" for n in (untouched, other)])
    np.testing.assert_allclose(acts[f"blocks.0.{untouched}"], plain[f"blocks.*.{untouched}"][0], **CLOSE)
    assert np.abs(acts[f"blocks.0.{other}"] - plain[f"blocks.*.{other}"][0]).max() > 1e-3


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("blocks.1.hook_mlp_in", "before the norm, 'resid_mid'"),
        ("blocks.1.ln2.hook_out", "is 'mlp.in'"),
        ("unembed.hook_out", "'logits' are after the soft-cap"),
    ],
)
def test_names_of_other_values_are_refused_with_what_they_are(asked, told):
    case = open_case("llama-gqa")
    with pytest.raises(UserError, match=told):
        capture(case.model.apply, asked)(case.model.weights, *case.inputs)


def test_transformer_lens_spellings_of_what_is_read():
    case = open_case("llama-gqa")
    theirs = ["blocks.1.attn.hook_in", "blocks.1.mlp.hook_in", "unembed.hook_in"]
    acts = captured(case, ["blocks.*.attn.in", "blocks.*.mlp.in", "unembed.in"])
    _, spelled = by_numpy(capture(case.model.apply, theirs))(case.model.weights, *case.inputs)
    for name in theirs:
        ours = acts[name.replace("1", "*").replace("hook_", "")]
        np.testing.assert_allclose(spelled[name], ours[1] if "blocks" in name else ours, **CLOSE)
