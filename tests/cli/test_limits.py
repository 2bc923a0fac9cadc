# SPDX-License-Identifier: Apache-2.0
"""What a model does not have is refused in one sentence, the same by every command."""

import pytest

from jaxneuro.cli import main

BEYOND = {
    "study": ["--model", "bundled", "--window", "513"],
    "capture": ["bundled", "--site", "blocks.0.resid_post", "--window", "513"],
    "train-dictionary": [
        *("--batch", "513", "live", "--context", "513", "--site", "blocks.0.resid_post"),
        *("topk", "--n-latents", "8", "--k", "2"),
    ],
}
LAYERS = {
    "capture": ["bundled", "--site", "blocks.0.resid_post", "blocks.9.resid_post"],
    "capture moments": ["bundled", "--keep", "moments", "--site", "blocks.9.resid_post"],
    "train-dictionary": ["live", "--site", "blocks.9.resid_post", "topk", "--n-latents", "8", "--k", "2"],
    "train-dictionary target": [
        *("live", "--site", "blocks.1.ln2.normalized", "--target", "blocks.9.mlp_out"),
        *("transcoder", "--n-latents", "8", "--k", "2"),
    ],
}


def said(capsys, command, arguments, out):
    job, *flags = arguments
    first = [job] if command == "capture" else []
    rest = flags if first else arguments
    assert main([command, *first, "--out", str(out), *rest]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", BEYOND)
def test_windows_beyond_the_models_context(command, capsys, tmp_path):
    """The bundled model has rotary positions, so that nothing but its config ends them."""
    line = said(capsys, command, BEYOND[command], tmp_path / "out")
    assert "513" in line
    assert "only 512 positions" in line


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_the_model_does_not_have(name, capsys, tmp_path):
    line = said(capsys, name.partition(" ")[0], LAYERS[name], tmp_path / "out")
    assert "no layer 9 at 'blocks." in line
    assert "It has layers 0 to 5." in line
