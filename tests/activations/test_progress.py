# SPDX-License-Identifier: Apache-2.0
"""Lines for a file, a bar for a terminal."""

import io

from jaxneuro.activations import rich_progress
from jaxneuro.activations.progress import _lines


def test_lines_say_how_far_how_fast_and_how_long():
    out, times = io.StringIO(), iter([0.0, 0.0, 5.0, 15.0, 25.0, 40.0])
    show = _lines("learn", out, 10.0, lambda: next(times))
    for done in (0, 20, 100, 180, 400):  # 20 steps with the compilation took 5 s, then 8 steps take 1 s
        show(done, 400, "loss 0.5")
    assert out.getvalue().splitlines() == [
        "learn 100/400 38 s left loss 0.5",
        "learn 180/400 28 s left loss 0.5",
        "learn 400/400 loss 0.5",
    ]


def test_an_unknown_total_and_no_terminal():
    out = io.StringIO()
    with rich_progress("read", file=out, every_s=0) as progress:
        progress(3, None, "")
    assert out.getvalue() == "read 3\n"


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with rich_progress("learn", file=out) as progress:
        progress(1, 4, "loss [0.5]")
        progress(4, 4, "loss [0.25]")
    assert "learn" in out.getvalue()
    assert "4/4" in out.getvalue()
    assert "loss [0.25]" in out.getvalue()  # not taken for markup
