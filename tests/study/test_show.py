# SPDX-License-Identifier: Apache-2.0
"""A dictionary that no study trained, judged and shown by a command."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.cli import main
from jaxneuro.dictionaries import JumpReLU, Relu, SparseCoder, TopK, load_dictionary, save_native, save_saelens
from jaxneuro.errors import UserError
from jaxneuro.study import ShowDictionary, StudyConfig, run_study, show_dictionary
from jaxneuro.study.config import CardConfig, DictionaryConfig, EffectConfig, SelectConfig, TextConfig
from jaxneuro.study.inputs import load_inputs
from jaxneuro.study.latents import default_latents
from jaxneuro.study.run import with_begin
from jaxneuro.study.show import numbers, study_of
from jaxneuro.training import TrainConfig

HOOK = {"hook_name": "blocks.1.hook_resid_post", "context_size": 16, "prepend_bos": False}


def coder(d_in: int = 16, n_latents: int = 24, **more) -> SparseCoder:
    """Not learned: the first d_in latents are the coordinates, the next their negatives."""
    rows = jnp.concatenate([jnp.eye(d_in), -jnp.eye(d_in)])[:n_latents]
    arrays = {"W_enc": rows.T, "W_dec": rows, "b_enc": jnp.zeros(n_latents), "b_dec": jnp.zeros(d_in)}
    return SparseCoder(**{**arrays, "activation": TopK(4), **more})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_saelens(coder(), tmp_path_factory.mktemp("sae") / "published", HOOK)


@pytest.fixture(scope="module")
def asked(saved, model_folder, groups_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("shown") / "page"
    config = ShowDictionary(
        path=str(saved), model=str(model_folder), groups=str(groups_file), out=out, latents="0,7,12"
    )
    return dataclasses.replace(config, max_tokens_per_group=320)


@pytest.fixture(scope="module")
def shown(asked):
    return show_dictionary(asked)


def test_it_is_judged_and_shown(shown):
    found = json.loads((shown / "dictionary.json").read_text())
    assert (found["site"], found["n_latents"], found["k"]) == ("blocks.1.resid_post", 24, 4)
    assert [latent["latent"] for latent in found["latents"]] == [0, 7, 12]
    assert {"fvu", "l0", "dead_fraction", "ce_recovered_zero", "ce_recovered_mean"} <= set(found["metrics"])
    assert 0 < found["metrics"]["fvu"] < 1, "coordinates explain something, and 4 of 16 not all"
    first = found["latents"][0]
    assert first["examples"]
    assert len(first["promoted"]) == 10
    assert len(first["rate"]) == 2
    best = [e["values"][e["peak"]] for e in first["examples"]]
    assert best == sorted(best, reverse=True)


def test_the_page_is_of_the_dictionary_alone(shown, saved):
    page = (shown / "report.html").read_text()
    assert "<h1>published, " in page
    assert "CE recovered, zero baseline" in page
    assert "set to its mean" in page
    assert "It was not trained here but read from" in page
    assert not [w for w in ('id="effect"', 'id="neurons"', "No neuron counts", "<h3>Training</h3>") if w in page]


def test_the_terminal_gets_the_numbers_and_the_same_command_does_nothing(asked, shown, capsys):
    before = (shown / "dictionary.json").stat().st_mtime_ns
    show_dictionary(asked)
    assert (shown / "dictionary.json").stat().st_mtime_ns == before
    out = capsys.readouterr().out
    assert "A dictionary of 24 latents explains" in out
    assert "(baseline: site set to zero)" in out
    assert "report.html" in out


def test_what_the_files_say_is_used(asked, saved):
    config = study_of(asked)
    assert (config.text.window, config.text.bos) == (16, "never")
    config = study_of(dataclasses.replace(asked, window=32, bos="auto"))
    assert (config.text.window, config.text.bos) == (32, "auto")


BEGIN = {**HOOK, "prepend_bos": True}


@pytest.mark.parametrize(
    ("metadata", "asked_bos", "begin", "said"),
    [
        (BEGIN, None, "<eos>", "windows of 16 tokens that begin with <eos>, as in its training"),
        (BEGIN, "never", None, "begin without a begin token, but it was trained with one: --bos always"),
        (HOOK, None, None, "windows of 16 tokens that begin without a begin token, as in its training"),
        (HOOK, "always", "<eos>", "begin with <eos>, but it was trained without one: --bos never"),
        ({"hook_name": HOOK["hook_name"], "context_size": 16}, None, None,
         "its files do not say how its texts began: --bos always or never"),
        (BEGIN | {"context_size": 24}, None, "<eos>", "it was trained on windows of 24: --window 24"),
    ],
)  # fmt: skip
def test_texts_begin_as_the_dictionary_was_trained_in_both_commands(
    model_folder, groups_file, tmp_path, metadata, asked_bos, begin, said
):
    path = str(save_saelens(coder(), tmp_path / "d", metadata))
    page = ShowDictionary(
        path=path, model=str(model_folder), groups=str(groups_file), window=16, bos=asked_bos, max_tokens_per_group=320
    )
    study = StudyConfig(
        model=str(model_folder), groups=str(groups_file), dictionary=DictionaryConfig(path=path),
        text=TextConfig(window=16, bos=asked_bos, max_tokens_per_group=320),
    )  # fmt: skip
    for config in (study_of(page), with_begin(study.resolved())):
        inputs = load_inputs(config)
        first = np.concatenate([b["tokens"][:, 0] for b in inputs.measured_batches()])
        assert (first == inputs.tokenizer.eos_id).all() == (begin is not None)
        assert said in inputs.conventions
        assert any(said in line for line in inputs.said())


def test_without_a_dictionary_texts_begin_by_the_tokenizers_convention():
    assert with_begin(StudyConfig()).text.bos == "auto"
    assert with_begin(StudyConfig(text=TextConfig(bos="always"))).text.bos == "always"


def test_latents_by_default_are_selective_and_active(asked, tmp_path):
    folder = show_dictionary(dataclasses.replace(asked, latents=None, n=4, out=tmp_path / "page"))
    latents = json.loads((folder / "dictionary.json").read_text())["latents"]
    assert len({latent["latent"] for latent in latents}) == 4


def test_a_quarter_of_the_default_latents_are_the_most_active_of_the_others():
    rates = np.array([[0.9, 0.9], [0.5, 0.0], [0.0, 0.3], [0.2, 0.1], [0.8, 0.8], [0.0, 0.0]])
    assert default_latents(rates, 4).tolist() == [1, 2, 0, 4]
    assert sorted(default_latents(rates, 100).tolist()) == [0, 1, 2, 3, 4], "one that never fires is not shown"
    assert default_latents(rates, 0).tolist() == []


def test_a_dictionary_of_any_activation(asked, tmp_path):
    jump = coder(activation=JumpReLU(jnp.full(24, 1e-4)))
    folder = save_native(jump, tmp_path / "native")
    with pytest.raises(UserError, match=r"do not say at which site it belongs\. Name it: --site blocks\.3\.resid_post"):
        show_dictionary(dataclasses.replace(asked, path=str(folder), out=tmp_path / "no"))
    page = dataclasses.replace(
        asked, path=str(folder), site="blocks.1.hook_resid_post", window=16, out=tmp_path / "page"
    )
    found = json.loads((show_dictionary(page) / "dictionary.json").read_text())
    assert found["k"] is None
    x = np.asarray(jump.encode(jnp.ones((1, 16))))
    assert x.shape == (1, 24)
    assert found["metrics"]["l0"] > 4


def transcoder(folder):
    return save_saelens(coder(W_skip=jnp.eye(16), apply_b_dec_to_input=False, activation=Relu()), folder / "t", HOOK)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latents": "0,24"}, r"no latent 24: this dictionary has 24, numbered from 0 to 23"),
        ({"latents": "0;7"}, r"--latents 0;7: '0;7' is no number of a latent\. Give 0,7,12"),
        ({"site": "blocks.*.resid_post"}, r"is not a site of one layer .*--site"),
        (
            {"site": "blocks.1.mlp.post"},
            r"reads vectors of 16, but blocks\.1\.mlp\.post of this model has 100\. .*--model",
        ),
        ({"site": "blocks.1.resid_pots"}, r"resid_post"),
        ({"model": None}, r"do not name a model\. Give --model"),
        ({"path": "no-such-folder"}, r"no-such-folder"),
        ({"groups": "no-such-folder"}, r"no-such-folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_flags_before_anything_is_written(asked, tmp_path, capsys, change, said):
    with pytest.raises(UserError, match=said):
        show_dictionary(dataclasses.replace(asked, out=tmp_path / "page", **change))
    assert list(tmp_path.iterdir()) == []


def test_a_transcoder_is_refused(asked, tmp_path):
    with pytest.raises(UserError, match="is a transcoder: it reads one site and writes another"):
        show_dictionary(dataclasses.replace(asked, path=str(transcoder(tmp_path)), out=tmp_path / "page"))


def test_the_command(asked, tmp_path, capsys):
    words = ["show-dictionary", asked.path, "--model", asked.model, "--groups", asked.groups, "--latents", "0,99"]
    assert main([*words, "--out", str(tmp_path / "page"), "--quiet"]) == 2
    assert "no latent 99" in capsys.readouterr().err


def test_numbers_of_latents():
    assert numbers("0, 7,12") == (0, 7, 12)
    assert numbers(None) == ()
    for wrong in ("0,,1", "-1", "1e3", "9" * 20):
        with pytest.raises(UserError, match="is no number of a latent"):
            numbers(wrong)


def test_a_study_takes_it_in_place_of_its_own(saved, model_folder, groups_file, tmp_path):
    config = StudyConfig(
        model=str(model_folder), groups=str(groups_file), out=tmp_path / "study", batch=8,
        text=TextConfig(window=16, max_tokens_per_group=320),
        select=SelectConfig(top_rate=0.1, shuffles=19, responses_per_group=8),
        effect=EffectConfig(tokens_per_group=32, batch=4, chunk=8),
        cards=CardConfig(per_group=1, dosed=0, latents=4, tokens=3, examples=2, context=3),
        dictionary=DictionaryConfig(path=str(saved), max_tokens=200),
    )  # fmt: skip
    out = run_study(config)
    found = json.loads((out / "dictionary.json").read_text())
    assert (found["path"], found["site"], found["curves"]) == (str(saved), "blocks.1.resid_post", {})
    assert not (out / "dictionary").exists()
    page = (out / "report.html").read_text()
    assert 'id="neurons"' in page
    assert "It was not trained here" in page
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), load_dictionary(saved), coder()))


def test_its_folder_is_not_that_of_training():
    """Both commands without --out, one after the other."""
    assert ShowDictionary(path="a").out != inspect.signature(TrainConfig).parameters["out"].default
