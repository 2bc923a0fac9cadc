# SPDX-License-Identifier: Apache-2.0
"""A finished run that goes on, what a run says at its end, and what it counts."""

import contextlib
import json

import jax
import numpy as np
import pytest

from jaxneuro.dictionaries.native import load_native
from jaxneuro.errors import UserError
from jaxneuro.models import load
from jaxneuro.training import OPTIONS, Live, TrainConfig, train_dictionary


def arrays(folder):
    return [np.asarray(a) for a in jax.tree.leaves(load_native(folder / "dictionary"))]


def said(folder, name="results.json"):
    return json.loads((folder / name).read_text())


def test_a_finished_run_goes_on_bitwise_where_the_rate_does_not_fall(config, changed):
    config = changed(config, decay=False)
    long = changed(config, out=config.out.with_name("long"), steps=10)
    train_dictionary(long)
    train_dictionary(changed(config, keep=True))
    train_dictionary(changed(config, steps=10))
    for a, b in zip(arrays(config.out), arrays(long.out), strict=True):
        np.testing.assert_array_equal(a, b)
    assert said(config.out) == said(long.out)
    lines = [[json.loads(line) for line in (c.out / "metrics.jsonl").read_text().splitlines()] for c in (config, long)]
    assert lines[0] == lines[1]


def test_where_the_rate_had_fallen_that_is_said(config, changed, capsys):
    train_dictionary(changed(config, keep=True))
    train_dictionary(changed(config, steps=10))
    assert "its learning rate had fallen by then and rises again" in capsys.readouterr().err
    assert said(config.out)["steps"] == 10
    with pytest.raises(UserError, match="steps: there 10, here 8"):
        train_dictionary(changed(config, steps=8))


def test_a_finished_run_without_checkpoints_or_with_other_options_does_not_go_on(config, changed):
    train_dictionary(config)
    before = said(config.out)
    with pytest.raises(UserError, match=r"complete at 6 steps and its checkpoints are gone.*--keep"):
        train_dictionary(changed(config, steps=10))
    with pytest.raises(UserError, match=r"belongs to another run .*method.l1: there 0.1, here 0.2"):
        train_dictionary(changed(config, steps=10, method__l1=0.2))
    assert said(config.out) == before


def test_a_target_that_is_missed_is_said_and_one_that_is_reached_is_not(config, changed, capsys):
    training = type(config.method.training)(learning_rate=1e-9)
    method = OPTIONS["jumprelu"](n_latents=16, target_l0=1.0, training=training)
    train_dictionary(changed(config, method=method))
    row = said(config.out)["dictionaries"]["dictionary"]
    assert row["l0_target"] == 1.0
    assert row["l0_reached"] is False
    assert f"L0 {row['l0']:.3g}, target 1 not reached: more steps" in capsys.readouterr().out
    near = OPTIONS["jumprelu"](n_latents=16, target_l0=row["l0"], training=training)
    train_dictionary(changed(config, method=near, out=config.out.with_name("near")))
    assert said(config.out.with_name("near"))["dictionaries"]["dictionary"]["l0_reached"] is True
    assert "not reached" not in capsys.readouterr().out


def test_dead_latents_are_said_to_be_countable_only_when_they_are(config, changed, capsys):
    train_dictionary(config)
    shown = capsys.readouterr()
    assert "dead latents: not yet countable: 384 tokens" in shown.out
    assert "dead: not yet countable" in shown.err
    training = type(config.method.training)(dead_after_tokens=64)
    train_dictionary(changed(config, out=config.out.with_name("soon"), method__training=training))
    shown = capsys.readouterr()
    assert "not yet countable" not in shown.out
    assert "train 6/6" in shown.err


def test_metrics_count_the_tokens_so_far(config):
    train_dictionary(config)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["tokens_seen"] for line in lines] == [128, 256, 384]
    assert [line["tokens"] for line in lines] == [64, 64, 64]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 2**70}, "seed = 1180591620717411303424 is above 4294967295"),
        ({"steps": 2**62}, "steps = 4611686018427387904 is above 2147483647"),
        ({"batch": 10**12}, "batch = 1000000000000 is above"),
        ({"method__n_latents": 2**62}, "method.n_latents = 4611686018427387904 is above"),
        ({"sweep": {"seed": (0, 2**70)}}, "seed = 1180591620717411303424 is above 4294967295"),
    ],
)
def test_numbers_beyond_any_run_are_refused(config, changed, changes, says):
    with pytest.raises(UserError, match=says):
        train_dictionary(changed(config, **changes))


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    source = Live(site=("blocks.0.resid_post",), context=32, max_tokens_per_group=300, buffer_tokens=128)
    method = OPTIONS["relu"](n_latents=16, l1=0.1)
    out = tmp_path_factory.mktemp("live") / "out"
    return TrainConfig(source=source, method=method, steps=4, batch=64, evaluate_tokens=256, log_every=1, out=out)


def test_filling_the_buffer_is_a_line_of_its_own(live, capsys):
    train_dictionary(live)
    shown = capsys.readouterr().err
    assert "filling the buffer 2/2" in shown
    assert "train 4/4" in shown
    assert "/6" not in shown


def test_steps_and_dead_latents_are_counted_without_the_filling(live, changed):
    """The last line is the run's last step; a dead fraction comes when a latent can be dead; one number of tokens."""
    first = changed(live, log_every=1, out=live.out.with_name("first"))
    train_dictionary(first)
    lines = [json.loads(line) for line in (first.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert not [line for line in lines if "dead_fraction" in line]
    (note,) = [n for n in json.loads((first.out / "results.json").read_text())["notes"] if "not yet countable" in n]
    assert f" {lines[-1]['tokens_seen']:.0f} tokens were seen" in note
    soon = changed(live, log_every=1, out=live.out.with_name("soon"), method__training__dead_after_tokens=100)
    train_dictionary(soon)
    lines = [json.loads(line) for line in (soon.out / "metrics.jsonl").read_text().splitlines()]
    assert ["dead_fraction" in line for line in lines] == [
        line["tokens_seen"] - line["tokens"] >= 100 for line in lines
    ]
    assert "dead_fraction" in lines[-1]


def test_no_number_is_shown_before_a_step_learned(live, changed, monkeypatch):
    """While the buffer fills a method's numbers are zeros; those of its first step are there one log point later."""
    shown = []

    @contextlib.contextmanager
    def recorded(title):
        yield lambda done, total, text: shown.append((title, done, text))

    monkeypatch.setattr("jaxneuro.training.run.rich_progress", recorded)
    train_dictionary(changed(live, out=live.out.with_name("recorded")))
    assert {title for title, *_ in shown} == {"filling the buffer", "train"}
    early = [text for title, done, text in shown if title != "train" or done < 2]
    assert len(early) >= 4
    assert {part for text in early for part in text.split(", ") if not part.endswith("tokens/s")} <= {"", "compiling"}
    assert all("fvu " in text and "fvu 0," not in text for title, done, text in shown if title == "train" and done >= 2)
    assert shown[-1][:2] == ("train", 4)
    assert "dead: not yet countable" in shown[-1][2]
    assert not any("dead_fraction" in text for *_, text in shown)


def test_ids_and_positions_are_left_out_of_training_and_judging(live, changed):
    """Every position but the first eight of 32: a quarter of the tokens of full windows is left."""
    most = changed(live, out=live.out.with_name("most"), source__without_positions=tuple(range(8, 32)))
    train_dictionary(most)
    lines = [json.loads(line) for line in (most.out / "metrics.jsonl").read_text().splitlines()]
    assert 0 < max(line["tokens"] for line in lines) <= 64 // 4
    everything = tuple(range(load(live.source.model).cfg.d_vocab))
    for ids, message in [(everything, "leave no token of the first batch"), ((2**16,), "not in the vocabulary")]:
        with pytest.raises(UserError, match=message):
            train_dictionary(changed(live, out=live.out.with_name("none"), source__without_ids=ids))
    with pytest.raises(UserError, match="positions count from 0"):
        train_dictionary(changed(live, out=live.out.with_name("none"), source__without_positions=(-1,)))


def test_a_site_of_several_layers_is_refused_with_the_way_out(live, changed):
    several = changed(live, out=live.out.with_name("several"), source__site=("blocks.*.resid_post",))
    with pytest.raises(UserError, match=r"one layer, such as blocks.3.resid_post; several: crosscoder"):
        train_dictionary(several)
