# SPDX-License-Identifier: Apache-2.0
"""JSON lines, and what is only there if its package is."""

import json
import math
import sys
import types

import pytest

from jaxneuro.activations import JsonLines, MetricSink, TensorBoard, WandB
from jaxneuro.activations.metrics import Rewindable, open_sink
from jaxneuro.errors import UserError


def test_lines_are_json_and_rewind_cuts(tmp_path):
    sink = JsonLines(tmp_path / "new" / "m.jsonl")
    sink.write(1, {"a": 0.1, "n": 3, "bad": math.inf})
    mark = sink.position()
    sink.write(2, {"a": 0.2})
    sink.close()
    again = JsonLines(tmp_path / "new" / "m.jsonl")
    again.rewind(mark, 1)
    again.write(2, {"a": 0.3})
    again.close()
    text = (tmp_path / "new" / "m.jsonl").read_text()
    assert [json.loads(t) for t in text.splitlines()] == [
        {"step": 1, "a": 0.1, "n": 3, "bad": None},
        {"step": 2, "a": 0.3},
    ]
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_folder_instead_of_a_file(tmp_path):
    with pytest.raises(UserError, match="cannot write metrics to"):
        JsonLines(tmp_path)


@pytest.mark.parametrize(
    ("module", "make"), [("tensorboardX", lambda path: TensorBoard(path)), ("wandb", lambda path: WandB())]
)
def test_absent_packages_are_named(tmp_path, monkeypatch, module, make):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"need the package {module}, which is not installed: pip install {module}"):
        make(tmp_path)


def test_tensorboard_gets_scalars_and_the_step_to_hide_from(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder, **options):
            calls.append(("open", folder, options))

        def __getattr__(self, name):
            return lambda *args: calls.append((name, *args))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    sink = TensorBoard(tmp_path)
    assert isinstance(sink, MetricSink)
    assert isinstance(sink, Rewindable)
    sink.rewind(0, 20)
    sink.write(24, {"loss": 0.5, "l0": 32})
    sink.close()
    assert calls == [
        ("open", str(tmp_path), {"purge_step": 21}),
        ("add_scalar", "loss", 0.5, 24),
        ("add_scalar", "l0", 32, 24),
        ("close",),
    ]


def test_wandb_gets_rows(monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **o: calls.append(o) or run))
    sink = WandB(project="p", resume="allow")
    sink.write(3, {"loss": 1.0})
    sink.close()
    assert calls == [{"project": "p", "resume": "allow"}, (3, {"loss": 1.0}), "end"]


def test_what_may_be_given(tmp_path):
    assert open_sink(None) is None
    sink = open_sink(str(tmp_path / "m.jsonl"))
    assert isinstance(sink, JsonLines)
    assert open_sink(sink) is sink
    sink.close()
