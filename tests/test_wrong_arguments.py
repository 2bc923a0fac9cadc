# SPDX-License-Identifier: Apache-2.0
# pyright: reportArgumentType=false, reportCallIssue=false
"""A wrong argument of the Python interface is one sentence: what was asked, and what to write."""

import jax
import jax.numpy as jnp
import pytest

from jaxneuro.activations import run
from jaxneuro.data import windows
from jaxneuro.dictionaries import topk
from jaxneuro.errors import UserError
from jaxneuro.inference import steer_sweep
from jaxneuro.models import Config, Transformer, init, load, save_pretrained
from jaxneuro.taps import add, apply_fn, capture, clamp, intervene, patch, set_to, sites, sweep, tap

SITE = "blocks.1.mlp.post"


@pytest.fixture(scope="module")
def model():
    sizes = {"n_heads": 2, "n_kv_heads": 2, "d_head": 4, "d_mlp": 12, "d_vocab": 9, "n_ctx": 16}
    cfg = Config(n_layers=2, d_model=8, **sizes)
    return Transformer(cfg, init(cfg, jax.random.key(0)))


def square(x):
    return x * x


WRONG = {
    "a point": (lambda: sweep(square, 5), "a leading axis"),
    "no points": (lambda: sweep(square, []), "a leading axis"),
    "a list": (lambda: sweep(square, [1.0, 2.0]), "jnp.array"),
    "unequal": (lambda: sweep(lambda p: p[0], (jnp.ones(2), jnp.ones(3))), r"\[2, 3\] entries"),
    "no batch": (lambda: sweep(square, jnp.arange(3), batch_size=0), "batch_size .* not 0"),
    "half a batch": (lambda: sweep(square, jnp.arange(3), batch_size=1.5), "batch_size .* not 1.5"),
    "add text": (lambda: add(SITE, "abc"), r"add\('blocks.1.mlp.post', abc\)"),
    "set to text": (lambda: set_to(SITE, "x"), "an array of numbers"),
    "set to nothing": (lambda: set_to(SITE, None), "an array of numbers"),
    "clamp to text": (lambda: clamp(SITE, hi="x"), "an array of numbers"),
    "patch text": (lambda: patch(SITE, "x"), r"patch\("),
    "ragged": (lambda: set_to(SITE, [[1.0], [1.0, 2.0]]), "unequal lengths"),
    "a dictionary": (lambda: add(SITE, {"v": 1.0}), "an array of numbers"),
    "a number for a function": (lambda: apply_fn(SITE, 3), r"apply_fn\('blocks.1.mlp.post', 3\).*function"),
    "texts without groups": (lambda: windows(["a", "b"], None, length=4), "read_groups"),
    "a text for texts": (lambda: windows({"de": "text"}, None, length=4), r"Write \[text\]"),
    "a maker of methods": (lambda: run(topk, [], key=jax.random.key(0)), r"run\(topk\(...\), ...\)"),
    "no method": (lambda: run(3, [], key=jax.random.key(0)), "not a Method"),
    "a number for a name": (lambda: load(3), "not 3"),
    "saving a number": (lambda: save_pretrained(3, "x"), "not 3"),
    "sites of a number": (lambda: sites(3), "3 is not a function"),
    "capture of a number": (lambda: capture(3, SITE)(), "3 is not a function"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_one_sentence(case):
    call, said = WRONG[case]
    with pytest.raises(UserError, match=said) as e:
        call()
    assert "\n" not in str(e.value)


def test_what_needs_a_model_says_so(model):
    with pytest.raises(UserError, match=r"model.sites\(\)"):
        sites(model)
    assert sites(model, model.example())[SITE.replace(".1", "")].layers == (0, 1)
    with pytest.raises(UserError, match="not 3"):
        save_pretrained(model, 3)

    def edits(dose):
        return [add(SITE, dose)]

    with pytest.raises(UserError, match=r"steer_sweep: points .*jnp.array"):
        steer_sweep(model, model.example(4), edits, [0.0, 1.0])
    with pytest.raises(UserError, match="chunk"):
        steer_sweep(model, model.example(4), edits, jnp.arange(2.0), chunk=0)


def test_a_function_returns_the_sites_shape_or_one_number():
    def f(x):
        return tap(x, "site", axes=("batch", "unit")) + 0

    x = jnp.arange(6.0).reshape(2, 3)
    for other in (lambda v: v[0], lambda v: v[:1], lambda v: v.mean(1, keepdims=True)):
        with pytest.raises(UserError, match="Return the same shape"):
            intervene(f, apply_fn("site", other))(x)
    assert intervene(f, apply_fn("site", lambda v: v[::-1]))(x).tolist() == x[::-1].tolist()
    assert intervene(f, apply_fn("site", lambda v: v.mean()))(x).tolist() == [[2.5] * 3] * 2
