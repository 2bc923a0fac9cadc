# SPDX-License-Identifier: Apache-2.0
"""Patterns of sites: which they match, and that what means one site refuses them in a sentence."""

import pytest

from jaxneuro.activations.patterns import pattern_of, spelled_out
from jaxneuro.activations.site import at_site, reader
from jaxneuro.errors import UserError
from jaxneuro.models import load

from ..parity.conftest import FIXTURES

CONVNETS = FIXTURES.parent / "convnets"


@pytest.fixture(scope="module")
def model():
    return load(FIXTURES / "llama-gqa")


@pytest.mark.parametrize("site", ["embed", "blocks.3.mlp.post", "blocks.*.mlp.post", "blocks.1,2.mlp.hook_post", "", 3])
def test_names_are_no_patterns(site):
    assert pattern_of(site) is None


def test_every_site_that_has_a_row_for_each_token(model, capsys):
    found = spelled_out(["*"], model)
    table = model.sites()
    layers = range(model.cfg.n_layers)
    expected = []
    for site in table:
        if site.axes[:2] == ("batch", "pos"):
            expected += [site.name] if site.layers is None else [site.name.replace("ks.", f"ks.{i}.") for i in layers]
    assert list(found) == expected
    assert "blocks.attn.scores, blocks.attn.pattern: no row for each token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("blocks.1.*_out", ["blocks.1.attn_out", "blocks.1.mlp_out"]),
        ("blocks.0,1.mlp.p*t", ["blocks.0.mlp.post", "blocks.1.mlp.post"]),
        ("*.resid_p?e", [f"blocks.{i}.resid_pre" for i in range(9)]),
        ("ln_final.*", ["ln_final.scale", "ln_final.normalized"]),
    ],
)
def test_patterns_match_names(model, asked, found):
    expected = [site for site in found if int("0" + "".join(filter(str.isdecimal, site))) < model.cfg.n_layers]
    assert list(spelled_out([asked], model)) == expected


def test_a_layer_or_all_of_a_stack(model):
    every = [site for site in spelled_out(["*"], model) if site.startswith("blocks.")]
    assert sorted(spelled_out(["blocks.*"], model)) == sorted(every)
    assert set(spelled_out(["blocks.1.*"], model)) == {site for site in every if site.startswith("blocks.1.")}


def test_stages_and_what_has_no_patches():
    found = spelled_out(["stage1.*"], load(CONVNETS / "resnet-basic"))
    assert found
    assert all(site.startswith("stage1.blocks.") for site in found)
    crossed = spelled_out(["blocks.0.cross_attn.?"], load(FIXTURES / "umt5"))  # keys and values are the encoder's
    assert crossed == ("blocks.0.cross_attn.q", "blocks.0.cross_attn.z")


def test_a_pattern_that_matches_nothing_is_refused(model):
    for asked in ("blocks.*.mlp.x*", "blocks.99.mlp.*", "blocks.*.attn.p*n"):
        with pytest.raises(UserError, match=r"no site 'blocks\..*Known: embed, .*jaxneuro sites"):
            spelled_out([asked], model)


@pytest.mark.parametrize("site", ["*", "blocks.*", "blocks.*.mlp.*", "blocks.3.*"])
def test_one_site_is_no_pattern(model, site):
    with pytest.raises(UserError, match="is a pattern of sites, and one site is meant here"):
        reader(model.apply, site)
    with pytest.raises(UserError, match="is a pattern of sites, and one site is meant here"):
        at_site(model.apply, site, None)
