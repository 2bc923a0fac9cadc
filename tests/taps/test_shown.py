# SPDX-License-Identifier: Apache-2.0
"""What a person sees in a REPL: tables, edits, configurations, models and dictionaries in a line or two."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxneuro
from jaxneuro.cli import main
from jaxneuro.dictionaries import JumpReLU, SparseCoder, TopK, topk
from jaxneuro.errors import UserError
from jaxneuro.inference import generate
from jaxneuro.models import Config, Transformer, init
from jaxneuro.taps import add, apply_fn, capture, clamp, patch, scale, sites, tap, zero

SMALL = {
    "n_layers": 2,
    "d_model": 8,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_head": 4,
    "d_mlp": 12,
    "d_vocab": 9,
    "n_ctx": 16,
}
CFG = Config(**SMALL, tied=True)


@pytest.fixture(scope="module")
def model():
    return Transformer(CFG, init(CFG, jax.random.key(0)))


@pytest.mark.parametrize(
    ("edit", "shown"),
    [
        (zero("blocks.3.mlp.post", neuron=3), "zero('blocks.3.mlp.post', neuron=3)"),
        (add("embed", np.zeros(4, np.float32), pos=-1), "add('embed', float32[4], pos=-1)"),
        (scale("blocks.*.mlp.post", 0.5, layer=[0, 1]), "scale('blocks.*.mlp.post', 0.5, layer=int64[2])"),
        (clamp("embed", hi=2), "clamp('embed', None, 2)"),
        (apply_fn("embed", jnp.tanh), "apply_fn('embed', tanh)"),
        (patch("embed", jnp.ones((2, 3))), "patch('embed', float32[2, 3])"),
    ],
)
def test_an_edit_is_shown_as_it_is_written(edit, shown):
    assert repr(edit) == shown
    jax.make_jaxpr(lambda e: (repr(e), 0)[1])(edit)  # with tracers in it


def test_methods_and_pure_functions_are_shown_in_a_line(model):
    shown = repr(topk(n_latents=4, k=2))
    assert " at 0x" not in shown
    assert shown.startswith("Method(init=")
    assert len(shown) < 200
    assert "Transformer.apply" in repr(model.apply)
    with pytest.raises(TypeError, match=r"Transformer\.apply"):
        model.apply()


def test_models_and_configurations_are_shown_by_what_differs(model):
    assert repr(CFG) == f"Config({', '.join(f'{k}={v}' for k, v in sorted_as(CFG).items())})"
    assert repr(model).startswith("Transformer(")
    assert len(repr(model)) < 300
    n = sum(a.size for a in jax.tree.leaves(model.weights))
    assert f"{n:,} parameters, float32" in repr(model)


def sorted_as(cfg):
    """What was given, in the order of the fields."""
    given = {**SMALL, "tied": True}
    return {f: given[f] for f in cfg.__dataclass_fields__ if f in given}


def test_dictionaries_are_shown_by_their_sizes():
    arrays = {"W_enc": jnp.zeros((2, 5)), "W_dec": jnp.zeros((5, 3)), "b_enc": jnp.zeros(5), "b_dec": jnp.zeros(3)}
    assert repr(SparseCoder(**arrays, activation=TopK(2))) == (
        "SparseCoder(d_in=2, d_out=3, n_latents=5, activation=TopK(k=2), float32)"
    )
    assert "threshold=float32[5]" in repr(SparseCoder(**arrays, activation=JumpReLU(jnp.zeros(5))))


def test_a_table_of_sites_is_read_by_name(model, capsys):
    table = model.sites()
    assert table == sites(model.apply, model.weights, jnp.zeros((1, 8), "int32"))
    assert table["blocks.mlp.post"] is table["blocks.1.mlp.hook_post"]
    assert table["blocks.mlp.in"].what == "what the MLP reads, after gain and bias"
    assert table["blocks.mlp.in"].theirs == "blocks.L.mlp.hook_in"
    assert isinstance(table[0], type(table["embed"]))
    with pytest.raises(UserError, match=r"Did you mean 'blocks\.mlp\.post'"):
        table["blocks.mlp.posts"]
    assert repr(table) == str(table)
    assert str(table).endswith("every site: *")
    assert "One layer: blocks.0." in str(table)
    assert "<td>blocks.mlp.post</td>" in table._repr_html_()
    assert "&lt;b&gt;" in sites(lambda x: tap(x, "<b>"), jnp.ones(1))._repr_html_()
    assert main(["sites", "bundled"]) == 0
    shown = capsys.readouterr().out
    assert "TransformerLens" in shown
    assert "neurons, as the output matrix reads them" in shown


def test_one_layer_is_said_as_one():
    one = sites(lambda x: tap(x, "stage0.post", layer=0), jnp.ones(1))
    assert "  layer 0  " in str(one)


def test_a_star_is_every_site(model):
    tokens = jnp.zeros((1, 3), "int32")
    names = {s.name for s in model.sites(tokens)}
    _, acts = jax.jit(capture(model.apply, "*"))(model.weights, tokens)
    assert set(acts) == names
    assert acts["blocks.attn.pattern"].shape == (2, 1, 2, 3, 3)
    _, eager = capture(model.apply, {"*": jnp.mean, "embed": None})(model.weights, tokens)
    assert set(eager) == names
    np.testing.assert_allclose(eager["blocks.mlp.post"], acts["blocks.mlp.post"].mean((1, 2, 3)), rtol=1e-4, atol=1e-6)
    assert eager["embed"].shape == (1, 3, 8)
    _, grads = capture(jax.grad(lambda w: model.apply(w, tokens).sum()), "*")(model.weights)
    assert "blocks.mlp.post@grad" in grads
    assert not any(name.endswith("@tangent") for name in grads)


def test_a_misspelled_selector_is_refused_at_once():
    with pytest.raises(UserError, match=r"no axis 'neurn'\. Did you mean 'neuron'"):
        zero("blocks.3.mlp.post", neurn=3)
    zero("my.site", unit=3)  # axes of one's own are checked where the site is


@pytest.mark.parametrize("around", [lambda f: capture(f, "embed"), jax.jit, jax.make_jaxpr])
def test_generate_inside_a_transformation_is_refused_in_a_sentence(around, model):
    tokens = jnp.zeros((1, 3), "int32")
    for fn in (lambda t: generate(model, t, max_new=2).tokens, lambda t: generate(model, tokens, max_new=2).tokens):
        with pytest.raises(UserError, match="generate cannot run inside capture"):
            around(fn)(tokens)


def test_the_version_and_the_module(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxneuro {jaxneuro.__version__}\n"
    run = [sys.executable, "-m", "jaxneuro", "--version"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == f"jaxneuro {jaxneuro.__version__}\n"


def test_both_packages_are_typed():
    root = Path(__file__).parents[2]
    assert (root / "jaxneuro" / "py.typed").exists()
    assert (root / "kernels" / "jaxneuro_kernels" / "py.typed").exists()
