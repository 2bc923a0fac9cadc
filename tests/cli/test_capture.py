# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro capture` as a person meets it: what it leaves, what it refuses, and that both ways to keep agree."""

import json

import jax
import numpy as np
import pytest

from jaxneuro.activations import open_activations
from jaxneuro.activations.text import model_and_tokenizer, read_windows
from jaxneuro.cli import main
from jaxneuro.taps import capture

SITES = ["blocks.0.mlp.post", "blocks.1.mlp.post", "embed"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two groups of a few hundred tokens."""
    folder = tmp_path_factory.mktemp("text")
    for name, words in {"one": "the cat sat on the mat and ", "two": "der Hund lief durch den Wald und "}.items():
        (folder / f"{name}.txt").write_text("\n".join(words * 6 + str(i) for i in range(8)))
    return folder


def command(text, out, *more):
    asked = ["--site", "blocks.0,1.mlp.post", "embed", "--groups", text, "--context", "16", "--batch", "4"]
    return ["capture", "bundled", *map(str, [*asked, "--out", out, *more])]


@pytest.fixture(scope="module")
def kept(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "acts"
    assert main(command(text, out)) == 0
    return out


def test_a_store_for_every_site_and_layer(kept, text):
    assert sorted(p.name for p in kept.iterdir()) == sorted([*SITES, "capture.json"])
    model, tokenizer = model_and_tokenizer("bundled", dtype="float32")
    rows = read_windows(model, tokenizer, str(text), length=16)
    batch = rows.rows(np.arange(len(rows)))
    _, want = jax.jit(capture(model.apply, SITES))(model.weights, batch["tokens"], batch["mask"])
    for site in SITES:
        acts = open_activations(kept / site)
        assert len(acts) == batch["counted"].sum()
        np.testing.assert_allclose(acts.x, np.asarray(want[site])[acts.window, acts.pos], rtol=1e-4, atol=1e-5)
    settings = json.loads((kept / "capture.json").read_text())
    assert settings["config"]["context"] == 16
    assert settings["versions"]["jax"] == jax.__version__


def test_moments_are_those_of_the_values(kept, text, tmp_path):
    assert main(command(text, tmp_path / "acts", "--keep", "moments")) == 0
    found = np.load(tmp_path / "acts" / "moments.npz", allow_pickle=False)
    assert {name.partition("/")[0] for name in found} == set(SITES)
    for site in SITES:
        x = np.asarray(open_activations(kept / site).x, np.float64)
        assert found[f"{site}/count"] == len(x)
        np.testing.assert_allclose(found[f"{site}/mean"], x.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"{site}/variance"], x.var(0), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found[f"{site}/max"], x.max(0), rtol=1e-4, atol=1e-5)


def test_moments_without_sinks(kept, text, tmp_path, capsys):
    """Positions that are left out count nowhere; stored values keep theirs as labels."""
    flags = ["--without-positions", "0", "3"]
    assert main(command(text, tmp_path / "acts", "--keep", "moments", *flags)) == 0
    found = np.load(tmp_path / "acts" / "moments.npz", allow_pickle=False)
    for site in SITES:
        acts = open_activations(kept / site)
        x = np.asarray(acts.x, np.float64)[~np.isin(acts.pos, [0, 3])]
        assert 0 < len(x) < len(acts.x)
        assert found[f"{site}/count"] == len(x)
        np.testing.assert_allclose(found[f"{site}/mean"], x.mean(0), rtol=1e-4, atol=1e-5)
    assert main(command(text, tmp_path / "values", *flags)) == 2
    assert "--without-ids and --without-positions are of --keep moments of text" in capsys.readouterr().err
    assert main(command(text, tmp_path / "values", "--max-norm", "3")) == 2
    assert "--max-norm is of --keep moments" in capsys.readouterr().err
    assert main(command(text, tmp_path / "acts", "--keep", "moments")) == 2
    assert "moments of another capture: without_positions were others" in capsys.readouterr().err


def test_moments_without_long_tokens(kept, text, tmp_path, capsys):
    """Each site by its own median, of its first batch: here the whole text."""
    flags = ["--keep", "moments", "--batch", "64", "--max-norm"]
    assert main(command(text, tmp_path / "acts", *flags, "1.1")) == 0
    found = np.load(tmp_path / "acts" / "moments.npz", allow_pickle=False)
    for site in SITES:
        x = np.asarray(open_activations(kept / site).x, np.float64)
        length = np.linalg.norm(x, axis=1)
        x = x[length <= 1.1 * np.median(length)]
        assert 0 < len(x) < len(length)
        assert abs(found[f"{site}/count"] - len(x)) <= 1, "a norm at the limit may round to either side"
        np.testing.assert_allclose(found[f"{site}/mean"], x.mean(0), atol=0.02 * np.abs(x).max())
    assert main(command(text, tmp_path / "other", *flags, "0.5")) == 2
    assert "leave out half of all tokens" in capsys.readouterr().err


def test_the_same_command_again_is_done(kept, text, capsys):
    before = (kept / "embed" / "meta.json").stat().st_mtime_ns
    assert main(command(text, kept)) == 0
    assert (kept / "embed" / "meta.json").stat().st_mtime_ns == before
    assert "is complete" in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["values", "moments"])
def test_what_dead_processes_left_goes(keep, text, tmp_path):
    """In a folder that is finished too."""
    out = tmp_path / "acts"
    assert main(command(text, out, "--keep", keep)) == 0
    left = [out / ".capture.json.999999999-1.tmp", out / ".moments.npz.999999999.tmp"]
    left += [p / ".meta.json.999999999-1.tmp" for p in out.iterdir() if p.is_dir()]
    for path in left:
        path.write_text("{")
    assert main(command(text, out, "--keep", keep)) == 0
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("keep", ["values", "moments"])
def test_a_name_that_is_too_long_is_said(keep, text, capsys):
    assert main(command(text, "x" * 300, "--keep", keep)) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxneuro: cannot use xxx")
    assert "a name may have 255 bytes" in said


def test_spread_over_devices(kept, text, tmp_path):
    assert main(command(text, tmp_path / "acts", "--devices.data", "2", "--devices.model", "2")) == 0
    for site in SITES:
        one, four = open_activations(kept / site), open_activations(tmp_path / "acts" / site)
        np.testing.assert_array_equal(one.window, four.window)
        np.testing.assert_allclose(one.x, four.x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--site", "blocks.0.mlp.pst"], "mlp.post"),
        (["--site", "blocks.99.mlp.post"], "layers"),
        (["--site", "blocks.0.attn.pattern"], "attn.z"),
        (["--batch", "3", "--devices.data", "2"], "devices.data"),
        (["--devices.data", "999"], "are there"),
        (["--devices.model", "0"], "at least"),
        (["--context", "1"], "below 2"),
        (["--groups", "nowhere-at-all"], "nowhere-at-all"),
        (["--store", "bfloat16"], "other activations"),
    ],
)
def test_what_cannot_be_done(kept, text, more, said, capsys):
    assert main(command(text, kept, *more)) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("jaxneuro: ") == 1
    assert sorted(p.name for p in kept.iterdir()) == sorted([*SITES, "capture.json"])


def test_a_pattern_of_sites_and_every_site(text, tmp_path, capsys):
    asked = ["capture", "bundled", "--groups", str(text), "--context", "16", "--keep", "moments", "--max-tokens", "64"]
    for pattern, some in {
        "*": {"embed", "logits", "blocks.5.mlp.gate"},
        "blocks.0.mlp.p*": {"blocks.0.mlp.pre"},
    }.items():
        out = tmp_path / f"of{len(pattern)}"
        assert main([*asked, "--site", pattern, "--out", str(out)]) == 0
        found = {name.partition("/")[0] for name in np.load(out / "moments.npz", allow_pickle=False)}
        assert some < found
        assert not {name for name in found if name.endswith("pattern")}
    assert found == {f"blocks.0.mlp.{name}" for name in ("pre", "pre_linear", "post")}
    assert "leaves out blocks.attn.scores, blocks.attn.pattern" in capsys.readouterr().err
    assert main([*asked, "--site", "blocks.*.mpl.*", "--out", str(tmp_path / "none")]) == 2
    assert "no site 'blocks.*.mpl.*'. Did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("site", ["*", "blocks.*", "blocks.*.mlp.*"])
def test_where_one_site_is_meant_a_pattern_is_refused(site, text, tmp_path, capsys):
    live = ["live", "--site", site, "--groups", str(text), "--context", "16", "topk", "--n-latents", "8", "--k", "2"]
    steps = ["--steps", "2", "--batch", "32", "--evaluate-tokens", "0"]
    assert main(["train-dictionary", "--out", str(tmp_path / "d"), *steps, *live]) == 2
    assert "is a pattern of sites, and one site is meant here" in capsys.readouterr().err
    np.save(tmp_path / "v.npy", np.ones(192, np.float32))
    assert main(["generate", "bundled", "--prompt", "a", "--steer", str(tmp_path / "v.npy"), "--site", site]) == 2
    assert "is a pattern of sites, and one site is meant here" in capsys.readouterr().err


def test_text_of_other_fields_is_captured(tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text('id,body\n1,"Die Datei ist nicht vorhanden, sagt er."\n2\n3,The file does not exist at all.\n')
    given = ["capture", "--site", "blocks.0.resid_post", "--groups", str(rows), "--context", "8", "--keep", "moments"]
    more = ["--out", str(tmp_path / "out"), "--text.field", "body"]
    assert main([*given, *more]) == 2
    assert "rows.csv, line 3: 1 fields, but the first row names 2 (id, body)" in capsys.readouterr().err
    assert main([*given, *more, "--text.skip-bad-rows"]) == 0
    assert "1 bad record was skipped" in capsys.readouterr().err
    assert (tmp_path / "out" / "moments.npz").is_file()
