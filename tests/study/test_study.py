# SPDX-License-Identifier: Apache-2.0
"""The whole pass on a tiny model, twice over; and what it refuses."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from jaxneuro.cli import main
from jaxneuro.console import quietly
from jaxneuro.errors import UserError
from jaxneuro.models import Transformer, load, save_pretrained
from jaxneuro.study import StudyConfig, run_study, steps
from jaxneuro.study import run as study_run
from jaxneuro.study.config import CardConfig, DictionaryConfig, EffectConfig, SelectConfig, TextConfig
from jaxneuro.study.judging import METRICS, _curves


@pytest.fixture(scope="module")
def config(model_folder, groups_file, tmp_path_factory):
    return StudyConfig(
        model=str(model_folder),
        groups=str(groups_file),
        out=tmp_path_factory.mktemp("studies") / "whole",
        batch=8,
        text=TextConfig(window=16, max_tokens_per_group=320),
        select=SelectConfig(top_rate=0.1, shuffles=40, responses_per_group=8),
        effect=EffectConfig(tokens_per_group=32, batch=4, chunk=8),
        cards=CardConfig(per_group=2, dosed=1, latents=4, tokens=3, examples=2, context=3, doses=(0.0, 4.0)),
        dictionary=DictionaryConfig(expansion=4, k=4, steps=6, batch=32, max_tokens=200, dead_after_tokens=96),
    )


@pytest.fixture(scope="module")
def done(config):
    return run_study(config)


def test_every_file_is_there(done):
    names = {p.name for p in done.iterdir()}
    assert {"report.html", "results.json", "statistics.npz", "neurons.npz", "effect.npz", "dictionary"} <= names
    assert not [n for n in names if n.endswith(".tmp") or n == "unfinished"]


def test_results_say_what_the_readme_promises(done, config):
    results = json.loads((done / "results.json").read_text())
    assert results["groups"] == ["fox", "fuchs"]
    assert set(results["neurons"]) >= {"specific", "related", "agnostic", "shuffled"}
    assert np.shape(results["effect"]["matrix"]) == np.shape(results["effect"]["random_std"]) == (2, 2)
    wanted = {"fvu", "explained_variance", "l0", "dead_fraction", "ce_recovered_zero", "ce_recovered_mean"}
    assert set(results["dictionary"]) >= wanted
    assert results["dictionary"]["explained_variance"] == pytest.approx(1 - results["dictionary"]["fvu"], abs=1e-6)
    assert 0 < results["dictionary"]["l0"] <= config.dictionary.k
    decided = {"text.bos": "auto"}
    assert results["config"] == json.loads(json.dumps(config.identity() | decided))


def test_dead_latents_are_counted_once_they_can_be_and_absent_before(done, config, tmp_path):
    """After 96 tokens without being on a latent is dead, so the first 3 steps of 32 tokens say nothing of it."""
    lines = (done / METRICS).read_text().splitlines()
    known = [json.loads(line).get("dead_fraction") for line in lines]
    assert [v is None for v in known] == [True] * 3 + [False] * 3
    assert all("dead_fraction" not in line for line in lines[:3])
    curves = json.loads((done / "dictionary.json").read_text())["curves"]
    assert curves["dead_fraction"] == known
    assert curves["tokens"] == [32 * (i + 1) for i in range(6)]
    assert "Dead latents over 192 training tokens" in (done / "report.html").read_text()
    (tmp_path / METRICS).write_text("\n".join(lines[:3]))  # a run that ended before: no curve, no 0
    assert sorted(_curves(tmp_path / METRICS)) == ["fvu", "l0", "tokens"]


def test_effect_of_nothing_is_nothing(done):
    results = json.loads((done / "results.json").read_text())
    for size, row in zip(results["effect"]["set_size"], results["effect"]["matrix"], strict=True):
        assert all((v is None) == (size == 0) for v in row)


def test_again_does_nothing_and_leaves_the_same(done, config, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in done.iterdir() if p.is_file() and p.name != ".lock"}
    before.pop("run.json")
    run_study(config)
    assert "done before" in capsys.readouterr().err
    after = {name: (done / name).stat().st_mtime_ns for name in before}
    assert after == before


def test_interrupted_and_resumed_is_the_same_study(done, config, tmp_path, monkeypatch):
    other = dataclasses.replace(config, out=tmp_path / "other")
    table = list(steps.STEPS)

    def interrupted(inputs, folder):
        raise KeyboardInterrupt

    broken = [s._replace(function=interrupted) if s.name == "cards" else s for s in table]
    monkeypatch.setattr(steps, "STEPS", tuple(broken))
    with pytest.raises(KeyboardInterrupt):
        run_study(other)
    monkeypatch.setattr(steps, "STEPS", tuple(table))
    run_study(other)
    one, two = (json.loads((f / "results.json").read_text()) for f in (done, other.out))
    assert one == two


def test_a_new_title_is_a_new_page_and_no_new_study(done, config, tmp_path, capsys):
    shutil.copytree(done, tmp_path / "copy")
    titled = dataclasses.replace(config, out=tmp_path / "copy", title="Foxes\u202e")
    run_study(titled)
    out = capsys.readouterr()
    assert out.err.count("done before") == 5
    assert out.out.splitlines()[0] == "Foxes[U+202E]"
    assert "<h1>Foxes[U+202E]</h1>" in (titled.out / "report.html").read_text()
    assert json.loads((titled.out / "results.json").read_text())["title"] == titled.title
    run_study(titled)
    assert capsys.readouterr().err.count("done before") == 6


def test_the_findings_are_told_at_the_end(done, config, capsys):
    run_study(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{Path(config.model).name} on fox, fuchs"
    findings = json.loads((done / "results.json").read_text())["findings"]
    assert 3 <= len(findings) <= 5
    assert [line[4:] for line in lines[1 : 1 + len(findings)]] == [f["claim"] for f in findings]
    assert {line[2] for line in lines[1 : 1 + len(findings)]} <= set("✓✗·")


def test_quiet_prints_the_result_alone(done, config, capsys):
    with quietly():
        run_study(config)
    out = capsys.readouterr()
    assert out.err == ""
    assert "report.html" in out.out


def test_too_few_windows_get_no_verdict_on_the_page(done):
    page = (done / "report.html").read_text()
    assert "windows, " in page
    assert "Too few windows to judge" in page
    effect = next(f for f in json.loads((done / "results.json").read_text())["findings"] if "ilencing" in f["claim"])
    assert effect["holds"] is None


def test_the_report_opens_with_its_parts(done):
    page = (done / "report.html").read_text()
    assert "<svg" in page
    assert "fuchs" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_command_line_exit_codes(model_folder, groups_file, tmp_path, capsys):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.tex").write_text("")
    assert main(["study", "--model", str(model_folder), "--groups", str(groups_file), "--out", str(out)]) == 2
    assert "holds something that is not a study" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(study_run, "RunFolder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["study", "--out", str(tmp_path / "new")]) == 130
    assert "Run the same command again" in capsys.readouterr().err


def test_one_group_only(model_folder, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": "a b c " * 50, "group": "only"}) + "\n")
    with pytest.raises(UserError, match="only"):
        run_study(StudyConfig(model=str(model_folder), groups=str(path), out=tmp_path / "run"))


def test_too_little_text(model_folder, tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"text": "a b", "group": g}) + "\n" for g in "ab"))
    with pytest.raises(UserError, match=r"group 'a' has 1 \(\d+ tokens\), 'b' has 1 .*leave_out_small=True"):
        run_study(
            StudyConfig(model=str(model_folder), groups=str(path), out=tmp_path / "run", text=TextConfig(window=64))
        )


def test_nan_weights_are_named(model_folder, groups_file, tmp_path):
    model = load(model_folder)
    weights = model.weights
    weights["blocks"]["mlp"]["up"] = weights["blocks"]["mlp"]["up"].at[0, 0, 0].set(np.nan)
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    save_pretrained(Transformer(model.cfg, weights), broken)
    with pytest.raises(UserError, match=r"NaN or infinity in model\.layers\.0\.mlp\.up_proj\.weight"):
        run_study(StudyConfig(model=str(broken), groups=str(groups_file), out=tmp_path / "run"))


def test_unknown_site(config, tmp_path):
    asked = dataclasses.replace(config, out=tmp_path / "run", select=SelectConfig(site="mlp.gates"))
    with pytest.raises(UserError, match=r"mlp\.gate"):
        run_study(asked)


def test_ctrl_c_inside_a_step_goes_on_bitwise(done, config, tmp_path, monkeypatch):
    other = dataclasses.replace(config, out=tmp_path / "other")

    class Pressed(steps.LabelledStream):
        """Ctrl-C while the second batch is on its way."""

        n = 0

        def __next__(self):
            self.n += 1
            if self.n == 2:
                signal.raise_signal(signal.SIGINT)
            return super().__next__()

    with monkeypatch.context() as m:
        m.setattr(steps, "LabelledStream", Pressed)
        with pytest.raises(KeyboardInterrupt):
            run_study(other)
    assert list((other.out / "unfinished" / "statistics").glob("[0-9]*")), "a checkpoint to go on from"
    assert not (other.out / "statistics.npz").exists()
    with monkeypatch.context() as m:
        m.setattr(steps, "STEPS", steps.STEPS[:1])
        run_study(other)
    with np.load(done / "statistics.npz") as one, np.load(other.out / "statistics.npz") as two:
        assert set(one.files) == set(two.files)
        for name in one.files:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dictionary": DictionaryConfig(site="blocks.0.resid_pots")}, "resid_post"),
        ({"dictionary": DictionaryConfig(site="blocks.*.resid_post")}, "needs one layer's"),
        ({"dictionary": DictionaryConfig(expansion=1, k=17)}, r"dictionary.k = 17 is more than the 16 latents"),
        ({"select": SelectConfig(site="blocks.0.mlp.post")}, "reads all layers of a site"),
        ({"select": SelectConfig(shuffles=1)}, "select.shuffles = 1 is out of range"),
        ({"cards": CardConfig(doses=(0.0,))}, "holds no dose"),
        ({"groups": "no-such-folder"}, "no-such-folder"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_computed(config, tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        run_study(dataclasses.replace(config, out=tmp_path / "deep" / "run", **change))
    assert list(tmp_path.iterdir()) == [], "no folder of a study that never began"


def test_a_folder_that_was_there_stays(config, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError):
        run_study(dataclasses.replace(config, out=tmp_path / "run", groups="no-such-folder"))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert list((tmp_path / "run").iterdir()) == []
