# SPDX-License-Identifier: Apache-2.0
"""RECIPES.md runs as it stands, in order, and its results are what its headings say."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

RECIPES = (pathlib.Path(__file__).parents[1] / "RECIPES.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", RECIPES, re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Everything the recipes define, after the last."""
    found: dict = {}
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):  # as users have it
        patch.chdir(tmp_path_factory.mktemp("recipes"))
        for block in BLOCKS:
            exec(compile(block, "RECIPES.md", "exec"), found)
    return found


def test_there_are_fifteen_and_each_is_short():
    headings = re.findall(r"^## .*\n(.+)$", RECIPES, re.MULTILINE)
    assert len(headings) == len(BLOCKS) - 1 >= 15
    assert all(sum(bool(line.strip()) for line in block.splitlines()) <= 10 for block in BLOCKS)


def test_values_are_what_their_headings_say(names):
    model, weights, clean = names["model"], names["weights"], names["clean"]
    out = model.apply(weights, clean)
    np.testing.assert_allclose(names["pattern"].sum(-1)[0], 1, rtol=1e-5)
    np.testing.assert_allclose(names["shares"].sum(), out[0, -1, names["answer"]], rtol=1e-4)
    np.testing.assert_allclose(names["lens"][-1], model.apply(weights, names["tokens"], names["mask"]), atol=1e-4)
    # patched before anything differs, or at the only place that does, the corrupt run is the clean one
    np.testing.assert_allclose(names["effect"][0, 1], names["difference"](out), atol=1e-4)
    assert names["drop"].shape == (model.cfg.n_layers, model.cfg.n_heads)
    assert float(jnp.abs(names["drop"]).max()) > 1e-3
    assert names["attribution"].shape == names["at"]["blocks.*.mlp.post"].shape
    assert set(names["few"]) == {"blocks.2.resid_post", "blocks.0,1.attn.pattern"}
    assert "resid_post" in "".join(names["cache"])
    assert float(names["cam"].min()) >= 0
    np.testing.assert_array_equal(names["batch"]["tokens"][:, 7, 9], [[0, 0, 1], [1, 0, 0]])  # blue, red
    assert names["batch"]["counted"].sum(1).tolist() == [16, 16]


def test_dictionaries_are_what_their_headings_say(names):
    x = names["acts"].x[:32]
    np.testing.assert_allclose(names["latents"], names["trained"].encode(x), atol=1e-6)
    assert names["judged"].l0 == pytest.approx(8, abs=0.1)
    assert 0.5 < names["loss_recovered"].recovered_mean < 1.1
    plain = names["model"].apply(names["weights"], names["tokens"], names["mask"])
    assert float(jnp.abs(names["spliced"] - plain).max()) > 1e-3
    assert names["changes"].shape[:2] == (4, 2)
    assert isinstance(names["steered"], str)
