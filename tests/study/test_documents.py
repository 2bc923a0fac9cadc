# SPDX-License-Identifier: Apache-2.0
"""What a study does with documents: drawn over the whole group, split by document, few of them said; other sites."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.cli import main
from jaxneuro.data import load_tokenizer
from jaxneuro.errors import UserError
from jaxneuro.models import Transformer, load, save_pretrained
from jaxneuro.study import StudyConfig, run_study, steps
from jaxneuro.study.config import CardConfig, DictionaryConfig, EffectConfig, SelectConfig, TextConfig
from jaxneuro.study.explain import ARRAYS
from jaxneuro.study.inputs import load_inputs

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "it", "was", "best", "of", "times"]


def write(path, documents):
    """documents: {group: [words per document]}."""
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(rng.choice(WORDS, n)), "group": g} for g, sizes in documents.items() for n in sizes]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@pytest.fixture
def config(model_folder, tmp_path):
    groups = write(tmp_path / "text.jsonl", {"a": [60] * 12, "b": [20, 90, 150] * 4, "c": [40] * 10})
    return StudyConfig(
        model=str(model_folder),
        groups=groups,
        out=tmp_path / "study",
        batch=8,
        text=TextConfig(window=16, max_tokens_per_group=400),
        select=SelectConfig(top_rate=0.1, shuffles=40, responses_per_group=16),
        effect=EffectConfig(tokens_per_group=64, batch=4, chunk=8),
        cards=CardConfig(per_group=2, dosed=1, tokens=3, examples=2, context=3, doses=(0.0, 4.0)),
        dictionary=DictionaryConfig(expansion=4, k=4, steps=4, batch=32, max_tokens=200),
    )


def test_no_document_is_both_studied_and_measured(config):
    inputs = load_inputs(config)
    studied, measured = (set(rows.block.tolist()) for rows in (inputs.studied, inputs.measured))
    assert not studied & measured
    for name, t in inputs.texts.items():
        assert t["split_by_document"], name
        assert t["documents_measured"] >= 2
        assert 0 < t["tokens_measured"] <= t["tokens_used"] / 4
        assert t["tokens_studied"] + t["tokens_measured"] <= t["tokens_used"] <= 400


def test_windows_are_drawn_over_the_whole_group_with_the_seed(config):
    one = load_inputs(config)
    text = dataclasses.replace(config.text, max_tokens_per_group=200)
    two, same, other = (
        load_inputs(dataclasses.replace(config, text=text, seed=seed)).used.indices for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(two, same)
    assert set(two.tolist()) != set(other.tolist())
    for k, name in enumerate(one.groups):
        mine = np.flatnonzero(one.windows.group == k)
        half = mine[len(mine) // 2]
        here = two[one.windows.group[two] == k]
        assert here.min() < half < here.max(), "not the beginning alone"
        assert f"{name}: " in "\n".join(one.said())
    assert "tokens of " in "\n".join(one.said())
    assert "drawn at random" in "\n".join(one.said())


def test_a_group_of_one_document_is_split_by_windows_and_claims_no_more(config, tmp_path, monkeypatch, capsys):
    groups = write(tmp_path / "few.jsonl", {"a": [60] * 12, "b": [300], "c": [40] * 10})
    monkeypatch.setattr(
        steps, "STEPS", tuple(s for s in steps.STEPS if s.name not in ("cards", "dictionary", "report"))
    )
    run_study(dataclasses.replace(config, groups=groups))
    said = capsys.readouterr().err
    assert "b: one document, so what is studied and what is measured are windows of the same one" in said
    found = json.loads((config.out / "neurons.json").read_text())
    assert found["claim"] == ["documents", "windows", "documents"]
    assert found["documents"][1] == 1
    assert found["smallest_p"][1] == pytest.approx(1 / sum(found["documents"]))
    from jaxneuro.study.results import few_documents

    (note,) = few_documents(["a", "b", "c"], found)
    assert "Group b has 1 studied document: of its expert neurons nothing can be claimed beyond windows" in note


def test_tiny_groups_are_refused_with_the_flag_or_left_out_and_said(config, tmp_path):
    groups = write(tmp_path / "tiny.jsonl", {"a": [60] * 9, "b": [60] * 9, "tiny": [2]})
    asked = dataclasses.replace(config, groups=groups)
    with pytest.raises(UserError, match=r"group 'tiny' has 1 \(\d+ tokens\)\. .*leave_out_small=True"):
        load_inputs(asked)
    inputs = load_inputs(dataclasses.replace(asked, text=dataclasses.replace(asked.text, leave_out_small=True)))
    assert inputs.groups == ("a", "b")
    assert inputs.left_out == ("tiny",)
    assert "tiny: left out, fewer than 2 windows" in inputs.said()
    every = dataclasses.replace(asked, text=dataclasses.replace(asked.text, leave_out_small=True, min_windows=1000))
    with pytest.raises(UserError, match="at least 2 are needed"):
        load_inputs(every)


def coordinate(weights, site, layer, j):
    """What coordinate j writes to the residual stream, by hand; None where that is no direction."""
    rows = {"attn.z": weights["blocks"]["attn"]["wo"], "resid_post": jnp.eye(16)[None].repeat(2, 0), "attn.q": None}[
        site
    ]
    return None if rows is None else rows[layer].reshape(-1, 16)[j]


@pytest.mark.parametrize("site", ["attn.z", "resid_post", "attn.q"])
def test_cards_show_what_belongs_to_the_site(config, monkeypatch, site):
    """Coordinate 5 of attn.z is not neuron 5 of the MLP: its tokens and its dose curve are not that neuron's."""
    monkeypatch.setattr(steps, "STEPS", steps.STEPS[:4])
    asked = dataclasses.replace(config, select=dataclasses.replace(config.select, site=site, by="lape"))
    run_study(asked)
    shown = json.loads((config.out / "cards.json").read_text())
    doses = [d for d in shown["dose"] if d]
    assert doses
    assert all(f"activation at blocks.{site};" in d["unit"] for d in doses)
    inputs = load_inputs(asked)
    weights = inputs.model.weights
    for i, at in enumerate(zip(shown["layer"], shown["neuron"], strict=True)):
        row = coordinate(weights, site, *at)
        if row is None:
            assert "promoted" not in shown
            continue
        best = jnp.argsort(-(row * weights["final_norm"]["scale"]) @ weights["embed"]["tok"].T)
        assert [t for t, _ in shown["promoted"][i]] == inputs.tokenizer.token_strings(best[:3].tolist())
    assert all((d["probability"] is None) == ("promoted" not in shown) for d in doses)
    largest = steps.largest_values(inputs, f"blocks.{site}")
    for layer, neuron, d in zip(shown["layer"], shown["neuron"], shown["dose"], strict=True):
        if d:
            np.testing.assert_allclose(d["values"], np.array([0, 4]) * largest[layer, neuron], rtol=1e-5)


@pytest.mark.parametrize(
    ("site", "said"),
    [("attn.pattern", "values per token"), ("blocks.0,1.mlp.post", "reads all layers"), ("ln3.scale", "no site")],
)
def test_sites_that_a_study_cannot_read(config, site, said):
    with pytest.raises(UserError, match=said):
        load_inputs(dataclasses.replace(config, select=SelectConfig(site=site)))


def test_files_explain_themselves(config, monkeypatch):
    monkeypatch.setattr(steps, "STEPS", steps.STEPS[:3])
    run_study(config)
    seen = set()
    for name in ("statistics.npz", "neurons.npz", "effect.npz"):
        with np.load(config.out / name, allow_pickle=False) as z:
            assert z["groups"].tolist() == ["a", "b", "c"]
            about = json.loads(str(z["axes"]))
            assert set(about) == set(z.files) - {"groups", "axes"}
            sizes = {}
            for array, says in about.items():
                assert len(says["axes"]) == z[array].ndim, array
                assert says["what"]
                for axis, n in zip(says["axes"], z[array].shape, strict=True):
                    assert sizes.setdefault(axis, n) == n, (array, axis)
            assert sizes.get("group", 3) == 3
            seen |= set(about)
    assert seen == set(ARRAYS), "no entry without its array"


def test_the_preset_gives_defaults_and_options_win(monkeypatch):
    """Also those that are given with the value that the default preset has."""
    import jaxneuro.study

    asked = []
    monkeypatch.setattr(jaxneuro.study, "run_study", asked.append)
    main(["study", "--preset", "small", "--dictionary.steps", "5", "--dictionary.expansion", "16", "--seed", "3"])
    main(["study", "--preset=small"])
    main(["study", "--cards.per-group", "3"])
    small, plain, default = (a.resolved() for a in asked)
    assert (small.dictionary.steps, small.dictionary.expansion, small.cards.latents, small.seed) == (5, 16, 12, 3)
    assert plain == StudyConfig(preset="small").resolved()
    assert default == StudyConfig(cards=CardConfig(per_group=3))
    given = StudyConfig(preset="small", dictionary=DictionaryConfig(steps=7)).resolved()
    assert (given.dictionary.steps, given.dictionary.max_tokens) == (7, 20_000)


def test_the_help_lists_what_the_preset_sets(capsys):
    from jaxneuro.study.config import PRESETS

    with pytest.raises(SystemExit):
        main(["study", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, value in PRESETS["small"].items():
        assert f"{name.removeprefix('text.').replace('_', '-')} {value}" in said


def script():
    path = Path(__file__).parents[2] / "scripts" / "meaningless_groups.py"
    spec = importlib.util.spec_from_file_location("meaningless_groups", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_real_documents_in_groups_that_mean_nothing_have_no_experts():
    """Documents of one language dealt into three groups, on the bundled model: a null that permutes windows gives
    hundreds of experts; one that permutes documents gives any in one of twenty deals. (All languages: the script.)"""
    s = script()
    config = s.Config(only=("de", "en"), deals=2, shuffles=60)
    found = s.main(config)
    assert set(found) == {"de", "en"}
    dealt = [n for f in found.values() for n in f.experts]
    assert sum(n > 0 for n in dealt) <= 1  # of 4 at a level of 5 %: two or more have a probability of 1.4 %
    assert sum(n > 0 for f in found.values() for n in f.significant) <= 1
    assert max(n for f in found.values() for n in f.alone) > 3, "the test can fail: windows taken for independent"


def test_where_the_neurons_of_a_site_are_held_at_a_value(config):
    """A value of an MLP's neuron is held where the MLP hands it on; any other coordinate at its own site."""
    for asked, site, held in (
        (None, "blocks.mlp.gate", "blocks.mlp.post"),
        ("blocks.*.mlp.hook_post", "blocks.mlp.post", "blocks.mlp.post"),
        ("attn.hook_z", "blocks.attn.z", "blocks.attn.z"),
    ):
        inputs = load_inputs(dataclasses.replace(config, select=SelectConfig(site=asked)))
        assert (inputs.site, inputs.dosed_site) == (site, held)


@pytest.fixture
def with_sinks(config, model_folder, tmp_path):
    """(a study of a model in which every row of one token is 300 times longer, that token)."""
    model, tokenizer = load(str(model_folder)), load_tokenizer(str(model_folder))
    ids = np.concatenate([tokenizer.encode(f" {word}") for word in WORDS[3:]])
    token = int(np.bincount(ids).argmax())
    embed = np.array(model.weights["embed"]["tok"])
    embed[token] *= 300
    folder = tmp_path / "sinks"
    shutil.copytree(model_folder, folder)
    save_pretrained(Transformer(model.cfg, model.weights | {"embed": {"tok": embed}}), folder)
    return dataclasses.replace(config, model=str(folder)), token


@pytest.mark.parametrize("way", ["max_norm", "without_ids"])
def test_sinks_count_nowhere(with_sinks, way):
    """The same rows whether they are left out by norm or by id; they stay real for the model."""
    config, token = with_sinks
    whole = load_inputs(config)
    text = dataclasses.replace(config.text, **{way: {"max_norm": 20.0, "without_ids": (token,)}[way]})
    inputs = load_inputs(dataclasses.replace(config, text=text))
    for part in ("studied", "measured"):
        rows = getattr(inputs, part)
        batch, before = rows[0 : len(rows)], whole.windows.rows(rows.indices)
        is_sink = before["tokens"] == token
        assert (is_sink & before["counted"]).any()
        np.testing.assert_array_equal(batch["counted"], before["counted"] & ~is_sink)
        np.testing.assert_array_equal(batch["mask"], before["mask"])
        assert rows.tokens_per_group.sum() == batch["counted"].sum()
    assert inputs.fingerprint()["text"] != whole.fingerprint()["text"]


def test_positions_count_nowhere_and_not_everything_may_be_left_out(config):
    text = dataclasses.replace(config.text, without_positions=(0, 2))
    batch = load_inputs(dataclasses.replace(config, text=text)).studied[0:8]
    assert not batch["counted"][:, [0, 2]].any()
    assert batch["counted"][:, 1].all()
    for name, value, message in [
        ("without_positions", tuple(range(16)), "leave no token of 3 of 3 groups"),
        ("without_ids", (320,), "not in the vocabulary of 320"),
        ("max_norm", 0.5, "must be at least 1.01"),
    ]:
        text = dataclasses.replace(config.text, **{name: value})
        with pytest.raises(UserError, match=message):
            load_inputs(dataclasses.replace(config, text=text).resolved())


def test_tokens_are_not_left_out_of_pictures():
    with pytest.raises(UserError, match=r"`max_norm` is of tokens, and pictures are studied"):
        StudyConfig(pictures="folder", text=TextConfig(max_norm=3.0)).resolved()
